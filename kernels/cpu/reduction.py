"""Reductions that the fused nest of loops does not take: the position of an extreme along an inner axis."""

from __future__ import annotations

from staticgrad.graph.node import Node
from staticgrad.graph.views import around
from staticgrad.kernels.cpu.structural import lowering, nest


def _position(node: Node, sign: str) -> list[str]:
    """The first position of the extreme; a NaN counts as extreme."""
    (x,) = node.operands
    (axis,) = node.attributes["axis"]
    before, after = around(x.shape, axis)
    extent = x.shape[axis]
    if node.size == 0:
        return ["pass"]
    better = f"value {sign} best"
    if x.dtype.kind == "f":
        better = f"{better} or (value != value and best == best)"
    element = [
        f"best = x0[i0 * {extent * after} + i1]",
        "place = int64(0)",
        f"for i2 in range(1, {extent}):",
        f"    value = x0[(i0 * {extent} + i2) * {after} + i1]",
        f"    if {better}:",
        "        best = value",
        "        place = int64(i2)",
        f"out[i0 * {after} + i1] = place",
    ]
    return nest((before, after), element)


@lowering("argmax")
def argmax(node: Node) -> list[str]:
    """The first position of the largest element along one axis."""
    return _position(node, ">")


@lowering("argmin")
def argmin(node: Node) -> list[str]:
    """The first position of the smallest element along one axis."""
    return _position(node, "<")
