"""Shapes: views, joining and padding, after the Python array API standard."""

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.array.creation import asarray, full
from staticgrad.binding import bind
from staticgrad.graph.errors import ShapeError
from staticgrad.graph.node import Shape
from staticgrad.graph.op import broadcast_shapes
from staticgrad.graph.ops import shape as views
from staticgrad.graph.ops.shape import normalize_axis
from staticgrad.tensor import Tensor


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else asarray(x)


def reshape(x: Any, /, shape: Any, *, copy: bool | None = None) -> Tensor:
    """The elements of x, in order, in another shape of the same size; one extent may be -1."""
    tensor = _tensor(x)
    wanted = (shape,) if isinstance(shape, int) else tuple(map(int, shape))
    if wanted and min(wanted) < 0:
        if wanted.count(-1) > 1 or min(wanted) < -1:
            raise ShapeError(f"reshape: at most one extent may be -1; got {wanted}")
        rest = math.prod(extent for extent in wanted if extent != -1)
        if rest == 0 or tensor.size % rest:
            raise ShapeError(f"reshape: {tensor.size} elements of shape {tensor.shape} cannot fill {wanted}")
        wanted = tuple(tensor.size // rest if extent == -1 else extent for extent in wanted)
    if wanted == tensor.shape:
        return tensor
    return bind(views.reshape, (tensor,), {"shape": wanted})


def permute_dims(x: Any, /, axes: Sequence[int]) -> Tensor:
    """Axis i of the result is axis `axes[i]` of x."""
    tensor = _tensor(x)
    order = tuple(normalize_axis("permute_dims", axis, tensor.ndim) for axis in axes)
    return bind(views.permute_dims, (tensor,), {"axes": order})


def swapaxes(x: Any, first: int, second: int, /) -> Tensor:
    """Two axes swapped."""
    tensor = _tensor(x)
    order = list(range(tensor.ndim))
    i, j = normalize_axis("swapaxes", first, tensor.ndim), normalize_axis("swapaxes", second, tensor.ndim)
    order[i], order[j] = order[j], order[i]
    return permute_dims(tensor, order)


def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int], /) -> Tensor:
    """Axes `source` moved to the places `destination`, the others in order."""
    tensor = _tensor(x)
    from_ = [source] if isinstance(source, int) else list(source)
    to = [destination] if isinstance(destination, int) else list(destination)
    if len(from_) != len(to):
        raise ShapeError(f"moveaxis: as many destinations as sources; got {from_} and {to}")
    from_ = [normalize_axis("moveaxis", axis, tensor.ndim) for axis in from_]
    to = [normalize_axis("moveaxis", axis, tensor.ndim) for axis in to]
    order = [axis for axis in range(tensor.ndim) if axis not in from_]
    for place, axis in sorted(zip(to, from_, strict=True)):
        order.insert(place, axis)
    return permute_dims(tensor, order)


def expand_dims(x: Any, /, *, axis: int = 0) -> Tensor:
    """A new axis of extent 1 at `axis`."""
    tensor = _tensor(x)
    place = normalize_axis("expand_dims", axis, tensor.ndim + 1)
    return reshape(tensor, (*tensor.shape[:place], 1, *tensor.shape[place:]))


