"""Sums over a row that need another value of the row, in one pass over it: what is missing is made up for at the end.

    Σ exp(x - r)    of softmax: a thread adds up exp(x - m), m the largest x it has met so far, and corrects its sum
                    where m grows; at the end it multiplies by exp(m - r) (Milakov and Gimelshein, "Online normalizer
                    calculation for softmax", 2018)
    Σ (x - r)²      of layer norm: a thread adds up d and d², d = x - k, k the mean of the first values it meets; at
                    the end they give the sum around r (Chan, Golub and LeVeque, "Algorithms for computing the sample
                    variance", 1983)

They serve rows that do not fit in registers, where r, the largest value of the row or its mean, would take a pass of
its own. The second sum loses few digits: by the inequality of Cauchy and Schwarz n (k - mean)² is at most n / c times
the sum around the mean, for n values of a thread of which k is the mean of c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from staticgrad.graph.members import Access, Member
from staticgrad.graph.node import Node
from staticgrad.graph.structure import Level, Structure, stages_of
from staticgrad.kernels.cuda.kernel_text import Points
from staticgrad.kernels.expressions import literal


@dataclass(frozen=True)
class Values:
    """The texts of values that a thread has in hand; `within` tells whether it has them, if not all threads do."""

    texts: tuple[str, ...]
    within: str


@dataclass(frozen=True)
class Online:
    """A sum over a row that is added up before `shift`, which is r above, is known.

    Attributes:
        made: the nodes between x and the sum: the difference from r, and what is added of it.
        largest: for a sum of exponentials, the reduction that finds the largest x.
    """

    node: Node
    made: tuple[Member, Member]
    shift: Access
    largest: Node | None

    def begin(self, points: Points) -> list[str]:
        """The lines before the pass."""
        total, zero = points.text.names[self.node], literal(0, self.node.dtype)
        names = [total, f"m{total}"] if self.largest is not None else [total, f"d{total}", f"k{total}", f"n{total}"]
        lines = [f"{name} = {zero}" for name in names]
        if self.largest is not None:
            lines[1] = f"m{total} = {literal(float('-inf'), self.node.dtype)}"
        return lines

    def add(self, points: Points, pieces: Sequence[Values]) -> list[str]:
        """Add what a thread meets in one step; the reduction of the largest has met it already."""
        return self._add_squares(points, pieces) if self.largest is None else self._add_powers(points, pieces)

    def end(self, points: Points, team: int) -> list[str]:
        """The lines that make the sum of the row, once r is known."""
        total, (shift,) = points.text.names[self.node], points.read(self.shift, 1)
        if self.largest is not None:
            lines = [f"{total} = {total} * {self._of(points, f'm{total}', shift)}"]
        else:
            lines = [
                f"gap = {shift} - k{total}",
                # rounding must not make it negative: a root may be taken of it
                f"{total} = larger({total} + gap * (n{total} * gap - (d{total} + d{total})), "
                f"{literal(0, self.node.dtype)})",
            ]
        return [*lines, *points.text.together(self.node, total, team)]

    def _add_powers(self, points: Points, pieces: Sequence[Values]) -> list[str]:
        """Where all values so far are infinite, 0 stands for the largest: infinity minus infinity is not a number."""
        assert self.largest is not None
        total, best = points.text.names[self.node], points.text.names[self.largest]
        zero, least = literal(0, self.node.dtype), literal(float("-inf"), self.node.dtype)
        lines = [
            f"top = select({best} - {best} == {zero}, {best}, {zero})",
            f"{total} = {total} * {self._of(points, f'm{total}', 'top')}",
            f"m{total} = {best}",
        ]
        for piece in pieces:
            for value in piece.texts:
                x = f"select({piece.within}, {value}, {least})" if piece.within else value
                lines.append(f"{total} = {total} + {self._of(points, x, 'top')}")
        return lines

    def _add_squares(self, points: Points, pieces: Sequence[Values]) -> list[str]:
        total, dtype = points.text.names[self.node], self.node.dtype
        zero, full = literal(0, dtype), not any(piece.within for piece in pieces)
        lines, count = [], sum(len(piece.texts) for piece in pieces)
        if full:  # the first step is
            mean = f"({' + '.join(text for piece in pieces for text in piece.texts)}) * {literal(1 / count, dtype)}"
            lines.append(f"k{total} = select(n{total} == {zero}, {mean}, k{total})")
        for piece in pieces:
            for value in piece.texts:
                gap = f"{value} - k{total}"
                lines += [
                    f"gap = select({piece.within}, {gap}, {zero})" if piece.within else f"gap = {gap}",
                    f"d{total} = d{total} + gap",
                    f"{total} = {total} + gap * gap",
                ]
            more = literal(len(piece.texts), dtype)
            lines.append(
                f"n{total} = n{total} + " + (f"select({piece.within}, {more}, {zero})" if piece.within else more)
            )
        return lines

    def _of(self, points: Points, x: str, shift: str) -> str:
        """What is added of x."""
        difference, power = self.made
        return points.text.value(power, [f"({points.text.value(difference, [x, shift], '0')})"], "0")


# ---------------------------------------------------------------- which sums


def with_online(structure: Structure) -> tuple[Structure, dict[Node, Online]]:
    """A structure whose sums are added up a pass earlier where they can be, and these sums."""
    by_node = {member.node: member for member in structure.members}
    found = {member.node: one for member in structure.members if (one := _online(structure, by_node, member))}
    members = tuple(
        replace(member, accesses=found[member.node].made[0].accesses[:1]) if member.node in found else member
        for member in structure.members
    )
    return replace(structure, members=members, stage=stages_of(members, structure.level)), found


def _online(structure: Structure, by_node: Mapping[Node, Member], member: Member) -> Online | None:
    """What is known of a reduction that need not wait for what it reads."""
    node, level = member.node, structure.level
    if member.kind != "reduce" or level[node] != Level.ROW or node.op.name != "sum" or node.dtype.kind != "f":
        return None
    power = by_node.get(member.accesses[0].owner)
    if power is None or power.node.op.name not in ("exp", "square", "mul"):
        return None
    difference = by_node.get(power.accesses[0].owner)
    same = len({access.owner for access in power.accesses}) == 1
    if difference is None or not same or difference.node.op.name != "sub":
        return None
    values, shift = difference.accesses
    if level.get(shift.owner) != Level.ROW or level.get(values.owner, Level.FULL) != Level.FULL:
        return None
    stage = structure.stage.get(values.owner, 0)
    if stage >= structure.stage[shift.owner]:
        return None
    largest = None
    if power.node.op.name == "exp":
        for other in structure.members:
            if other.kind == "reduce" and other.node.op.name == "max" and other.accesses == (values,):
                largest = other.node
        if largest is None:
            return None
    return Online(node, (difference, power), shift, largest)
