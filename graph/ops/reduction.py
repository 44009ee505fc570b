"""Reductions: `axis` is a sorted tuple of axes counted from the front; reduced axes are dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.node import Shape, Spec
from staticgrad.graph.op import ErrorSample, NotDifferentiable, Sample, require_dtype, structural
from staticgrad.graph.ops.arithmetic import cast
from staticgrad.graph.ops.shape import broadcast_to, reshape

X = (np.arange(24.0).reshape(2, 3, 4) * 7 % 24) / 9 - 1.05  # no ties, so that extremes are differentiable


def kept_shape(shape: Shape, axis: Sequence[int]) -> Shape:
    """`shape` with the reduced axes kept as 1."""
    return tuple(1 if i in axis else extent for i, extent in enumerate(shape))


def _reduced(name: str, x: Spec, axis: Sequence[int], *, empty: bool) -> Shape:
    if list(axis) != sorted(set(axis)) or any(not 0 <= i < len(x.shape) for i in axis):
        raise ShapeError(
            f"{name}: axes must be distinct and within the {len(x.shape)} axes of {x.shape}; got {tuple(axis)}"
        )
    if not empty and math.prod(x.shape[i] for i in axis) == 0:
        raise ShapeError(f"{name}: no value exists over an empty axis; got shape {x.shape}, axis {tuple(axis)}")
    return tuple(extent for i, extent in enumerate(x.shape) if i not in axis)


def _spread(value: Any, shape: Shape, axis: Sequence[int]) -> Any:
    """Put the reduced axes back and stretch them to `shape`."""
    return broadcast_to(reshape(value, shape=kept_shape(shape, axis)), shape=shape)


def _samples() -> list[Sample]:
    whole = [Sample((X,), {"axis": axis}) for axis in ((2,), (0,), (1,), (0, 2), (0, 1, 2), (1, 2), ())]
    return [*whole, Sample((X[0, 0, 0],), {"axis": ()}), Sample((X[:, :0],), {"axis": (0, 2)})]


def _total_samples() -> list[Sample]:
    """With reductions over no elements, which have a value where there is a neutral element."""
    return [*_samples(), Sample((X[:, :0],), {"axis": (1,)}), Sample((X[:, :0],), {"axis": (0, 1, 2)})]


def _prod_samples() -> list[Sample]:
    """With one and with two zeros in a row, where dividing the product by an element would not do."""
    zeros = X.copy()
    zeros[0, 1, 2] = zeros[1, 0, 0] = zeros[1, 0, 3] = 0.0
    return [*_total_samples(), Sample((zeros,), {"axis": (2,)}), Sample((X[:, :, :1],), {"axis": (2,)})]


_BAD_AXIS = ErrorSample((X,), {"axis": (3,)}, ShapeError, "within the 3 axes")
_BAD_AXIS_OF_BOOLEANS = ErrorSample((X > 0,), {"axis": (0, 0)}, ShapeError, "distinct")
_EMPTY = ErrorSample((X[:0],), {"axis": (0,)}, ShapeError, "empty axis")


# ---------------------------------------------------------------- sum and prod


def _sum_spec(x: Spec, *, axis: tuple[int, ...]) -> Spec:
    require_dtype("sum", x.dtype, "numeric")
    return Spec(_reduced("sum", x, axis, empty=True), x.dtype)


def _sum_back(cotangent: Any, *, x_shape: Shape, axis: tuple[int, ...]) -> Any:
    return _spread(cotangent, x_shape, axis)


sum_ = structural(
    "sum",
    operands=("x",),
    infer=_sum_spec,
    reference=lambda x, *, axis: np.add.reduce(x, axis=axis, dtype=x.dtype),
    vjp=(_sum_back,),
    linear="each",
    kind="reduction",
    samples=_total_samples,
    errors=(_BAD_AXIS,),
)


def _prod_spec(x: Spec, *, axis: tuple[int, ...]) -> Spec:
    require_dtype("prod", x.dtype, "numeric")
    return Spec(_reduced("prod", x, axis, empty=True), x.dtype)


def _product_of_others(x: Any, axis: tuple[int, ...]) -> Any:
    """For each element the product of all others along `axis`, right where some are zero.

    Products of the elements before and after each one, by doubling strides in log2(n) steps; only multiplications and
    shifts, so that derivatives of any order hold.
    """
    from staticgrad.graph.ops.shape import concat, permute_dims, slice_

    shape = x.shape
    others = tuple(i for i in range(len(shape)) if i not in axis)
    order = others + tuple(axis)
    count = math.prod(shape[i] for i in axis)
    rows = math.prod(shape[i] for i in others)
    flat = reshape(permute_dims(x, axes=order), shape=(rows, count))
    first = slice_(flat, start=(0, 0), stop=(rows, min(count, 1)), step=(1, 1))
    ones = cast((first == first) | (first != first), dtype=x.dtype)  # ones also where an element is NaN

    def shifted(value: Any, by: int, back: bool) -> Any:
        fill = broadcast_to(ones, shape=(rows, by))
        if back:
            return concat(slice_(value, start=(0, by), stop=(rows, count), step=(1, 1)), fill, axis=1)
        return concat(fill, slice_(value, start=(0, 0), stop=(rows, count - by), step=(1, 1)), axis=1)

    def exclusive(back: bool) -> Any:
        product, reach = shifted(flat, 1, back), 1
        while reach < count:
            product = product * shifted(product, reach, back)
            reach *= 2
        return product

    result = exclusive(False) * exclusive(True) if count > 1 else ones
    back_order = tuple(int(i) for i in np.argsort(order))
    return permute_dims(reshape(result, shape=tuple(shape[i] for i in order)), axes=back_order)


def _prod_back(cotangent: Any, *, x: Any, axis: tuple[int, ...]) -> Any:
    return _spread(cotangent, x.shape, axis) * _product_of_others(x, axis)


def _prod_forward(tangent: Any, *, x: Any, axis: tuple[int, ...]) -> Any:
    return sum_(tangent * _product_of_others(x, axis), axis=axis)


prod = structural(
    "prod",
    operands=("x",),
    infer=_prod_spec,
    reference=lambda x, *, axis: np.prod(x, axis=axis, dtype=np.asarray(x).dtype),
    vjp=(_prod_back,),
    jvp=(_prod_forward,),
    kind="reduction",
    samples=_prod_samples,
    errors=(_BAD_AXIS,),
)


# ---------------------------------------------------------------- max and min


def _max_spec(x: Spec, *, axis: tuple[int, ...]) -> Spec:
    require_dtype("max", x.dtype, "numeric")
    return Spec(_reduced("max", x, axis, empty=False), x.dtype)


def _min_spec(x: Spec, *, axis: tuple[int, ...]) -> Spec:
    require_dtype("min", x.dtype, "numeric")
    return Spec(_reduced("min", x, axis, empty=False), x.dtype)


def _share(x: Any, out: Any, axis: tuple[int, ...]) -> Any:
    """1/k at the k elements that attain the extreme, 0 elsewhere: ties share evenly, as PyTorch's amax has it."""
    chosen = x == _spread(out, x.shape, axis)
    mask = cast(chosen, dtype=x.dtype)
    return mask / _spread(sum_(mask, axis=axis), x.shape, axis)


