"""Making tensors, after the Python array API standard. The default floating dtype is float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.binding import bind
from staticgrad.graph.errors import ShapeError
from staticgrad.graph.node import Shape
from staticgrad.graph.ops import leaf
from staticgrad.graph.ops.arithmetic import select
from staticgrad.graph.ops.shape import broadcast_to, reshape
from staticgrad.kernels.device import find_device
from staticgrad.operands import check_dtype, supports, wrapped
from staticgrad.tensor import DEFAULT_FLOAT, DEFAULT_INT, Tensor


def asarray(obj: Any, /, *, dtype: Any = None, device: str | None = None, copy: bool | None = None) -> Tensor:
    """A tensor of `obj`: a Tensor, an array, a number or nested sequences of numbers.

    Args:
        dtype: of the result; by default that of an array, float32 or int64 or bool for Python numbers.
        device: where the tensor lives; by default where `obj` does, for what is no Tensor on the CPU.
        copy: True always copies, False raises where a copy is needed, None copies only if it must. NumPy arrays are
            otherwise shared: writing to the one is seen in the other.

    Raises:
        DTypeError: a dtype that staticgrad does not have, or elements that are not numbers.
        ShapeError: nested sequences of unequal lengths.
    """
    if isinstance(obj, list | tuple) and _holds_tensors(obj):
        from staticgrad.array.manipulation import stack

        obj = stack([asarray(item) for item in obj])
        copy = None
    if isinstance(obj, Tensor):
        wanted = obj.dtype if dtype is None else check_dtype("asarray", dtype)
        if copy is False and (wanted != obj.dtype or (device is not None and obj.to(device) is not obj)):
            raise ValueError(
                f"asarray: {obj.dtype} to {wanted} on {device or obj.device} needs a copy, and copy=False forbids it"
            )
        tensor = obj.astype(wanted, copy=bool(copy))
        return tensor if device is None else tensor.to(device)
    where = find_device(device)
    shared = isinstance(obj, np.ndarray)
    array = obj if shared else _array_of(obj)
    wanted = check_dtype("asarray", _default_dtype(obj, array) if dtype is None else dtype)
    if copy is False and (not shared or wanted != array.dtype):
        raise ValueError(
            f"asarray: {type(obj).__name__} of {array.dtype} to {wanted} needs a copy, copy=False forbids it"
        )
    if shared and context.capture is not None and supports(array.dtype):
        return wrapped(array).astype(wanted, copy=bool(copy))  # the conversion, too, is part of the program
    converted = array.astype(wanted, copy=bool(copy))
    if context.capture is not None and not shared:
        return Tensor(context.capture.constant(converted))
    return wrapped(converted) if context.capture is not None else Tensor(where.place(_native(converted)))


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _array_of(obj: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(obj)
    except ValueError as error:
        raise ShapeError(f"asarray: nested sequences must have equal lengths at each depth: {error}") from None
    check_dtype("asarray", array.dtype)
    return array


def _holds_tensors(obj: Any) -> bool:
    return any(isinstance(item, Tensor) or (isinstance(item, list | tuple) and _holds_tensors(item)) for item in obj)


def _default_dtype(obj: Any, array: np.ndarray[Any, Any]) -> Any:
    if isinstance(obj, np.ndarray | np.generic):
        return array.dtype
    return {"f": DEFAULT_FLOAT, "i": DEFAULT_INT, "b": np.dtype(np.bool_)}.get(array.dtype.kind, array.dtype)


def tensor(data: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of `data`, as `torch.tensor`."""
    made = asarray(data, dtype=dtype, device=device, copy=True)
    made = made.detach()
    return made.requires_grad_() if requires_grad else made


def _shape(shape: Any) -> Shape:
    extents = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    if any(int(extent) < 0 for extent in extents):
        raise ShapeError(f"shape: extents must not be negative; got {extents}")
    return tuple(int(extent) for extent in extents)


def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of `shape` with every element `fill_value`."""
    where = find_device(device)
    extents = _shape(shape)
    if isinstance(fill_value, Tensor):
        value = fill_value if dtype is None else fill_value.astype(dtype, copy=False)
        spread: Tensor = broadcast_to(value, shape=extents)
        return spread
    array = np.asarray(fill_value)
    wanted = check_dtype("full", _default_dtype(fill_value, array) if dtype is None else dtype)
    if context.capture is None:
        return Tensor(where.place(np.full(extents, fill_value, wanted)))
    constant = Tensor(context.capture.constant(array.astype(wanted)))
    return constant if extents == () else broadcast_to(constant, shape=extents)


def zeros(shape: Any, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype=DEFAULT_FLOAT if dtype is None else dtype, device=device)


def ones(shape: Any, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of ones."""
    return full(shape, 1, dtype=DEFAULT_FLOAT if dtype is None else dtype, device=device)


