"""A GPU played by Python threads: the kernels run as they are written, a few threads to a block.

Numba's simulator runs the blocks one after the other. What it does not have, the exchange of values inside a warp and
pointers, stands here; a pointer that leaves its allocation raises IndexError.
"""

from __future__ import annotations

import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.graph.node import DType
from staticgrad.graph.ops import numpy_math
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.cuda.hardware import Bound, Hardware, LaunchSequence, Start, Words, out_of_memory
from staticgrad.kernels.cuda.library import BoundProduct, Library
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Kernel
from staticgrad.kernels.source_names import DTYPES
from staticgrad.kernels.table import ERROR_WORDS

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.array import Buffer

Array = np.ndarray[Any, Any]
SMALL = Target(warp=4, block=8, largest_block=16, processors=2, small=64)
SWITCH_SECONDS = 1e-4  # how long a Python thread runs before another one gets its turn
_running = threading.Lock()  # Numba simulates one launch at a time
_reporting = threading.Lock()


class Memory:
    """The device's memory: allocations by address."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[Array, Array]] = {}  # the bytes, and the array that has them
        self._starts: list[int] = []
        self.peak = 0

    def allocate(self, nbytes: int) -> int:
        """The address of new memory, aligned as a device's is; its bytes are not zero."""
        block = np.full(nbytes + 256, 0xA5, np.uint8)
        start = block.ctypes.data + -block.ctypes.data % 256
        self._blocks[start] = block[start - block.ctypes.data :][:nbytes], block
        self._starts = sorted(self._blocks)
        self.peak = max(self.peak, self.used)
        return start

    def free(self, address: int) -> None:
        """Give an allocation back."""
        del self._blocks[address]
        self._starts = sorted(self._blocks)

    def at(self, address: int) -> Array:
        """The bytes from an address to the end of its allocation."""
        block, start = self.block(address)
        return block[address - start :]

    def block(self, address: int) -> tuple[Array, int]:
        """The allocation that an address lies in, and where that starts."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            raise IndexError(f"cuda simulator: {address:#x} is no address of the device")
        start = self._starts[place]
        block, _ = self._blocks[start]
        if address - start > len(block):
            raise IndexError(f"cuda simulator: {address:#x} is no address of the device")
        return block, start

    @property
    def used(self) -> int:
        """Bytes allocated."""
        return sum(len(block) for block, _ in self._blocks.values())


class Pointer:
    """An address with a dtype, as kernels index it; what lies in front of it may be read too."""

    def __init__(self, block: Array, start: int, dtype: DType) -> None:
        kind = element_type(dtype)
        self._elements = block[: len(block) // kind.itemsize * kind.itemsize].view(kind)
        self._start = start // kind.itemsize

    def __getitem__(self, index: int) -> Any:
        return self._elements[self.place(index)]

    def __setitem__(self, index: int, value: Any) -> None:
        self._elements[self.place(index)] = value

    def load(self, index: int, count: int) -> tuple[Any, ...]:
        """Neighbours, read at once."""
        place = self.vector_place(index, count)
        return tuple(self._elements[place : place + count])

    def store(self, index: int, values: Sequence[Any]) -> None:
        """Write neighbours at once."""
        place = self.vector_place(index, len(values))
        for k, value in enumerate(values):
            self._elements[place + k] = value

    def vector_place(self, index: int, count: int) -> int:
        """Where neighbours lie in their allocation, which must be a multiple of their number."""
        place = self.place(index)
        if place % count or place + count > len(self._elements):
            raise IndexError(f"cuda simulator: {count} elements at {index}, which is not aligned")
        return place

    def place(self, index: int) -> int:
        """Where an element lies in its allocation."""
        place = self._start + index
        if not 0 <= place < len(self._elements):
            raise IndexError(f"cuda simulator: index {index} leaves the allocation of {len(self._elements)} elements")
        return place


def element_type(dtype: DType) -> DType:
    """What kernels are given for elements of `dtype`; booleans are bytes."""
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype


def build(kernel: Kernel) -> Any:
    """A kernel that `launch` can run."""
    namespace: dict[str, Any] = dict(_names())
    exec(compile(kernel.source + _QUIET, f"<{kernel.symbol}>", "exec"), namespace)
    return toolkit.cuda.jit(namespace["quietly"])


_QUIET = """
def quietly(*arguments):
    with errstate(all="ignore"):
        kernel(*arguments)
