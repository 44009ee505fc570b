"""The structure of a fused kernel: its nest of loops, and where in it each member is computed.

All points of the largest domain are visited in order. With rows, the nest has two parts: outer loops over the rows and
inner loops over the points of one row, the latter run several times where a value needs the reduction of its whole row
(softmax: the largest, the sum of exponentials, the quotients). What one pass computes and a later one needs is
computed again where that is cheap, read back where it is stored anyway, or kept in a scratch row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from staticgrad.graph.members import ARGUMENTS, Access, Member
from staticgrad.graph.node import Node
from staticgrad.graph.views import Layout, boundaries, collapse, nested, split

MAX_PASSES = 6
MAX_ROW = 131_072  # elements of a row that is visited more than once: it should stay in the cache
CHEAP = 8  # up to this cost a value is computed again rather than kept in a scratch row
LONG_SUM = 1024  # a float32 sum of more terms, one after the other, is added up in float64
SCRATCH_ALIGNMENT = 64

# Rough costs against an addition, for elementwise ops that cost more than one.
COSTS = {
    "div": 3, "sqrt": 3, "rsqrt": 4, "reciprocal": 3, "floor_divide": 4, "remainder": 5, "fmod": 5,
    "exp": 10, "exp2": 9, "expm1": 12, "log": 10, "log2": 10, "log10": 10, "log1p": 12, "pow": 30, "random_bits": 40,
    "sin": 14, "cos": 14, "tan": 20, "asin": 14, "acos": 14, "atan": 14, "atan2": 20, "sinh": 16, "cosh": 14,
    "tanh": 14, "asinh": 24, "acosh": 20, "atanh": 20, "sigmoid": 13, "erf": 20, "erfc": 24, "lgamma": 60,
    "digamma": 60,
}  # fmt: skip


class Level(IntEnum):
    """Where in the nest a member is computed."""

    BEFORE = 0  # one value, before the loops
    ROW = 1  # one value for each row
    FULL = 2  # one value for each point
    AFTER = 3  # accumulated over the loops; whole only when they are done


@dataclass(eq=False)
class Structure:
    """How a kernel computes `members`.

    Attributes:
        size, rows: points of the whole domain, and rows it is divided into (None: no member needs rows).
        outer, inner: extents of the loops over rows, and over the points of one row; a kernel of one point has none.
        level: where each member is computed.
        stage: of a full member or a reduction, the first pass in which it can be computed; of a row member, how many
            passes must be done before.
        passes: for each full member the passes in which its value is computed or read.
        scratch: full members kept in a scratch row, in order.
    """

    members: tuple[Member, ...]
    size: int
    rows: int | None
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    level: dict[Node, Level]
    stage: dict[Node, int]
    passes: dict[Node, set[int]] = field(default_factory=dict)
    scratch: tuple[Node, ...] = ()

    @property
    def axes(self) -> tuple[int, ...]:
        return self.outer + self.inner

    @property
    def row_size(self) -> int:
        return self.size // self.rows if self.rows else self.size

    @property
    def count(self) -> int:
        """Number of passes over each row."""
        return 1 + max((max(found) for found in self.passes.values() if found), default=0)

    def strides(self, layout: Layout, size: int) -> tuple[int, ...]:
        """The strides of a layout over a domain of `size` points along the axes of the nest."""
        if size == self.size:
            return split(layout, self.axes)
        if size == self.rows:
            return split(layout, self.outer) + (0,) * len(self.inner)
        return (0,) * len(self.axes)

    @property
    def wide(self) -> tuple[Node, ...]:
        """Sums with many terms for each of several results: they are kept in float64 while the loops run."""
        return tuple(
            member.node
            for member in self.members
            if member.kind == "reduce"
            and self.level[member.node] == Level.AFTER
            and member.node.op.name == "sum"
            and member.node.dtype == np.float32
            and member.node.size > 1
            and member.node.size * LONG_SUM < member.size
        )

    @property
    def scratch_offsets(self) -> dict[Node, int]:
        """Where in the working memory each scratch row and each wide sum lies."""
        return self._lay_out()[0]

    @property
    def scratch_bytes(self) -> int:
        return self._lay_out()[1]

    def _lay_out(self) -> tuple[dict[Node, int], int]:
        sizes = [(node, self.row_size * node.dtype.itemsize) for node in self.scratch]
        sizes += [(node, 2 * node.nbytes) for node in self.wide]
        offsets, end = {}, 0
        for node, nbytes in sizes:
            offsets[node] = end
            end += -(-nbytes // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
        return offsets, end


def row_layout(size: int, rows: int) -> Layout:
    """The layout that reads one value per row."""
    return collapse((rows, size // rows), (1, 0))


def analyse(members: Sequence[Member]) -> Structure | None:
    """The nest that computes all members in one kernel, or None where there is no such nest."""
    inside = {member.node for member in members}
    size = max(member.reach for member in members)
    if size == 0:
        return _empty(members) if len(members) == 1 else None
    found = _row_counts(members, inside, size)
    if len(found) > 1:
        return None
    rows = found.pop() if found else (1 if _whole_is_a_row(members, inside, size) else None)
    if rows is not None and (rows == 0 or size % rows):  # an empty row beside elements: no common rows
        return None
    level = _levels(members, inside, size, rows)
    if level is None or not _readable(members, level, size, rows):
        return None
    nest = _nest(members, size, rows)
    if nest is None:
        return None
    structure = Structure(tuple(members), size, rows, *nest, level, stages_of(members, level))
    return structure if _affordable(structure) else None


def _empty(members: Sequence[Member]) -> Structure:
    (member,) = members
    after = member.kind == "reduce"
    return Structure((member,), 0, None, (), (), {member.node: Level.AFTER if after else Level.FULL}, {member.node: 0})


def _row_counts(members: Sequence[Member], inside: Collection[Node], size: int) -> set[int]:
    """The numbers of rows that members ask for."""
    found = set()
    for member in members:
        if (member.kind == "map" and member.size not in (1, size)) or member.kind == "pick":
            found.add(member.size)
        elif member.kind == "reduce" and member.size == size and member.node.size > 1:
            if member.result == row_layout(size, member.node.size):
                found.add(member.node.size)
        elif member.kind == "reduce" and member.node.op.name in ARGUMENTS:
            found.add(1)
        elif member.kind == "reduce" and member.size != size:
            found.add(member.size)
    return found


def _whole_is_a_row(members: Sequence[Member], inside: Collection[Node], size: int) -> bool:
    """Whether a value of the whole domain needs a reduction of all of it."""
    reduced: set[Node] = set()
    for member in members:
        reads = [access.owner for access in member.accesses if access.owner in reduced]
        if member.size == 1 and reads:
            reduced.add(member.node)
        elif reads:
            return True
        if member.kind == "reduce" and member.node.size == 1:
            reduced.add(member.node)
    return False


def _levels(
    members: Sequence[Member], inside: Collection[Node], size: int, rows: int | None
) -> dict[Node, Level] | None:
    level: dict[Node, Level] = {}
    for member in members:
        node = member.node
        if member.kind == "reduce":
            if member.size not in (size, rows):
                return None
            per_row = rows is not None and member.size == size and member.result == row_layout(size, rows)
            if not per_row and node.op.name in ARGUMENTS:
                return None
            level[node] = Level.ROW if per_row else Level.AFTER
        elif member.size == rows:
            level[node] = Level.ROW
        elif member.size == 1:
            late = any(level.get(access.owner) == Level.AFTER for access in member.accesses)
            level[node] = Level.AFTER if late else Level.BEFORE
        elif member.size == size:
            level[node] = Level.FULL
        else:
            return None
        if node.op.name == "scatter_add_along_axis" and level[node] != Level.FULL:
            return None
    return level


def _readable(members: Sequence[Member], level: dict[Node, Level], size: int, rows: int | None) -> bool:
    """Whether each member finds the members it reads in the place and order in which they are computed."""
    for member in members:
        accesses = member.accesses if member.source is None else (*member.accesses, member.source)
        for access in accesses:
            inside = access.owner in level and access.owner.op.name != "iota"
            if inside and not _fits(member, access, level, size, rows):
                return False
    return True


def _fits(member: Member, access: Access, level: dict[Node, Level], size: int, rows: int | None) -> bool:
    source, reader = level[access.owner], level[member.node]
    if access.offset or access.owner.size not in (size, rows, 1):
        return False
    if source == Level.AFTER:
        return reader == Level.AFTER and member.size == 1 and access.owner.size == 1
    if source == Level.BEFORE:
        return True
    if source == Level.FULL:
        return access.size == size and access.layout == ((size, 1),)
    if access.size == size and rows is not None:
        return access.layout == row_layout(size, rows)
    return access.size == rows and access.layout == collapse((access.size,), (1,))


def _nest(members: Sequence[Member], size: int, rows: int | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The extents of the outer and inner loops, or None where the members' axes do not fit into one nest."""
    cuts: set[int] = set()
    row_size = size // rows if rows else size
    for member in members:
        for layout, points in member.layouts:
            if points == size:
                cuts |= boundaries(layout)
            elif points == rows:
                cuts |= {cut * row_size for cut in boundaries(layout)}
            elif points != 1:
                return None
    if rows is not None and 1 < row_size < size:
        cuts.add(row_size)
    ascending = sorted(cuts)
    if not nested(ascending, size):
        return None
    if size == 1:
        return (), ()
    extents, outer = [], 0
    for smaller, larger in zip([1, *ascending], [*ascending, size], strict=True):
        extents.append(larger // smaller)
        outer += rows is not None and smaller >= row_size
    extents.reverse()
    if rows is None:
        outer = len(extents) - 1
    if any(member.kind == "pick" for member in members) and len(extents) - outer != 1:
        return None
    return tuple(extents[:outer]), tuple(extents[outer:])


def stages_of(members: Sequence[Member], level: Mapping[Node, Level]) -> dict[Node, int]:
    """For each member the stage that `Structure` speaks of."""
    stage: dict[Node, int] = {}
    for member in members:
        accesses = member.accesses if member.source is None else (*member.accesses, member.source)
        first = max((stage[a.owner] for a in accesses if a.owner in stage and level[a.owner] != Level.AFTER), default=0)
        # a row reduction is whole one pass after the pass that computes it
        stage[member.node] = first + (member.kind == "reduce" and level[member.node] == Level.ROW)
    return stage


def _affordable(structure: Structure) -> bool:
    level = structure.level
    last = max((stage - (level[node] == Level.ROW) for node, stage in structure.stage.items()), default=0)
    return last == 0 or (last < MAX_PASSES and structure.row_size <= MAX_ROW)


# ---------------------------------------------------------------- what is kept between passes


def place_passes(structure: Structure, writes: Collection[Node], *, keep: bool = True) -> None:
    """Decide in which passes each full member is needed, and which ones are kept in scratch rows, if `keep`."""
    level, stage = structure.level, structure.stage
    needed: dict[Node, set[int]] = {
        member.node: set() for member in structure.members if level[member.node] == Level.FULL
    }
    costs = _costs(structure)
    scratch = []
    for member in reversed(structure.members):
        node = member.node
        if node in needed:
            if node in writes:
                needed[node].add(stage[node])
            wanted = needed[node]
            if keep and len(wanted) > 1 and node not in writes and costs[node] > CHEAP:
                scratch.append(node)
            passes = {min(wanted)} if wanted and (node in writes or node in scratch) else wanted
        elif member.kind == "reduce" and member.size == structure.size:
            passes = {stage[node] - (level[node] == Level.ROW)}
        else:
            continue
        for access in member.accesses:
            if access.owner in needed and access.owner is not node:
                needed[access.owner] |= passes
    structure.passes = needed | {
        member.node: {stage[member.node] - (level[member.node] == Level.ROW)}
        for member in structure.members
        if member.kind == "reduce" and member.size == structure.size
    }
    structure.scratch = tuple(reversed(scratch))


def _costs(structure: Structure) -> dict[Node, int]:
    """What it costs to compute a full member again from what is in memory and in the row."""
    costs: dict[Node, int] = {}
    for member in structure.members:
        if structure.level[member.node] == Level.FULL:
            own = COSTS.get(member.node.op.name, 1)
            costs[member.node] = min(1000, own + sum(costs.get(access.owner, 0) for access in member.accesses))
    return costs


def in_place_pairs(structure: Structure, writes: Sequence[Node], picked: Collection[Node]) -> list[tuple[Node, Node]]:
    """Pairs (written, read) that may share storage: each element is read for the last time before, or when, the
    element of the same place is written. `picked` are the owners read at chosen positions of a row."""
    reads: dict[Node, list[tuple[Member, Access]]] = {}
    inside = set(structure.level)
    for member in structure.members:
        for access in member.accesses:
            if access.owner not in inside:
                reads.setdefault(access.owner, []).append((member, access))
    pairs = []
    for written in writes:
        for owner, uses in reads.items():
            same = owner.dtype == written.dtype and owner.size == written.size and owner.op.name != "constant"
            if same and owner.size and owner not in picked and _read_before(structure, written, uses):
                pairs.append((written, owner))
    return pairs


def _read_before(structure: Structure, written: Node, uses: Sequence[tuple[Member, Access]]) -> bool:
    level = structure.level[written]
    if any(access.offset for _, access in uses):
        return False
    if level == Level.FULL:
        last = min(structure.passes[written])
        whole = ((structure.size, 1),)
        return all(
            access.size == structure.size
            and access.layout == whole
            and max(structure.passes.get(member.node, {0})) <= last
            for member, access in uses
        )
    if level == Level.ROW and structure.rows != 1:
        rows = structure.rows or 1
        layouts = {structure.size: row_layout(structure.size, rows), rows: ((rows, 1),)}
        return all(access.layout == layouts.get(access.size) for _, access in uses)
    return written.size == 1  # read before the loops, written after them


def _searches_row(member: Member) -> bool:
    """Whether the row is read once more to find where the extreme stands."""
    return member.kind == "reduce" and member.node.op.name in ARGUMENTS


def picked_owners(structure: Structure) -> set[Node]:
    """Owners read at a chosen position of a row, directly or through members computed again for that position."""
    by_node = {member.node: member for member in structure.members}
    pending = [member.source for member in structure.members if member.source is not None]
    pending += [member.accesses[0] for member in structure.members if _searches_row(member)]
    found: set[Node] = set()
    seen: set[Node] = set()
    while pending:
        access = pending.pop()
        if access.owner in by_node and access.owner not in seen:
            seen.add(access.owner)
            pending.extend(by_node[access.owner].accesses)
        found.add(access.owner)
    return found
