"""The points of a nest of loops as the threads of a GPU visit them, and how operands are read there.

A domain's axes are cut into groups, each with one flat counter: all axes (`e`), the axes over rows and those inside a
row (`row`, `j`), or the axes that a sum keeps and those it adds up (`m`, `q`). From the counter of a group the index
along any run of its axes follows by a quotient and a rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from staticgrad.kernels.group_text import term

NARROW = 2**31  # quotients of smaller numbers take 32-bit instructions


@dataclass
class Axes:
    """Some axes of the domain, in order, and the counter that runs over them.

    `lanes` elements along the last of them are handled at once; the counter is that of the first.
    """

    counter: str
    axes: tuple[int, ...]
    extents: tuple[int, ...]
    lines: list[str] = field(default_factory=list)  # where indices along parts of the axes are computed
    names: dict[tuple[int, int], str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return prod(self.extents)

    def terms(self, strides: Sequence[int]) -> list[str]:
        """The index of an element as terms, for strides along all axes of the domain."""
        own = [strides[axis] for axis in self.axes]
        return [term(self._run(first, last), own[last]) for first, last in self._runs(own)]

    def _runs(self, strides: Sequence[int]) -> list[tuple[int, int]]:
        """Runs of axes that lie behind each other in memory, but for those without a stride."""
        found: list[tuple[int, int]] = []
        for axis, stride in enumerate(strides):
            if not stride:
                continue
            if found and found[-1][1] == axis - 1 and strides[axis - 1] == stride * self.extents[axis]:
                found[-1] = (found[-1][0], axis)
            else:
                found.append((axis, axis))
        return found

    def _run(self, first: int, last: int) -> str:
        """The index along the axes from `first` to `last`, as if they were one."""
        if (first, last) not in self.names:
            below, span = prod(self.extents[last + 1 :]), prod(self.extents[first : last + 1])
            text = self.counter if below == 1 else self._divided("quotient", "//", self.counter, below)
            if first > 0 and span * below < self.size:
                text = self._divided("rest", "%", text, span)
            if text == self.counter:
                return text
            name = f"{self.counter}{self.axes[first]}" + (f"_{self.axes[last]}" if last > first else "")
            self.lines.append(f"{name} = {text}")
            self.names[first, last] = name
        return self.names[first, last]

    def _divided(self, short: str, long: str, number: str, divisor: int) -> str:
        return f"{short}({number}, {divisor})" if self.size < NARROW else f"({number} {long} {divisor})"

    def varies(self, strides: Sequence[int]) -> bool:
        """Whether an operand with these strides differs between points of these axes."""
        return any(strides[axis] for axis in self.axes)


def lanes_of(extent: int, itemsizes: Sequence[int], vector_bytes: int) -> int:
    """How many elements one thread handles at once along an axis of this extent: 4, 2 or 1."""
    widest = max(itemsizes, default=vector_bytes)
    lanes = min(4, max(1, vector_bytes // widest))
    while extent % lanes:
        lanes //= 2
    return lanes