"""


def launch(
    function: Any,
    dtypes: Sequence[DType],
    memory: Memory,
    addresses: Sequence[int],
    grid: int,
    block: int,
    values: Sequence[Any] = (),
) -> None:
    """Run all blocks of one launch; `values` are the numbers behind the pointers."""
    pointers = []
    for address, dtype in zip(addresses, dtypes, strict=True):
        memory_block, start = memory.block(address)
        pointers.append(Pointer(memory_block, address - start, dtype))
    with _running, _quick_turns():
        function[grid, block](*pointers, *values)


@contextmanager
def _quick_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class SimulatedStream:
    """A stream of the simulator, which does all work at once."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class SimulatedGPU(Hardware):
    """The GPU that the simulator plays."""

    name = "cuda:0"
    title = "Numba's CUDA simulator"
    capability = (9, 0)
    identity = ""
    total_bytes = 2**30
    blocking = True

    def __init__(self, target: Target = SMALL, *, library: bool = False) -> None:
        super().__init__()
        self.target = target
        self.memory = Memory()
        self._library = NumpyLibrary(self.memory) if library else None
        self._stream = SimulatedStream()

    @property
    def stream(self) -> SimulatedStream:
        return self._stream

    @property
    def library(self) -> Library | None:
        return self._library

    def allocate(self, nbytes: int, stream: Any = None) -> int:
        if self.memory.used + nbytes > self.total_bytes:
            raise out_of_memory(self, nbytes)
        return self.memory.allocate(nbytes)

    def free(self, address: int, stream: Any = None) -> None:
        self.memory.free(address)

    def memory_used(self) -> tuple[int, int]:
        return self.memory.used, self.memory.peak

    def forget_peak(self) -> None:
        self.memory.peak = self.memory.used

    def use(self, buffers: Iterable[Buffer]) -> None:
        """There is one stream."""

    def memory_info(self) -> tuple[int, int]:
        return self.total_bytes - self.memory.used, self.total_bytes

    def write(self, address: int, values: Array) -> None:
        if values.nbytes:
            self.memory.at(address)[: values.nbytes] = values.reshape(-1).view(np.uint8)

    def read(self, values: Array, address: int) -> None:
        if values.nbytes:
            values.reshape(-1).view(np.uint8)[:] = self.memory.at(address)[: values.nbytes]
        self.raise_reported()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        if nbytes:
            self.memory.at(target)[:nbytes] = self.memory.at(source)[:nbytes]

    def compile(self, kernels: Sequence[Kernel]) -> bytes:
        return b""

    def load(self, code: bytes, kernels: Mapping[str, Kernel]) -> dict[str, Any]:
        return {symbol: (build(kernel), kernel.dtypes) for symbol, kernel in kernels.items()}

    def starter(self, function: Any, kernel: Kernel, block: int) -> Start:
        def start(stream: Any, grid: int, arguments: Sequence[Any]) -> None:
            addresses = arguments[: len(kernel.dtypes)]
            pairs = zip(kernel.values, arguments[len(kernel.dtypes) :], strict=True)
            values = [element_type(dtype).type(value) for dtype, value in pairs]
            launch(function[0], kernel.dtypes, self.memory, addresses, grid, block, values)

        return start

    def sequence(self, launches: Sequence[Bound], after: Sequence[Sequence[int]] | None = None) -> LaunchSequence:
        return _SimulatedSequence(list(launches), memory=self.memory, library=self._library)

    def seconds(self, launches: Sequence[Bound]) -> float:
        """One, or none where a library has a part in it: it is always the faster one."""
        return 0.0 if any(isinstance(one, BoundProduct) for one in launches) else 1.0

    def new_stream(self) -> SimulatedStream:
        return SimulatedStream()

    def on(self, stream: SimulatedStream) -> AbstractContextManager[SimulatedStream]:
        return nullcontext(stream)

    def close(self) -> None:
        """Nothing is held outside of this process."""

    def report_words(self) -> Words:
        from staticgrad.kernels.cuda.array import Buffer

        buffer = Buffer(self, 8 * ERROR_WORDS)
        values = self.memory.at(buffer.address).view(np.int64)
        values[:] = 0
        return Words(buffer.address, values, buffer)

    def finish(self, *, everywhere: bool = True) -> None:
        """Nothing to wait for."""


