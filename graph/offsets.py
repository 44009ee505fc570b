"""Offsets in one arena for buffers with known lifetimes: the planner by itself, on plain intervals.

The problem (dynamic storage allocation; strip packing with the horizontal positions given) is NP-hard, so several
heuristics run and the lowest plan wins. All stop as soon as the lower bound, the largest load of any moment, is met.

1. `_two_stacks`: longest lifetime first, each block on a stack that grows from the bottom or one that hangs from the
   top, whichever is flat under it. A training step is nested lifetimes (what forward saves for backward) against
   lifetimes that run on to the optimizer (gradients), and two stacks pack those without a gap. O(n log n).
2. `_sweep`: best fit into the holes left by freed blocks, along time and against it. O(n log n) and, for many
   holes, the memory moves of a sorted list.
3. `_best_fit`: best fit in the order of decreasing size or lifetime, what most compilers ship. Pisarchyk and Lee,
   "Efficient memory management for deep neural net inference" (arXiv:2001.03288). O(n * n).
4. `_Valleys`: fill the lowest valley of the skyline with a block that fits inside its width, or raise the valley to
   its lower wall. Burke, Kendall and Whitwell, "A new placement heuristic for the orthogonal stock-cutting problem"
   (Operations Research 52, 2004), brought to lifetimes by Sekiyama et al. (arXiv:1804.10001). Ours takes only blocks
   that cover the valley's most loaded moment, where a raise would hurt most, and gives up a run as soon as the
   skyline and the load still to come exceed the best plan: the lookahead of TelaMalloc (Maas et al., ASPLOS 2023) and
   MiniMalloc (Moffitt, ASPLOS 2024). A seeded search then disturbs the preferences of the best run. O(n * n) a run.

On the eleven hard sets published with MiniMalloc, best fit in decreasing size is 1.28 to 1.44 times the capacity, and
the mean here is in `benchmarks/results/planner.json`. Effort is counted in steps, never in seconds, and the random
stream is fixed, so equal input gives an equal plan.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_offsets", "height", "lower_bound", "plan_offsets"]

Interval = tuple[int, int, int]
"""Lifetime and size: `(lower, upper, size)`, live in the half-open `[lower, upper)`, size in bytes."""

_LIMIT = 1 << 62  # times and the sum of sizes stay below this, so that int64 arithmetic is exact
_QUADRATIC_LIMIT = 1_000  # blocks up to which `_best_fit` runs
_VALLEY_BUDGET = 800_000_000  # array elements that all runs of `_Valleys` may touch, with _STEP_COST for each step
_STEP_COST = 5_000  # a step's fixed cost, in elements: a dozen array calls
_FLAT_LIMIT = 8  # skyline segments that `_two_stacks` looks at before it calls the ground ragged


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

    >>> plan_offsets([(0, 2, 64), (1, 3, 32), (2, 4, 64)])
    [0, 64, 0]
    """
    if effort < 0:
        raise ValueError(f"plan_offsets: effort must be at least 0; got {effort}")
    checked = _checked(intervals, alignment, "plan_offsets")
    offsets = [0] * len(checked)
    kept = [index for index, interval in enumerate(checked) if interval[2] > 0]
    if kept:
        blocks = _Blocks.of([checked[index] for index in kept])
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
    return _Blocks.of(checked).bound if checked else 0


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
    for _, starts, index in _events(checked):
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
        if lower <= -_LIMIT or upper >= _LIMIT or total >= _LIMIT:
            raise ValueError(
                f"{caller}: times and the sum of sizes must be below 2**62; interval {index} is {interval!r}"
            )
        checked.append((lower, upper, size))
    return checked


def _events(intervals: Iterable[Interval]) -> list[tuple[int, bool, int]]:
    """`(time, starts, index)` of all blocks that take memory, in time; at equal times ends come first."""
    events = []
    for index, (lower, upper, size) in enumerate(intervals):
        if size:
            events += [(lower, True, index), (upper, False, index)]
    return sorted(events)


