"""Reductions, after the Python array API standard: `axis` is None (all axes), a number or a tuple."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.array.creation import asarray
from staticgrad.array.elementwise import abs as magnitude
from staticgrad.array.elementwise import exp, isclose, isfinite, isnan, log, sqrt, square, where
from staticgrad.binding import bind
from staticgrad.capture_state import composite
from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.ops import reduction, scan
from staticgrad.graph.ops.reduction import kept_shape
from staticgrad.graph.ops.shape import broadcast_to, normalize_axis, reshape
from staticgrad.tensor import DEFAULT_INT, Tensor

Axis = int | tuple[int, ...] | None


def axes_of(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` as a sorted tuple counted from the front."""
    if axis is None:
        return tuple(range(ndim))
    if type(axis) is int:
        return (normalize_axis(name, axis, ndim),)
    given = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    found = sorted(normalize_axis(name, int(i), ndim) for i in given)
    if len(set(found)) != len(found):
        raise ShapeError(f"{name}: axes must be distinct; got {given}")
    return tuple(found)


def _reduce(op: Any, x: Any, axis: Axis, keepdims: bool) -> Tensor:
    tensor = x if isinstance(x, Tensor) else asarray(x)
    axes = axes_of(op.name, axis, tensor.ndim)
    out = bind(op, (tensor,), {"axis": axes})
    return reshape(out, shape=kept_shape(tensor.shape, axes)) if keepdims else out


def _summable(x: Any, dtype: Any) -> Tensor:
    tensor = x if isinstance(x, Tensor) else asarray(x)
    if dtype is not None:
        return tensor.astype(dtype, copy=False)
    if tensor.dtype.kind == "b" or (tensor.dtype.kind == "i" and tensor.dtype.itemsize < 8):
        return tensor.astype(DEFAULT_INT)
    if tensor.dtype.kind == "u" and tensor.dtype.itemsize < 8:
        return tensor.astype(np.uint64)
    return tensor


