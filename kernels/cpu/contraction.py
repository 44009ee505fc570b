"""Lowers matmul to products as BLAS knows them: transposes become flags, strided operands are read where they lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from staticgrad.graph.fusion import matrix_operand
from staticgrad.graph.matrix_layout import MatrixLayout, matrix_layout
from staticgrad.graph.members import Members
from staticgrad.graph.node import Node, Shape
from staticgrad.graph.views import Strided, broadcast_strides, own_storage
from staticgrad.kernels.cpu.gemm import Product
from staticgrad.kernels.cpu.steps import Address, Fill, Gemm, Work

SMALLEST = 512  # multiplications: below, calling BLAS takes longer than the product, and timing it longer still
AddressOf = Callable[[Node, int], Address]


def lower_matmul(node: Node, members: Members, address: AddressOf) -> list[Work]:
    """The steps that compute a matmul: one for each stretch of the batch that has one stride.

    Args: `address(owner, offset)` gives the address of an element of an owner's storage.
    """
    if node.size == 0:
        return []
    x, y = (_operand(operand, members) for operand in node.operands)
    if x.shape[-1 if not node.attributes.get("transpose_x") else -2] == 0:
        return [Fill(address(node, 0), node.nbytes)]
    out = own_storage(node)
    batch = node.shape[:-2]
    strides = [_batch_strides(view, batch) for view in (x, y, out)]
    outer, (count, *inner) = _batches(batch, strides)
    steps: list[Work] = []
    for offsets in outer:
        starts = [view.offset + offset for view, offset in zip((x, y, out), offsets, strict=True)]
        steps.append(_gemm(node, (x, y), starts, count, inner, address))
    return steps


def generated_product(step: Gemm) -> Product | None:
    """What a kernel made for this product computes; None for products with vectors and numbers."""
    if min(step.m, step.n) < 2 or step.k < 1 or step.batch < 1 or step.m * step.n * step.k < SMALLEST:
        return None
    return Product(
        step.dtype, step.m, step.n, step.k, step.transpose_a, step.transpose_b, step.lda, step.ldb, step.ldc,
        step.alpha, step.beta, step.batch, step.stride_a, step.stride_b, step.stride_c,
    )  # fmt: skip


def _operand(operand: Node, members: Members) -> Strided:
    owner = matrix_operand(operand, members)
    return own_storage(operand) if owner is operand else members.resolve(operand)


def _batch_strides(view: Strided, batch: Shape) -> tuple[int, ...]:
    return broadcast_strides(view.shape[:-2], view.strides[:-2], batch)


def _batches(batch: Shape, strides: Sequence[tuple[int, ...]]) -> tuple[list[list[int]], list[int]]:
    """Offsets of the parts of the batch, and the count and strides within each part.

    Trailing batch axes are merged as long as one stride for each operand serves them all.
    """
    count, inner = 1, [0] * len(strides)
    rest = len(batch)
    while rest:
        axis = rest - 1
        step = [operand[axis] for operand in strides]
        if batch[axis] != 1:
            if count > 1 and any(s != i * count for s, i in zip(step, inner, strict=True)):
                break
            inner = step if count == 1 else inner
            count *= batch[axis]
        rest -= 1
    indices = itertools.product(*(range(extent) for extent in batch[:rest]))
    outer = [[sum(i * s for i, s in zip(index, operand, strict=False)) for operand in strides] for index in indices]
    return outer, [count, *inner]


def _gemm(
    node: Node,
    operands: tuple[Strided, Strided],
    starts: Sequence[int],
    count: int,
    strides: Sequence[int],
    address: AddressOf,
) -> Gemm:
    x, y = operands
    transpose_x = bool(node.attributes.get("transpose_x"))
    transpose_y = bool(node.attributes.get("transpose_y"))
    layout_x, layout_y = _layout(x), _layout(y)
    rows, columns = node.shape[-2:]
    return Gemm(
        dtype=node.dtype.name,
        m=rows,
        n=columns,
        k=x.shape[-2 if transpose_x else -1],
        transpose_a=layout_x.transposed != transpose_x,
        transpose_b=layout_y.transposed != transpose_y,
        a=address(x.owner, starts[0]),
        b=address(y.owner, starts[1]),
        c=address(node, starts[2]),
        lda=layout_x.leading,
        ldb=layout_y.leading,
        ldc=columns,
        batch=count,
        stride_a=strides[0],
        stride_b=strides[1],
        stride_c=strides[2],
    )


def _layout(view: Strided) -> MatrixLayout:
    layout = matrix_layout(view)
    if layout is None:
        raise ValueError(f"matmul: BLAS cannot read strides {view.strides} of shape {view.shape}")
    return layout