@dataclass(frozen=True)
class _Blocks:
    """Intervals with time reduced to the moments that matter.

    A moment is a start that is followed by an end before the next start: what is live at any other time is also live
    at a moment. Block i is live at the moments `first[i] <= m < last[i]`.
    """

    intervals: list[Interval]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    sizes: NDArray[np.int64]
    load: NDArray[np.int64]  # (moments,): the bytes live at each
    bound: int

    @classmethod
    def of(cls, intervals: list[Interval]) -> _Blocks:
        table = np.array(intervals, dtype=np.int64).reshape(-1, 3)
        lower, upper, sizes = table[:, 0], table[:, 1], table[:, 2]
        ends = np.sort(upper)
        starts = np.unique(lower)
        ended = np.searchsorted(ends, starts, side="right")  # how many have ended by each start
        moments = starts[np.append(ended[1:] != ended[:-1], True)]
        first = np.searchsorted(moments, lower)
        last = np.searchsorted(moments, upper)
        change = np.zeros(len(moments) + 1, dtype=np.int64)
        np.add.at(change, first, sizes)
        np.subtract.at(change, last, sizes)
        load = np.cumsum(change)[:-1]
        return cls(intervals, first, last, sizes, load, int(load.max()))

    def height(self, offsets: Sequence[int]) -> int:
        return int((np.asarray(offsets, dtype=np.int64) + self.sizes).max())


def _best_plan(blocks: _Blocks, effort: int) -> list[int]:
    """The lowest plan of all placement orders and, where they miss the bound, of the search."""
    best = _two_stacks(blocks)
    lowest = blocks.height(best)
    reversed_time = [(-upper, -lower, size) for lower, upper, size in blocks.intervals]
    orders: list[Callable[[], list[int]]] = [lambda: _sweep(blocks.intervals), lambda: _sweep(reversed_time)]
    if len(blocks.intervals) <= _QUADRATIC_LIMIT:
        length = blocks.last - blocks.first
        orders.append(lambda: _best_fit(blocks, np.lexsort((-length, -blocks.sizes))))
        orders.append(lambda: _best_fit(blocks, np.lexsort((-blocks.sizes, -length))))
    for order in orders:
        if lowest <= blocks.bound:
            return best
        offsets = order()
        if blocks.height(offsets) < lowest:
            best, lowest = offsets, blocks.height(offsets)
    if lowest > blocks.bound:
        best = _Valleys(blocks).search(best, lowest, effort)
    return best


