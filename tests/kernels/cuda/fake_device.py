"""A GPU as the stand-in of NVIDIA's driver has it: memory in a pool, streams that run as late as they may, events.

Work runs when somebody waits for it, and then no more of it than is waited for. So work of a stream that should have
waited for another one finds what the other has not written yet, or memory that it no longer has.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from staticgrad.kernels.cuda import simulator
from staticgrad.kernels.kernel import Kernel

ILLEGAL_ADDRESS = 700
OUT_OF_MEMORY = 2


class RefusedError(Exception):
    """A call that is answered with an error code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Event:
    """The streams it was recorded on, one after the other, and which of these times the device has come to."""

    streams: list[Stream] = field(default_factory=list)
    done: set[int] = field(default_factory=set)


@dataclass
class Wait:
    """Work that is done when the device has come to an event as it was recorded for the `turn`-th time."""

    event: Event
    turn: int


@dataclass(eq=False)
class Stream:
    """Work in order, not yet done."""

    context: Context
    work: deque[Callable[[], None] | Wait] = field(default_factory=deque)

    def queue(self, action: Callable[[], None]) -> None:
        self.work.append(action)

    def record(self, event: Event) -> None:
        event.streams.append(self)
        turn = len(event.streams)
        self.work.append(lambda: event.done.add(turn))

    def wait(self, event: Event) -> None:
        self.work.append(Wait(event, len(event.streams)))


@dataclass(eq=False)
class Function:
    """A kernel of a module that is in memory as long as `loaded`."""

    kernel: Kernel
    module: Module


@dataclass(eq=False)
class Module:
    """Kernels by symbol."""

    kernels: dict[str, Kernel]
    loaded: bool = True


@dataclass(frozen=True)
class Launch:
    """One launch, with its arguments as they were when it was asked for."""

    function: Function
    addresses: tuple[int, ...]
    grid: int
    block: int
    values: tuple[Any, ...] = ()  # the numbers behind the addresses


class Memory(simulator.Memory):
    """What kernels reach: the device's memory, and pinned memory of the host."""

    def share(self, array: Any) -> None:
        """Have kernels reach an array of the host where it is."""
        self._blocks[array.ctypes.data] = array, array
        self._starts = sorted(self._blocks)


class Context:
    """What a process has on one GPU.

    Attributes:
        error: the code that everything is answered with after a launch has failed; 0 before.
        used, reserved, high: bytes in use, bytes that the pool holds, the most in use at any one time.
    """

    def __init__(self, total_bytes: int) -> None:
        self.memory = Memory()
        self.streams: list[Stream] = []
        self.error = 0
        self.used = self.reserved = self.high = 0
        self._total = total_bytes
        self._unused: Counter[int] = Counter()  # what the pool holds for allocations of the same size
        self._size: dict[int, int] = {}  # of allocations that have not been asked to go
        self._unready: set[int] = set()  # addresses whose stream has not come to the allocation
        self._lock = threading.RLock()  # for the memory; Python may find garbage, and free it, anywhere
        self._running = threading.RLock()  # for the work

    # ------------------------------------------------------------ memory

    def allocate(self, nbytes: int, stream: Stream) -> int:
        with self._lock:
            if self._unused[nbytes]:
                self._unused[nbytes] -= 1
            elif self.reserved + nbytes > self._total:
                raise RefusedError(OUT_OF_MEMORY)
            else:
                self.reserved += nbytes
            self.used += nbytes
            self.high = max(self.high, self.used)
            address = self.memory.allocate(nbytes)
            self._size[address] = nbytes
            self._unready.add(address)
        stream.queue(lambda: self._unready.discard(address))
        return address

    def free(self, address: int, stream: Stream) -> None:
        nbytes = self._size.pop(address)

        def go() -> None:
            with self._lock:
                self.memory.free(address)
                self.used -= nbytes
                self._unused[nbytes] += 1

        stream.queue(go)

    def trim(self) -> None:
        with self._lock:
            self._unused.clear()
            self.reserved = self.used

    def bytes_at(self, address: int, nbytes: int) -> Any:
        """Bytes of the device's memory that work may use."""
        with self._lock:
            block, start = self.memory.block(address)
            begin = address - start
            if start in self._unready:
                raise IndexError(f"{address:#x} is not allocated yet")
            if begin + nbytes > len(block):
                raise IndexError(f"{nbytes} bytes at {address:#x} leave an allocation of {len(block)}")
            return block[begin : begin + nbytes]

    # ------------------------------------------------------------ work

    def launch(self, one: Launch) -> None:
        """Run one launch now."""
        kernel = one.function.kernel
        for address in one.addresses:
            self.bytes_at(address, 0)
        simulator.launch(_built(kernel), kernel.dtypes, self.memory, one.addresses, one.grid, one.block, one.values)

    def complete(self, stream: Stream, enough: Callable[[], bool] = lambda: False) -> None:
        """Do the work of a stream, up to its end or until `enough` has been done."""
        with self._running, _no_garbage():
            while stream.work and not self.error and not enough():
                one = stream.work[0]
                try:
                    if isinstance(one, Wait):
                        self.reach(one.event, one.turn)
                    else:
                        one()
                except IndexError:
                    self.error = ILLEGAL_ADDRESS
                finally:
                    stream.work.popleft()
        self.check()

    def reach(self, event: Event, turn: int) -> None:
        """Do what is in front of an event; nothing if it has never been recorded."""
        if turn and turn not in event.done:
            self.complete(event.streams[turn - 1], lambda: turn in event.done)

    def check(self) -> None:
        if self.error:
            raise RefusedError(self.error)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Collect none while work is done: what goes then may wait for the device, here in the middle of a kernel."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@lru_cache(1024)
def _built(kernel: Kernel) -> Any:
    return simulator.build(kernel)


def in_some_order(nodes: Sequence[Any], after: Callable[[Any], Sequence[Any]]) -> list[Any]:
    """Nodes so that each stands behind those it comes after; of those that may be next, the last is."""
    left, found = list(nodes), []
    while left:
        ready = [node for node in left if not any(one in left for one in after(node))]
        left.remove(ready[-1])
        found.append(ready[-1])
    return found
