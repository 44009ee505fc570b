"""Generates the kernels of a fused group for a GPU: readable Python for `numba.cuda`, from the group's nest of loops.

The nest becomes up to four kinds of stages, in this order:

    points    every point by a thread of its own, where nothing needs rows
    rows      every row by a team of threads: part of a warp, a warp or a block; one pass over the row for each
              reduction that another value of the row needs
    sums      what is added up over rows or over everything: parts of it by blocks, then the parts by one kernel, always
              in the same order, so that the results are the same from run to run
    numbers   single values before and after all others, by one block

A small group is one launch: one block does the stages in turn, with a barrier between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from staticgrad.graph.members import Member
from staticgrad.graph.node import Node
from staticgrad.graph.structure import Level, Structure, place_passes
from staticgrad.kernels.cuda.kernel_text import KernelText, Points, is_position
from staticgrad.kernels.cuda.launch import Launch, blocks_for
from staticgrad.kernels.cuda.points import Axes, lanes_of
from staticgrad.kernels.cuda.target import VECTOR_BYTES, Target
from staticgrad.kernels.expressions import BOOL
from staticgrad.kernels.reduction_steps import accumulator_dtype, first_value, least_value, narrowed, step, stored_value

IN_FLIGHT = 4  # vectors that one thread has in hand at once: it waits for memory less, and they fit its registers
UNBOUNDED = 256  # threads of a block that may each have all the registers there are
PART = 64  # terms of a sum that one thread adds up at least, before parts are added
ALIGNMENT = 64
GRID = "int64(cuda.gridDim.x)"  # the number of blocks

Stage = Callable[[KernelText], int]  # writes its lines, answers how many blocks it can use


def generate(
    structure: Structure,
    writes: Sequence[Node],
    aliases: Mapping[Node, Node],
    target: Target,
    *,
    guarded: bool = False,
) -> tuple[list[Launch], int]:
    """The launches that compute the structure's members and store `writes`, and the working memory they share.

    Args:
        aliases: for a written node the read one whose storage the plan lets it take; both are one pointer.
        guarded: do nothing where an earlier kernel has reported an error.
    """
    group = _Group(structure, writes, aliases, target, guarded)
    return group.launches(), group.own_bytes


def read_late(structure: Structure, writes: Sequence[Node]) -> set[Node]:
    """The owners that are read from memory after points and rows have been written: what is added up then."""
    return _Group(structure, writes, {}, Target(), False).read_late()


@dataclass(frozen=True)
class _Sum:
    """Reductions over the same points into results of the same layout: one kernel adds them up.

    Attributes:
        kept, reduced: the axes that tell the results apart, and those that are added up.
        inner_is_kept: whether neighbours in memory belong to different results.
    """

    members: tuple[Member, ...]
    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    inner_is_kept: bool


@dataclass(frozen=True)
class _Piece:
    """Points of a row that each thread of its team has one vector of; `within` tells which threads, if not all."""

    points: Points
    within: str


class _Group:
    """A structure, and what its kernels have in common."""

    def __init__(
        self, structure: Structure, writes: Sequence[Node], aliases: Mapping[Node, Node], target: Target, guarded: bool
    ) -> None:
        self.structure = replace(structure, passes={}, scratch=())
        place_passes(self.structure, writes, keep=False)
        self.writes = tuple(writes)
        self.aliases = aliases
        self.target = target
        self.guarded = guarded
        self.members = {member.node: member for member in structure.members}
        self.level = structure.level
        self.axes = structure.axes
        self.own: dict[Node, int] = {}
        self.own_bytes = 0
        self.small = structure.size <= target.small
        self.sums = self._sums()
        self.totals = [one for one in self.sums if not one.kept]
        self.lanes = self._lanes()
        self.threads = self._threads()

    # ------------------------------------------------------------ the launches

    def launches(self) -> list[Launch]:
        """The kernels in order, each with what it works on."""
        stages: list[Stage] = []
        if self._has_rows():
            self._keep_row_values()
            stages.append(self._rows)
        elif any(self.level[node] == Level.FULL for node in self.writes):
            stages.append(self._points)
        for one in self.sums:
            if one.kept:
                stages.append(partial(self._columns, one=one))
                stages += [partial(self._join, one=one)] if self._parts(one) > 1 else []
        if not self.structure.size:
            stages.append(self._nothing_added)
        stages += [partial(self._part_of_total, one=one) for one in self.totals if self._parts(one) > 1]
        if self.totals or any(self.level[node] == Level.BEFORE for node in self.writes):
            stages.append(self._numbers)
        if self.small:
            return [self._launch(stages)]
        return [self._launch([stage]) for stage in stages]

    def _launch(self, stages: Sequence[Stage]) -> Launch:
        """One kernel that does the stages in turn; where there are several, one block does."""
        text = KernelText(self.structure, self.writes, self.aliases, self.target, self.threads, self.own)
        grid = 1
        for number, stage in enumerate(stages):
            if number:
                text.lines.append("cuda.syncthreads()")
            grid = max(grid, stage(text))
        text.resident = 1 if self.threads > UNBOUNDED else 0
        kernel = text.kernel(guarded=self.guarded)
        return Launch(kernel, tuple(text.operands), 1 if len(stages) > 1 else grid, self.threads)

    def _lanes(self) -> int:
        """How many elements of the innermost axis a thread handles at once."""
        if not self.axes:
            return 1
        inside = [member.node for member in self.structure.members]
        sizes = [access.owner.dtype.itemsize for member in self.structure.members for access in member.accesses]
        sizes += [node.dtype.itemsize for node in inside if node in self.writes]
        return lanes_of(self.axes[-1], sizes, VECTOR_BYTES)

    def _threads(self) -> int:
        """Threads of a block: enough for one row, or for all of a small group."""
        target = self.target
        if self._has_rows() and self._team() > target.warp:
            return self._team()
        if self.small:
            return max(target.warp, min(target.block, _power_of_two(-(-self.structure.size // self.lanes))))
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

    def _needs_rows(self, one: _Sum) -> bool:
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

    def read_late(self) -> set[Node]:
        """See the function of this name."""
        found: set[Node] = set()
        for one in self.sums:
            for member in (*self._cone(one.members), *one.members):
                found |= {access.owner for access in member.accesses if access.owner not in self.members}
        return found

    def _sums(self) -> list[_Sum]:
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
            made.append(_Sum(tuple(members), kept, reduced, bool(inner) and inner[-1] in kept))
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
            *_indented([*axes.lines, *points.point, *stores, f"e += {GRID} * {self.threads * self.lanes}"]),
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

    # ------------------------------------------------------------ rows

    def _team(self) -> int:
        """How many threads work on one row: part of a warp, or a block."""
        size = self.structure.row_size
        return min(self.target.largest_block, _power_of_two(-(-size // (IN_FLIGHT * self.lanes))))

    def _rows(self, text: KernelText) -> int:
        """Every row by a team of threads, in several passes.

        A row that fits stays in the registers of its team: it is read once, and nothing is computed twice.
        """
        structure = self.structure
        outer = self._over("row", range(len(structure.outer)))
        inner = self._over("j", range(len(structure.outer), len(self.axes)))
        points = Points(text, [outer, inner], self.lanes)
        team = self._team()
        rows, teams = structure.rows or 1, self.threads // team
        self._compute(points, [m.node for m in structure.members if self.level[m.node] == Level.BEFORE])
        pieces = self._pieces(points, team)
        for stage in range(structure.count + 1):
            self._row_values(points, stage)
            if stage < structure.count:
                self._pass(points, pieces, stage, team)
        kept = [node for node in (*self.writes, *self.own) if self.level[node] == Level.ROW]
        stores = [f"{text.held(node)}[row] = " + _stored(node, points.common[node][0]) for node in kept]
        if stores:
            points.row += [_if("inside" if teams > 1 else "", "lane == 0"), *_indented(stores)]
        text.lines += [
            f"lane = rest(thread, {team})",
            *points.before,
            f"first = block * {teams}",
            f"while first < {rows}:",
            *_indented(
                [
                    *([f"row = first + quotient(thread, {team})", f"inside = row < {rows}",
                       f"row = select(inside, row, int64({rows - 1}))"] if teams > 1 else ["row = first"]),
                    *outer.lines,
                    *points.row,
                    f"first += {GRID} * {teams}",
                ]
            ),
        ]  # fmt: skip
        return blocks_for(rows, teams, 2**20)

    def _pieces(self, points: Points, team: int) -> list[_Piece]:
        """The row in pieces that the team holds in registers; none where it does not fit."""
        size, width = self.structure.row_size, team * self.lanes
        count = -(-size // width)
        if count > IN_FLIGHT:
            return []
        found = []
        for number in range(count):
            counter = f"j{number}"
            whole = (number + 1) * width <= size
            points.before.append(f"{counter} = lane * {self.lanes} + {number * width}")
            if not whole:  # threads behind the end read its last elements once more, and leave them out
                points.before += [
                    f"within = {counter} < {size}",
                    f"{counter} = select(within, {counter}, int64({size - self.lanes}))",
                ]
            axes = self._over(counter, range(len(self.structure.outer), len(self.axes)))
            found.append(_Piece(points.beside(axes, f"_{number}" if count > 1 else ""), "" if whole else "within"))
        return found

    def _row_values(self, points: Points, stage: int) -> None:
        """Values of the row that are known after `stage` passes."""
        for member in self.structure.members:
            node = member.node
            if self.level[node] != Level.ROW or self.structure.stage[node] != stage:
                continue
            if member.kind == "map":
                points.compute([member])
            elif member.kind == "pick":
                self._pick(points, member)

    def _pick(self, points: Points, member: Member) -> None:
        text, node, source = points.text, member.node, member.source
        assert source is not None
        place = f"w{text.names[node]}"
        (index,) = points.read(member.accesses[0], 1)
        points.row.append(f"{place} = {text.checked(node, index, node.operands[0].shape[-1])}")
        value = points.at(source, place, points.row)
        points.row.append(f"{text.names[node]} = {value}")
        points.common[node] = [text.names[node]]

    def _pass(self, points: Points, pieces: Sequence[_Piece], number: int, team: int) -> None:
        """One run over the row: over its pieces in registers, or else in a loop over its memory."""
        text = points.text
        reduced = [
            member
            for member in self.structure.members
            if self.level[member.node] == Level.ROW and number in self.structure.passes.get(member.node, ())
        ]
        begin, end = [], []
        for member in reduced:
            node = member.node
            name = text.names[node]
            place = name if is_position(member) else ""
            register = f"c{name[1:]}" if place else name
            first = least_value(node.op.name, node.operands[0].dtype) if place else first_value(node)
            begin += [f"{register} = {first}", *([f"{name} = int64(0)"] if place else [])]
            end += text.together(node, register, team, place)
        lines = []
        for piece in pieces:
            lines += self._visit(piece, number, team)
        if not pieces:
            points.new_pass()
            body = self._visit(_Piece(points, ""), number, team)
            if body:
                size, stride = points.groups[-1].size, team * self.lanes
                lines = [f"j = lane * {self.lanes}", f"while j < {size}:", *_indented([*body, f"j += {stride}"])]
        points.row += [*begin, *lines, *end]
        for member in reduced:
            points.common[member.node] = [text.names[member.node]]

    def _visit(self, piece: _Piece, number: int, team: int) -> list[str]:
        """What one pass does at some points of the row."""
        structure, points = self.structure, piece.points
        stores: list[str] = []
        for member in structure.members:
            node = member.node
            wanted = structure.passes.get(node, ())
            if number not in wanted:
                continue
            if member.kind == "reduce":
                if self.level[node] == Level.ROW:
                    self._accumulate(piece, member)
            elif points.value(node) is None:
                if node in self.writes and number > min(wanted):
                    points.stored(node)
                    continue
                points.compute([member])
                if node in self.writes:
                    stores += points.store(node, points.values[node])
        conditions = [condition for condition in ("inside" if self.threads > team else "", piece.within) if condition]
        guarded = [_if(*conditions), *_indented(stores)] if stores and conditions else stores
        return [*points.taken(), *guarded]

    def _accumulate(self, piece: _Piece, member: Member) -> None:
        """Add the points of a thread to the reduction of their row."""
        points, text, node = piece.points, piece.points.text, member.node
        name = text.names[node]
        values = points.read(member.accesses[0], points.lanes)
        if not is_position(member):
            if piece.within:
                values = [f"select({piece.within}, {value}, {first_value(node)})" for value in values]
            points.point += [f"{name} = {step(node, name, value)}" for value in values]
            return
        best, counter = f"c{name[1:]}", points.groups[-1].counter
        sign = ">" if node.op.name == "argmax" else "<"
        floating = node.operands[0].dtype.kind == "f"
        for k, value in enumerate(values):
            better = f"({value} {sign} {best})"
            if floating:
                better += f" | (({value} != {value}) & ({best} == {best}))"
            if piece.within:
                better = f"{piece.within} & ({better})"
            points.point += [
                f"better = bool({better})",
                f"{name} = select(better, {counter} + {k}, {name})",
                f"{best} = select(better, {value}, {best})",
            ]

    # ------------------------------------------------------------ sums with several results

    def _parts(self, one: _Sum) -> int:
        """Into how many parts a sum is cut, each added up by a block."""
        if self.small:
            return 1
        terms = prod(self.axes[axis] for axis in one.reduced)
        if not one.kept:
            return blocks_for(terms, self.threads * PART // 4, self.target.blocks)
        across, along = self._shape(one)
        tiles = -(-prod(self.axes[axis] for axis in one.kept) // across)
        return max(1, min(self.target.blocks // tiles, -(-terms // (along * PART))))

    def _shape(self, one: _Sum) -> tuple[int, int]:
        """How many results a block has in hand, and how many threads share one of them.

        Where neighbours belong to different results a warp has one result for each thread, and the warps of a block
        share the terms; else the threads of a warp share them, and each warp has a result.
        """
        warp, warps = self.target.warp, self.threads // self.target.warp
        return (warp, warps) if one.inner_is_kept else (warps, warp)

    def _columns(self, text: KernelText, one: _Sum) -> int:
        """Sums of many terms into several results, or parts of them."""
        kept, reduced = self._over("m", one.kept), self._over("q", one.reduced)
        (across, along), parts = self._shape(one), self._parts(one)
        result, share = f"quotient(thread, {self.target.warp})", f"rest(thread, {self.target.warp})"
        if one.inner_is_kept:
            result, share = share, result
        points = Points(text, [kept, reduced], 1)
        begin = self._add_up(points, one.members)
        tiles, length = -(-kept.size // across), -(-reduced.size // parts)
        ends = [line for member in one.members for line in self._result(text, one, member, parts)]
        text.lines += [
            *points.before,
            "tile = block",
            f"while tile < {tiles * parts}:",
            *_indented(
                [
                    f"m = rest(tile, {tiles}) * {across} + {result}",
                    f"inside = m < {kept.size}",
                    f"m = select(inside, m, int64({kept.size - 1}))",
                    *kept.lines,
                    *points.row,
                    *begin,
                    f"part = quotient(tile, {tiles})",
                    f"q = part * {length} + {share}",
                    f"end = min((part + 1) * {length}, {reduced.size})",
                    "while q < end:",
                    *_indented([*reduced.lines, *points.point, f"q += {along}"]),
                    *ends,
                    f"tile += {GRID}",
                ]
            ),
        ]
        return tiles * parts

    def _add_up(self, points: Points, members: Sequence[Member]) -> list[str]:
        """Compute what sums read at a point and add it to a register each; what stands before the loop."""
        points.compute(self._cone(members))
        begin = []
        for member in members:
            node = member.node
            register = f"c{points.text.names[node][1:]}"
            begin.append(f"{register} = {first_value(node)}")
            for value in points.read(member.accesses[0], points.lanes):
                points.point.append(f"{register} = {step(node, register, value)}")
        return begin

    def _result(self, text: KernelText, one: _Sum, member: Member, parts: int) -> list[str]:
        """Bring together what the threads of one result have added up, and store it."""
        node, warp, warps = member.node, self.target.warp, self.threads // self.target.warp
        register = f"c{text.names[node][1:]}"
        dtype = accumulator_dtype(node, wide=True)
        if parts > 1:
            if node not in self.own:
                self.own[node] = self._own(parts * node.size * dtype.itemsize)
            target = f"{text.working(node, dtype)}[part * {node.size} + m]"
        else:
            target = f"{text.storage(node)}[m]"
        if not one.inner_is_kept or warps == 1:
            lines = [] if one.inner_is_kept else text.together(node, register, warp)
            first = [] if one.inner_is_kept else [f"rest(thread, {warp}) == 0"]
            value = f"{dtype.name}({register})" if parts > 1 and dtype != node.dtype else register
            return [*lines, _if("inside", *first), f"    {target} = {_stored(node, value)}"]
        shared = text.shared(node.dtype, self.threads)
        total = f"u{text.names[node][1:]}"
        value = total if parts > 1 else narrowed(node, total)
        return [
            f"{shared}[thread] = {_stored(node, register)}",
            "cuda.syncthreads()",
            _if(f"inside & (thread < {warp})"),
            f"    {total} = {first_value(node, wide=True)}",
            f"    for w in range({warps}):",
            f"        {total} = {step(node, total, stored_value(f'{shared}[w * {warp} + thread]', node), wide=True)}",
            f"    {target} = {_stored(node, value)}",
            "cuda.syncthreads()",
        ]

    def _join(self, text: KernelText, one: _Sum) -> int:
        """Add up the parts of each result."""
        parts, size = self._parts(one), one.members[0].node.size
        lines = []
        for member in one.members:
            node = member.node
            total = f"u{text.names[node][1:]}"
            part = stored_value(f"{text.working(node, accumulator_dtype(node, wide=True))}[w * {size} + m]", node)
            lines += [
                f"{total} = {first_value(node, wide=True)}",
                f"for w in range({parts}):",
                f"    {total} = {step(node, total, part, wide=True)}",
                f"{text.storage(node)}[m] = {_stored(node, narrowed(node, total))}",
            ]
        text.lines += [
            f"m = block * {self.threads} + thread",
            f"while m < {size}:",
            *_indented([*lines, f"m += {GRID} * {self.threads}"]),
        ]
        return blocks_for(size, self.threads, self.target.blocks)

    def _nothing_added(self, text: KernelText) -> int:
        """The results of reductions without terms."""
        lines = []
        for node in self.writes:
            value = _stored(node, first_value(node))
            lines += ["m = thread", f"while m < {node.size}:"]
            lines += [f"    {text.storage(node)}[m] = {value}", f"    m += {self.threads}"]
        text.lines += lines
        return 1

    # ------------------------------------------------------------ single values

    def _part_of_total(self, text: KernelText, one: _Sum) -> int:
        """Each block adds up some of the points."""
        parts = self._parts(one)
        text.lines += self._added_by_block(text, one, parts)
        for member in one.members:
            node = member.node
            dtype = accumulator_dtype(node, wide=True)
            if node not in self.own:
                self.own[node] = self._own(parts * dtype.itemsize)
            register = f"c{text.names[node][1:]}"
            value = f"{dtype.name}({register})" if dtype != node.dtype else _stored(node, register)
            text.lines += [_if("thread == 0"), f"    {text.working(node, dtype)}[block] = {value}"]
        return parts

    def _added_by_block(self, text: KernelText, one: _Sum, parts: int) -> list[str]:
        """What a block adds up of a total, one of `parts`; every thread has the result."""
        axes = self._over("q", one.reduced)
        lanes = self._lanes_along(axes)
        points = Points(text, [axes], lanes)
        begin = self._add_up(points, one.members)
        stride = self.threads * lanes
        lines = [
            *points.before,
            *begin,
            f"q = (block * {self.threads} + thread) * {lanes}" if parts > 1 else f"q = thread * {lanes}",
            f"while q < {axes.size}:",
            *_indented([*axes.lines, *points.point, f"q += {stride * parts}"]),
        ]
        for member in one.members:
            lines += text.together(member.node, f"c{text.names[member.node][1:]}", self.threads)
        return lines

    def _lanes_along(self, axes: Axes) -> int:
        return self.lanes if axes.axes and axes.axes[-1] == len(self.axes) - 1 else 1

    def _numbers(self, text: KernelText) -> int:
        """Totals, and the single values computed from them or before everything else."""
        level = self.level
        points = Points(text, [Axes("q", (), ())], 1)
        points.compute([m for m in self.structure.members if level[m.node] == Level.BEFORE])
        text.lines += points.before
        for one in self.totals:
            parts = self._parts(one)
            text.lines += self._added_by_block(text, one, 1) if parts == 1 else self._added_parts(text, one, parts)
            for member in one.members:
                name = text.names[member.node]
                wide = narrowed(member.node, f"c{name[1:]}") if parts > 1 else f"c{name[1:]}"
                text.lines.append(f"{name} = {wide}")
                points.common[member.node] = [name]
        points.before = []
        points.compute([m for m in self.structure.members if level[m.node] == Level.AFTER and m.kind == "map"])
        single = [node for node in self.writes if node in points.common]
        stores = [f"{text.storage(node)}[0] = {_stored(node, points.common[node][0])}" for node in single]
        text.lines += [*points.before, _if("(block == 0) & (thread == 0)"), *_indented(stores)]
        return 1

    def _added_parts(self, text: KernelText, one: _Sum, parts: int) -> list[str]:
        lines = []
        for member in one.members:
            node = member.node
            register = f"c{text.names[node][1:]}"
            part = stored_value(f"{text.working(node, accumulator_dtype(node, wide=True))}[q]", node)
            lines += [
                f"{register} = {first_value(node, wide=True)}",
                "q = thread",
                f"while q < {parts}:",
                f"    {register} = {step(node, register, part, wide=True)}",
                f"    q += {self.threads}",
                *text.together(node, register, self.threads, wide=True),
            ]
        return lines


# ---------------------------------------------------------------- text


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _if(*conditions: str) -> str:
    return f"if {' & '.join(f'({x})' for x in conditions if x)}:"


def _stored(node: Node, value: str) -> str:
    return f"uint8({value})" if node.dtype == BOOL else value


def _power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
