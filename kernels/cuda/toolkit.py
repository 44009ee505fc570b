"""The one file that knows the packages of CUDA: Numba's compiler for it, the linker, and NVIDIA's driver.

Nothing here is imported before a program for a GPU is asked for. `compiled` needs no GPU and no driver. With
NUMBA_ENABLE_CUDASIM=1 in the environment when Numba is first imported, `cuda` is its simulator, which compiles nothing.
"""
# mypy: disable-error-code="no-untyped-call, attr-defined, misc"

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from staticgrad.graph.errors import DeviceError
from staticgrad.kernels.kernel import Kernel

INSTALL = "install the CUDA packages with: pip install 'staticgrad[cuda]'"

try:
    from numba import cuda
    from numba.core import config
except ImportError as missing:  # pragma: no cover - the tests have it
    raise DeviceError(f"cuda: numba-cuda is not installed; {INSTALL}") from missing

SIMULATED = bool(config.ENABLE_CUDASIM)
OLDEST = (8, 0)  # the compute capability that kernels are written for, and tested from


@dataclass(frozen=True)
class Resources:
    """What the machine code of a kernel takes of a multiprocessor, for each thread; spills are in bytes."""

    registers: int
    spills: int
    stack: int


@lru_cache(64)  # a kernel that has been measured for a choice is compiled again with its program
def ptx_of(kernel: Kernel, capability: tuple[int, int]) -> str:
    """A kernel as the assembly of NVIDIA's virtual machine, its entry under the kernel's symbol.

    Raises:
        DeviceError: the CUDA packages do not fit together, or lack the compiler.
    """
    from numba.cuda import types

    from staticgrad.kernels.cuda import dialect

    namespace: dict[str, Any] = {**dialect.names(), "cuda": cuda}
    exec(compile(kernel.source, f"<{kernel.symbol}>", "exec"), namespace)
    pointers = tuple(types.CPointer(dialect.element_type(dtype)) for dtype in kernel.dtypes)
    bounds = namespace.get("launch_bounds")
    try:
        text, _ = cuda.compile_ptx(namespace["kernel"], pointers, cc=capability, launch_bounds=bounds)
    except (cuda.CudaSupportError, OSError, RuntimeError) as error:
        if "nvvm" in str(error).lower() or "libnvvm" in repr(error).lower() or isinstance(error, OSError):
            raise DeviceError(f"cuda: the compiler library (libNVVM) cannot be used: {error}; {INSTALL}") from error
        raise
    (entry,) = re.findall(r"\.entry\s+(\w+)", text)
    return str(text).replace(entry, kernel.symbol)


def linked(texts: Sequence[str], capability: tuple[int, int]) -> tuple[bytes, dict[str, Resources]]:
    """The machine code of kernels for one kind of GPU, and what each of them takes."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        for number, text in enumerate(texts):
            data = text.encode()
            nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), f"kernels {number}")
        nvjitlink.complete(handle)
        code = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, code)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, log)
        raise DeviceError(f"cuda: the kernels cannot be linked: {log.decode(errors='replace').strip()}") from error
    finally:
        nvjitlink.destroy(handle)
    return bytes(code), _resources(log.decode(errors="replace"))


_ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def _resources(log: str) -> dict[str, Resources]:
    return {
        name: Resources(int(registers), int(stores) + int(loads), int(stack))
        for name, stack, stores, loads, registers in _ENTRY.findall(log)
    }


@cache
def driver() -> Any:
    """NVIDIA's driver, ready for use.

    Raises:
        DeviceError: the driver is missing or cannot be used.
    """
    from cuda.bindings import driver as found

    try:
        (code,) = found.cuInit(0)
    except Exception as error:  # the loader of the driver's library has errors of its own
        raise DeviceError(
            "cuda: no NVIDIA driver was found on this machine (libcuda.so.1); install the driver, or use device='cpu'"
        ) from error
    if int(code):
        _, text = found.cuGetErrorString(code)
        raise DeviceError(f"cuda: the NVIDIA driver cannot be used: {text.decode()}; nvidia-smi shows its state")
    return found


@cache
def versions() -> str:
    """The packages that machine code depends on."""
    from importlib import metadata

    names = ("numba-cuda", "cuda-bindings", "nvidia-nvvm", "nvidia-nvjitlink")
    found = []
    for name in names:
        try:
            found.append(f"{name}-{metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name}-none")
    return "/".join(found)


__all__ = ["OLDEST", "SIMULATED", "Resources", "cuda", "driver", "linked", "ptx_of", "versions"]
