"""Matmul as matrix products that a library or a kernel can do: operands read where they lie, transposes as flags."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from staticgrad.graph.fusion import matrix_operand
from staticgrad.graph.matrix_layout import matrix_layout
from staticgrad.graph.members import Members
from staticgrad.graph.node import DType, Node, Shape
from staticgrad.graph.views import Strided, broadcast_strides, own_storage


@dataclass(frozen=True, slots=True)
class Matrix:
    """A stack of matrices in the storage of `owner`; all numbers count elements.

    Attributes:
        offset: where the first matrix begins.
        transposed: whether the columns lie one after the other, and not the rows.
        leading: the distance between rows, or columns if transposed.
        stride: the distance between matrices of the stack.
    """

    owner: Node
    offset: int
    transposed: bool
    leading: int
    stride: int


@dataclass(frozen=True, slots=True)
class StoredProduct:
    """`C = op(A) @ op(B)` on row-major matrices of constant shape, `batch` times, wherever they lie.

    `op(A)` is (m, k), `op(B)` is (k, n), C is (m, n), and is written only. A transposed A lies in memory as (k, m), a
    transposed B as (n, k). A leading dimension is the distance between rows as stored, in elements; a stride is the
    distance between matrices of the batch, in elements, 0 for one that all share.
    """

    dtype: str
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    lda: int
    ldb: int
    ldc: int
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0

    @property
    def multiplications(self) -> int:
        """Of the whole batch."""
        return self.batch * self.m * self.n * self.k

    def check_rows(self, who: str) -> None:
        """Raise ValueError where a leading dimension is shorter than a row."""
        rows = {
            "lda": (self.lda, self.m if self.transpose_a else self.k),
            "ldb": (self.ldb, self.k if self.transpose_b else self.n),
            "ldc": (self.ldc, self.n),
        }
        for what, (leading, length) in rows.items():
            if leading < length:
                raise ValueError(f"{who}: {what} must reach over a row of {length} elements; got {leading}")


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """`c = a @ b` on matrices of shape (m, k), (k, n) and (m, n), `batch` times; c has its rows one after the other.

    `a.transposed` says that a lies in memory as (k, m), as `b.transposed` does of b and (n, k).
    """

    m: int
    n: int
    k: int
    batch: int
    a: Matrix
    b: Matrix
    c: Matrix

    @property
    def dtype(self) -> DType:
        return self.c.owner.dtype

    @property
    def strides_of_a(self) -> tuple[int, int]:
        """The distances between the rows of a, and between the neighbours of one row along k."""
        return (1, self.a.leading) if self.a.transposed else (self.a.leading, 1)

    @property
    def strides_of_b(self) -> tuple[int, int]:
        """The distances between the columns of b, and between the neighbours of one column along k."""
        return (self.b.leading, 1) if self.b.transposed else (1, self.b.leading)

    @property
    def stored(self) -> StoredProduct:
        """The same product without its matrices."""
        a, b, c = self.a, self.b, self.c
        return StoredProduct(
            self.dtype.name, self.m, self.n, self.k, a.transposed, b.transposed, a.leading, b.leading, c.leading,
            self.batch, a.stride, b.stride, c.stride,
        )  # fmt: skip


def products(node: Node, members: Members) -> list[MatrixProduct]:
    """What a matmul consists of: one product for each stretch of its batch in which every operand has one stride."""
    if node.size == 0:
        return []
    x, y = (_operand(operand, members) for operand in node.operands)
    out = own_storage(node)
    batch = node.shape[:-2]
    strides = [broadcast_strides(view.shape[:-2], view.strides[:-2], batch) for view in (x, y, out)]
    outer, (count, *inner) = _batches(batch, strides)
    transpose_x, transpose_y = (bool(node.attributes.get(name)) for name in ("transpose_x", "transpose_y"))
    m, n = node.shape[-2:]
    k = x.shape[-2 if transpose_x else -1]
    return [
        MatrixProduct(
            m, n, k, count,
            _matrix(x, offsets[0], inner[0], transpose_x),
            _matrix(y, offsets[1], inner[1], transpose_y),
            Matrix(node, offsets[2], False, n, inner[2]),
        )
        for offsets in outer
    ]  # fmt: skip


def _operand(operand: Node, members: Members) -> Strided:
    owner = matrix_operand(operand, members)
    return own_storage(operand) if owner is operand else members.resolve(operand)


def _matrix(view: Strided, offset: int, stride: int, transposed: bool) -> Matrix:
    layout = matrix_layout(view)
    if layout is None:
        raise ValueError(f"matmul: no matrix product can read strides {view.strides} of shape {view.shape}")
    return Matrix(view.owner, view.offset + offset, layout.transposed != transposed, layout.leading, stride)


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
