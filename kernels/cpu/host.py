"""What native code depends on beside its own text: the keys under which programs and kernels are kept."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import sys
from functools import cache
from pathlib import Path

from staticgrad.kernels.source_digest import source_digest

FORMAT_VERSION = 2


@cache
def host_key() -> str:
    """The CPU, the platform, LLVM and our format. Part of every key; asking loads no LLVM where Linux tells the CPU."""
    name, features = _described_by_linux() or _described_by_llvm()
    digest = hashlib.sha256(features.encode()).hexdigest()[:16]
    system = f"{sys.platform}-{platform.machine()}"
    return f"{system}/{name}/{digest}/llvmlite-{installed_version('llvmlite')}/{FORMAT_VERSION}"


def _described_by_linux() -> tuple[str, str] | None:
    """The model and the features of the first core, as LLVM would find them."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            text = file.read(1 << 16).partition(b"\n\n")[0].decode("utf-8", "replace")
    except OSError:
        return None
    pairs = [line.partition(":") for line in text.splitlines()]
    found = {name.strip(): value.strip() for name, _, value in pairs}
    flags = found.get("flags")
    family = [found.get(name, "") for name in ("vendor_id", "cpu family", "model", "stepping")]
    return ("-".join(family), flags) if flags else None


def _described_by_llvm() -> tuple[str, str]:
    from staticgrad.kernels.cpu.llvm import host_cpu

    return host_cpu()


@cache
def toolchain_key() -> str:
    """What compiled kernels depend on beside their graph: the host, Numba, NumPy, Python and our own code generation.

    Reads names of installed folders and the text of this package: asking does not import Numba.
    """
    versions = [f"{name}-{installed_version(name)}" for name in ("numba", "numpy")]
    python = f"python-{sys.version_info[0]}.{sys.version_info[1]}"
    return "/".join([host_key(), *versions, python, f"source-{source_digest('cpu')}"])


@cache
def installed_version(package: str) -> str:
    """A package's version, from the name of the folder that its installer leaves beside it."""
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        beside = Path(spec.origin).parent.parent.glob(f"{package}-*.dist-info")
        found = sorted(path.name.removesuffix(".dist-info").partition("-")[2] for path in beside)
        if found:
            return "+".join(found)
    from importlib import metadata  # knows every layout, and takes ten times as long to import

    return metadata.version(package)
