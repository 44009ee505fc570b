"""Comparison, logic, selection and conversion. All exact."""

from __future__ import annotations

import numpy as np

from staticgrad.graph.node import DType, Node
from staticgrad.graph.ops.arithmetic import cast, equal, logical_not, not_equal, select
from staticgrad.graph.rewrites.rewriter import Rewriter, uniform

# ---------------------------------------------------------------- select


def select_constant(node: Node, rewriter: Rewriter) -> Node | None:
    """select(True, x, y) -> x and select(False, x, y) -> y."""
    condition, x, y = node.operands
    value = uniform(condition)
    if value is None:
        return None
    return rewriter.stretched(x if value else y, node.shape)


def select_equal(node: Node, rewriter: Rewriter) -> Node | None:
    """select(c, x, x) -> x."""
    _, x, y = node.operands
    return rewriter.stretched(x, node.shape) if x is y else None


def select_not(node: Node, rewriter: Rewriter) -> Node | None:
    """select(not c, x, y) -> select(c, y, x)."""
    condition, x, y = node.operands
    return rewriter.make(select, condition.operands[0], y, x) if condition.op is logical_not else None


def select_same_condition(node: Node, rewriter: Rewriter) -> Node | None:
    """select(c, select(c, x, y), z) -> select(c, x, z), and the same for the other branch."""
    condition, x, y = node.operands
    if x.op is select and x.operands[0] is condition:
        return _selected(node, rewriter, x.operands[1], y)
    if y.op is select and y.operands[0] is condition:
        return _selected(node, rewriter, x, y.operands[2])
    return None


def _selected(node: Node, rewriter: Rewriter, x: Node, y: Node) -> Node:
    return rewriter.stretched(rewriter.make(select, node.operands[0], x, y), node.shape)


# ---------------------------------------------------------------- logic


def not_not(node: Node, rewriter: Rewriter) -> Node | None:
    """not (not x) -> x, and the same for inverted bits."""
    (x,) = node.operands
    return x.operands[0] if x.op is node.op else None


def not_compared(node: Node, rewriter: Rewriter) -> Node | None:
    """not (x == y) -> x != y and back. The orders have no such rule: with NaN both `<` and `>=` are false."""
    (x,) = node.operands
    if x.op is equal:
        return rewriter.make(not_equal, *x.operands)
    return rewriter.make(equal, *x.operands) if x.op is not_equal else None


def with_itself(node: Node, rewriter: Rewriter) -> Node | None:
    """x and x -> x, x or x -> x, maximum(x, x) -> x, minimum(x, x) -> x."""
    x, y = node.operands
    return x if x is y else None


def with_truth(node: Node, rewriter: Rewriter) -> Node | None:
    """x and True -> x, x or False -> x, x and False -> False, x or True -> True, for booleans."""
    if node.dtype.kind != "b":
        return None
    neutral = node.op.name == "bitwise_and"
    for x, y in (node.operands, node.operands[::-1]):
        value = uniform(y)
        if value is not None:
            return rewriter.stretched(x, node.shape) if bool(value) == neutral else rewriter.full(value, node)
    return None


# ---------------------------------------------------------------- cast


def cast_to_own(node: Node, rewriter: Rewriter) -> Node | None:
    """cast(x, x's dtype) -> x."""
    (x,) = node.operands
    return x if x.dtype == node.dtype else None


def cast_of_cast(node: Node, rewriter: Rewriter) -> Node | None:
    """cast(cast(x, A), B) -> cast(x, B) where A holds every value of x's dtype."""
    (between,) = node.operands
    if between.op is not cast:
        return None
    (x,) = between.operands
    if not holds(between.dtype, x.dtype):
        return None
    if node.dtype.kind in "iu" and between.dtype.kind == "f" and not holds(node.dtype, x.dtype):
        return None  # a float out of an integer's range has no defined value, an integer wraps
    return rewriter.make(cast, x, dtype=node.dtype)


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is one of `wide`, so that the way back gives it again."""
    if wide.kind == "f" and narrow.kind in "iu":
        bits = narrow.itemsize * 8 - (narrow.kind == "i")
        return bits <= np.finfo(wide).nmant + 1
    return np.can_cast(narrow, wide, "safe")


RULES = {
    "select": (select_constant, select_equal, select_not, select_same_condition),
    "logical_not": (not_not, not_compared),
    "bitwise_invert": (not_not,),
    "bitwise_and": (with_itself, with_truth),
    "bitwise_or": (with_itself, with_truth),
    "maximum": (with_itself,),
    "minimum": (with_itself,),
    "cast": (cast_to_own, cast_of_cast),
}
