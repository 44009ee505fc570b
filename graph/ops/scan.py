"""Running totals along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.node import Spec
from staticgrad.graph.op import ErrorSample, Sample, require_dtype, structural

X = (np.arange(24.0).reshape(2, 3, 4) * 7 % 11) / 5 - 0.9


def _cumulative_spec(x: Spec, *, axis: int, reverse: bool = False) -> Spec:
    require_dtype("cumulative_sum", x.dtype, "numeric")
    if not 0 <= axis < len(x.shape):
        raise ShapeError(f"cumulative_sum: axis must be one of the {len(x.shape)} axes of {x.shape}; got {axis}")
    return x


def _cumulative_reference(x: Any, *, axis: int, reverse: bool = False) -> Any:
    if reverse:
        return np.flip(np.cumsum(np.flip(x, axis), axis=axis, dtype=x.dtype), axis)
    return np.cumsum(x, axis=axis, dtype=x.dtype)


def _cumulative_back(cotangent: Any, *, axis: int, reverse: bool = False) -> Any:
    return cumulative_sum(cotangent, axis=axis, reverse=not reverse)


# out[i] = x[0] + … + x[i] along `axis`, or from the other end with `reverse`.
cumulative_sum = structural(
    "cumulative_sum",
    operands=("x",),
    infer=_cumulative_spec,
    reference=_cumulative_reference,
    vjp=(_cumulative_back,),
    linear="each",
    samples=lambda: [Sample((X,), {"axis": i, "reverse": r}) for i in range(3) for r in (False, True)],
    errors=(
        ErrorSample((X,), {"axis": 3}, ShapeError, "axis"),
        ErrorSample((X > 0,), {"axis": 0}, DTypeError, "numeric"),
    ),
)
