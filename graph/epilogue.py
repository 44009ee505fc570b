"""What a matrix product's kernel can do to the elements of the product before it stores them.

A bias, an activation and its derivative: work on each element, together with sums over the rows such as the gradient
of a bias. The product then need not be stored and read again.

What streams large arrays beside the product is left to a kernel of its own: here they would come tile by tile, some
bytes of many rows, which is slow. On a Zen 4 machine a product of 256 x 256 x 1024 took 1.37 ms with its arrays in
memory; multiplied by another matrix, 1.55, while a kernel of its own adds 0.07.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

from staticgrad.graph.members import Access, Member
from staticgrad.graph.node import Node
from staticgrad.graph.views import Layout, boundaries, split

NEAR = 2**17  # bytes of a product up to which it and its like lie in a cache close by
LONGEST_SUM = 4096  # rows that are added up in the product's dtype: tile by tile, as precise as a quarter of them

OPS = frozenset(
    {
        "neg", "add", "sub", "mul", "div", "square", "reciprocal", "abs", "sign", "maximum", "minimum", "sqrt", "rsqrt",
        "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "select", "cast",
        "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
    }
)  # fmt: skip
"""Elementwise ops that the kernel of a product can do on whole vectors of its dtype."""


def can_follow(product: Node, members: Sequence[Member]) -> bool:
    """Whether members of one kernel only work on the elements of `product`, in order, and on sums of its columns."""
    if product.ndim < 2 or min(product.shape[-2:]) < 2 or not product.size:
        return False
    inside = {member.node for member in members}
    summed = {member.node for member in members if member.kind == "reduce"}
    elements = ((product.size, 1),)
    for member in members:
        works = _is_column_sum(member, product, inside) if member.kind == "reduce" else _is_elementwise(member, product)
        if not works:
            return False
        for access in member.accesses:
            if access.owner is product or access.owner in inside:
                if access.owner in summed or access.offset or access.layout != elements:
                    return False
            elif not _is_operand(access, product):
                return False
    return True


def is_light(product: Node, members: Sequence[Member], writes: Collection[Node]) -> bool:
    """Whether members that can follow the product read and write little beside one matrix."""
    inside = {member.node for member in members} | {product}
    accesses = [access for member in members for access in member.accesses if access.owner not in inside]
    read = {(access.owner, access.offset) for access in accesses if all(row_and_column(access, product))}
    beside = sum(owner.dtype.itemsize for owner, _ in read) - product.dtype.itemsize
    beside += sum(node.dtype.itemsize for node in writes if node.size == product.size)
    return beside <= (2 if product.nbytes <= NEAR else 0.5) * product.dtype.itemsize


def row_and_column(access: Access, product: Node) -> tuple[int, int]:
    """The distances in elements between the rows and between the columns of an operand, 0 where it has only one."""
    return batch_row_and_column(access, product)[1:]


def batch_row_and_column(access: Access, product: Node) -> tuple[int, int, int]:
    """The distances in elements between matrices of the batch, their rows, and their columns."""
    strides = _strides(access.layout, product)
    assert strides is not None
    return strides


def product_of(nodes: Sequence[Node]) -> Node | None:
    """The matrix product among the nodes of a group, if there is one."""
    return next((node for node in nodes if node.op.name == "matmul"), None)


def stand_in(product: Node, writes: Sequence[Node]) -> Node | None:
    """The written value whose storage can hold the product itself until the value takes its place.

    Needed where another kernel computes the values from a stored product.
    """
    if product in writes:
        return product
    return next((node for node in writes if node.dtype == product.dtype and node.size == product.size), None)


def _is_elementwise(member: Member, product: Node) -> bool:
    node = member.node
    if node.op.kind != "elementwise" or node.op.name not in OPS or member.size != product.size:
        return False
    floats = [node, *node.operands]
    return all(one.dtype in (product.dtype, bool) for one in floats) and _has_its_dtype(node)


def _has_its_dtype(node: Node) -> bool:
    """Not arithmetic on truth values."""
    if node.op.name in ("select", "cast"):
        return node.dtype.kind == "f"
    return all(operand.dtype.kind == "f" for operand in node.operands)


def _is_column_sum(member: Member, product: Node, inside: Collection[Node]) -> bool:
    node, (access,) = member.node, member.accesses
    columns = product.shape[-1]
    sums = node.op.name == "sum" and node.dtype == product.dtype and node.operands[0].dtype == product.dtype
    whole = member.size == product.size and node.size == columns
    if not sums or not whole or product.size > LONGEST_SUM * columns:
        return False
    return _strides(member.result, product) == (0, 0, 1) and (access.owner is product or access.owner in inside)


def _is_operand(access: Access, product: Node) -> bool:
    if access.size != product.size or access.owner.op.name == "iota":
        return False
    if access.owner.dtype not in (product.dtype, bool):
        return False
    strides = _strides(access.layout, product)
    if strides is None:
        return False
    batch, down, right = strides
    rows, columns = product.shape[-2:]
    if right not in (0, 1) or down < 0:
        return False
    if product.size == rows * columns:
        return True
    return batch == (rows * columns if down and right else 0)


def _strides(layout: Layout, product: Node) -> tuple[int, int, int] | None:
    """The strides of a layout over the batch, the rows and the columns of the product; None where they do not fit."""
    *batch, rows, columns = product.shape
    extents = (prod(batch), rows, columns)
    if not boundaries(layout) <= {columns, rows * columns}:
        return None
    found = split(layout, extents)
    return found[0], found[1], found[2]
