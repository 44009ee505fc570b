"""How the operands of a matmul lie in memory: whether BLAS can read them where they are."""

from __future__ import annotations

from dataclasses import dataclass

from staticgrad.graph.views import Strided


@dataclass(frozen=True, slots=True)
class MatrixLayout:
    """A matrix as BLAS reads it: its rows lie `leading` elements apart; `transposed` if its columns do."""

    transposed: bool
    leading: int


def matrix_layout(view: Strided) -> MatrixLayout | None:
    """The layout of the last two axes, or None where neither has neighbouring elements next to each other."""
    rows, columns = view.shape[-2:]
    row_stride, column_stride = view.strides[-2:]
    if (column_stride == 1 or columns == 1) and (row_stride >= columns or rows == 1):
        return MatrixLayout(False, max(1, columns if rows == 1 else row_stride))
    if (row_stride == 1 or rows == 1) and (column_stride >= rows or columns == 1):
        return MatrixLayout(True, max(1, rows if columns == 1 else column_stride))
    return None