class _Skyline:
    """Piecewise constant height over moments; raising an interval costs amortised O(1) segments and their lookup.

    The starts of the segments are bits of big integers, in words of about the square root of the moments, and one
    integer says which words are not empty: finding the neighbours of a moment is a shift and a bit length.
    """

    def __init__(self, moments: int) -> None:
        self.width = max(64, int(moments**0.5))
        self.words = [0] * (moments // self.width + 1)
        self.words[0] = 1
        self.filled = 1  # which words are not empty
        self.level = [0] * (moments + 1)
        self.moments = moments

    def start(self, moment: int) -> int:
        """The start of the segment that holds a moment."""
        word, bit = divmod(moment, self.width)
        found = self.words[word] & ((2 << bit) - 1)
        if not found:
            word = (self.filled & ((1 << word) - 1)).bit_length() - 1
            found = self.words[word]
        return word * self.width + found.bit_length() - 1

    def following(self, start: int) -> int:
        """The start of the next segment, or the number of moments."""
        word, bit = divmod(start, self.width)
        found = self.words[word] >> (bit + 1)
        if found:
            return start + (found & -found).bit_length()
        found = self.filled >> (word + 1)
        if not found:
            return self.moments
        word += (found & -found).bit_length()
        found = self.words[word]
        return word * self.width + (found & -found).bit_length() - 1

    def waste(self, first: int, last: int) -> float:
        """The area lost under a block laid on `[first, last)`; infinite where the ground is ragged."""
        start = self.start(first)
        top, area, seen = 0, 0, first
        for _ in range(_FLAT_LIMIT):
            end = min(self.following(start), last)
            level = self.level[start]
            if level > top:
                area += (level - top) * (seen - first)
                top = level
            area += (top - level) * (end - seen)
            if end == last:
                return area
            start = seen = end
        return float("inf")

    def lay(self, first: int, last: int, size: int) -> int:
        """Lay a block on the highest ground of `[first, last)`; the height that it lies on."""
        start = self.start(first)
        top = 0
        while True:
            after = self.following(start)
            level = self.level[start]
            top = max(top, level)
            if start > first:
                self._remove(start)
            if after >= last:
                break
            start = after
        if after > last:
            self._add(last, level)
        self._add(first, top + size)
        return top

    def _add(self, start: int, level: int) -> None:
        word, bit = divmod(start, self.width)
        self.words[word] |= 1 << bit
        self.filled |= 1 << word
        self.level[start] = level

    def _remove(self, start: int) -> None:
        word, bit = divmod(start, self.width)
        self.words[word] &= ~(1 << bit)
        if not self.words[word]:
            self.filled &= ~(1 << word)

    def profile(self) -> NDArray[np.int64]:
        """The height at every moment, shape (moments,)."""
        starts = [0]
        while (after := self.following(starts[-1])) < self.moments:
            starts.append(after)
        lengths = np.diff(np.array([*starts, self.moments]))
        return np.repeat(np.array([self.level[start] for start in starts], dtype=np.int64), lengths)


def _two_stacks(blocks: _Blocks) -> list[int]:
    """Longest lifetime first, on the bottom stack or the top one, whichever wastes less; then close the gap.

    The stacks know nothing of each other: the arena is the largest sum of the two heights over all moments.
    """
    moments = len(blocks.load)
    bottom, top = _Skyline(moments), _Skyline(moments)
    firsts, lasts, sizes = blocks.first.tolist(), blocks.last.tolist(), blocks.sizes.tolist()
    offsets = [0] * len(sizes)
    hanging: list[int] = []
    for index in np.lexsort((-blocks.sizes, blocks.first - blocks.last)).tolist():
        first, last, size = firsts[index], lasts[index], sizes[index]
        waste = bottom.waste(first, last)
        if waste and top.waste(first, last) < waste:
            offsets[index] = -top.lay(first, last, size) - size
            hanging.append(index)
        else:
            offsets[index] = bottom.lay(first, last, size)
    arena = int((bottom.profile() + top.profile()).max())
    for index in hanging:
        offsets[index] += arena
    return offsets


def _sweep(intervals: Sequence[Interval]) -> list[int]:
    """Blocks in the order of time, each in the smallest hole that holds it, else at the end of the arena."""
    offsets = [0] * len(intervals)
    holes: list[tuple[int, int]] = []  # (size, offset), sorted
    end_of: dict[int, int] = {}  # offset of a hole -> its end
    start_of: dict[int, int] = {}  # end of a hole -> its offset
    arena = 0

    def take(start: int) -> int:
        end = end_of.pop(start)
        del start_of[end]
        del holes[bisect_left(holes, (end - start, start))]
        return end

    def give(start: int, end: int) -> None:
        end_of[start] = end
        start_of[end] = start
        insort(holes, (end - start, start))

    for _, starts, index in _events(intervals):
        size = intervals[index][2]
        if not starts:
            start, end = offsets[index], offsets[index] + size
            if end in end_of:
                end = take(end)
            if start in start_of:
                start = start_of[start]
                take(start)
            give(start, end)
            continue
        place = bisect_left(holes, (size, -1))
        if place < len(holes):
            start = holes[place][1]
            end = take(start)
            if end > start + size:
                give(start + size, end)
        else:
            start = start_of.get(arena, arena)
            if start < arena:
                take(start)
            arena = start + size
        offsets[index] = start
    return offsets


def _best_fit(blocks: _Blocks, order: NDArray[np.int64]) -> list[int]:
    """Blocks in the given order, each in the smallest gap between the placed ones that it meets in time."""
    firsts, lasts, sizes = blocks.first.tolist(), blocks.last.tolist(), blocks.sizes.tolist()
    offsets = [0] * len(sizes)
    placed: list[tuple[int, int, int, int]] = []  # (offset, end, first, last), sorted
    for index in order.tolist():
        first, last, size = firsts[index], lasts[index], sizes[index]
        found, smallest, top = -1, _LIMIT, 0
        for offset, end, other_first, other_last in placed:
            if other_first < last and first < other_last:
                if size <= offset - top < smallest:
                    found, smallest = top, offset - top
                top = max(top, end)
        offsets[index] = top if found < 0 else found
        block = (offsets[index], offsets[index] + size, first, last)
        placed.insert(bisect_right(placed, block), block)
    return offsets


@dataclass(frozen=True)
class _Taste:
    """Which block a valley prefers: the largest `length**length_power * size**size_power`, times `flush` where the
    block would end level with a wall of the valley."""

    length_power: float
    size_power: float
    flush: float


_TASTES = tuple(
    _Taste(length, size, flush)
    for length, size in ((1, 0.3), (1, 1), (1, 0.05), (3, 0.3), (1, 3), (1, 0.6))
    for flush in (3, 1)
)


class _Valleys:
    """Fill the lowest valley of the skyline first; see the head of the file."""

    def __init__(self, blocks: _Blocks) -> None:
        self.blocks = blocks
        self.length = (blocks.last - blocks.first).astype(np.float64)
        self.size = blocks.sizes / blocks.sizes.max()
        count, moments = len(blocks.sizes), len(blocks.load)
        self.affordable = _VALLEY_BUDGET // (count * (_STEP_COST + count + moments))

    def search(self, best: list[int], lowest: int, effort: int) -> list[int]:
        """All tastes, then up to `effort` runs that give a tenth of the blocks a new random preference."""
        noise = np.zeros(len(self.size))
        kept, kept_height = _TASTES[0], _LIMIT
        for taste in _TASTES[: self.affordable]:
            offsets, reached = self.fill(taste, noise, _LIMIT)
            if reached < kept_height:
                kept, kept_height = taste, reached
            if reached < lowest:
                best, lowest = offsets, reached
            if lowest <= self.blocks.bound:
                return best
        random = np.random.RandomState(0)  # the one generator whose stream NumPy has frozen
        for _ in range(min(effort, 2 * len(self.size), self.affordable - len(_TASTES))):
            fresh = 1.2 * random.standard_normal(len(self.size))
            disturbed = np.where(random.random_sample(len(self.size)) < 0.1, fresh, noise)
            offsets, reached = self.fill(kept, disturbed, lowest)
            if reached < lowest:
                best, lowest, noise = offsets, reached, disturbed
            if lowest <= self.blocks.bound:
                break
        return best

    def fill(self, taste: _Taste, noise: NDArray[np.float64], limit: int) -> tuple[list[int], int]:
        """One run: offsets and their height, which is `limit` when the run gave up because it cannot be lower."""
        liking = self.length**taste.length_power * self.size**taste.size_power * np.exp(noise)
        order = np.argsort(-liking, kind="stable")
        liking = liking[order]
        first, last, sizes = self.blocks.first[order], self.blocks.last[order], self.blocks.sizes[order]
        open_first = first.copy()  # -1 once placed, so that it fits no valley
        skyline = np.zeros_like(self.blocks.load)
        load = self.blocks.load.copy()  # of what is still to be placed
        offsets = [0] * len(order)
        unplaced = len(order)
        while unplaced:
            begin, end = _lowest_valley(skyline)
            ground = int(skyline[begin])
            left_wall = int(skyline[begin - 1]) if begin else _LIMIT
            right_wall = int(skyline[end]) if end < len(skyline) else _LIMIT
            inside = (open_first >= begin) & (last <= end)
            fullest = begin + int(load[begin:end].argmax())
            choices = np.flatnonzero(inside & (open_first <= fullest) & (last > fullest))
            if not len(choices):
                choices = np.flatnonzero(inside)
            if not len(choices):
                raised = min(left_wall, right_wall)
                skyline[begin:end] = raised
                if raised + int(load[begin:end].max()) >= limit:
                    return offsets, limit
                continue
            chosen = int(choices[0])
            if taste.flush != 1:
                tops = sizes[choices] + ground
                flush = (tops == left_wall) | (tops == right_wall)
                chosen = int(choices[np.argmax(np.where(flush, taste.flush, 1.0) * liking[choices])])
            size = int(sizes[chosen])
            offsets[int(order[chosen])] = ground
            skyline[first[chosen] : last[chosen]] = ground + size
            load[first[chosen] : last[chosen]] -= size
            open_first[chosen] = -1
            unplaced -= 1
        return offsets, self.blocks.height(offsets)


def _lowest_valley(skyline: NDArray[np.int64]) -> tuple[int, int]:
    """The first run of equal, lowest moments, as a half-open range."""
    begin = int(skyline.argmin())
    differs = skyline[begin:] != skyline[begin]
    length = int(differs.argmax())
    return begin, begin + length if differs[length] else len(skyline)
