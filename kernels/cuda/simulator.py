"""A GPU played by Python threads: the kernels run as they are written, a few threads to a block.

Numba's simulator runs the blocks one after the other. What it does not have, the exchange of values inside a warp and
pointers, stands here; a pointer that leaves its allocation raises IndexError.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from staticgrad.graph.node import DType
from staticgrad.graph.ops import numpy_math
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Kernel

Array = np.ndarray[Any, Any]
SMALL = Target(warp=4, block=8, largest_block=16, processors=2, small=64)
SWITCH_SECONDS = 1e-4  # how long a Python thread runs before another one gets its turn
_running = threading.Lock()  # Numba simulates one launch at a time
_reporting = threading.Lock()


class Memory:
    """The device's memory: allocations by address."""

    def __init__(self) -> None:
        self._blocks: dict[int, Array] = {}
        self._starts: list[int] = []

    def allocate(self, nbytes: int) -> int:
        """The address of new memory, aligned as a device's is; its bytes are not zero."""
        block = np.full(nbytes + 256, 0xA5, np.uint8)
        start = block.ctypes.data + -block.ctypes.data % 256
        self._blocks[start] = block[start - block.ctypes.data :][:nbytes]
        self._starts = sorted(self._blocks)
        return start

    def free(self, address: int) -> None:
        """Give an allocation back."""
        del self._blocks[address]
        self._starts = sorted(self._blocks)

    def at(self, address: int) -> Array:
        """The bytes from an address to the end of its allocation."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            raise IndexError(f"cuda simulator: {address:#x} is no address of the device")
        start = self._starts[place]
        block = self._blocks[start]
        if address - start > len(block):
            raise IndexError(f"cuda simulator: {address:#x} is no address of the device")
        return block[address - start :]

    @property
    def used(self) -> int:
        """Bytes allocated."""
        return sum(len(block) for block in self._blocks.values())


class Pointer:
    """An address with a dtype, as kernels index it."""

    def __init__(self, memory: Array, dtype: DType) -> None:
        kind = np.dtype(np.uint8) if dtype == np.bool_ else dtype
        self._elements = memory[: len(memory) // kind.itemsize * kind.itemsize].view(kind)

    def __getitem__(self, index: int) -> Any:
        if index < 0:
            raise IndexError(f"cuda simulator: index {index} lies before the memory of a pointer")
        return self._elements[index]

    def __setitem__(self, index: int, value: Any) -> None:
        if index < 0:
            raise IndexError(f"cuda simulator: index {index} lies before the memory of a pointer")
        self._elements[index] = value


def build(kernel: Kernel) -> Any:
    """A kernel that `launch` can run."""
    namespace: dict[str, Any] = dict(_names())
    exec(compile(kernel.source + _QUIET, f"<{kernel.symbol}>", "exec"), namespace)
    return toolkit.cuda.jit(namespace["quietly"])


_QUIET = """
def quietly(*pointers):
    with errstate(all="ignore"):
        kernel(*pointers)
"""


def launch(
    function: Any, dtypes: Sequence[DType], memory: Memory, addresses: Sequence[int], grid: int, block: int
) -> None:
    """Run all blocks of one launch."""
    pointers = [Pointer(memory.at(address), dtype) for address, dtype in zip(addresses, dtypes, strict=True)]
    with _running, _quick_turns():
        function[grid, block](*pointers)


@contextmanager
def _quick_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


# ---------------------------------------------------------------- what kernels use


def _exchange(value: Any, distance: int, warp: int) -> Any:
    """The value of the thread whose lane differs in the bit `distance`; all threads of the block come here."""
    me: Any = threading.current_thread()
    values = me._manager.__dict__.setdefault("exchanged", {})
    values[me.thread_id] = value
    me.syncthreads()
    found = values[me.thread_id ^ distance]
    me.syncthreads()
    return found


def _shuffle_xor(value: Any, distance: int) -> Any:
    return _exchange(value, distance, SMALL.warp)


def _shared_memory(count: int, dtype: Any) -> Pointer:
    """The block's memory of the line that asks for it; full of what nobody has written."""
    me: Any = threading.current_thread()
    line = ("shared", sys._getframe(1).f_lineno)
    kind = np.dtype(dtype)
    return Pointer(me._manager.__dict__.setdefault(line, np.full(count * kind.itemsize, 0xFF, np.uint8)), kind)


def _select(condition: Any, x: Any, y: Any) -> Any:
    return x if condition else y


def _check(index: Any, extent: int, status: Pointer, code: Pointer, place: int) -> int:
    if 0 <= place < extent:
        return place
    with _reporting:
        if status[0] == 0:
            status[0], status[1], status[2] = code[0], int(index), extent
    return 0


def _checked_index(index: Any, extent: int, status: Pointer, code: Pointer) -> int:
    place = int(index)
    return _check(index, extent, status, code, place + extent if place < 0 else place)


def _checked_position(index: Any, extent: int, status: Pointer, code: Pointer) -> int:
    return _check(index, extent, status, code, int(index))


def _load(count: int) -> Callable[..., Any]:
    def load(pointer: Pointer, index: int) -> tuple[Any, ...]:
        if index % count:
            raise IndexError(f"cuda simulator: {count} elements at {index}, which is not aligned")
        return tuple(pointer[index + k] for k in range(count))

    return load


def _store(pointer: Pointer, index: int, *values: Any) -> None:
    if index % len(values):
        raise IndexError(f"cuda simulator: {len(values)} elements at {index}, which is not aligned")
    for k, value in enumerate(values):
        pointer[index + k] = value


@cache
def _names() -> Mapping[str, Any]:
    names = {name: value for name, value in vars(numpy_math).items() if callable(value) and not name.startswith("_")}
    dtypes = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
    names |= {name: getattr(np, name) for name in dtypes}
    names |= {"larger": np.maximum, "smaller": np.minimum, "select": _select, "shuffle_xor": _shuffle_xor}
    names |= {"quotient": lambda x, y: x // y, "rest": lambda x, y: x % y, "checked_index": _checked_index}
    names |= {"shared_memory": _shared_memory}
    names |= {"checked_position": _checked_position, "load2": _load(2), "load4": _load(4), "store2": _store}
    names |= {"store4": _store, "inf": float("inf"), "nan": float("nan"), "errstate": np.errstate}
    return names | {"cuda": toolkit.cuda, "min": min, "range": range, "bool": bool}
