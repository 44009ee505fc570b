"""Selection by integer arrays, and the scatters that transpose it. Indices are checked in both modes.

An index counts from the end if it is negative. With the attribute `what`, the words that an error begins with, such as
"nll_loss: a label", it may not be negative.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from staticgrad.graph.errors import DTypeError, IndexRangeError, ShapeError
from staticgrad.graph.node import Node, Shape, Spec
from staticgrad.graph.op import ErrorSample, NotDifferentiable, Sample, require_dtype, structural

X = (np.arange(24.0).reshape(2, 3, 4) * 7 % 11) / 5 - 0.9
_INDEX = NotDifferentiable("an index does not vary smoothly")


def check_index(name: str, indices: Any, extent: int, what: str) -> None:
    """Raise IndexRangeError unless every index lies in [-extent, extent), or in [0, extent) for a `what`."""
    low = 0 if what else -extent
    if indices.size and (indices.max() >= extent or indices.min() < low):
        bad = indices[(indices >= extent) | (indices < low)].flat[0]
        raise IndexRangeError(range_error(name, what, int(bad), extent))


def range_error(name: str, what: str, index: int, extent: int) -> str:
    """The message for an index out of range."""
    if what:
        return f"{what} must lie in [0, {extent}); got {index}"
    return f"{name}: an index must lie in [-{extent}, {extent}); got {index}"


def checked_index(node: Node) -> tuple[Node, int, str] | None:
    """For a node that selects by indices: those indices, the extent that they must lie within, and what they are."""
    what = node.attributes.get("what", "")
    if node.op is take or node.op is take_along_axis:
        return node.operands[1], node.operands[0].shape[node.attributes["axis"]], what
    if node.op is scatter_add:
        return node.operands[1], node.attributes["shape"][node.attributes["axis"]], what
    if node.op is scatter_add_along_axis:
        return node.operands[1], node.attributes["size"], what
    return None


def _require_index(name: str, indices: Spec) -> None:
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"{name}: indices must be integers; got {indices.dtype}; convert them first with astype")


def _require_axis(name: str, shape: Shape, axis: int) -> None:
    if not 0 <= axis < len(shape):
        raise ShapeError(f"{name}: axis must be one of the {len(shape)} axes of {shape}; got {axis}")


# ---------------------------------------------------------------- take: whole slices along one axis


def _take_spec(x: Spec, indices: Spec, *, axis: int, what: str = "") -> Spec:
    _require_index("take", indices)
    _require_axis("take", x.shape, axis)
    return Spec(x.shape[:axis] + indices.shape + x.shape[axis + 1 :], x.dtype)


def _take_reference(x: Any, indices: Any, *, axis: int, what: str = "") -> Any:
    check_index("take", indices, x.shape[axis], what)
    return np.take(x, indices, axis=axis)


def _take_back(cotangent: Any, *, indices: Any, x_shape: Shape, axis: int, what: str = "") -> Any:
    return scatter_add(cotangent, indices, shape=x_shape, axis=axis, what=what)


take = structural(
    "take",
    operands=("x", "indices"),
    infer=_take_spec,
    reference=_take_reference,
    vjp=(_take_back, _INDEX),
    linear="each",
    samples=lambda: [
        Sample((X, np.array([[0, 2], [2, -1]])), {"axis": 1}),
        Sample((X, np.array([1, 1, 0])), {"axis": 0}),
        Sample((X, np.array(3)), {"axis": 2}),
        Sample((X, np.array([2, 0])), {"axis": 1, "what": "test: a row"}),
        Sample((X, np.zeros((0,), np.int64)), {"axis": 2}),
    ],
    errors=(
        ErrorSample((X, np.array([3])), {"axis": 1}, IndexRangeError, "must lie in"),
        ErrorSample((X, np.array([-1])), {"axis": 1, "what": "test: a row"}, IndexRangeError, r"a row .* \[0, 3\)"),
        ErrorSample((X, np.array([0.5])), {"axis": 1}, DTypeError, "integers"),
        ErrorSample((X, np.array([0])), {"axis": 3}, ShapeError, "axis"),
    ),
)


# ---------------------------------------------------------------- scatter_add: the transpose of take


def _scatter_spec(x: Spec, indices: Spec, *, shape: Shape, axis: int, what: str = "") -> Spec:
    _require_index("scatter_add", indices)
    _require_axis("scatter_add", shape, axis)
    require_dtype("scatter_add", x.dtype, "numeric")
    expected = shape[:axis] + indices.shape + shape[axis + 1 :]
    if x.shape != expected:
        raise ShapeError(f"scatter_add: the operand must have shape {expected}; got {x.shape}")
    return Spec(tuple(shape), x.dtype)


def _scatter_reference(x: Any, indices: Any, *, shape: Shape, axis: int, what: str = "") -> Any:
    check_index("scatter_add", indices, shape[axis], what)
    out = np.zeros(shape, x.dtype)
    lead = np.moveaxis(out, axis, 0)
    rows = np.moveaxis(x, tuple(range(axis, axis + indices.ndim)), tuple(range(indices.ndim)))
    np.add.at(lead, indices, rows)
    return out


def _scatter_back(cotangent: Any, *, indices: Any, axis: int, what: str = "") -> Any:
    return take(cotangent, indices, axis=axis, what=what)


# Zeros of `shape`, to which each slice of x is added at its index along `axis`, in the order of the indices.
scatter_add = structural(
    "scatter_add",
    operands=("x", "indices"),
    infer=_scatter_spec,
    reference=_scatter_reference,
    vjp=(_scatter_back, _INDEX),
    linear="each",
    samples=lambda: [
        Sample((X, np.array([4, 0, 4])), {"shape": (2, 5, 4), "axis": 1}),
        Sample((X, np.array([[1, 0, 1], [2, 2, -1]])), {"shape": (3, 4), "axis": 0}),
    ],
    errors=(
        ErrorSample((X, np.array([5, 0, 1])), {"shape": (2, 5, 4), "axis": 1}, IndexRangeError, "must lie in"),
        ErrorSample((X, np.array([0])), {"shape": (2, 5, 4), "axis": 1}, ShapeError, "must have shape"),
    ),
)


# ---------------------------------------------------------------- take_along_axis: one element for each index


def _along_shape(name: str, x: Shape, indices: Shape, axis: int) -> Shape:
    _require_axis(name, x, axis)
    fits = len(x) == len(indices) and all(a == b for i, (a, b) in enumerate(zip(x, indices, strict=False)) if i != axis)
    if not fits:
        raise ShapeError(f"{name}: operand and indices must agree on every axis but {axis}; got {x} and {indices}")
    return indices


def _along_spec(x: Spec, indices: Spec, *, axis: int, what: str = "") -> Spec:
    _require_index("take_along_axis", indices)
    return Spec(_along_shape("take_along_axis", x.shape, indices.shape, axis), x.dtype)


def _along_reference(x: Any, indices: Any, *, axis: int, what: str = "") -> Any:
    check_index("take_along_axis", indices, x.shape[axis], what)
    return x[_places(indices.astype(np.int64, copy=False), axis)]


def _places(indices: Any, axis: int) -> tuple[Any, ...]:
    """For each axis the coordinates of what `indices` along `axis` select, as NumPy's indexing takes them."""
    grid = _grid(indices.shape)
    return (*grid[:axis], indices, *grid[axis + 1 :])


