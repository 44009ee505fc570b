"""Rows of a fused group by teams of threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from staticgrad.graph.members import Member
from staticgrad.graph.node import Node
from staticgrad.graph.structure import Level
from staticgrad.graph.views import Layout
from staticgrad.kernels.cuda.kernel_text import KernelText, Points, is_position
from staticgrad.kernels.cuda.launch import blocks_for
from staticgrad.kernels.cuda.online import Values
from staticgrad.kernels.cuda.stages import (
    GRID,
    IN_FLIGHT,
    GroupStages,
    condition,
    indented,
    stored,
)
from staticgrad.kernels.reduction_steps import first_value, least_value, step


@dataclass(frozen=True)
class _Piece:
    """Points of a row that each thread of its team has one vector of.

    Attributes:
        begin: the lines that set their counter.
        within: tells which threads have them, if not all.
    """

    points: Points
    begin: tuple[str, ...] = ()
    within: str = ""


class RowStages(GroupStages):
    """Every row by a team: part of a warp, a warp or a block."""

    def _rows(self, text: KernelText) -> int:
        """Every row by a team of threads, in several passes.

        A row that fits stays in the registers of its team: it is read once, and nothing is computed twice. A longer
        one is read in every pass, a few vectors at a time.
        """
        structure = self.structure
        outer = self._over("row", range(len(structure.outer)))
        inner = self._over("j", range(len(structure.outer), len(self.axes)))
        points = Points(text, [outer, inner], self.lanes)
        team = self._team()
        rows, teams = structure.rows or 1, self.threads // team
        self._compute(points, [m.node for m in structure.members if self.level[m.node] == Level.BEFORE])
        width = team * self.lanes
        held = self._pieces(points, "j", 0, structure.row_size, width) if self.fits else []
        points.before += [line for piece in held for line in piece.begin]
        for stage in range(structure.count + 1):
            self._row_values(points, stage, team)
            if stage < structure.count:
                self._pass(points, held, stage, team)
        kept = [node for node in (*self.writes, *self.own) if self.level[node] == Level.ROW]
        stores = [f"{text.held(node)}[row] = " + stored(node, points.common[node][0]) for node in kept]
        if stores:
            points.row += [condition("inside" if teams > 1 else "", "lane == 0"), *indented(stores)]
        text.lines += [
            f"lane = rest(thread, {team})",
            *points.before,
            f"first = block * {teams}",
            f"while first < {rows}:",
            *indented(
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

    def _pieces(self, points: Points, name: str, start: int, end: int, width: int) -> list[_Piece]:
        """The points from `start` to `end` of a row, in pieces at fixed places."""
        found = []
        count = -(-(end - start) // width)
        for number in range(count):
            counter, place = f"{name}{number}", start + number * width
            begin, within = [f"{counter} = lane * {self.lanes} + {place}"], ""
            if place + width > end:  # threads behind the end read its last elements once more, and leave them out
                within = "within"
                begin += [
                    f"{within} = {counter} < {end}",
                    f"{counter} = select({within}, {counter}, int64({end - self.lanes}))",
                ]
            suffix = f"_{name}{number}" if count > 1 or name != "j" else ""
            found.append(_Piece(self._beside(points, counter, suffix), tuple(begin), within))
        return found

    def _beside(self, points: Points, counter: str, suffix: str) -> Points:
        return points.beside(self._over(counter, range(len(self.structure.outer), len(self.axes))), suffix)

    def _row_values(self, points: Points, stage: int, team: int) -> None:
        """Values of the row that are known after `stage` passes."""
        for member in self.structure.members:
            node = member.node
            if self.level[node] != Level.ROW or self.structure.stage[node] != stage:
                continue
            if node in self.online:
                points.row += self.online[node].end(points, team)
                points.common[node] = [points.text.names[node]]
            elif member.kind == "map":
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

    # ------------------------------------------------------------ passes

    def _pass(self, points: Points, held: Sequence[_Piece], number: int, team: int) -> None:
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
            if node in self.online:
                begin += self.online[node].begin(points)
                continue
            name = text.names[node]
            place = name if is_position(member) else ""
            register = f"c{name[1:]}" if place else name
            first = least_value(node.op.name, node.operands[0].dtype) if place else first_value(node)
            begin += [f"{register} = {first}", *([f"{name} = int64(0)"] if place else [])]
            end += text.together(node, register, team, place)
        lines = self._visit_held(held, number, team) if held else self._loop(points, number, team)
        points.row += [*begin, *lines, *end]
        for member in reduced:
            if member.node not in self.online:
                points.common[member.node] = [text.names[member.node]]

    def _visit_held(self, held: Sequence[_Piece], number: int, team: int) -> list[str]:
        """One pass over a row in registers; no more is loaded at once than they have room for."""
        at_once = max(1, IN_FLIGHT // self._streams(number))
        parts = [held[first : first + at_once] for first in range(0, len(held), at_once)]
        return [line for part in parts for line in self._visit(part, number, team)]

    def _loop(self, points: Points, number: int, team: int) -> list[str]:
        """One pass over a row in memory: several vectors at a time, and those that are left over."""
        width, size = team * self.lanes, self.structure.row_size
        count = max(1, self.in_flight // self._streams(number))
        whole = size - size % (count * width)
        pieces = [_Piece(self._beside(points, "j", "_0"))]
        pieces += [
            _Piece(self._beside(points, f"j{k}", f"_{k}"), (f"j{k} = j + {k * width}",)) for k in range(1, count)
        ]
        left = self._pieces(points, "k", whole, size, width)
        visit, visit_left = self._visit(pieces, number, team), self._visit(left, number, team)
        if not visit:
            return []
        return [
            f"j = lane * {self.lanes}",
            f"while j < {whole}:",
            *indented([*(line for piece in pieces for line in piece.begin), *visit, f"j += {count * width}"]),
            *([line for piece in left for line in piece.begin] + visit_left),
        ]

    def _streams(self, number: int) -> int:
        """How many vectors a pass reads from memory for each that it visits; at least 1."""
        structure = self.structure
        found: set[tuple[Node, int, Layout]] = set()
        for member in structure.members:
            passes = structure.passes.get(member.node, ())
            if number not in passes:
                continue
            if member.node in self.writes and number > min(passes):  # read back
                found.add((member.node, 0, ()))
                continue
            for access in member.accesses:
                outside = access.owner not in self.members and access.owner.op.name != "iota"
                if outside and structure.strides(access.layout, access.size)[-1]:
                    found.add((access.owner, access.offset, access.layout))
        return max(1, len(found))

    def _visit(self, pieces: Sequence[_Piece], number: int, team: int) -> list[str]:
        """What one pass does at some points of the row."""
        loads: list[str] = []
        lines: list[str] = []
        stores: list[str] = []
        for piece in pieces:
            written = self._visit_piece(piece, number)
            first, rest = piece.points.taken()
            loads += first
            lines += rest
            conditions = [each for each in ("inside" if self.threads > team else "", piece.within) if each]
            stores += [condition(*conditions), *indented(written)] if written and conditions else written
        for member in self.structure.members:
            if member.node in self.online and number in self.structure.passes[member.node] and pieces:
                lines += self._add_online(pieces, member)
        return [*loads, *lines, *stores]

    def _visit_piece(self, piece: _Piece, number: int) -> list[str]:
        """Compute and reduce at the points of a piece; the lines that store there."""
        structure, points = self.structure, piece.points
        stores: list[str] = []
        for member in structure.members:
            node = member.node
            wanted = structure.passes.get(node, ())
            if number not in wanted:
                continue
            if member.kind == "reduce":
                if node in self.online:
                    points.read(member.accesses[0], points.lanes)  # loaded with all others
                elif self.level[node] == Level.ROW:
                    self._accumulate(piece, member)
            elif points.value(node) is None:
                if node in self.writes and number > min(wanted):
                    points.stored(node)
                    continue
                points.compute([member])
                if node in self.writes:
                    stores += points.store(node, points.values[node])
        return stores

    def _add_online(self, pieces: Sequence[_Piece], member: Member) -> list[str]:
        values = [
            Values(tuple(piece.points.read(member.accesses[0], piece.points.lanes)), piece.within) for piece in pieces
        ]
        return self.online[member.node].add(pieces[0].points, values)

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
