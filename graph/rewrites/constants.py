"""Work that can be done before the program runs."""

from __future__ import annotations

from staticgrad.graph.errors import StaticgradError
from staticgrad.graph.interpret import evaluate
from staticgrad.graph.node import Node
from staticgrad.graph.ops.leaf import constant
from staticgrad.graph.ops.shape import broadcast_to, embed
from staticgrad.graph.rewrites.rewriter import Rewriter, uniform

LARGEST = 64 * 1024  # bytes: a larger constant costs more to load than it saves


def fold(node: Node, rewriter: Rewriter) -> Node | None:
    """op(constants) -> constant, by the op's reference. What only repeats values or pads is not baked."""
    if not node.operands:
        return None
    for operand in node.operands:
        if operand.op is not constant:
            return None
    if node.nbytes > LARGEST or node.op is broadcast_to or node.op is embed:
        return None
    try:
        value = evaluate(node, [operand.attributes["value"].array() for operand in node.operands])
    except StaticgradError:  # such as an index out of range: the program raises it when it runs
        return None
    return rewriter.constant(value)


def fold_uniform(node: Node, rewriter: Rewriter) -> Node | None:
    """op(stretched scalars) -> stretched op(scalars), for elementwise ops."""
    if node.ndim == 0 or not node.operands:
        return None
    values = []
    for operand in node.operands:
        value = uniform(operand)
        if value is None:
            return None
        values.append(value)
    scalars = [rewriter.constant(value) for value in values]
    return rewriter.stretched(rewriter.make(node.op, *scalars, **node.attributes), node.shape)
