"""NVIDIA GPUs: whether there is one, its memory, waiting for it, and streams.

`sg.compile(step, device="cuda")` runs a step on the GPU; tensors go there and back with `Tensor.to`. Work is queued and
runs while Python goes on; reading a value waits for it. `docs/gpu.md` has the details.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from staticgrad.graph.errors import DeviceError
from staticgrad.kernels import precision as _precision
from staticgrad.kernels.device import find_device, forget


class DeviceProperties(NamedTuple):
    """What a GPU is.

    Attributes:
        name: as its maker has it.
        capability: its compute capability, such as (9, 0).
        multi_processor_count: processors, each of which runs several blocks of threads at a time.
        total_memory: in bytes.
    """

    name: str
    capability: tuple[int, int]
    multi_processor_count: int
    total_memory: int


def _hardware(device: str) -> Any:
    found = find_device(device)
    hardware = getattr(found, "hardware", None)
    if hardware is None:
        raise DeviceError(f"cuda: needs a GPU, such as 'cuda:0'; got {device!r}")
    return hardware


def why_unavailable() -> str:
    """Why no GPU can be used; empty where one can."""
    try:
        _hardware("cuda")
    except DeviceError as error:
        return str(error)
    return ""


def is_available() -> bool:
    """Whether programs can run on `device="cuda"`."""
    return not why_unavailable()


def get_device_properties(device: str = "cuda") -> DeviceProperties:
    """What a GPU is.

    Raises:
        DeviceError: it cannot be used.
    """
    hardware = _hardware(device)
    total = hardware.memory_info()[1]
    return DeviceProperties(hardware.title, hardware.capability, hardware.target.processors, total)


def synchronize(device: str = "cuda") -> None:
    """Wait until all work queued on a GPU is done.

    Raises:
        DeviceError: a kernel has failed.
    """
    _hardware(device).synchronize()


def memory_info(device: str = "cuda") -> tuple[int, int]:
    """Bytes free for new tensors, and all there are."""
    found: tuple[int, int] = _hardware(device).memory_info()
    return found


def memory_allocated(device: str = "cuda") -> int:
    """Bytes that tensors and compiled programs hold."""
    return int(_hardware(device).memory_used()[0])


def max_memory_allocated(device: str = "cuda") -> int:
    """The most bytes held at any one time, since the start or `reset_peak_memory_stats`."""
    return int(_hardware(device).memory_used()[1])


def reset_peak_memory_stats(device: str = "cuda") -> None:
    """Begin anew with `max_memory_allocated`."""
    _hardware(device).forget_peak()


@contextmanager
def stream(device: str = "cuda") -> Iterator[Any]:
    """Queue what is done inside the block on a stream of its own, beside other work of the GPU.

    Tensors used on several streams are waited for where that is needed.

    Yields: the stream; its `synchronize()` waits for it.
    """
    hardware = _hardware(device)
    with hardware.on(hardware.new_stream()) as made:
        yield made


def get_matmul_precision() -> str:
    """How matrix products in float32 are computed by what is compiled now."""
    return _precision.current()


def set_matmul_precision(precision: str, device: str = "cuda") -> None:
    """Have matrix products computed so by all that is compiled from now on; see `matmul_precision`.

    Raises:
        DeviceError: as `matmul_precision`.
    """
    _needs_library(precision, device)
    _precision.set_everywhere(precision)


def matmul_precision(precision: str, device: str = "cuda") -> AbstractContextManager[None]:
    """How matrix products in float32 are computed on a GPU, by functions compiled and ops run inside the `with` block.

    "float32" is exact to rounding, and the default. "tf32" rounds the factors to 10 bits of fraction and "bfloat16" to
    7, where cuBLAS computes a product because it is faster so; sums are in float32 always. A function that has been
    compiled keeps the precision that it was compiled with.

    Raises:
        DeviceError: there is no such precision; or it is not "float32", and there is no cuBLAS on the device.
    """
    _needs_library(precision, device)
    return _precision.Using(precision)


def _needs_library(precision: str, device: str) -> None:
    if _precision.checked(precision) == "float32":
        return
    hardware = _hardware(device)
    if hardware.library is None:
        raise DeviceError(f"matmul_precision: only cuBLAS computes in {precision!r}; {hardware.library_trouble}")


def reset(device: str = "cuda") -> None:
    """Give back everything that this process has on a GPU and begin anew, after a failure that has left it unusable.

    Tensors that lived there, functions compiled for it, and what other libraries had there are lost.

    Raises:
        DeviceError: the driver does not let this process use the GPU again; a new process can.
    """
    hardware = _hardware(device)
    hardware.close()
    forget(hardware.name)
    _hardware(hardware.name)


__all__ = [
    "DeviceProperties",
    "get_device_properties",
    "get_matmul_precision",
    "is_available",
    "matmul_precision",
    "max_memory_allocated",
    "memory_allocated",
    "memory_info",
    "reset",
    "reset_peak_memory_stats",
    "set_matmul_precision",
    "stream",
    "synchronize",
    "why_unavailable",
]
