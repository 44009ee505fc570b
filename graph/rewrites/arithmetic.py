"""Arithmetic that is exact in IEEE arithmetic, infinities, NaN and the signs of zeros included.

Not exact and so not here: x + 0.0 (it turns -0.0 into 0.0), x - x, 0 - x, x * 0 and x / x for floats; pow(x, 0.5) as
a square root (it differs at -0.0 and -inf); any change in the order of a sum. The one exception is stated at `pow`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.graph.node import Node
from staticgrad.graph.ops.arithmetic import add, div, mul, neg, sub
from staticgrad.graph.ops.transcendental import erf, reciprocal, square
from staticgrad.graph.rewrites.rewriter import Rewriter, is_floating, uniform

# ---------------------------------------------------------------- add and sub


def add_zero(node: Node, rewriter: Rewriter) -> Node | None:
    """x + -0.0 -> x; for integers x + 0 -> x."""
    for x, y in _both_ways(node):
        if _is_nothing(uniform(y), negative=True):
            return rewriter.stretched(x, node.shape)
    return None


def add_negated(node: Node, rewriter: Rewriter) -> Node | None:
    """x + -y -> x - y."""
    for x, y in _both_ways(node):
        if y.op is neg:
            return rewriter.make(sub, x, y.operands[0])
    return None


def sub_zero(node: Node, rewriter: Rewriter) -> Node | None:
    """x - 0 -> x; the zero of floats must be 0.0, since -0.0 - -0.0 is 0.0."""
    x, y = node.operands
    return rewriter.stretched(x, node.shape) if _is_nothing(uniform(y), negative=False) else None


def sub_from_zero(node: Node, rewriter: Rewriter) -> Node | None:
    """-0.0 - x -> -x; for integers 0 - x -> -x."""
    x, y = node.operands
    return rewriter.stretched(rewriter.make(neg, y), node.shape) if _is_nothing(uniform(x), negative=True) else None


def sub_negated(node: Node, rewriter: Rewriter) -> Node | None:
    """x - -y -> x + y."""
    x, y = node.operands
    return rewriter.make(add, x, y.operands[0]) if y.op is neg else None


def _is_nothing(value: Any, *, negative: bool) -> bool:
    """Whether `value` is an integer 0, or the float zero of the given sign."""
    if value is None or value != 0:
        return False
    return not is_floating(value.dtype) or bool(np.signbit(value)) == negative


# ---------------------------------------------------------------- mul


def mul_one(node: Node, rewriter: Rewriter) -> Node | None:
    """x * 1 -> x and x * -1 -> -x."""
    for x, y in _both_ways(node):
        value = uniform(y)
        if value is None:
            continue
        if value == 1:
            return rewriter.stretched(x, node.shape)
        if value == -1:
            return rewriter.stretched(rewriter.make(neg, x), node.shape)
    return None


def mul_zero(node: Node, rewriter: Rewriter) -> Node | None:
    """x * 0 -> 0, for integers only: a float may be infinite or NaN, or leave a negative zero."""
    if is_floating(node.dtype):
        return None
    for _, y in _both_ways(node):
        if uniform(y) == 0:
            return rewriter.full(0, node)
    return None


def mul_self(node: Node, rewriter: Rewriter) -> Node | None:
    """x * x -> square(x)."""
    x, y = node.operands
    return rewriter.make(square, x) if x is y else None


def mul_negated(node: Node, rewriter: Rewriter) -> Node | None:
    """-x * -y -> x * y, and -x * c -> x * -c for a constant c."""
    for x, y in _both_ways(node):
        if x.op is neg and y.op is neg:
            return rewriter.make(mul, x.operands[0], y.operands[0])
        if x.op is neg and uniform(y) is not None:
            return rewriter.make(mul, x.operands[0], rewriter.make(neg, y))
    return None


# ---------------------------------------------------------------- div


def div_one(node: Node, rewriter: Rewriter) -> Node | None:
    """x / 1 -> x and x / -1 -> -x."""
    x, y = node.operands
    value = uniform(y)
    if value == 1:
        return rewriter.stretched(x, node.shape)
    if value == -1:
        return rewriter.stretched(rewriter.make(neg, x), node.shape)
    return None


def div_power_of_two(node: Node, rewriter: Rewriter) -> Node | None:
    """x / 2**k -> x * 2**-k: both round the same number. Only where 2**-k is a normal number."""
    x, y = node.operands
    value = uniform(y)
    if value is None or not np.isfinite(value) or abs(np.frexp(value)[0]) != 0.5:
        return None
    with np.errstate(all="ignore"):
        inverse = node.dtype.type(1) / value
    if not np.isfinite(inverse) or abs(inverse) < np.finfo(node.dtype).tiny:
        return None
    return rewriter.make(mul, x, rewriter.full(inverse, y))


def one_over(node: Node, rewriter: Rewriter) -> Node | None:
    """1 / x -> reciprocal(x)."""
    x, y = node.operands
    return rewriter.stretched(rewriter.make(reciprocal, y), node.shape) if uniform(x) == 1 else None


def div_negated(node: Node, rewriter: Rewriter) -> Node | None:
    """-x / -y -> x / y, -x / c -> x / -c and c / -y -> -c / y for a constant c."""
    x, y = node.operands
    if x.op is neg and y.op is neg:
        return rewriter.make(div, x.operands[0], y.operands[0])
    if x.op is neg and uniform(y) is not None:
        return rewriter.make(div, x.operands[0], rewriter.make(neg, y))
    if y.op is neg and uniform(x) is not None:
        return rewriter.make(div, rewriter.make(neg, x), y.operands[0])
    return None


# ---------------------------------------------------------------- neg, abs, square, pow


def neg_neg(node: Node, rewriter: Rewriter) -> Node | None:
    """-(-x) -> x."""
    (x,) = node.operands
    return x.operands[0] if x.op is neg else None


def neg_scaled(node: Node, rewriter: Rewriter) -> Node | None:
    """-(x * c) -> x * -c for a constant c."""
    (x,) = node.operands
    if x.op is mul:
        for y, factor in _both_ways(x):
            if uniform(factor) is not None:
                return rewriter.make(mul, y, rewriter.make(neg, factor))
    return None


def sign_lost(node: Node, rewriter: Rewriter) -> Node | None:
    """abs(-x) -> abs(x), square(-x) -> square(x), square(abs(x)) -> square(x)."""
    (x,) = node.operands
    if x.op is neg or (x.op.name == "abs" and node.op is square):
        return rewriter.make(node.op, x.operands[0])
    return None


def twice_the_same(node: Node, rewriter: Rewriter) -> Node | None:
    """f(f(x)) -> f(x) for abs, sign and the roundings."""
    (x,) = node.operands
    return x if x.op is node.op else None


def pow_constant(node: Node, rewriter: Rewriter) -> Node | None:
    """pow(x, 0) -> 1, pow(x, 1) -> x, pow(x, 2) -> square(x), pow(x, -1) -> reciprocal(x).

    The last two are correctly rounded, while pow may be off by its own error: they differ by at most that.
    """
    x, y = node.operands
    exponent = uniform(y)
    if exponent == 0:
        return rewriter.full(1, node)
    if exponent == 1:
        return rewriter.stretched(x, node.shape)
    if exponent == 2:
        return rewriter.stretched(rewriter.make(square, x), node.shape)
    if exponent == -1:
        return rewriter.stretched(rewriter.make(reciprocal, x), node.shape)
    return None


def gelu_written_out(node: Node, rewriter: Rewriter) -> Node:
    """gelu(x) -> x / 2 (1 + erf(x sqrt(1/2))), whose error function the slope then shares."""
    (x,) = node.operands
    inner = rewriter.make(erf, rewriter.make(mul, x, rewriter.full(math.sqrt(0.5), node)))
    half = rewriter.make(mul, rewriter.full(0.5, node), x)
    return rewriter.make(mul, half, rewriter.make(add, rewriter.full(1, node), inner))


# ---------------------------------------------------------------- shared


def _both_ways(node: Node) -> tuple[tuple[Node, Node], tuple[Node, Node]]:
    x, y = node.operands
    return (x, y), (y, x)


RULES = {
    "add": (add_zero, add_negated),
    "sub": (sub_zero, sub_from_zero, sub_negated),
    "mul": (mul_one, mul_zero, mul_self, mul_negated),
    "div": (div_one, div_power_of_two, one_over, div_negated),
    "neg": (neg_neg, neg_scaled),
    "abs": (twice_the_same, sign_lost),
    "square": (sign_lost,),
    "sign": (twice_the_same,),
    "floor": (twice_the_same,),
    "ceil": (twice_the_same,),
    "trunc": (twice_the_same,),
    "round": (twice_the_same,),
    "pow": (pow_constant,),
    "gelu": (gelu_written_out,),
}
