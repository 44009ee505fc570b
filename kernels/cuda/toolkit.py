"""The one file that knows the packages of CUDA: Numba's compiler for it, the linker, and NVIDIA's driver.

Nothing here is imported before a program for a GPU is asked for. `compiled` needs no GPU and no driver. With
NUMBA_ENABLE_CUDASIM=1 in the environment when Numba is first imported, `cuda` is its simulator, which compiles nothing.
"""
# mypy: disable-error-code="no-untyped-call, attr-defined, misc"

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from staticgrad.graph.errors import DeviceError
from staticgrad.kernels.kernel import Kernel

INSTALL = "install the CUDA packages with: pip install 'staticgrad[cuda]'"

if importlib.util.find_spec("numba_cuda") is None:  # Numba has an old numba.cuda of its own
    raise DeviceError(f"cuda: numba-cuda is not installed; {INSTALL}")
try:
    from numba import cuda
    from numba.core import config
except ImportError as error:
    raise DeviceError(f"cuda: numba-cuda cannot be imported: {error}; {INSTALL}") from error

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
    pointers = [types.CPointer(dialect.element_type(dtype)) for dtype in kernel.dtypes]
    arguments = (*pointers, *map(dialect.element_type, kernel.values))
    bounds = namespace.get("launch_bounds")
    try:
        text, _ = cuda.compile_ptx(namespace["kernel"], arguments, cc=capability, launch_bounds=bounds)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "nvvm" not in str(error).lower():
            raise
        raise DeviceError(f"cuda: the compiler library (libNVVM) cannot be used: {error}; {INSTALL}") from error
    (entry,) = re.findall(r"\.entry\s+(\w+)", text)
    return str(text).replace(entry, kernel.symbol)


def machine_code(kernels: Sequence[Kernel], capability: tuple[int, int]) -> bytes:
    """The machine code of kernels for one kind of GPU; raises as `ptx_of` and `linked` do."""
    return linked([ptx_of(kernel, capability) for kernel in kernels], capability)[0]


def linked(texts: Sequence[str], capability: tuple[int, int]) -> tuple[bytes, dict[str, Resources]]:
    """The machine code of kernels for one kind of GPU, and what each of them takes.

    Raises:
        DeviceError: the linker is missing, does not know this kind of GPU, or is older than the compiler.
    """
    arch = f"sm_{capability[0]}{capability[1]}"
    options = [f"-arch={arch}", "-verbose"]
    try:
        from cuda.bindings import nvjitlink

        handle = nvjitlink.create(len(options), options)
    except Exception as error:  # the loader of the library has errors of its own
        raise DeviceError(
            f"cuda: the linker (nvJitLink) cannot be used for {arch}: {error}; {INSTALL}, in their newest versions"
        ) from error
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
        said = " ".join(log.rstrip(b"\0").decode(errors="replace").split())
        raise DeviceError(
            f"cuda: the kernels cannot be linked for {arch}: {said}; made by {versions()}: install packages of one "
            "CUDA version"
        ) from error
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
    try:
        from cuda.bindings import driver as found
    except ImportError as error:
        raise DeviceError(f"cuda: cuda-bindings cannot be imported: {error}; {INSTALL}") from error
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


__all__ = ["OLDEST", "SIMULATED", "Resources", "cuda", "driver", "linked", "machine_code", "ptx_of", "versions"]
