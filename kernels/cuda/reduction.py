"""Reductions that the fused nest of loops does not take: the position of an extreme along an inner axis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from staticgrad.graph.views import around
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.structural import (
    Call,
    CallText,
    indented,
    index,
    lowering,
    power_of_two,
    quotient,
    rest,
)
from staticgrad.kernels.group_text import INT64

PART = 64  # elements that one thread compares at least, before parts are compared


@lowering("argmax")
def argmax(call: Call) -> list[Launch]:
    """The first position of the largest element along one axis."""
    return _position(call, ">")


@lowering("argmin")
def argmin(call: Call) -> list[Launch]:
    """The first position of the smallest element along one axis."""
    return _position(call, "<")


def _position(call: Call, sign: str) -> list[Launch]:
    """The first position of the extreme; a NaN counts as extreme."""
    node, (x,) = call.node, call.node.operands
    (axis,) = node.attributes["axis"]
    if not node.size:
        return []
    before, after = around(x.shape, axis)
    search = _Search(call, sign, before, x.shape[axis], after)
    parts = search.useful_parts
    if parts == 1:
        return [search.launch()]
    values, places = (call.own(parts * node.size * dtype.itemsize) for dtype in (x.dtype, INT64))
    among_parts = _Search(call, sign, 1, parts, node.size, own=(values, places))
    return [replace(search, parts=parts, own=(values, places)).launch(), among_parts.launch()]


@dataclass(frozen=True)
class _Search:
    """The extremes of (before, extent, after) along the middle axis, by one kernel.

    A block has a tile of neighbouring columns; the threads of a column compare a share of its elements each.

    Attributes:
        parts: into how many parts the axis is cut, each for another block.
        own: where the extremes of parts lie in working memory, and where their positions: (parts, before * after).
            A search without parts reads them; its extent is their number.
    """

    call: Call
    sign: str
    before: int
    extent: int
    after: int
    parts: int = 1
    own: tuple[int, int] | None = None

    @property
    def columns(self) -> int:
        return self.before * self.after

    @cached_property
    def threads(self) -> int:
        """Threads of a block."""
        return self.call.threads(self.columns * self.extent)

    @cached_property
    def across(self) -> int:
        """Columns of a block."""
        target, threads = self.call.target, self.threads
        across = min(threads, power_of_two(self.columns))
        if 4 * self.columns < target.blocks * threads:
            across = min(target.warp, across)
        return max(across, threads // power_of_two(self.extent))

    @property
    def shares(self) -> int:
        """Threads of a column."""
        return self.threads // self.across

    @property
    def tiles(self) -> int:
        """Tiles of columns."""
        return -(-self.columns // self.across)

    @property
    def useful_parts(self) -> int:
        """Into how many parts the axis is worth cutting."""
        return max(1, min(self.call.target.blocks // self.tiles, self.extent // (PART * self.shares)))

    def launch(self) -> Launch:
        """The kernel."""
        text = self.call.text(self.threads)
        units, length = self.tiles * self.parts, -(-self.extent // self.parts)
        column = (rest("block", self.tiles, units), self.across)
        source = (quotient("column", self.after, self.columns), self.extent * self.after)
        text.lines += [
            f"part = {quotient('block', self.tiles, units)}",
            f"column = {index(column, (rest('thread', self.across, self.threads), 1))}",
            f"inside = column < {self.columns}",
            f"column = select(inside, column, int64({self.columns - 1}))",
            f"start = {index(source, (rest('column', self.after, self.columns), 1))}",
            f"at = {index(('part', length), (quotient('thread', self.across, self.threads), 1))}",
            f"end = min((part + 1) * {length}, {self.extent})",
            f"at = min(at, {self.extent - 1})",
            *self._read(text, "best", "place"),
            f"at += {self.shares}",
            "while at < end:",
            *indented([*self._read(text, "value", "found"), *self._take_better(first=True), f"at += {self.shares}"]),
            *(self._best_of_shares(text) if self.shares > 1 else []),
            "if inside:" if self.shares == 1 else f"if inside & (thread < {self.across}):",
            *indented(self._store(text)),
        ]
        text.grid = units
        return text.launch()

    def _read(self, text: CallText, value: str, place: str) -> list[str]:
        """Read the element at `at`, and which position it stands for."""
        at = index(("start", 1), ("at", self.after))
        if self.own is None or self.parts > 1:
            return [f"{value} = {text.operand(0)}[{at}]", f"{place} = at"]
        values, places = self._own(text, self.own)
        return [f"{value} = {values}[{at}]", f"{place} = {places}[{at}]"]

    def _own(self, text: CallText, own: tuple[int, int]) -> tuple[str, str]:
        return text.own(own[0], self.call.node.operands[0].dtype), text.own(own[1], INT64)

    def _take_better(self, *, first: bool) -> list[str]:
        """Keep the better one of two; `first` where the other one has the later position."""
        floating = self.call.node.operands[0].dtype.kind == "f"
        better = f"(value {self.sign} best)"
        if floating:
            better += " | ((value != value) & (best == best))"
        if not first:
            same = "((value == best) | ((value != value) & (best != best)))" if floating else "(value == best)"
            better += f" | ({same} & (found < place))"
        return [
            f"better = bool({better})",
            "best = select(better, value, best)",
            "place = select(better, found, place)",
        ]

    def _best_of_shares(self, text: CallText) -> list[str]:
        """Compare what the threads of a column have found, two by two."""
        values = text.shared("values", self.threads, self.call.node.operands[0].dtype)
        places = text.shared("places", self.threads, INT64)
        keep = [f"{values}[thread] = best", f"{places}[thread] = place", "cuda.syncthreads()"]
        other = [f"value = {values}[thread + distance]", f"found = {places}[thread + distance]"]
        return [
            *keep,
            f"distance = int64({self.threads // 2})",
            f"while distance >= {self.across}:",
            "    if thread < distance:",
            *indented(indented([*other, *self._take_better(first=False), *keep[:2]])),
            "    cuda.syncthreads()",
            "    distance = distance // 2",
        ]

    def _store(self, text: CallText) -> list[str]:
        if self.own is None or self.parts == 1:
            return [f"{text.out()}[column] = place"]
        values, places = self._own(text, self.own)
        at = f"part * {self.columns} + column"
        return [f"{values}[{at}] = best", f"{places}[{at}] = place"]
