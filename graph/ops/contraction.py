"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.node import Spec
from staticgrad.graph.op import ErrorSample, Sample, broadcast_shapes, require_dtype, structural
from staticgrad.graph.ops.shape import sum_to

A = (np.arange(24.0).reshape(2, 3, 4) * 5 % 13) / 6 - 1
B = (np.arange(40.0).reshape(2, 4, 5) * 3 % 17) / 8 - 1


def _matmul_spec(x: Spec, y: Spec, *, transpose_x: bool = False, transpose_y: bool = False) -> Spec:
    require_dtype("matmul", x.dtype, "floating")
    if x.dtype != y.dtype:
        raise DTypeError(f"matmul: operands must have one dtype; got {x.dtype} and {y.dtype}")
    if len(x.shape) < 2 or len(y.shape) < 2:
        raise ShapeError(f"matmul: the op takes matrices or stacks of them; got {x.shape} and {y.shape}")
    rows, inner = x.shape[-2:] if not transpose_x else x.shape[:-3:-1]
    inner_y, columns = y.shape[-2:] if not transpose_y else y.shape[:-3:-1]
    if inner != inner_y:
        raise ShapeError(
            f"matmul: the last axis of the first operand must equal the second-to-last axis of the second; got "
            f"{x.shape} and {y.shape}" + (" (transposed)" if transpose_x or transpose_y else "")
        )
    batch = broadcast_shapes("matmul", [x.shape[:-2], y.shape[:-2]])
    return Spec((*batch, rows, columns), x.dtype)


def _matmul_reference(x: Any, y: Any, *, transpose_x: bool = False, transpose_y: bool = False) -> Any:
    return np.matmul(x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y)


def _matmul_back_x(
    cotangent: Any, *, y: Any, x_shape: Any, transpose_x: bool = False, transpose_y: bool = False
) -> Any:
    if transpose_x:
        product = matmul(y, cotangent, transpose_x=transpose_y, transpose_y=True)
    else:
        product = matmul(cotangent, y, transpose_x=False, transpose_y=not transpose_y)
    return sum_to(product, x_shape)


def _matmul_back_y(
    cotangent: Any, *, x: Any, y_shape: Any, transpose_x: bool = False, transpose_y: bool = False
) -> Any:
    if transpose_y:
        product = matmul(cotangent, x, transpose_x=True, transpose_y=transpose_x)
    else:
        product = matmul(x, cotangent, transpose_x=not transpose_x, transpose_y=False)
    return sum_to(product, y_shape)


# x (…, m, k) times y (…, k, n); an operand with its flag set is read transposed. Leading axes broadcast.
matmul = structural(
    "matmul",
    operands=("x", "y"),
    infer=_matmul_spec,
    reference=_matmul_reference,
    vjp=(_matmul_back_x, _matmul_back_y),
    linear="each",
    promotes=True,
    samples=lambda: [
        Sample((A, B), {}),
        Sample((A[0], B[0]), {}),
        Sample((A[0].T.copy(), B), {"transpose_x": True}),
        Sample((A, B[1].T.copy()), {"transpose_y": True}),
        Sample((A[0].T.copy(), B[1].T.copy()), {"transpose_x": True, "transpose_y": True}),
        Sample((A[:, :, :0], B[:, :0]), {}),
    ],
    errors=(
        ErrorSample((A, B[:, :3]), {}, ShapeError, "second-to-last axis"),
        ErrorSample((A.astype("int64"), B.astype("int64")), {}, DTypeError, "floating"),
        ErrorSample((A[0, 0], B[0]), {}, ShapeError, "matrices"),
    ),
)
