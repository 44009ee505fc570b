"""What one node is to a fused kernel: the loop it runs over, and how it reads its operands in that loop.

A node is a map (one value for each point of its domain), a reduction (its domain is the operand's; each point is added
to one element of the result) or a pick (one point chosen in each row). The domain counts elements in order, whatever
the shape, so that a reshape between two members costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from staticgrad.graph.node import Node, Shape
from staticgrad.graph.views import (
    Layout,
    Strided,
    broadcast_strides,
    collapse,
    contiguous_strides,
    is_copy,
    resolve,
)

ARGUMENTS = ("argmax", "argmin")


@dataclass(frozen=True, slots=True)
class Access:
    """One operand as the member's loop reads it: element `offset + layout(point)` of the owner."""

    owner: Node
    offset: int
    layout: Layout
    size: int  # points of the loop


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A node of a fused kernel.

    Attributes:
        size: number of points of the domain.
        accesses: one for each operand.
        result: for a reduction, which element of the result each point goes to; for a scatter, the position along
            its axis at each point.
        source: for a pick, how the operand it picks from is read over all of that operand's elements.
    """

    node: Node
    kind: Literal["map", "reduce", "pick"]
    size: int
    accesses: tuple[Access, ...]
    result: Layout = ()
    source: Access | None = None

    @property
    def reach(self) -> int:
        """Points of the largest loop that the member needs: for a pick, that over all it picks from."""
        return self.size if self.source is None else self.source.size

    @property
    def layouts(self) -> tuple[tuple[Layout, int], ...]:
        """Every layout that cuts the loops, with the size of the domain it is over."""
        found = [(access.layout, access.size) for access in self.accesses]
        if self.result:
            found.append((self.result, self.size))
        if self.source is not None:
            found.append((self.source.layout, self.source.size))
        return tuple(found)


class Members:
    """Describes nodes as members, remembering views and answers."""

    def __init__(self) -> None:
        self.views: dict[Node, Strided] = {}
        self._members: dict[Node, Member | None] = {}

    def resolve(self, node: Node) -> Strided:
        """Where the node's elements lie, through all its views."""
        return resolve(node, self.views)

    def member(self, node: Node) -> Member | None:
        """The node as a member of a fused kernel, or None where it has a kernel of its own."""
        if node not in self._members:
            self._members[node] = self._describe(node)
        return self._members[node]

    def _describe(self, node: Node) -> Member | None:
        op = node.op
        if op.kind == "elementwise":
            return Member(node, "map", node.size, tuple(self._broadcast(x, node.shape) for x in node.operands))
        if op.kind == "reduction":
            return self._reduction(node)
        if op.kind == "view":
            return Member(node, "map", node.size, (self._copied(node),))
        if op.name == "iota":
            layout = collapse(node.shape, (1,))
            return Member(node, "map", node.size, (Access(node, 0, layout, node.size),))
        if op.name == "take_along_axis":
            return self._pick(node)
        if op.name == "scatter_add_along_axis":
            return self._place(node)
        return None

    def _access(self, found: Strided, shape: Shape, strides: tuple[int, ...]) -> Access:
        size = 1
        for extent in shape:
            size *= extent
        return Access(found.owner, found.offset, collapse(shape, strides) if size else (), size)

    def _broadcast(self, operand: Node, shape: Shape) -> Access:
        found = self.resolve(operand)
        return self._access(found, shape, broadcast_strides(found.shape, found.strides, shape))

    def _copied(self, view: Node) -> Access:
        found = self.resolve(view)
        if found.owner is view:  # no strides can express it: read the operand in its order
            found = self.resolve(view.operands[0])
        return self._access(found, found.shape, found.strides)

    def _reduction(self, node: Node) -> Member | None:
        (operand,) = node.operands
        axes = node.attributes["axis"]
        access = self._broadcast(operand, operand.shape)
        if operand.size == node.size:
            return Member(node, "map", node.size, (access,))
        last = operand.ndim - 1
        if node.op.name in ARGUMENTS and (axes != (last,) or operand.size == 0):
            return None
        kept = iter(contiguous_strides(node.shape))
        strides = tuple(0 if axis in axes else next(kept) for axis in range(operand.ndim))
        result = collapse(operand.shape, strides) if operand.size else ()
        return Member(node, "reduce", operand.size, (access,), result)

    def _pick(self, node: Node) -> Member | None:
        x, indices = node.operands
        axis = node.attributes["axis"]
        if axis != x.ndim - 1 or indices.shape[axis] != 1 or x.size == 0 or x.shape[axis] == 1:
            return None
        source = self._broadcast(x, x.shape)
        return Member(node, "pick", node.size, (self._broadcast(indices, node.shape),), (), source)

    def _place(self, node: Node) -> Member | None:
        x, indices = node.operands
        axis = node.attributes["axis"]
        if axis != node.ndim - 1 or indices.shape[axis] != 1 or node.size == 0 or node.shape[axis] == 1:
            return None
        accesses = tuple(self._broadcast(operand, node.shape) for operand in (x, indices))
        position = collapse(node.shape, (0,) * axis + (1,))
        return Member(node, "map", node.size, accesses, position)


__all__ = ["ARGUMENTS", "Access", "Member", "Members", "is_copy"]