def _extreme_back(cotangent: Any, *, x: Any, out: Any, axis: tuple[int, ...]) -> Any:
    return _spread(cotangent, x.shape, axis) * _share(x, out, axis)


def _extreme_forward(tangent: Any, *, x: Any, out: Any, axis: tuple[int, ...]) -> Any:
    return sum_(tangent * _share(x, out, axis), axis=axis)


max_ = structural(
    "max",
    operands=("x",),
    infer=_max_spec,
    reference=lambda x, *, axis: np.maximum.reduce(x, axis=axis),
    vjp=(_extreme_back,),
    jvp=(_extreme_forward,),
    kind="reduction",
    samples=_samples,
    errors=(_BAD_AXIS, _EMPTY),
)
min_ = structural(
    "min",
    operands=("x",),
    infer=_min_spec,
    reference=lambda x, *, axis: np.minimum.reduce(x, axis=axis),
    vjp=(_extreme_back,),
    jvp=(_extreme_forward,),
    kind="reduction",
    samples=_samples,
    errors=(_BAD_AXIS, _EMPTY),
)


# ---------------------------------------------------------------- argmax, argmin, any, all

_DISCRETE = NotDifferentiable("the result is an integer or a boolean")


def _arg_spec(name: str) -> Any:
    def infer(x: Spec, *, axis: tuple[int, ...]) -> Spec:
        require_dtype(name, x.dtype, "numeric")
        return Spec(_reduced(name, x, axis, empty=False), np.dtype(np.int64))

    return infer


def _arg_reference(function: Any) -> Any:
    def reference(x: Any, *, axis: tuple[int, ...]) -> Any:
        return function(x, axis=axis[0]).astype(np.int64)

    return reference


def _logical_spec(name: str) -> Any:
    def infer(x: Spec, *, axis: tuple[int, ...]) -> Spec:
        require_dtype(name, x.dtype, "boolean")
        return Spec(_reduced(name, x, axis, empty=True), x.dtype)

    return infer


def _arg(name: str, function: Any) -> Any:
    return structural(
        name,
        operands=("x",),
        infer=_arg_spec(name),
        reference=_arg_reference(function),
        vjp=(_DISCRETE,),
        jvp=(_DISCRETE,),
        kind="reduction",
        samples=lambda: [Sample((X,), {"axis": (i,)}) for i in range(3)] + [Sample((X[:, :0],), {"axis": (2,)})],
        errors=(_BAD_AXIS, _EMPTY),
    )


def _logical(name: str, function: Any) -> Any:
    return structural(
        name,
        operands=("x",),
        infer=_logical_spec(name),
        reference=lambda x, *, axis: function(x, axis=axis),
        vjp=(_DISCRETE,),
        jvp=(_DISCRETE,),
        kind="reduction",
        samples=lambda: (
            [Sample((X > 0,), {"axis": axis}) for axis in ((0,), (2,), (0, 1, 2), ())]
            + [Sample((X[:, :0] > 0,), {"axis": (1,)})]
        ),
        errors=(ErrorSample((X,), {"axis": (0,)}, DTypeError, "boolean"), _BAD_AXIS_OF_BOOLEANS),
    )


# The first position that attains the extreme along one axis; a NaN counts as extreme, as in NumPy.
argmax = _arg("argmax", np.argmax)
argmin = _arg("argmin", np.argmin)
any_ = _logical("any", np.any)
all_ = _logical("all", np.all)
