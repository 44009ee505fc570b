"""The ways in which `plan_offsets` places blocks, each valid by itself; time is that of their sorted moments.

1. `two_stacks`: longest lifetime first, each block on a stack that grows from the bottom or one that hangs from the
   top, whichever is flat under it. A training step is nested lifetimes (what forward saves for backward) against
   lifetimes that run on to the optimizer (gradients), and two stacks pack those without a gap. O(n log n).
2. `sweep`: best fit into the holes left by freed blocks, along time and against it. O(n log n) and, for many
   holes, the memory moves of a sorted list.
3. `best_fit`: best fit in the order of decreasing size or lifetime, what most compilers ship. Pisarchyk and Lee,
   "Efficient memory management for deep neural net inference" (arXiv:2001.03288). O(n * n).
4. `Valleys`: fill the lowest valley of the skyline with a block that fits inside its width, or raise the valley to
   its lower wall. Burke, Kendall and Whitwell, "A new placement heuristic for the orthogonal stock-cutting problem"
   (Operations Research 52, 2004), brought to lifetimes by Sekiyama et al. (arXiv:1804.10001). Ours takes only blocks
   that cover the valley's most loaded moment, where a raise would hurt most, and gives up a run as soon as the
   skyline and the load still to come exceed the best plan, the pruning of exact solvers such as MiniMalloc (Moffitt,
   2024). A seeded search then disturbs the preferences of the best run. O(n * n) a run.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "Blocks", "Interval", "Valleys", "best_fit", "events_in_time", "sweep", "two_stacks"]

Interval = tuple[int, int, int]
"""Lifetime and size: `(lower, upper, size)`, live in the half-open `[lower, upper)`, size in bytes."""

LIMIT = 1 << 62  # times and the sum of sizes stay below this, so that int64 arithmetic is exact
_VALLEY_BUDGET = 800_000_000  # array elements that all runs of `Valleys` may touch, with _STEP_COST for each step
_STEP_COST = 5_000  # a step's fixed cost, in elements: a dozen array calls
_FLAT_LIMIT = 8  # skyline segments that `two_stacks` looks at before it calls the ground ragged


def events_in_time(intervals: Iterable[Interval]) -> list[tuple[int, bool, int]]:
    """`(time, starts, index)` of all blocks that take memory, in time; at equal times ends come first."""
    events = []
    for index, (lower, upper, size) in enumerate(intervals):
        if size:
            events += [(lower, True, index), (upper, False, index)]
    return sorted(events)


@dataclass(frozen=True)
class Blocks:
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
    def of(cls, intervals: list[Interval]) -> Blocks:
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
        """The bytes of an arena in which the blocks stand at `offsets`."""
        return int((np.asarray(offsets, dtype=np.int64) + self.sizes).max())


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


def two_stacks(blocks: Blocks) -> list[int]:
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


def sweep(intervals: Sequence[Interval]) -> list[int]:
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

    for _, starts, index in events_in_time(intervals):
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


def best_fit(blocks: Blocks, order: NDArray[np.int64]) -> list[int]:
    """Blocks in the given order, each in the smallest gap between the placed ones that it meets in time."""
    firsts, lasts, sizes = blocks.first.tolist(), blocks.last.tolist(), blocks.sizes.tolist()
    offsets = [0] * len(sizes)
    placed: list[tuple[int, int, int, int]] = []  # (offset, end, first, last), sorted
    for index in order.tolist():
        first, last, size = firsts[index], lasts[index], sizes[index]
        found, smallest, top = -1, LIMIT, 0
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


class Valleys:
    """Fill the lowest valley of the skyline first; see the head of the file."""

    def __init__(self, blocks: Blocks, enough: int) -> None:
        self.blocks = blocks
        self.enough = enough  # a height that ends the search
        self.length = (blocks.last - blocks.first).astype(np.float64)
        self.size = blocks.sizes / blocks.sizes.max()
        count, moments = len(blocks.sizes), len(blocks.load)
        self.affordable = _VALLEY_BUDGET // (count * (_STEP_COST + count + moments))

    def search(self, best: list[int], lowest: int, effort: int) -> list[int]:
        """All tastes, then up to `effort` runs that give a tenth of the blocks a new random preference."""
        noise = np.zeros(len(self.size))
        kept, kept_height = _TASTES[0], LIMIT
        for taste in _TASTES[: self.affordable]:
            offsets, reached = self.fill(taste, noise, LIMIT)
            if reached < kept_height:
                kept, kept_height = taste, reached
            if reached < lowest:
                best, lowest = offsets, reached
            if lowest <= self.enough:
                return best
        random = np.random.RandomState(0)  # the one generator whose stream NumPy has frozen
        for _ in range(min(effort, 2 * len(self.size), self.affordable - len(_TASTES))):
            fresh = 1.2 * random.standard_normal(len(self.size))
            disturbed = np.where(random.random_sample(len(self.size)) < 0.1, fresh, noise)
            offsets, reached = self.fill(kept, disturbed, lowest)
            if reached < lowest:
                best, lowest, noise = offsets, reached, disturbed
            if lowest <= self.enough:
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
            left_wall = int(skyline[begin - 1]) if begin else LIMIT
            right_wall = int(skyline[end]) if end < len(skyline) else LIMIT
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