@lru_cache(maxsize=64)
def _grid(shape: Shape) -> tuple[Any, ...]:
    return tuple(np.indices(shape, sparse=True))


def _along_back(cotangent: Any, *, indices: Any, x_shape: Shape, axis: int, what: str = "") -> Any:
    return scatter_add_along_axis(cotangent, indices, size=x_shape[axis], axis=axis, what=what)


take_along_axis = structural(
    "take_along_axis",
    operands=("x", "indices"),
    infer=_along_spec,
    reference=_along_reference,
    vjp=(_along_back, _INDEX),
    linear="each",
    samples=lambda: [
        Sample((X, np.array([[[0], [3], [-1]], [[2], [2], [0]]])), {"axis": 2}),
        Sample((X[0], np.array([[2, 0, 1, 1], [0, 0, 0, 2]])), {"axis": 0}),
    ],
    errors=(
        ErrorSample((X[0], np.full((3, 1), 4)), {"axis": 1}, IndexRangeError, "must lie in"),
        ErrorSample((X[0], np.zeros((2, 1), int)), {"axis": 1}, ShapeError, "agree on every axis"),
    ),
)


def _scatter_along_spec(x: Spec, indices: Spec, *, size: int, axis: int, what: str = "") -> Spec:
    _require_index("scatter_add_along_axis", indices)
    require_dtype("scatter_add_along_axis", x.dtype, "numeric")
    _require_axis("scatter_add_along_axis", x.shape, axis)
    if x.shape != indices.shape:
        raise ShapeError(
            f"scatter_add_along_axis: operand and indices must have one shape; got {x.shape} and {indices.shape}"
        )
    return Spec((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)


def _scatter_along_reference(x: Any, indices: Any, *, size: int, axis: int, what: str = "") -> Any:
    check_index("scatter_add_along_axis", indices, size, what)
    out = np.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
    np.add.at(out, _places(indices, axis), x)
    return out


def _scatter_along_back(cotangent: Any, *, indices: Any, axis: int, what: str = "") -> Any:
    return take_along_axis(cotangent, indices, axis=axis, what=what)


# Zeros with `size` places along `axis`, to which each element of x is added at its index.
scatter_add_along_axis = structural(
    "scatter_add_along_axis",
    operands=("x", "indices"),
    infer=_scatter_along_spec,
    reference=_scatter_along_reference,
    vjp=(_scatter_along_back, _INDEX),
    linear="each",
    samples=lambda: [
        Sample((X[:, :, :1], np.array([[[0], [3], [-1]], [[2], [2], [0]]])), {"size": 5, "axis": 2}),
        Sample((X[0], np.zeros((3, 4), np.int64)), {"size": 2, "axis": 0}),
    ],
    errors=(
        ErrorSample((X[0], np.full((3, 4), 9)), {"size": 4, "axis": 1}, IndexRangeError, "must lie in"),
        ErrorSample((X[0], np.zeros((3, 1), int)), {"size": 4, "axis": 1}, ShapeError, "one shape"),
    ),
)
