"""Matrix products, after the Python array API standard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from staticgrad.array.manipulation import _tensor, permute_dims, reshape
from staticgrad.binding import bind
from staticgrad.graph.errors import ShapeError
from staticgrad.graph.ops import contraction
from staticgrad.graph.ops.shape import normalize_axis
from staticgrad.tensor import Tensor


def matmul(x: Any, y: Any, /) -> Tensor:
    """The matrix product over the last axis of x and the second-to-last of y; leading axes broadcast.

    A vector on the left is a row, on the right a column, and its axis is dropped from the result. Floating dtypes.
    """
    a, b = _tensor(x), _tensor(y)
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: operands need at least one axis; got {a.shape} and {b.shape}")
    if a.ndim == 1:
        out = matmul(reshape(a, (1, a.shape[0])), b)
        return reshape(out, (*out.shape[:-2], out.shape[-1]) if b.ndim > 1 else ())
    if b.ndim == 1:
        out = matmul(a, reshape(b, (b.shape[0], 1)))
        return reshape(out, out.shape[:-1])
    if a.ndim > 2 and b.ndim == 2 and a.shape[-1] == b.shape[0]:
        rows = reshape(a, (a.size // a.shape[-1] if a.shape[-1] else 0, a.shape[-1])) if a.shape[-1] else a
        if rows.ndim == 2:  # one product of a tall matrix instead of a stack of small ones
            return reshape(bind(contraction.matmul, (rows, b), {}), (*a.shape[:-1], b.shape[-1]))
    return bind(contraction.matmul, (a, b), {})


def matrix_transpose(x: Any, /) -> Tensor:
    """The last two axes swapped."""
    tensor = _tensor(x)
    if tensor.ndim < 2:
        raise ShapeError(f"matrix_transpose: needs at least two axes; got shape {tensor.shape}")
    order = list(range(tensor.ndim))
    order[-1], order[-2] = order[-2], order[-1]
    return permute_dims(tensor, order)


def vecdot(x: Any, y: Any, /, *, axis: int = -1) -> Tensor:
    """Σ x·y along `axis`."""
    from staticgrad.array.reduction import sum as total

    return total(_tensor(x) * y, axis=axis)


def outer(x: Any, y: Any, /) -> Tensor:
    """x[i]·y[j] of two vectors."""
    a, b = _tensor(x), _tensor(y)
    if a.ndim != 1 or b.ndim != 1:
        raise ShapeError(f"outer: takes two vectors; got {a.shape} and {b.shape}")
    return reshape(a, (a.shape[0], 1)) * b


def tensordot(x: Any, y: Any, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """Σ x·y over pairs of axes: the last `axes` of x with the first of y, or those listed for each."""
    a, b = _tensor(x), _tensor(y)
    if isinstance(axes, int):
        left, right = list(range(a.ndim - axes, a.ndim)), list(range(axes))
    else:
        left = [normalize_axis("tensordot", i, a.ndim) for i in axes[0]]
        right = [normalize_axis("tensordot", i, b.ndim) for i in axes[1]]
    fits = len(left) == len(right) <= min(a.ndim, b.ndim)
    if not fits or any(a.shape[i] != b.shape[j] for i, j in zip(left, right, strict=True)):
        raise ShapeError(f"tensordot: paired axes must have equal extents; got {a.shape} and {b.shape}, axes {axes}")
    rows = [i for i in range(a.ndim) if i not in left]
    columns = [i for i in range(b.ndim) if i not in right]
    shape = tuple(a.shape[i] for i in rows) + tuple(b.shape[i] for i in columns)
    inner = math.prod(a.shape[i] for i in left)
    first = reshape(permute_dims(a, rows + left), (math.prod(a.shape[i] for i in rows), inner))
    second = reshape(permute_dims(b, right + columns), (inner, math.prod(b.shape[i] for i in columns)))
    return reshape(matmul(first, second), shape)
