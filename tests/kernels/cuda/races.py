"""Watches every launch in the simulator for what only a real GPU would show.

Numba's simulator runs block after block. Here each access to global and shared memory is noted with its thread, and a
launch fails afterwards whose result could depend on the order of threads, whose barriers or shuffles not all threads
reach, whose accesses are not aligned, or which reads what nobody has written.

Two things are allowed without a barrier: the accesses of `checked_index`, which are atomic on the device, and to read
what another thread replaces where nobody uses what was read (by threads behind the end of the work, which read a place
of others). To know that, the launch is repeated with other values in their place: it must leave the same memory.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from accesses import ATOMIC, READ, WRITE, Conflict, Launched, Moment
from numba.cuda.simulator import kernel as numba_simulator

from staticgrad.graph.node import DType
from staticgrad.kernels.cuda import simulator
from staticgrad.kernels.cuda.simulator import Memory
from staticgrad.kernels.cuda.target import VECTOR_BYTES
from staticgrad.kernels.kernel import Kernel

FRESH = 0xA5  # what the simulator fills new memory with
SEEN = 4  # bytes of FRESH that are no value by chance
_BUILD, _LAUNCH, _POINTER = simulator.build, simulator.launch, simulator.Pointer
_EXCHANGE, _CHECK = simulator._exchange, simulator._check
_SYNCTHREADS = numba_simulator.BlockThread.syncthreads


class Race(AssertionError):  # noqa: N818, the name of the fault
    """A launch that might go wrong on a GPU."""


class _Contents:
    """The bytes of what a launch works on, as they are now."""

    def __init__(self, memory: Memory, addresses: Sequence[int]) -> None:
        self._blocks = {start: block for block, start in map(memory.block, addresses)}
        self._copies = {start: block.copy() for start, block in self._blocks.items()}

    def restore(self) -> None:
        """Write them back."""
        for start, block in self._copies.items():
            self._blocks[start][:] = block

    def differ(self) -> bool:
        """Whether other bytes are there now."""
        return any((self._blocks[start] != block).any() for start, block in self._copies.items())


class Watch:
    """Notes what launches do, and raises `Race` after one with a fault.

    Attributes:
        launches, accesses: how many of them have been watched.
        repeated: how many launches were repeated to see whether anything depends on a value that was read too early
            or too late.
    """

    def __init__(self, warp: int) -> None:
        self.warp = warp
        self.launches = self.accesses = self.repeated = 0
        self.now: Launched | None = None
        self.noted: list[tuple[int, ...]] = []  # its accesses
        self.shared: dict[int, Any] = {}  # by address: which bytes have been written
        self._kept: list[Any] = []  # blocks' shared memory, so that no two have one address
        self._sources: dict[str, list[str]] = {}
        self._doubted: set[Moment] = set()
        self._large = False
        self._lock = threading.Lock()

    # ------------------------------------------------------------ launches

    def build(self, kernel: Kernel) -> Any:
        """As the simulator's `build`, with the text kept for reports."""
        self._sources[f"<{kernel.symbol}>"] = kernel.source.splitlines()
        return _BUILD(kernel)

    def launch(
        self,
        function: Any,
        dtypes: Sequence[DType],
        memory: Memory,
        addresses: Sequence[int],
        grid: int,
        block: int,
        *numbers: Any,
    ) -> None:
        """As the simulator's `launch`; raises `Race`."""
        faults = self._before(dtypes, addresses, block)
        run = partial(self._run, function, block, dtypes, memory, addresses, grid, block, *numbers)
        with self._lock:
            before = _Contents(memory, addresses)
            launched = run()
            self.launches += 1
            self.accesses += len(launched.accesses)
            faults += launched.strangers()
            conflicts = launched.conflicts()
            if conflicts and self._matters(conflicts, before, _Contents(memory, addresses), run):
                faults += map(launched.told_conflict, conflicts)
        if faults:
            raise Race("\n".join([f"{launched.symbol}, {grid} blocks of {block}:", *faults, *launched.source]))

    def _run(self, function: Any, block: int, *arguments: Any) -> Launched:
        symbol = function.fn.__globals__["kernel"].__code__.co_filename
        self.now = launched = Launched(symbol, self._sources.get(symbol, []), block, self.warp)
        self.noted = launched.accesses
        try:
            _LAUNCH(function, *arguments)
        finally:
            self.now = None
            self.shared.clear()
            self._kept.clear()
        return launched

    def _matters(
        self, conflicts: Sequence[Conflict], before: _Contents, after: _Contents, run: Callable[[], Launched]
    ) -> bool:
        """Whether the launch leaves something else where what is read in conflicts is another value."""
        if not all(conflict.reads for conflict in conflicts):
            return True
        self._doubted = set().union(*(conflict.reads for conflict in conflicts))
        try:
            for self._large in (False, True):
                self.repeated += 1
                before.restore()
                run()
                if after.differ():
                    return True
        except (Race, IndexError):
            return True
        finally:
            self._doubted = set()
            after.restore()
        return False

    def _before(self, dtypes: Sequence[DType], addresses: Sequence[int], block: int) -> list[str]:
        faults = [
            f"pointer {position} to {dtype} is {address:#x}, which is not aligned"
            for position, (dtype, address) in enumerate(zip(dtypes, addresses, strict=True))
            if address % dtype.itemsize
        ]
        if block % self.warp:
            faults.append(f"blocks of {block} threads end in part of a warp, but shuffles want all of it")
        return faults

    # ------------------------------------------------------------ threads

    def note(self, address: int, nbytes: int, kind: int) -> bool:
        """Note an access of the thread that runs; whether it must get another value."""
        me: Any = threading.current_thread()
        moment = me.blockIdx.x, me.thread_id, me.accesses
        self.noted.append((address, nbytes, kind, *moment[:2], me.barriers, me.accesses, _line()))
        me.accesses += 1
        return bool(self._doubted) and moment in self._doubted

    def another(self, value: Any) -> Any:
        """A value in the place of one."""
        if value.dtype.kind == "f":
            return value.dtype.type(1e30 if self._large else -1e30)
        limits = np.iinfo(value.dtype)
        return value.dtype.type(limits.max if self._large else limits.min)

    def meet(self, what: str) -> None:
        """Note that the running thread has come to a barrier or a shuffle."""
        assert self.now is not None
        me: Any = threading.current_thread()
        self.now.meetings.setdefault((me.blockIdx.x, me.thread_id), []).append((what, _line()))

    def fail(self, what: str) -> None:
        """Stop the running thread."""
        assert self.now is not None
        raise Race(f"{self.now.symbol}, {self.now.told(_line())}: {what}")

    def keep(self, block: Any) -> Any:
        """Know some memory as a block's shared memory; which of its bytes have been written."""
        self._kept.append(block)
        return self.shared.setdefault(block.ctypes.data, np.zeros(len(block), bool))


