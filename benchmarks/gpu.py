"""The GPU of this machine and what its figures depend on: `python -m benchmarks.gpu` prints it as JSON.

It runs in a process of its own, so that the one that leads the benchmark never holds a part of the GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, environment, usable_cores

PACKAGES = (
    "numpy", "numba", "numba-cuda", "llvmlite", "cuda-bindings", "nvidia-cublas", "torch", "triton", "jax", "jaxlib",
)  # fmt: skip
DRIVER = Path("/proc/driver/nvidia/version")


def asked() -> dict[str, Any]:
    """`describe()` of a process of its own; what it said last where it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT, env=environment(len(usable_cores()), None, "cuda"), check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"missing": f"the process that asks for it ended with {done.returncode}: {said[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def describe() -> dict[str, Any]:
    """The GPU, its driver and the packages by name; or `missing`, why there is none to run on."""
    try:
        import staticgrad as sg
    except ModuleNotFoundError as error:
        return {"missing": f"staticgrad cannot be imported: {error.name} is not installed for {sys.executable}"}
    if importlib.util.find_spec("numba") is None or not _version("numba-cuda"):
        return {"missing": f"numba-cuda is not installed for {sys.executable}"}
    if not sg.cuda.is_available():
        return {"missing": "staticgrad finds no GPU (sg.cuda.is_available() is False): is the driver installed?"}
    properties = dataclasses.asdict(sg.cuda.get_device_properties())
    found: dict[str, Any] = {"gpu": properties.pop("name"), "driver": driver(), "CUDA": _cuda_of_driver()}
    return found | {"properties": properties, "packages": packages()}


def driver() -> str:
    """The version of NVIDIA's driver as the system tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
        return done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        pass
    return DRIVER.read_text().splitlines()[0] if DRIVER.exists() else "unknown"


def _cuda_of_driver() -> str:
    """The newest CUDA that the driver serves."""
    try:
        from cuda.bindings import driver as bindings

        error, version = bindings.cuDriverGetVersion()
    except (ImportError, RuntimeError):  # no such package, or it finds no driver
        return "unknown"
    return "unknown" if error else f"{version // 1000}.{version % 1000 // 10}"


def packages() -> dict[str, str]:
    """The versions of those packages that are installed."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(describe()))
