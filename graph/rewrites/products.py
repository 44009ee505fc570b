"""Matrix products: transposes become flags, stacks become one product where the operands lie ready for it."""

from __future__ import annotations

import math

from staticgrad.graph.node import Node
from staticgrad.graph.ops.contraction import matmul
from staticgrad.graph.ops.shape import broadcast_to, permute_dims
from staticgrad.graph.rewrites.rewriter import Rewriter
from staticgrad.graph.rewrites.views import flattened, is_dense

FLAGS = ("transpose_x", "transpose_y")


def _flags(node: Node) -> tuple[bool, bool]:
    return bool(node.attributes.get("transpose_x", False)), bool(node.attributes.get("transpose_y", False))


def _product(rewriter: Rewriter, x: Node, y: Node, transpose_x: bool, transpose_y: bool) -> Node:
    return rewriter.make(matmul, x, y, transpose_x=transpose_x, transpose_y=transpose_y)


def flags_told(node: Node, rewriter: Rewriter) -> Node | None:
    """Both flags are always among the attributes, so that equal products are found equal."""
    if all(name in node.attributes for name in FLAGS):
        return None
    x, y = node.operands
    return _product(rewriter, x, y, *_flags(node))


def transposed_operand(node: Node, rewriter: Rewriter) -> Node | None:
    """matmul(permute(x), y) -> matmul(permute'(x), y) with x's flag turned, where permute puts x's last axis next to
    last: rows stay rows in memory, and a permute that only transposes vanishes."""
    operands, flags = list(node.operands), list(_flags(node))
    for position, operand in enumerate(node.operands):
        if operand.op is permute_dims and operand.attributes["axes"][-2] == operand.ndim - 1:
            axes = operand.attributes["axes"]
            turned = (*axes[:-2], axes[-1], axes[-2])
            operands[position] = rewriter.make(permute_dims, operand.operands[0], axes=turned)
            flags[position] = not flags[position]
    if operands == list(node.operands):
        return None
    return _product(rewriter, operands[0], operands[1], flags[0], flags[1])


def transposed_result(node: Node, rewriter: Rewriter) -> Node | None:
    """permute(matmul(x, y)) -> matmul(y, x), flags turned and swapped, where permute swaps the last two axes."""
    (product,) = node.operands
    axes = node.attributes["axes"]
    if product.op is not matmul or tuple(axes) != (*range(len(axes) - 2), len(axes) - 1, len(axes) - 2):
        return None
    if not rewriter.only_reader(product):
        return None
    (x, y), (transpose_x, transpose_y) = product.operands, _flags(product)
    return _product(rewriter, y, x, not transpose_y, not transpose_x)


def stretched_stack(node: Node, rewriter: Rewriter) -> Node | None:
    """matmul(broadcast(x), y) -> matmul(x, y) where only axes of the stack were stretched and y gives their extent."""
    operands = list(node.operands)
    for position, operand in enumerate(node.operands):
        if operand.op is not broadcast_to:
            continue
        (bare,) = operand.operands
        other = operands[1 - position]
        if bare.ndim >= 2 and bare.shape[-2:] == operand.shape[-2:] and _stack(bare, other) == node.shape[:-2]:
            operands[position] = bare
    if operands == list(node.operands):
        return None
    return _product(rewriter, operands[0], operands[1], *_flags(node))


def _stack(x: Node, y: Node) -> tuple[int, ...] | None:
    """The common leading axes of two operands of a product, or None when they do not fit."""
    a, b = x.shape[:-2], y.shape[:-2]
    length = max(len(a), len(b))
    a, b = (1,) * (length - len(a)) + a, (1,) * (length - len(b)) + b
    pairs = list(zip(a, b, strict=True))
    return tuple(m if n == 1 else n for m, n in pairs) if all(m == n or 1 in (m, n) for m, n in pairs) else None


def stack_of_one(node: Node, rewriter: Rewriter) -> Node | None:
    """A stack of one matrix product -> the product of two matrices, reshaped."""
    if node.ndim == 2 or math.prod(node.shape[:-2]) != 1:
        return None
    x, y = (rewriter.reshaped(operand, operand.shape[-2:]) for operand in node.operands)
    return rewriter.reshaped(_product(rewriter, x, y, *_flags(node)), node.shape)


def rows_of_stack(node: Node, rewriter: Rewriter) -> Node | None:
    """x (…, m, k) times one matrix y -> (… * m, k) times y, reshaped: one product instead of many.

    Every element is the same sum over k; BLAS may add it up in another order for another number of rows.
    """
    x, y = node.operands
    transpose_x, transpose_y = _flags(node)
    if x.ndim == 2 or transpose_x or math.prod(y.shape[:-2]) != 1 or not is_dense(x):
        return None
    if x.shape[:-2] != node.shape[:-2] or node.size == 0:
        return None
    rows = rewriter.reshaped(x, flattened(x.shape, x.ndim - 1))
    product = _product(rewriter, rows, rewriter.reshaped(y, y.shape[-2:]), False, transpose_y)
    return rewriter.reshaped(product, node.shape)


def sum_of_stack(node: Node, rewriter: Rewriter) -> Node | None:
    """The sum over a stack of products of x transposed and y -> one product over all rows of the stack.

    This is the gradient of a weight that a stack shares: without the rule it needs memory for one gradient per matrix.
    The sum over the stack joins the sum inside the product, so it is added up in another order.
    """
    (product,) = node.operands
    if product.op is not matmul or _flags(product) != (True, False):
        return None
    x, y = product.operands
    lead = product.ndim - 2
    if lead == 0 or tuple(node.attributes["axis"]) != tuple(range(lead)) or product.size == 0:
        return None
    if not x.shape[:-2] == y.shape[:-2] == product.shape[:-2] or not (is_dense(x) and is_dense(y)):
        return None
    if not rewriter.only_reader(product):
        return None
    rows_of_x, rows_of_y = (rewriter.reshaped(operand, flattened(operand.shape, lead + 1)) for operand in (x, y))
    return _product(rewriter, rows_of_x, rows_of_y, True, False)


RULES = {
    "matmul": (flags_told, stretched_stack, transposed_operand, stack_of_one, rows_of_stack),
    "permute_dims": (transposed_result,),
    "sum": (sum_of_stack,),
}