def empty(shape: Any, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor whose elements are not meant to be read before they are written; they are zero."""
    return zeros(shape, dtype=dtype, device=device)


def _like(x: Any, dtype: Any, device: str | None) -> tuple[Shape, Any, str]:
    source = x if isinstance(x, Tensor) else asarray(x)
    return source.shape, source.dtype if dtype is None else dtype, device or source.device


def zeros_like(x: Any, /, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """Zeros of x's shape and dtype."""
    shape, kind, where = _like(x, dtype, device)
    return zeros(shape, dtype=kind, device=where)


def ones_like(x: Any, /, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """Ones of x's shape and dtype."""
    shape, kind, where = _like(x, dtype, device)
    return ones(shape, dtype=kind, device=where)


def empty_like(x: Any, /, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of x's shape and dtype whose elements are to be written."""
    return zeros_like(x, dtype=dtype, device=device)


def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """`fill_value` in x's shape and dtype."""
    shape, kind, where = _like(x, dtype, device)
    return full(shape, fill_value, dtype=kind, device=where)


def arange(
    start: float, /, stop: float | None = None, step: float = 1, *, dtype: Any = None, device: str | None = None
) -> Tensor:
    """start, start + step, … below stop; with one argument 0, 1, … below it."""
    where = find_device(device)
    first, last = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise ShapeError("arange: step must not be 0")
    floating = any(isinstance(value, float) for value in (first, last, step))
    wanted = check_dtype("arange", (DEFAULT_FLOAT if floating else DEFAULT_INT) if dtype is None else dtype)
    count = max(0, math.ceil((last - first) / step))
    if context.capture is None:
        places = np.arange(count, dtype=np.int64)
        return Tensor(where.place((first + step * (places.astype(np.float64) if floating else places)).astype(wanted)))
    steps = bind(leaf.iota, (), {"size": count, "dtype": np.dtype(np.float64 if floating else np.int64)})
    return (steps * step + first).astype(wanted, copy=False)


def linspace(
    start: float, stop: float, /, num: int, *, dtype: Any = None, device: str | None = None, endpoint: bool = True
) -> Tensor:
    """`num` evenly spaced values from start to stop."""
    if num < 0:
        raise ShapeError(f"linspace: num must not be negative; got {num}")
    values = np.linspace(start, stop, num, endpoint=endpoint)
    return asarray(values.tolist(), dtype=DEFAULT_FLOAT if dtype is None else dtype, device=device)


def eye(
    n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: str | None = None
) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere."""
    columns = n_rows if n_cols is None else n_cols
    row = reshape(arange(n_rows, device=device), shape=(n_rows, 1))
    column = reshape(arange(columns, device=device), shape=(1, columns))
    inside: Tensor = column == row + k
    return inside.astype(DEFAULT_FLOAT if dtype is None else dtype)


def tril(x: Any, /, *, k: int = 0) -> Tensor:
    """The matrices x with zeros above the k-th diagonal."""
    return _triangle("tril", x, k, lower=True)


def triu(x: Any, /, *, k: int = 0) -> Tensor:
    """The matrices x with zeros below the k-th diagonal."""
    return _triangle("triu", x, k, lower=False)


def _triangle(name: str, x: Any, k: int, *, lower: bool) -> Tensor:
    tensor = x if isinstance(x, Tensor) else asarray(x)
    if tensor.ndim < 2:
        raise ShapeError(f"{name}: takes matrices or stacks of them; got shape {tensor.shape}")
    rows, columns = tensor.shape[-2:]
    row = reshape(arange(rows, device=tensor.device), shape=(rows, 1))
    column = reshape(arange(columns, device=tensor.device), shape=(1, columns))
    inside = column <= row + k if lower else column >= row + k
    return bind(select, (inside, tensor, zeros((), dtype=tensor.dtype)), {})


def meshgrid(*arrays: Any, indexing: str = "xy") -> list[Tensor]:
    """One coordinate of each vector at every point of their grid; "ij" puts axis i along vector i, "xy" swaps two."""
    if indexing not in ("xy", "ij"):
        raise ValueError(f"meshgrid: indexing is 'xy' or 'ij'; got {indexing!r}")
    vectors = [x if isinstance(x, Tensor) else asarray(x) for x in arrays]
    if any(x.ndim > 1 for x in vectors):
        raise ShapeError(f"meshgrid: takes vectors; got {', '.join(str(x.shape) for x in vectors)}")
    places = list(range(len(vectors)))
    if indexing == "xy" and len(vectors) > 1:
        places[:2] = [1, 0]
    shape = [1] * len(vectors)
    for x, place in zip(vectors, places, strict=True):
        shape[place] = x.size
    grids = []
    for x, place in zip(vectors, places, strict=True):
        line = reshape(x, shape=tuple(x.size if i == place else 1 for i in range(len(vectors))))
        grids.append(broadcast_to(line, shape=tuple(shape)))
    return grids


def from_numpy(array: np.ndarray[Any, Any], /) -> Tensor:
    """A tensor that shares the storage of a NumPy array."""
    return asarray(array, copy=False)