def squeeze(x: Any, /, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Axes of extent 1 dropped: those named, all by default."""
    tensor = _tensor(x)
    if axis is None:
        axis = tuple(i for i, extent in enumerate(tensor.shape) if extent == 1)
    given = (axis,) if isinstance(axis, int) else axis
    axes = [normalize_axis("squeeze", i, tensor.ndim) for i in given]
    if builtins.any(tensor.shape[i] != 1 for i in axes):
        raise ShapeError(f"squeeze: only axes of extent 1 can be dropped; got shape {tensor.shape}, axis {axis}")
    return reshape(tensor, tuple(extent for i, extent in enumerate(tensor.shape) if i not in axes))


def broadcast_to(x: Any, /, shape: Shape) -> Tensor:
    """x stretched to `shape` without a copy."""
    tensor = _tensor(x)
    wanted = tuple(int(extent) for extent in shape)
    return tensor if wanted == tensor.shape else bind(views.broadcast_to, (tensor,), {"shape": wanted})


def broadcast_arrays(*tensors: Any) -> list[Tensor]:
    """All stretched to their common shape."""
    made = [_tensor(x) for x in tensors]
    if not made:
        return []
    shape = broadcast_shapes("broadcast_arrays", [x.shape for x in made])
    return [broadcast_to(x, shape) for x in made]


def flip(x: Any, /, *, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """The order of elements reversed along the given axes, all by default."""
    tensor = _tensor(x)
    given = tuple(range(tensor.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = {normalize_axis("flip", i, tensor.ndim) for i in given}
    start = tuple(max(extent - 1, 0) if i in axes else 0 for i, extent in enumerate(tensor.shape))
    stop = tuple((-1 if extent else 0) if i in axes else extent for i, extent in enumerate(tensor.shape))
    step = tuple(-1 if i in axes else 1 for i in range(tensor.ndim))
    return bind(views.slice_, (tensor,), {"start": start, "stop": stop, "step": step})


def concat(tensors: Sequence[Any], /, *, axis: int | None = 0) -> Tensor:
    """Tensors joined along `axis`; flattened first if it is None. Dtypes are brought to the wider one."""
    made = [_tensor(x) for x in tensors]
    if not made:
        raise ShapeError("concat: needs at least one tensor; got none")
    if axis is None:
        made, axis = [reshape(x, (-1,)) if x.size else reshape(x, (0,)) for x in made], 0
    return bind(views.concat, made, {"axis": normalize_axis("concat", axis, made[0].ndim)})


def stack(tensors: Sequence[Any], /, *, axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis."""
    made = [_tensor(x) for x in tensors]
    if not made:
        raise ShapeError("stack: needs at least one tensor; got none")
    if builtins.any(x.shape != made[0].shape for x in made):
        raise ShapeError(f"stack: all tensors must have one shape; got {', '.join(str(x.shape) for x in made)}")
    place = normalize_axis("stack", axis, made[0].ndim + 1)
    return concat([expand_dims(x, axis=place) for x in made], axis=place)


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of x along `axis`, without that axis."""
    tensor = moveaxis(x, axis, 0)
    return tuple(tensor[i] for i in range(tensor.shape[0]))


def roll(x: Any, /, shift: int, *, axis: int | None = None) -> Tensor:
    """Elements shifted by `shift` places along `axis`, those pushed out coming in again at the other end."""
    tensor = _tensor(x)
    if axis is None:
        return reshape(roll(reshape(tensor, (tensor.size,)), shift, axis=0), tensor.shape)
    place = normalize_axis("roll", axis, tensor.ndim)
    extent = tensor.shape[place]
    by = shift % extent if extent else 0
    if by == 0:
        return tensor
    return concat([_part(tensor, place, extent - by, extent), _part(tensor, place, 0, extent - by)], axis=place)


def _part(x: Tensor, axis: int, low: int, high: int) -> Tensor:
    start = tuple(low if i == axis else 0 for i in range(x.ndim))
    stop = tuple(high if i == axis else extent for i, extent in enumerate(x.shape))
    return bind(views.slice_, (x,), {"start": start, "stop": stop, "step": (1,) * x.ndim})


def split(x: Any, sections: int | Sequence[int], /, *, axis: int = 0) -> list[Tensor]:
    """x cut along `axis` into equal parts, or into parts of the given extents."""
    tensor = _tensor(x)
    place = normalize_axis("split", axis, tensor.ndim)
    extent = tensor.shape[place]
    if isinstance(sections, int):
        if sections < 1 or extent % sections:
            raise ShapeError(f"split: {extent} elements along axis {place} cannot be cut into {sections} equal parts")
        sections = [extent // sections] * sections
    if builtins.sum(sections) != extent:
        raise ShapeError(f"split: the parts must add up to {extent}; got {list(sections)}")
    bounds = np.cumsum([0, *sections]).tolist()
    return [_part(tensor, place, low, high) for low, high in itertools.pairwise(bounds)]


def pad(x: Any, widths: Sequence[tuple[int, int]], /, *, value: float = 0) -> Tensor:
    """x with `widths[i] = (before, after)` elements of `value` added along axis i."""
    tensor = _tensor(x)
    if len(widths) != tensor.ndim or builtins.any(before < 0 or after < 0 for before, after in widths):
        raise ShapeError(f"pad: one (before, after) of at least 0 for each of {tensor.ndim} axes; got {list(widths)}")
    shape = tuple(b + extent + a for (b, a), extent in zip(widths, tensor.shape, strict=True))
    attributes = {"shape": shape, "start": tuple(b for b, _ in widths), "step": (1,) * tensor.ndim}
    padded = bind(views.embed, (tensor,), attributes)
    if value == 0:
        return padded
    inside = bind(views.embed, (full(tensor.shape, True, dtype=np.bool_).astype(np.int8),), attributes)
    from staticgrad.array.elementwise import where

    return where(inside == 1, padded, value)


def tile(x: Any, repetitions: Sequence[int], /) -> Tensor:
    """x repeated along each axis; missing axes are added in front."""
    tensor = _tensor(x)
    if builtins.any(n < 0 for n in repetitions):
        raise ShapeError(f"tile: repetitions must not be negative; got {tuple(repetitions)}")
    count = max(tensor.ndim, len(repetitions))
    repeats = (1,) * (count - len(repetitions)) + tuple(repetitions)
    shape = (1,) * (count - tensor.ndim) + tensor.shape
    spread = reshape(tensor, tuple(n for extent in shape for n in (1, extent)))
    wide = broadcast_to(spread, tuple(n for r, extent in zip(repeats, shape, strict=True) for n in (r, extent)))
    return reshape(wide, tuple(r * extent for r, extent in zip(repeats, shape, strict=True)))


def repeat(x: Any, repeats: int, /, *, axis: int | None = None) -> Tensor:
    """Each element repeated `repeats` times along `axis`; of the flattened tensor by default."""
    tensor = _tensor(x)
    if repeats < 0:
        raise ShapeError(f"repeat: repeats must not be negative; got {repeats}")
    if axis is None:
        return repeat(reshape(tensor, (tensor.size,)), repeats, axis=0)
    place = normalize_axis("repeat", axis, tensor.ndim)
    spread = expand_dims(tensor, axis=place + 1)
    wide = broadcast_to(spread, (*spread.shape[: place + 1], repeats, *spread.shape[place + 2 :]))
    return reshape(wide, (*tensor.shape[:place], tensor.shape[place] * repeats, *tensor.shape[place + 1 :]))


def diff(x: Any, /, *, axis: int = -1, n: int = 1) -> Tensor:
    """x[i+1] - x[i] along `axis`, `n` times."""
    tensor = _tensor(x)
    if n < 0:
        raise ShapeError(f"diff: n must not be negative; got {n}")
    place = normalize_axis("diff", axis, tensor.ndim)
    for _ in range(n):
        extent = tensor.shape[place]
        if extent:
            tensor = _part(tensor, place, 1, extent) - _part(tensor, place, 0, extent - 1)
    return tensor
