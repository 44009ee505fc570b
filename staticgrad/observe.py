"""Watching a dynamic run: how many ops, how long inside NumPy, how many bytes alive."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from staticgrad._context import Observer, context
from staticgrad.kernels.device import device_of
from staticgrad.tensor import Array


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Tell `observer` of every op that this thread runs at once inside the block."""
    outer, context.observer = context.observer, observer
    try:
        yield
    finally:
        context.observer = outer


class Clock:
    """Counts ops and the time inside their NumPy references; the clock's own cost is measured and taken off."""

    def __init__(self) -> None:
        self.ops = 0
        self._nanoseconds = 0
        self._start = 0

    def before(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter_ns()

    def after(self, operands: list[Any], result: Any) -> None:
        """Stop the clock and count one op."""
        self._nanoseconds += time.perf_counter_ns() - self._start
        self.ops += 1

    @property
    def seconds(self) -> float:
        """Time inside the references."""
        return max(0.0, self._nanoseconds * 1e-9 - self.ops * _cost_of_reading()[0])

    @property
    def cost(self) -> float:
        """Time that the clock itself took."""
        return self.ops * _cost_of_reading()[1]


@cache
def _cost_of_reading() -> tuple[float, float]:
    """Seconds that a clock shows for an op that takes none, and seconds that showing it takes; medians."""
    shown, taken = [], []
    for _ in range(500):
        clock = Clock()
        begin = time.perf_counter_ns()
        clock.before()
        clock.after([], None)
        taken.append(time.perf_counter_ns() - begin)
        shown.append(clock._nanoseconds)
    reading = float(np.median(shown))
    return reading * 1e-9, max(0.0, float(np.median(taken)) - reading) * 1e-9


class LiveMemory:
    """The bytes of all storage that a run has made and still holds, and their largest sum.

    Exact: a storage counts from the op that makes it (or, for what no op makes, such as `sg.zeros`, from the first op
    that reads it) until its last reference is gone. Views count on the storage they look at. What NumPy allocates and
    frees inside one op does not count, nor does what was there before.
    """

    def __init__(self, before: Iterable[Array]) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, Any] = {id(root): root for root in map(storage, before)}

    def before(self) -> None:
        """Nothing to do before an op."""

    def after(self, operands: list[Any], result: Any) -> None:
        """Count storage that is new."""
        for array in (*operands, result):
            self._count(storage(array))

    def _count(self, root: Array) -> None:
        key = id(root)
        if key in self._known:
            return
        nbytes = root.nbytes

        def freed(_: object) -> None:
            del self._known[key]
            self.live_bytes -= nbytes

        self._known[key] = weakref.ref(root, freed)
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def storage(array: Array) -> Any:
    """What owns the memory that `array` looks at."""
    return device_of(array).owner(array)
