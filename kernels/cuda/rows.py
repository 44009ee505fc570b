"""Rows of a fused group by teams of threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from staticgrad.graph.members import Member
from staticgrad.graph.structure import Level
from staticgrad.kernels.cuda.kernel_text import KernelText, Points, is_position
from staticgrad.kernels.cuda.launch import GRID, blocks_for
from staticgrad.kernels.cuda.stages import (
    IN_FLIGHT,
    GroupStages,
    condition,
    indented,
    stored,
)
from staticgrad.kernels.reduction_steps import first_value, least_value, step


@dataclass(frozen=True)
class _Piece:
    """Points of a row that each thread of its team has one vector of; `within` tells which threads, if not all."""

    points: Points
    within: str


class RowStages(GroupStages):
    """Every row by a team: part of a warp, a warp or a block."""

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
                lines = [f"j = lane * {self.lanes}", f"while j < {size}:", *indented([*body, f"j += {stride}"])]
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
        guarded = [condition(*conditions), *indented(stores)] if stores and conditions else stores
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
