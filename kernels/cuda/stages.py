"""A fused group as its kernels see it: how many threads and lanes there are, and what is computed where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from staticgrad.graph.members import Member
from staticgrad.graph.node import Node
from staticgrad.graph.structure import Level, Structure, place_passes
from staticgrad.kernels.cuda.kernel_text import KernelText, Points
from staticgrad.kernels.cuda.launch import blocks_for
from staticgrad.kernels.cuda.online import Online, with_online
from staticgrad.kernels.cuda.points import Axes, lanes_of
from staticgrad.kernels.cuda.target import VECTOR_BYTES, Target
from staticgrad.kernels.expressions import BOOL

IN_FLIGHT = 4  # vectors that one thread has in hand at once: it waits for memory less, and they fit its registers
UNBOUNDED = 256  # threads of a block that may each have all the registers there are
PART = 64  # terms of a sum that one thread adds up at least, before parts are added
ALIGNMENT = 64
GRID = "int64(cuda.gridDim.x)"  # the number of blocks


@dataclass(frozen=True)
class Sum:
    """Reductions over the same points into results of the same layout: one kernel adds them up.

    Attributes:
        kept, reduced: the axes that tell the results apart, and those that are added up.
        inner_is_kept: whether neighbours in memory belong to different results.
    """

    members: tuple[Member, ...]
    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    inner_is_kept: bool


class GroupStages:
    """A structure, and what its kernels have in common."""

    def __init__(
        self, structure: Structure, writes: Sequence[Node], aliases: Mapping[Node, Node], target: Target, guarded: bool
    ) -> None:
        self.structure = replace(structure, passes={}, scratch=())
        self.writes = tuple(writes)
        self.aliases = aliases
        self.target = target
        self.guarded = guarded
        self.level = structure.level
        self.axes = structure.axes
        sizes = self._sizes()
        self.widest = max(sizes, default=1)
        self.lanes = lanes_of(self.axes[-1], sizes, VECTOR_BYTES) if self.axes else 1
        self.fits = structure.row_size <= IN_FLIGHT * self.lanes * target.largest_block
        self.online: dict[Node, Online] = {}
        if not self.fits:
            self.structure, self.online = with_online(self.structure)
        place_passes(self.structure, writes, keep=False)
        self.members = {member.node: member for member in self.structure.members}
        self.own: dict[Node, int] = {}
        self.own_bytes = 0
        self.small = structure.size <= target.small
        self.sums = self._sums()
        self.totals = [one for one in self.sums if not one.kept]
        self.threads = self._threads()

    def _sizes(self) -> list[int]:
        """The item sizes of all that is read and written along the innermost axis."""
        if not self.axes:
            return []
        structure = self.structure
        accesses = [access for member in structure.members for access in member.accesses]
        sizes = [
            access.owner.dtype.itemsize
            for access in accesses
            if access.owner.op.name != "iota" and structure.strides(access.layout, access.size)[-1]
        ]
        return sizes + [node.dtype.itemsize for node in self.writes if self.level.get(node) == Level.FULL]

    def _threads(self) -> int:
        """Threads of a block: enough for one row, or for all of a small group."""
        target = self.target
        if self._has_rows() and self._team() > target.warp:
            return self._team()
        if self.small:
            return max(target.warp, min(target.block, power_of_two(-(-self.structure.size // self.lanes))))
        return target.block

    # ------------------------------------------------------------ what is computed where

    def _has_rows(self) -> bool:
        level = self.level
        wanted = any(level[node] in (Level.FULL, Level.ROW) for node in self.writes)
        return (
            self.structure.rows is not None
            and any(found == Level.ROW for found in level.values())
            and (wanted or any(self._needs_rows(one) for one in self.sums))
        )

    def _needs_rows(self, one: Sum) -> bool:
        return any(self.level[member.node] == Level.ROW for member in self._read_by(one.members))

    def _keep_row_values(self) -> None:
        """Give the values of rows that sums read, and nobody stores, a place until then."""
        for one in self.sums:
            for member in self._read_by(one.members):
                node = member.node
                if self.level[node] == Level.ROW and node not in self.writes and node not in self.own:
                    self.own[node] = self._own(node.nbytes)

    def _own(self, nbytes: int) -> int:
        offset = self.own_bytes
        self.own_bytes += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return offset

    def _read_by(self, members: Sequence[Member]) -> list[Member]:
        """The members whose values are read directly by those that sums compute, or by the sums themselves."""
        cone = [*self._cone(members), *members]
        return [self.members[access.owner] for member in cone for access in member.accesses
                if access.owner in self.members]  # fmt: skip

    def _in_memory(self, node: Node) -> bool:
        """Whether a member's value is read from memory after the points and rows are done, not computed again."""
        level = self.level[node]
        return (level == Level.FULL and node in self.writes) or level == Level.ROW

    def _cone(self, members: Sequence[Member]) -> list[Member]:
        """The members that sums have to compute again, in order."""
        wanted: set[Node] = set()
        pending = [access.owner for member in members for access in member.accesses]
        while pending:
            node = pending.pop()
            if node in self.members and node not in wanted and not self._in_memory(node):
                wanted.add(node)
                pending += [access.owner for access in self.members[node].accesses]
        return [member for member in self.structure.members if member.node in wanted]

    def _sums(self) -> list[Sum]:
        """The reductions that are whole only after the loops, by the points they run over and their layout."""
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Member]] = {}
        for member in self.structure.members:
            if member.kind != "reduce" or self.level[member.node] != Level.AFTER or not member.size:
                continue
            count = len(self.axes) if member.size == self.structure.size else len(self.structure.outer)
            strides = self.structure.strides(member.result, member.size)
            found.setdefault((tuple(range(count)), strides), []).append(member)
        made = []
        for (axes, strides), members in found.items():
            kept = tuple(axis for axis in axes if strides[axis])
            inner = [axis for axis in axes if self.axes[axis] > 1]
            reduced = tuple(axis for axis in axes if not strides[axis])
            made.append(Sum(tuple(members), kept, reduced, bool(inner) and inner[-1] in kept))
        return made

    # ------------------------------------------------------------ points

    def _points(self, text: KernelText) -> int:
        """Every point by a thread of its own."""
        axes = self._over("e", range(len(self.axes)))
        points = Points(text, [axes], self.lanes)
        written = [node for node in self.writes if self.level[node] == Level.FULL]
        self._compute(points, written)
        stores = [line for node in written for line in points.store(node, points.values[node])]
        text.lines += points.before
        items = axes.size // self.lanes
        text.lines += [
            f"e = (block * {self.threads} + thread) * {self.lanes}",
            f"while e < {axes.size}:",
            *indented([*points.each(), *stores, f"e += {GRID} * {self.threads * self.lanes}"]),
        ]
        return blocks_for(items, self.threads, 2**20)

    def _compute(self, points: Points, wanted: Sequence[Node]) -> None:
        """Compute nodes and what they are made of."""
        needed: set[Node] = set()
        pending = list(wanted)
        while pending:
            node = pending.pop()
            if node in self.members and node not in needed and points.value(node) is None:
                needed.add(node)
                pending += [access.owner for access in self.members[node].accesses]
        points.compute([member for member in self.structure.members if member.node in needed])

    def _over(self, counter: str, axes: Sequence[int]) -> Axes:
        return Axes(counter, tuple(axes), tuple(self.axes[axis] for axis in axes))

    @property
    def resident(self) -> int:
        """Blocks that a multiprocessor should hold at once, where that limits the registers; 0 where it need not."""
        if self.threads <= UNBOUNDED:
            return 0
        return 1 if self.fits or self.widest > 4 else 2  # of 8 bytes, a number takes two registers

    @property
    def in_flight(self) -> int:
        """Vectors of a row in memory that one thread asks for at once."""
        return IN_FLIGHT if self.lanes > 1 else 2 * IN_FLIGHT

    def _team(self) -> int:
        """How many threads work on one row: part of a warp, or a block.

        A row in memory has half as many as a block can have, so that another block works while one adds up.
        """
        size = self.structure.row_size
        if not self.fits:
            return self.target.largest_block // 2
        return min(self.target.largest_block, power_of_two(-(-size // (IN_FLIGHT * self.lanes))))


# ---------------------------------------------------------------- text


def indented(lines: Sequence[str]) -> list[str]:
    """Lines one level deeper."""
    return [f"    {line}" for line in lines]


def condition(*conditions: str) -> str:
    """The line that begins what is done only where all conditions hold; empty ones do not count."""
    return f"if {' & '.join(f'({x})' for x in conditions if x)}:"


def stored(node: Node, value: str) -> str:
    """A value as it is stored: truth values are bytes."""
    return f"uint8({value})" if node.dtype == BOOL else value


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
