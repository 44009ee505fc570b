"""Selecting elements: basic indexing by views, and selection by integer tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.array.manipulation import _tensor, reshape
from staticgrad.binding import bind
from staticgrad.graph.errors import CaptureError, IndexRangeError, ShapeError
from staticgrad.graph.ops import indexing, shape
from staticgrad.graph.ops.shape import normalize_axis
from staticgrad.tensor import Tensor


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key] for integers, slices, None, ... and at most one integer tensor or boolean mask (dynamic mode only)."""
    entries = list(key) if isinstance(key, tuple) else [key]
    entries = _expand_ellipsis(x, entries)
    start, stop, step, result = [], [], [], []
    arrays: list[tuple[int, Tensor]] = []
    axis = 0
    for entry in entries:
        if entry is None:
            result.append(1)
            continue
        extent = x.shape[axis]
        if isinstance(entry, Tensor | np.ndarray | list):
            index = _tensor(entry)
            if index.ndim or index.dtype.kind == "b":
                arrays.append((len(result), _integers(x, axis, index)))
                entry = slice(None)
            else:
                arrays.append((len(result), index))
                entry = slice(None)
        if isinstance(entry, bool | np.bool_):
            raise TypeError("getitem: a Python bool is no index; use a boolean tensor of the axis's extent")
        if isinstance(entry, slice):
            low, high, stride = entry.indices(extent)
            count = len(range(low, high, stride))
            low, high = (low, high) if count else (0, 0)
            start.append(low)
            stop.append(high if stride > 0 or count == 0 else max(high, -1))
            step.append(stride if count else 1)
            result.append(count)
        else:
            start.append(_place(entry, extent, axis, x.shape))
            stop.append(start[-1] + 1)
            step.append(1)
        axis += 1
    whole = tuple(start), tuple(stop), tuple(step)
    out = x
    if whole != ((0,) * x.ndim, x.shape, (1,) * x.ndim):
        out = bind(shape.slice_, (x,), dict(zip(("start", "stop", "step"), whole, strict=True)))
    out = reshape(out, tuple(result))
    if len(arrays) > 1:
        raise CaptureError("getitem: at most one integer tensor in an index; use take_along_axis, or index in turn")
    for place, index in arrays:
        out = take(out, index, axis=place)
    return out


def _expand_ellipsis(x: Tensor, entries: list[Any]) -> list[Any]:
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if used > x.ndim:
        raise IndexRangeError(f"getitem: {used} indices for the {x.ndim} axes of shape {x.shape}")
    dots = [i for i, entry in enumerate(entries) if entry is Ellipsis]
    if len(dots) > 1:
        raise IndexRangeError("getitem: an index can hold one ellipsis (...)")
    place = dots[0] if dots else len(entries)
    return entries[:place] + [slice(None)] * (x.ndim - used) + entries[place + (1 if dots else 0) :]


def _place(entry: Any, extent: int, axis: int, whole: tuple[int, ...]) -> int:
    try:
        index = entry.__index__()
    except AttributeError:
        raise TypeError(
            f"getitem: indices are integers, slices, None, ... or integer tensors; got {type(entry).__name__}"
        ) from None
    if not -extent <= index < extent:
        raise IndexRangeError(
            f"getitem: an index of axis {axis} must lie in [-{extent}, {extent}); got {index} for shape {whole}"
        )
    return int(index) % extent


def _integers(x: Tensor, axis: int, index: Tensor) -> Tensor:
    if index.dtype.kind != "b":
        return index
    if index.traced:
        raise CaptureError(
            "getitem: the result of a boolean mask has a shape that depends on values, which a static graph cannot "
            "hold; use sg.where"
        )
    if index.shape != x.shape[axis : axis + 1]:
        raise ShapeError(f"getitem: a mask must have the extent of axis {axis} of {x.shape}; got {index.shape}")
    return Tensor(np.nonzero(np.asarray(index))[0])


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Tensor:
    """The slices of x at `indices` along `axis` (needed for more than one axis).

    Indices may be negative; one outside [-n, n) raises IndexRangeError in both modes.
    """
    tensor, index = _tensor(x), _tensor(indices)
    if axis is None:
        if tensor.ndim != 1:
            raise ShapeError(f"take: axis must be given for {tensor.ndim} axes; got shape {tensor.shape}")
        axis = 0
    return bind(indexing.take, (tensor, index), {"axis": normalize_axis("take", axis, tensor.ndim)})


def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Tensor:
    """out[i, …] = x[…, indices[i, …], …]: one element along `axis` for each index; other axes must agree."""
    tensor, index = _tensor(x), _tensor(indices)
    place = normalize_axis("take_along_axis", axis, tensor.ndim)
    return bind(indexing.take_along_axis, (tensor, index), {"axis": place})


def scatter_add(x: Any, indices: Any, updates: Any, /, *, axis: int = 0) -> Tensor:
    """x with the slices of `updates` added at `indices` along `axis`; repeated indices add up."""
    tensor, index, change = _tensor(x), _tensor(indices), _tensor(updates)
    place = normalize_axis("scatter_add", axis, tensor.ndim)
    return tensor + bind(indexing.scatter_add, (change, index), {"shape": tensor.shape, "axis": place})