def _line() -> int:
    """The line of the kernel that the running thread is at."""
    frame: Any = sys._getframe(2)
    while not frame.f_code.co_filename.startswith("<kernel_"):
        frame = frame.f_back
    return int(frame.f_lineno)


def _pointer(watch: Watch) -> type[simulator.Pointer]:
    """Pointers whose accesses are noted."""

    class Pointer(_POINTER):
        def __init__(self, block: Any, start: int, dtype: DType) -> None:
            super().__init__(block, start, dtype)
            self._address, self._itemsize = block.ctypes.data, self._elements.itemsize
            shared = isinstance(threading.current_thread(), numba_simulator.BlockThread)
            self._written = watch.keep(block) if shared else None
            plain = shared or self._itemsize < SEEN
            self._fresh = None if plain else np.frombuffer(bytes([FRESH] * self._itemsize), self._elements.dtype)[0]

        def __getitem__(self, index: int) -> Any:
            place, doubted = self.note(index, 1, READ)
            value = self._known(self._elements[place])
            return watch.another(value) if doubted else value

        def __setitem__(self, index: int, value: Any) -> None:
            self._elements[self.note(index, 1, WRITE)[0]] = value

        def load(self, index: int, count: int) -> tuple[Any, ...]:
            _, doubted = self.note(index, count, READ)
            values = super().load(index, count)
            return tuple(map(watch.another if doubted else self._known, values))

        def store(self, index: int, values: Sequence[Any]) -> None:
            self.note(index, len(values), WRITE)
            super().store(index, values)

        def vector_place(self, index: int, count: int) -> int:
            if count * self._itemsize > VECTOR_BYTES:
                watch.fail(f"a vector of {count * self._itemsize} bytes")
            return super().vector_place(index, count)

        def note(self, index: int, count: int, kind: int) -> tuple[int, bool]:
            """Note an access; where the element lies in its allocation, and whether to take another value."""
            place = self.place(index)
            start, end = place * self._itemsize, (place + count) * self._itemsize
            doubted = watch.note(self._address + start, end - start, kind)
            if self._written is not None:
                if kind != READ:
                    self._written[start:end] = True
                elif not self._written[start:end].all():
                    watch.fail("reads what nobody has written")
            return place, doubted

        def _known(self, value: Any) -> Any:
            if self._fresh is not None and value == self._fresh:
                watch.fail("reads what nobody has written")
            return value

        def raw(self) -> simulator.Pointer:
            """The same memory without notes."""
            return _Raw(self._elements, self._start)

    return Pointer


class _Raw(_POINTER):
    def __init__(self, elements: Any, start: int) -> None:
        self._elements, self._start = elements, start


@contextmanager
def watched(warp: int = simulator.SMALL.warp) -> Iterator[Watch]:
    """Watch every launch in the simulator; a faulty one raises `Race`."""
    watch = Watch(warp)

    def exchange(value: Any, other: Callable[[int], int]) -> Any:
        watch.meet("shuffle")
        return _EXCHANGE(value, other)

    def syncthreads(me: Any) -> None:
        watch.meet("barrier")
        me.barriers += 1
        _SYNCTHREADS(me)

    def check(index: Any, extent: int, status: Any, code: Any, place: int) -> int:
        """On the device the first word is exchanged atomically, and the thread that does it writes the others."""
        if not 0 <= place < extent:
            status.note(0, 1, ATOMIC)
        return _CHECK(index, extent, status.raw(), code.raw(), place)

    with pytest.MonkeyPatch.context() as patch:
        for name, found in (("build", watch.build), ("launch", watch.launch), ("Pointer", _pointer(watch)),
                            ("_exchange", exchange), ("_check", check)):  # fmt: skip
            patch.setattr(simulator, name, found)
        patch.setattr(numba_simulator.BlockThread, "syncthreads", syncthreads)
        for count in ("barriers", "accesses"):
            patch.setattr(numba_simulator.BlockThread, count, 0, raising=False)
        yield watch
