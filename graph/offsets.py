"""Offsets in one arena for buffers with known lifetimes: the planner by itself, on plain intervals.

The problem (dynamic storage allocation; strip packing with the horizontal positions given) is NP-hard, so the placement
orders of `staticgrad.graph.placements` run in turn, fast ones first, and the lowest plan wins. They stop as soon as a
plan is within 0.2 % of the lower bound, the largest load of any moment. On the eleven hard sets published with
MiniMalloc, best fit in decreasing size is 1.28 to 1.44 times the capacity; ours are in
`benchmarks/results/planner.json`. Effort is counted in steps, never in seconds, and the random stream is fixed, so
equal input gives an equal plan.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from staticgrad.graph.placements import LIMIT, Blocks, Interval, Valleys, best_fit, events_in_time, sweep, two_stacks

__all__ = ["check_offsets", "height", "lower_bound", "plan_offsets"]

_QUADRATIC_LIMIT = 1_000  # blocks up to which `best_fit` runs
_CLOSE = 500  # a plan within a 500th of the bound is low enough


def plan_offsets(intervals: Sequence[Interval], *, alignment: int = 1, effort: int = 300) -> list[int]:
    """Byte offsets such that no two intervals that are live at the same time overlap in memory.

    Args:
        intervals: `(lower, upper, size)` each; lifetimes are half-open, `lower < upper`; sizes in bytes, at least 0.
        alignment: every offset is a multiple of this; sizes are rounded up to it.
        effort: the most runs of the search that follows the placement orders, when these miss the lower bound;
            0 for the orders alone. Fewer are run on small and on very large input.

    Returns:
        One offset for each interval, in their order. Intervals of size 0 get offset 0.

    Raises:
        TypeError: an interval is not three integers.
        ValueError: an empty lifetime, a negative size, an alignment below 1, a negative effort, or a number
            beyond 2**62.

    >>> plan_offsets([(0, 4, 64), (1, 3, 32), (3, 5, 32)])
    [0, 64, 64]
    """
    if effort < 0:
        raise ValueError(f"plan_offsets: effort must be at least 0; got {effort}")
    checked = _checked(intervals, alignment, "plan_offsets")
    offsets = [0] * len(checked)
    kept = [index for index, interval in enumerate(checked) if interval[2] > 0]
    if kept:
        blocks = Blocks.of([checked[index] for index in kept])
        for index, offset in zip(kept, _best_plan(blocks, effort), strict=True):
            offsets[index] = offset
    return offsets


def lower_bound(intervals: Sequence[Interval], *, alignment: int = 1) -> int:
    """The largest sum of sizes live at any one time, sizes rounded up to the alignment; no plan can be lower.

    Raises as `plan_offsets` does.

    >>> lower_bound([(0, 2, 64), (1, 3, 32), (2, 4, 64)])
    96
    """
    checked = _checked(intervals, alignment, "lower_bound")
    return Blocks.of(checked).bound if checked else 0


def height(intervals: Sequence[Interval], offsets: Sequence[int]) -> int:
    """The arena's size in bytes: the largest `offset + size`, or 0 without intervals.

    >>> height([(0, 2, 64), (1, 3, 32)], [0, 64])
    96
    """
    _check_lengths(intervals, offsets, "height")
    return max((offset + interval[2] for interval, offset in zip(intervals, offsets, strict=True)), default=0)


def check_offsets(intervals: Sequence[Interval], offsets: Sequence[int], *, alignment: int = 1) -> None:
    """Raise ValueError, naming the pair, when two intervals that are live together share a byte.

    A negative or misaligned offset is an error too. Sweeps over time with the live blocks sorted by offset.
    """
    checked = _checked(intervals, 1, "check_offsets")
    _check_lengths(intervals, offsets, "check_offsets")
    for index, offset in enumerate(offsets):
        if offset < 0 or offset % alignment:
            raise ValueError(
                f"check_offsets: an offset must be a multiple of {alignment} and at least 0; "
                f"interval {index} has {offset}"
            )
    live: list[tuple[int, int, int]] = []  # (offset, end, index)
    for _, starts, index in events_in_time(checked):
        block = (offsets[index], offsets[index] + checked[index][2], index)
        position = bisect_left(live, block)
        if not starts:
            del live[position]
            continue
        for other in live[max(position - 1, 0) : position + 1]:
            if other[0] < block[1] and block[0] < other[1]:
                raise ValueError(_collision(checked, other, block))
        live.insert(position, block)


def _collision(intervals: Sequence[Interval], *blocks: tuple[int, int, int]) -> str:
    told = " and ".join(
        f"interval {index}, live [{intervals[index][0]}, {intervals[index][1]}), bytes [{offset}, {end})"
        for offset, end, index in sorted(blocks, key=lambda block: block[2])
    )
    return f"check_offsets: intervals that are live together must not share bytes; {told}"


def _check_lengths(intervals: Sequence[Interval], offsets: Sequence[int], caller: str) -> None:
    if len(intervals) != len(offsets):
        raise ValueError(
            f"{caller}: needs one offset for each interval; got {len(intervals)} intervals, {len(offsets)} offsets"
        )


def _checked(intervals: Sequence[Interval], alignment: int, caller: str) -> list[Interval]:
    """The intervals as Python integers, sizes rounded up to the alignment."""
    if alignment < 1:
        raise ValueError(f"{caller}: alignment must be at least 1; got {alignment}")
    checked: list[Interval] = []
    total = 0
    for index, interval in enumerate(intervals):
        try:
            lower, upper, size = map(operator.index, interval)
        except (TypeError, ValueError) as cause:
            raise TypeError(
                f"{caller}: an interval must be three integers (lower, upper, size); interval {index} is {interval!r}"
            ) from cause
        if lower >= upper:
            raise ValueError(
                f"{caller}: a lifetime [lower, upper) must not be empty; interval {index} is [{lower}, {upper})"
            )
        if size < 0:
            raise ValueError(f"{caller}: a size must be at least 0; interval {index} has {size}")
        size = -(-size // alignment) * alignment
        total += size
        if lower <= -LIMIT or upper >= LIMIT or total >= LIMIT:
            raise ValueError(
                f"{caller}: times and the sum of sizes must be below 2**62; interval {index} is {interval!r}"
            )
        checked.append((lower, upper, size))
    return checked


def _best_plan(blocks: Blocks, effort: int) -> list[int]:
    """The lowest plan of all placement orders and, where they miss the bound, of the search."""
    enough = blocks.bound + blocks.bound // _CLOSE
    length = blocks.last - blocks.first
    reversed_time = [(-upper, -lower, size) for lower, upper, size in blocks.intervals]
    orders: list[Callable[[], list[int]]] = [lambda: sweep(blocks.intervals), lambda: sweep(reversed_time)]
    if len(blocks.intervals) <= _QUADRATIC_LIMIT:
        orders.append(lambda: best_fit(blocks, np.lexsort((-length, -blocks.sizes))))
        orders.append(lambda: best_fit(blocks, np.lexsort((-blocks.sizes, -length))))
    best = two_stacks(blocks)
    lowest = blocks.height(best)
    for order in orders:
        if lowest <= enough:
            return best
        offsets = order()
        if blocks.height(offsets) < lowest:
            best, lowest = offsets, blocks.height(offsets)
    return best if lowest <= enough else Valleys(blocks, enough).search(best, lowest, effort)
