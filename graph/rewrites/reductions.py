"""Reductions that fold nothing, or that fold one value many times."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.graph.node import Node
from staticgrad.graph.ops.arithmetic import mul
from staticgrad.graph.rewrites.rewriter import Rewriter, is_floating, uniform


def over_ones(node: Node, rewriter: Rewriter) -> Node | None:
    """A reduction over no axes, or over axes of extent 1 -> reshape(x). A sum keeps the sign of a zero by it."""
    (x,) = node.operands
    return rewriter.reshaped(x, node.shape) if x.size and _count(node) == 1 else None


def sum_of_uniform(node: Node, rewriter: Rewriter) -> Node | None:
    """sum of a constant c stretched over n elements -> n * c where no partial sum is rounded."""
    (x,) = node.operands
    value = uniform(x)
    if value is None or not _sums_exactly(value, _count(node)):
        return None
    with np.errstate(all="ignore"):
        total = (value * np.asarray(_count(node)).astype(node.dtype)).astype(node.dtype)
    return rewriter.full(total, node)


def sum_of_integers(node: Node, rewriter: Rewriter) -> Node | None:
    """sum of an integer value stretched over n elements -> n * value; both wrap alike."""
    (x,) = node.operands
    if is_floating(node.dtype) or x.op.name != "broadcast_to":
        return None
    (single,) = x.operands
    if single.size != 1:
        return None
    count = rewriter.constant(np.asarray(_count(node)).astype(node.dtype))
    return rewriter.stretched(rewriter.make(mul, rewriter.reshaped(single, ()), count), node.shape)


def same_everywhere(node: Node, rewriter: Rewriter) -> Node | None:
    """max, min, any, all of a constant stretched over at least one element -> that constant."""
    (x,) = node.operands
    value = uniform(x)
    return rewriter.full(value, node) if value is not None and x.size else None


def _count(node: Node) -> int:
    """How many elements are folded into one."""
    return math.prod(node.operands[0].shape[axis] for axis in node.attributes["axis"])


def _sums_exactly(value: Any, count: int) -> bool:
    """Whether 0, value, 2 value, … count * value are all floats: then every order of the sum gives the last."""
    if not is_floating(value.dtype):
        return True
    if not np.isfinite(value):
        return False
    if value == 0:
        return not np.signbit(value)
    numerator, _ = float(value).as_integer_ratio()
    odd = abs(numerator) // (numerator & -numerator)
    information = np.finfo(value.dtype)
    return odd * count <= 2 ** (information.nmant + 1) and abs(float(value)) * count <= float(information.max)


RULES = {
    "sum": (over_ones, sum_of_uniform, sum_of_integers),
    "prod": (over_ones,),
    "max": (over_ones, same_everywhere),
    "min": (over_ones, same_everywhere),
    "any": (over_ones, same_everywhere),
    "all": (over_ones, same_everywhere),
}