def sum(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Σ x over `axis`. Small integers and booleans are summed as 64-bit integers."""
    return _reduce(reduction.sum_, _summable(x, dtype), axis, keepdims)


def prod(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Π x over `axis`. Small integers and booleans are multiplied as 64-bit integers."""
    return _reduce(reduction.prod, _summable(x, dtype), axis, keepdims)


def max(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`, NaN if there is one. Ties share the gradient evenly."""
    return _reduce(reduction.max_, x, axis, keepdims)


def min(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis`, NaN if there is one. Ties share the gradient evenly."""
    return _reduce(reduction.min_, x, axis, keepdims)


def any(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether some element over `axis` is true (not zero)."""
    return _reduce(reduction.any_, _as_boolean(x), axis, keepdims)


def all(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element over `axis` is true (not zero)."""
    return _reduce(reduction.all_, _as_boolean(x), axis, keepdims)


def _as_boolean(x: Any) -> Tensor:
    tensor = x if isinstance(x, Tensor) else asarray(x)
    return tensor if tensor.dtype.kind == "b" else tensor != 0


def _position(op: Any, x: Any, axis: int | None, keepdims: bool) -> Tensor:
    tensor = x if isinstance(x, Tensor) else asarray(x)
    if axis is None:
        out = _reduce(op, reshape(tensor, shape=(tensor.size,)), 0, False)
        return reshape(out, shape=(1,) * tensor.ndim) if keepdims else out
    return _reduce(op, tensor, axis, keepdims)


def argmax(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The first position (int64) of the largest element along `axis`, of the flattened tensor by default."""
    return _position(reduction.argmax, x, axis, keepdims)


def argmin(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The first position (int64) of the smallest element along `axis`, of the flattened tensor by default."""
    return _position(reduction.argmin, x, axis, keepdims)


def _count(tensor: Tensor, axes: tuple[int, ...]) -> int:
    return math.prod(tensor.shape[i] for i in axes)


def _floating(name: str, x: Any) -> Tensor:
    tensor = x if isinstance(x, Tensor) else asarray(x)
    if tensor.dtype.kind != "f":
        raise DTypeError(f"{name}: takes a floating dtype; got {tensor.dtype}; convert it first with astype")
    return tensor


@composite("mean")
def mean(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Σ x / n over `axis`. Floating dtypes; ShapeError over no elements."""
    tensor = _floating("mean", x)
    count = _count(tensor, axes_of("mean", axis, tensor.ndim))
    if count == 0:
        raise ShapeError(f"mean: no mean exists over no elements; got shape {tensor.shape}, axis {axis}")
    return sum(tensor, axis=axis, keepdims=keepdims) * (1.0 / count)


@composite("var")
def var(x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """Σ (x - mean)² / (n - correction) over `axis`. Floating dtypes."""
    tensor = _floating("var", x)
    count = _count(tensor, axes_of("var", axis, tensor.ndim)) - correction
    if count <= 0:
        raise ShapeError(
            f"var: needs more elements than the correction {correction}; got shape {tensor.shape}, axis {axis}"
        )
    centred = tensor - mean(tensor, axis=axis, keepdims=True)
    return sum(square(centred), axis=axis, keepdims=keepdims) * (1.0 / count)


@composite("std")
def std(x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """√var over `axis`. Floating dtypes; the derivative where all elements are equal is 0."""
    return _root(var(x, axis=axis, correction=correction, keepdims=keepdims))


def _root(x: Tensor) -> Tensor:
    """√x with derivative 0 instead of infinity at 0, as PyTorch has it for norm and std."""
    zero = x == 0
    return where(zero, 0.0, sqrt(where(zero, 1.0, x)))


@composite("logsumexp")
def logsumexp(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log Σ eˣ over `axis`, without overflow. Floating dtypes."""
    tensor = _floating("logsumexp", x)
    axes = axes_of("logsumexp", axis, tensor.ndim)
    largest = max(tensor.detach(), axis=axes, keepdims=True)
    shift = where(isfinite(largest), largest, 0.0)
    total = log(sum(exp(tensor - shift), axis=axes, keepdims=True)) + shift
    return total if keepdims else reshape(total, shape=tuple(e for i, e in enumerate(tensor.shape) if i not in axes))


@composite("softmax")
def softmax(x: Any, /, *, axis: int = -1) -> Tensor:
    """eˣ / Σ eˣ along `axis`. Floating dtypes."""
    tensor = _floating("softmax", x)
    powers = exp(tensor - max(tensor.detach(), axis=axis, keepdims=True))
    return powers / sum(powers, axis=axis, keepdims=True)


@composite("log_softmax")
def log_softmax(x: Any, /, *, axis: int = -1) -> Tensor:
    """x - log Σ eˣ along `axis`. Floating dtypes."""
    tensor = _floating("log_softmax", x)
    shifted = tensor - max(tensor.detach(), axis=axis, keepdims=True)
    return shifted - log(sum(exp(shifted), axis=axis, keepdims=True))


@composite("norm")
def norm(x: Any, /, *, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Tensor:
    """(Σ |x|ᵖ)^(1/p) over `axis` for p = `ord`; the largest magnitude for inf. The derivative at 0 is 0."""
    tensor = _floating("norm", x)
    if ord == math.inf:
        return max(magnitude(tensor), axis=axis, keepdims=keepdims)
    if ord == 1:
        return sum(magnitude(tensor), axis=axis, keepdims=keepdims)
    if ord == 2:
        return _root(sum(square(tensor), axis=axis, keepdims=keepdims))
    total = sum(magnitude(tensor) ** ord, axis=axis, keepdims=keepdims)
    zero = total == 0
    return where(zero, 0.0, where(zero, 1.0, total) ** (1.0 / ord))


def count_nonzero(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """How many elements over `axis` are not zero, int64."""
    return sum(_as_boolean(x), axis=axis, keepdims=keepdims)


def nansum(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Σ x over `axis`, NaN counted as 0. Floating dtypes."""
    tensor = _floating("nansum", x)
    return sum(where(isnan(tensor), 0.0, tensor), axis=axis, keepdims=keepdims)


def nanmean(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis` of the elements that are not NaN; NaN where there is none. Floating dtypes."""
    tensor = _floating("nanmean", x)
    known = (tensor == tensor).astype(tensor.dtype)
    return nansum(tensor, axis=axis, keepdims=keepdims) / sum(known, axis=axis, keepdims=keepdims)


def allclose(x: Any, y: Any, /, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether `isclose` holds everywhere; one boolean."""
    return all(isclose(x, y, rtol=rtol, atol=atol, equal_nan=equal_nan))


def cumulative_sum(
    x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False, reverse: bool = False
) -> Tensor:
    """Running Σ x along `axis` (needed for more than one axis); from the end with `reverse`."""
    from staticgrad.array.manipulation import concat

    tensor = _summable(x, dtype)
    if axis is None:
        if tensor.ndim != 1:
            raise ShapeError(f"cumulative_sum: axis must be given for {tensor.ndim} axes; got shape {tensor.shape}")
        axis = 0
    place = normalize_axis("cumulative_sum", axis, tensor.ndim)
    out = bind(scan.cumulative_sum, (tensor,), {"axis": place, "reverse": reverse})
    if not include_initial:
        return out
    zero = broadcast_to(asarray(0, dtype=out.dtype, device=out.device), shape=kept_shape(out.shape, (place,)))
    return concat([out, zero] if reverse else [zero, out], axis=place)


cumsum = cumulative_sum