class NumpyLibrary(Library):
    """A library of matrix products on the simulated memory."""

    name = "numpy"
    version = np.__version__

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def run(self, product: BoundProduct) -> None:
        call = product.call
        a = self._matrices(product, 0, (call.m, call.k), call.transpose_a, call.lda, call.stride_a)
        b = self._matrices(product, 1, (call.k, call.n), call.transpose_b, call.ldb, call.stride_b)
        c = self._matrices(product, 2, (call.m, call.n), False, call.ldc, call.stride_c)
        with np.errstate(all="ignore"):
            c[...] = np.matmul(a, b)

    def _matrices(
        self, product: BoundProduct, number: int, shape: tuple[int, int], transposed: bool, leading: int, stride: int
    ) -> Array:
        """An operand where it lies, as (batch, rows, columns); ValueError where that leaves its allocation."""
        call, itemsize = product.call, np.dtype(product.call.dtype).itemsize
        rows, columns = (1, leading) if transposed else (leading, 1)
        strides = tuple(itemsize * distance for distance in (stride, rows, columns))
        return np.ndarray((call.batch, *shape), call.dtype, self._memory.at(product.addresses[number]), 0, strides)


@dataclass
class _SimulatedSequence(LaunchSequence):
    memory: Memory = field(kw_only=True)
    library: NumpyLibrary | None = field(kw_only=True)

    def run(self) -> None:
        self.run_timed([len(self.launches)])

    def run_timed(self, ends: Sequence[int]) -> list[float]:
        self.changed.clear()
        seconds, first = [], 0
        for end in ends:
            begin = perf_counter()
            for one in self.launches[first:end]:
                self._start(one)
            seconds.append(perf_counter() - begin)
            first = end
        return seconds

    def _start(self, one: Bound) -> None:
        if isinstance(one, BoundProduct):
            assert self.library is not None
            self.library.run(one)
        else:
            function, dtypes = one.function
            launch(function, dtypes, self.memory, one.addresses, one.grid, one.block)


# ---------------------------------------------------------------- what kernels use


def _exchange(value: Any, other: Callable[[int], int]) -> Any:
    """The value of the thread `other(this)` at its own exchange of this number; this one's where nobody is there.

    A thread waits for that one only, as in a warp no thread waits for another warp: what needs a barrier fails here.
    """
    me: Any = threading.current_thread()
    values = me._manager.__dict__.setdefault("exchanged", {})
    number = me.__dict__["exchanges"] = me.__dict__.get("exchanges", 0) + 1
    values[me.thread_id, number] = value
    wanted = (other(me.thread_id), number)
    if not 0 <= wanted[0] < me._manager._block_dim[0]:
        return value
    while wanted not in values:
        if me.abort:
            raise RuntimeError("another thread of the block has failed")
        time.sleep(0)
    return values[wanted]


def _shuffle_xor(value: Any, distance: int) -> Any:
    return _exchange(value, lambda thread: thread ^ distance)


def _shuffle_up(value: Any, distance: int) -> Any:
    """The simulator knows no warps: below the first lane the value is another thread's, and no kernel may use it."""
    return _exchange(value, lambda thread: thread - distance)


def _shared_memory(count: int, dtype: Any) -> Pointer:
    """The block's memory of the line that asks for it; full of what nobody has written."""
    me: Any = threading.current_thread()
    line = ("shared", sys._getframe(1).f_lineno)
    kind = np.dtype(dtype)
    return Pointer(me._manager.__dict__.setdefault(line, np.full(count * kind.itemsize, 0xFF, np.uint8)), 0, kind)


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
    return lambda pointer, index: pointer.load(index, count)


def _store(pointer: Pointer, index: int, *values: Any) -> None:
    pointer.store(index, values)


@cache
def _names() -> Mapping[str, Any]:
    names = {name: value for name, value in vars(numpy_math).items() if callable(value) and not name.startswith("_")}
    names |= {name: getattr(np, name) for name in DTYPES}
    names |= {"larger": np.maximum, "smaller": np.minimum, "select": _select, "shuffle_xor": _shuffle_xor}
    names |= {"shuffle_up": _shuffle_up}
    names |= {"quotient": lambda x, y: x // y, "rest": lambda x, y: x % y, "checked_index": _checked_index}
    names |= {"shared_memory": _shared_memory}
    names |= {"checked_position": _checked_position, "load2": _load(2), "load4": _load(4), "store2": _store}
    names |= {"store4": _store, "inf": float("inf"), "nan": float("nan"), "errstate": np.errstate}
    names["part"] = lambda function: function
    return names | {"cuda": toolkit.cuda, "min": min, "range": range, "bool": bool}
