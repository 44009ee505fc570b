"""Running totals along an axis.

Along the last axis a row belongs to a team of threads, which goes through it tile by tile, each thread with a few
neighbours; along another axis every thread has a column. Where that leaves most of the GPU without work, rows and
columns are cut into parts: first the total of each part, then what stands before each end, then the parts themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal

from staticgrad.graph.views import around
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.running_total import in_block, in_team
from staticgrad.kernels.cuda.structural import (
    Call,
    CallText,
    added,
    indented,
    index,
    loaded,
    lowering,
    neutral,
    power_of_two,
    quotient,
    rest,
    stored,
)
from staticgrad.kernels.group_text import term

EACH = 4  # neighbours that a thread has in hand, in a row or one after the other in a column
TILES = 4  # of a part of a row, at least
LENGTH = 64  # of a part of a column, at least
WORTH = 4  # parts that save more than their two further kernels cost


@lowering("cumulative_sum")
def cumulative_sum(call: Call) -> list[Launch]:
    """out[a, i, b] = x[a, i, b] + out[a, i - 1, b]; from the other end where `reverse` is set."""
    node = call.node
    axis = node.attributes["axis"]
    before, after = around(node.shape, axis)
    if not node.size:
        return []
    kernel, parts = (_by_team, _parts_of_rows) if after == 1 else (_by_column, _parts_of_columns)
    scan = _Scan(call, before, node.shape[axis], after, bool(node.attributes.get("reverse")))
    count = parts(scan)
    if count < WORTH:
        return [kernel(scan)]
    own = call.own(before * count * after * node.dtype.itemsize)
    ends = replace(scan, extent=count, backwards=False, own=own, stage="ends")
    cut = replace(scan, parts=count, own=own)
    return [kernel(replace(cut, stage="totals")), kernel(ends), kernel(replace(cut, stage="parts"))]


@dataclass(frozen=True)
class _Scan:
    """Running totals of (before, extent, after) along the middle axis, by one kernel.

    Attributes:
        own: where the totals of parts lie in working memory: (before, parts, after).
        stage: what the kernel does: "whole" rows or columns; the "totals" of parts; what stands before the "ends" of
            parts, in their place; or "parts" themselves, to which that is added.
    """

    call: Call
    before: int
    extent: int
    after: int
    backwards: bool
    parts: int = 1
    own: int = 0
    stage: Literal["whole", "totals", "ends", "parts"] = "whole"

    @property
    def lanes(self) -> int:
        """Neighbours in a row that are loaded at once."""
        return self.call.lanes(self.extent, 0 if self.stage == "ends" else self.call.offset(0))

    def totals(self, text: CallText) -> str:
        """The pointer to the totals of parts."""
        return text.own(self.own, self.call.node.dtype)

    def source(self, text: CallText) -> str:
        """The pointer to what is added up."""
        return self.totals(text) if self.stage == "ends" else text.operand(0)

    def target(self, text: CallText) -> str:
        """The pointer to the running totals."""
        return self.totals(text) if self.stage == "ends" else text.out()

    def carry(self, text: CallText, end: str) -> list[str]:
        """The lines that set `carry` to what stands before a part; the part before it has it at `end`."""
        begin = f"carry = {neutral(self.call.node.dtype)}"
        if self.stage != "parts":
            return [begin]
        return [begin, "if part > 0:", f"    carry = {self.totals(text)}[{end}]"]

    def place(self, counter: str, offset: int, count: int = 1) -> str:
        """The index of the first of `count` elements, from their position in the order of adding: counter + offset."""
        if self.backwards:
            return f"start + {(self.extent - count - offset) * self.after} - {term(counter, self.after)}"
        return index(("start", 1), (counter, self.after), offset=offset * self.after)


# ---------------------------------------------------------------- rows


def _parts_of_rows(scan: _Scan) -> int:
    target = scan.call.target
    return min(target.blocks // scan.before, scan.extent // (TILES * EACH * target.block))


def _by_team(scan: _Scan) -> Launch:
    """Every row, or part of one, by a team of threads, tile by tile."""
    target, dtype, units = scan.call.target, scan.call.node.dtype, scan.before * scan.parts
    length = scan.extent
    if scan.parts > 1:
        tile = EACH * target.block
        length = -(-scan.extent // (scan.parts * tile)) * tile
    team = min(target.block, power_of_two(-(-length // EACH)))
    alone = team > target.warp or EACH * team < length
    text = scan.call.text(team if alone else scan.call.threads(units * team))
    teams = text.threads // team
    text.lines += [
        f"mine = {index((rest('thread', team, text.threads), EACH))}",
        f"unit = {index(('block', teams), (quotient('thread', team, text.threads), 1))}",
        *([f"inside = unit < {units}", f"unit = select(inside, unit, int64({units - 1}))"] if teams > 1 else []),
        f"part = {rest('unit', scan.parts, units)}",
        f"start = {index((quotient('unit', scan.parts, units), scan.extent))}",
        *scan.carry(text, "unit - 1"),
        f"at = {index(('part', length))}",
        f"end = min(at + {length}, {scan.extent})",
        *(["end = select(inside, end, int64(0))"] if teams > 1 else []),
        *(_tiles(scan, text, team) if alone else _tile(scan, text, in_team(text, "total", dtype, team))),
    ]
    if scan.stage == "totals":
        text.lines += ["if thread == 0:", f"    {scan.totals(text)}[unit] = carry"]
    text.grid = -(-units // teams)
    return text.launch()


def _tiles(scan: _Scan, text: CallText, team: int) -> list[str]:
    """Go through a row from `at` to `end`, all threads of the block together."""
    dtype = scan.call.node.dtype
    tile = [
        *_tile(scan, text, in_block(text, "total", dtype)),
        f"carry = {added('carry', 'total_all', dtype)}",
        f"at += {EACH * team}",
    ]
    return ["while at < end:", *indented(tile)]


def _tile(scan: _Scan, text: CallText, over_threads: list[str]) -> list[str]:
    """What stands before each element of a tile is what stands before the tile, the thread, and in the thread."""
    dtype = scan.call.node.dtype
    tile = [
        "j = at + mine",
        *_neighbours(scan, text),
        *(f"v{k} = {added(f'v{k - 1}', f'v{k}', dtype)}" for k in range(1, EACH)),
        f"total = v{EACH - 1}",
        *over_threads,
    ]
    if scan.stage == "totals":
        return tile
    return [*tile, f"total_before = {added('carry', 'total_before', dtype)}", *_put(scan, text)]


def _neighbours(scan: _Scan, text: CallText) -> list[str]:
    """Load `v0 v1 …`, the elements from the j-th on; what lies beyond the end changes nothing."""
    lines = [f"v{k} = {neutral(scan.call.node.dtype)}" for k in range(EACH)]
    lanes = scan.lanes
    for first in range(0, EACH, lanes):
        place = scan.place("j", first, lanes)
        load, values = loaded(scan.source(text), place, lanes, "a")
        values = values[::-1] if scan.backwards else values
        lines += [f"if {index(('j', 1), offset=first)} < end:", *indented(load)]
        lines += [f"    v{first + k} = {value}" for k, value in enumerate(values)]
    return lines


def _put(scan: _Scan, text: CallText) -> list[str]:
    """Store the running totals of the elements from the j-th on."""
    lines, lanes = [], scan.lanes
    for first in range(0, EACH, lanes):
        place = scan.place("j", first, lanes)
        totals = [added("total_before", f"v{first + k}", scan.call.node.dtype) for k in range(lanes)]
        lines.append(f"if {index(('j', 1), offset=first)} < end:")
        lines += indented(stored(scan.target(text), place, totals[::-1] if scan.backwards else totals))
    return lines


# ---------------------------------------------------------------- columns


def _parts_of_columns(scan: _Scan) -> int:
    target, columns = scan.call.target, scan.before * scan.after
    return min(target.blocks * target.block // columns, scan.extent // LENGTH, isqrt(scan.extent))


def _by_column(scan: _Scan) -> Launch:
    """Every column, or part of one, by a thread of its own."""
    units, length = scan.before * scan.parts * scan.after, -(-scan.extent // scan.parts)
    over = quotient("unit", scan.after, units)
    row = (quotient("unit", scan.after * scan.parts, units), scan.extent * scan.after)
    text = scan.call.text(scan.call.threads(units))
    lines = [
        f"part = {rest(over, scan.parts, units // scan.after)}",
        f"start = {index(row, (rest('unit', scan.after, units), 1))}",
        *scan.carry(text, f"unit - {scan.after}"),
        f"at = {index(('part', length))}",
        f"end = min(at + {length}, {scan.extent})",
        f"while at + {EACH} <= end:",
        *indented(_steps(scan, text, EACH)),
        "while at < end:",
        *indented(_steps(scan, text, 1)),
    ]
    if scan.stage == "totals":
        lines.append(f"{scan.totals(text)}[unit] = carry")
    text.every("unit", units, lines)
    return text.launch()


def _steps(scan: _Scan, text: CallText, count: int) -> list[str]:
    """Add some elements to `carry`; all are on their way before the first is needed."""
    lines, adding = [], []
    for k in range(count):
        lines += [f"place{k} = {scan.place('at', k)}", f"a{k} = {scan.source(text)}[place{k}]"]
        adding.append(f"carry = {added('carry', f'a{k}', scan.call.node.dtype)}")
        if scan.stage != "totals":
            adding.append(f"{scan.target(text)}[place{k}] = carry")
    return [*lines, *adding, f"at += {count}"]
