"""Say what this machine offers: processor, BLAS, versions, cache and optional packages."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
from typing import Any

from staticgrad.cli.cache import describe, listed

_REQUIRED = ("numpy", "numba", "llvmlite", "scipy", "safetensors")
_OPTIONAL = {"tqdm": "cli", "matplotlib": "viz"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `staticgrad doctor`."""
    command.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the findings; the exit code is 1 if something that staticgrad needs is missing."""
    found = examine()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        lines = found | {"cache": found["cache"]["summary"], "missing": found["missing"] or "nothing"}
        width = max(len(name) for name in lines)
        for name, value in lines.items():
            print(f"{name:<{width}}  {', '.join(value) if isinstance(value, list) else value}")
    return 1 if found["missing"] else 0


def examine() -> dict[str, Any]:
    """The findings by name."""
    versions = {name: _version(name) for name in _REQUIRED}
    missing = [name for name, version in versions.items() if version is None]
    found: dict[str, Any] = {
        "staticgrad": _version("staticgrad") or "not installed",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": _threads(),
        **{name: version or "missing" for name, version in versions.items()},
        "missing": missing,
    }
    if "llvmlite" not in missing:
        found |= _processor()
    if "scipy" not in missing:
        found["BLAS"] = _blas()
        found["BLAS threads"] = os.environ.get("OPENBLAS_NUM_THREADS", "as many as cores (OPENBLAS_NUM_THREADS)")
    found["cache"] = _cache()
    for name, extra in _OPTIONAL.items():
        found[name] = _version(name) or f'not installed (pip install "staticgrad[{extra}]")'
    found["CUDA"] = _cuda()
    return found


def _cuda() -> str:
    """The GPU, or why there is none."""
    from staticgrad import cuda

    why = cuda.why_unavailable()
    if why:
        return why.removeprefix("cuda: ")
    found = cuda.get_device_properties()
    major, minor = found.capability
    size = f"{found.total_memory / 2**30:.0f} GiB"
    return f"{found.name}, compute capability {major}.{minor}, {found.multi_processor_count} processors, {size}"


def _threads() -> str:
    """How many threads a step may use, or why that cannot be told."""
    from staticgrad.kernels.cpu.threads import thread_count

    try:
        return f"{thread_count()} (STATICGRAD_NUM_THREADS)"
    except ValueError as error:
        return str(error)


def _cache() -> dict[str, Any]:
    """The cache after a trial entry was stored and read back, so that a folder which cannot serve is named."""
    from staticgrad.kernels.cache import default_cache

    cache = default_cache()
    works = cache.probe()
    info = cache.info()
    summary = describe(info).removeprefix("cache: ")
    return {"works": works, **listed(info), "summary": summary}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    wide = [name for name in ("sse4.2", "avx", "avx2", "fma", "avx512f", "neon", "sve") if features.get(name)]
    return {"processor": llvm.get_host_cpu_name(), "vector instructions": wide or ["none known"]}


def _blas() -> str:
    from staticgrad.kernels.cpu import blas

    try:
        blas.addresses()
    except (ImportError, OSError, KeyError) as error:
        return f"not found in SciPy: {error}"
    import scipy

    built = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{built.get('name', 'unknown')} {built.get('version', '')}".strip()
