"""Array functions at the edges: creation and dtypes, indexing, empty and infinite values, kinks, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.autograd import gradcheck, gradgradcheck
from staticgrad.graph.errors import CaptureError, DeviceError, DTypeError, IndexRangeError, ShapeError, StaticgradError
from staticgrad.tensor import Tensor

X = (np.arange(24.0).reshape(2, 3, 4) * 7 % 24) / 9 - 1.05


# ---------------------------------------------------------------- creation and dtypes


def test_asarray_copies_only_if_it_must() -> None:
    array = np.arange(3.0)
    assert np.shares_memory(sg.asarray(array).numpy(), array)
    assert np.shares_memory(sg.asarray(array, copy=False).numpy(), array)
    assert not np.shares_memory(sg.asarray(array, copy=True).numpy(), array)
    assert not np.shares_memory(sg.tensor(array).numpy(), array)
    x = sg.asarray(array)
    assert sg.asarray(x) is x
    assert not np.shares_memory(sg.asarray(x, copy=True).numpy(), array)
    for given in ([1.0, 2.0], array.astype("float32")):
        with pytest.raises(ValueError, match="needs a copy"):
            sg.asarray(given, dtype="float64", copy=False)
    with pytest.raises(ValueError, match="needs a copy, and copy=False forbids it"):
        sg.asarray(x, dtype="float32", copy=False)


def test_asarray_of_tensors_keeps_derivatives() -> None:
    x, y = sg.tensor(2.0, requires_grad=True), sg.tensor(3.0, requires_grad=True)
    (sg.asarray([x, y, x]) ** 2).sum().backward()
    assert (x.grad.item(), y.grad.item()) == (8.0, 6.0)
    assert sg.asarray([[x, 1.0]]).shape == (1, 2)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ([[1, 2], [3]], ShapeError, "equal lengths"),
        (["a"], DTypeError, "dtypes are bool"),
        ([1j], DTypeError, "got complex128"),
        (np.zeros(2, np.float16), DTypeError, "got float16"),
        (object(), DTypeError, "got object"),
        ([None], DTypeError, "got object"),
    ],
)
def test_what_asarray_refuses(given: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sg.asarray(given)


def test_defaults_of_creation() -> None:
    assert sg.zeros(2).dtype == sg.ones(()).dtype == sg.eye(2).dtype == sg.linspace(0, 1, 3).dtype == np.float32
    assert sg.arange(3).dtype == sg.full(2, 1).dtype == np.int64
    assert sg.full(2, True).dtype == np.bool_
    assert sg.full(2, 1.5).dtype == np.float32
    assert sg.tensor([1.0], requires_grad=True).requires_grad


def test_big_endian_arrays_are_converted() -> None:
    x = sg.asarray(np.arange(3, dtype=">f8"))
    assert x.dtype.isnative
    assert x.tolist() == [0.0, 1.0, 2.0]


def test_dtype_functions() -> None:
    assert sg.float32 == np.float32
    assert sg.finfo(sg.float32).eps == np.finfo(np.float32).eps
    assert sg.finfo(sg.ones(1)).bits == 32
    assert sg.iinfo("int8").max == 127
    assert sg.isdtype(sg.int8, "signed integer")
    assert sg.isdtype(sg.uint8, ("bool", "integral"))
    assert sg.isdtype(sg.float64, sg.float64)
    assert not sg.isdtype(sg.float64, "complex floating")
    assert sg.result_type(sg.int8, sg.ones(1), 3) == np.float32
    assert sg.result_type(2, 3.0) == np.float32
    assert sg.can_cast(sg.int8, sg.float32)
    assert not sg.can_cast(sg.float64, sg.float32)
    assert not sg.can_cast(sg.uint64, sg.int64)
    with pytest.raises(DTypeError, match="at least one"):
        sg.result_type()


# ---------------------------------------------------------------- indexing


KEYS: list[Any] = [
    0,
    -1,
    slice(None),
    slice(1, None),
    slice(None, None, -1),
    slice(3, 0, -2),
    slice(5, 9),
    slice(2, 1),
    ...,
    None,
    (0, 1),
    (..., 0),
    (0, ..., slice(1, 3)),
    (slice(None), None, 1),
    (None, ..., None),
    (1, 2, 3),
    (slice(None), slice(None, None, 2), slice(None, None, -3)),
    np.int64(1),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_basic_indexing(key: Any) -> None:
    x = sg.asarray(X)
    np.testing.assert_array_equal(x[key].numpy(), X[key])
    gradcheck(lambda t: t[key], [sg.tensor(X, requires_grad=True)])


@pytest.mark.parametrize(
    ("key", "numpy"),
    [
        (sg.asarray([1, 0, 1]), np.array([1, 0, 1])),
        ((slice(None), sg.asarray([[2, -1], [0, 0]])), (slice(None), np.array([[2, -1], [0, 0]]))),
        ((..., [0, 3]), (..., [0, 3])),
        ((0, sg.asarray(1)), (0, 1)),
        ((sg.asarray([True, False]),), (np.array([True, False]),)),
        (
            (slice(None), np.array([True, False, True]), slice(1, 3)),
            (slice(None), np.array([True, False, True]), slice(1, 3)),
        ),
        (sg.asarray(np.zeros((0,), np.int64)), np.zeros((0,), np.int64)),
    ],
    ids=str,
)
def test_indexing_by_tensors(key: Any, numpy: Any) -> None:
    np.testing.assert_array_equal(sg.asarray(X)[key].numpy(), X[numpy])


@pytest.mark.parametrize(
    ("key", "error", "match"),
    [
        (2, IndexRangeError, r"axis 0 must lie in \[-2, 2\); got 2 for shape \(2, 3, 4\)"),
        ((0, -4), IndexRangeError, "axis 1"),
        ((0, 0, 0, 0), IndexRangeError, "4 indices for the 3 axes"),
        ((..., ...), IndexRangeError, "one ellipsis"),
        (1.0, TypeError, "got float"),
        ("a", TypeError, "got str"),
        (True, TypeError, "bool is no index"),
        (np.array([5]), IndexRangeError, "must lie in"),
        (np.array([0.5]), DTypeError, "integers"),
        (np.array([True]), ShapeError, "a mask must have the extent of axis 0"),
        ((np.array([0]), np.array([0])), CaptureError, "at most one integer tensor"),
    ],
)
def test_bad_indices(key: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sg.asarray(X)[key]


# ---------------------------------------------------------------- special cases


def test_sums_of_small_integers_are_wide() -> None:
    assert sg.sum(sg.asarray(np.full(3, 100, np.int8))).item() == 300
    assert sg.sum(sg.asarray(np.full(3, 200, np.uint8))).dtype == np.uint64
    assert sg.sum(sg.asarray([True, True])).item() == 2
    assert sg.prod(sg.asarray(np.full(3, 100, np.int16))).item() == 10**6
    assert sg.sum(sg.ones(2), dtype="float64").dtype == np.float64
    assert sg.cumulative_sum(sg.asarray([True, True])).tolist() == [1, 2]


def test_reductions_over_nothing() -> None:
    empty = sg.zeros((0, 2))
    assert sg.sum(empty, axis=0).tolist() == [0.0, 0.0]
    assert sg.prod(empty, axis=0).tolist() == [1.0, 1.0]
    assert sg.all(empty, axis=0).tolist() == [True, True]
    assert not sg.any(empty)
    for function in (sg.max, sg.min, sg.argmax, sg.mean, sg.var):
        with pytest.raises(ShapeError, match=r"empty axis|no elements|more elements"):
            function(empty, axis=0)


def test_nan_wins_extremes() -> None:
    x = sg.asarray([1.0, math.nan, 3.0])
    assert math.isnan(sg.max(x).item())
    assert math.isnan(sg.min(x).item())
    assert sg.argmax(x).item() == 1
    assert math.isnan(sg.maximum(x, 0.0).tolist()[1])


def test_extremes_share_their_gradient_at_ties() -> None:
    x = sg.tensor([2.0, 1.0, 2.0], requires_grad=True)
    sg.max(x).backward()
    assert x.grad.tolist() == [0.5, 0.0, 0.5]
    a, b = sg.tensor([1.0], requires_grad=True), sg.tensor([1.0], requires_grad=True)
    sg.maximum(a, b).sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([0.5], [0.5])


def test_derivatives_at_kinks() -> None:
    def slope(f: Any, *at: float) -> list[float]:
        return sg.grad(lambda t: sg.sum(f(t)))(sg.asarray(np.array(at))).tolist()

    assert slope(sg.abs, 0.0) == [0.0]
    assert slope(lambda t: sg.clip(t, -1, 1), -1.0, 1.0, 1.5) == [1.0, 1.0, 0.0]
    assert slope(sg.norm, 0.0, 0.0) == [0.0, 0.0]
    assert slope(lambda t: sg.norm(t, ord=3), 0.0) == [0.0]
    assert slope(sg.std, 2.0, 2.0) == [0.0, 0.0]
    assert slope(lambda t: t**2, 0.0) == [0.0]
    assert slope(lambda t: t**1.5, 0.0) == [0.0]
    assert slope(sg.prod, 0.0, 3.0) == [3.0, 0.0]
    assert slope(sg.prod, 0.0, 0.0) == [0.0, 0.0]


def test_where_passes_no_nan_from_the_side_not_chosen() -> None:
    found = sg.grad(lambda t: sg.sum(sg.where(t > 0, t, sg.log(-t))))(sg.asarray(np.array([1.0, -2.0])))
    np.testing.assert_allclose(found.numpy(), [1.0, -0.5])


def test_logsumexp_and_logaddexp_at_infinity() -> None:
    inf = math.inf
    assert sg.logsumexp(sg.asarray([-inf, -inf])).item() == -inf
    assert sg.logsumexp(sg.asarray([inf, 0.0])).item() == inf
    assert sg.logsumexp(sg.asarray([-inf, 0.0])).item() == 0.0
    pairs = [(inf, inf), (-inf, -inf), (inf, -inf), (-inf, 3.0), (3.0, inf), (1e4, 1e4)]
    for x, y in pairs:
        assert sg.logaddexp(sg.asarray(x), sg.asarray(y)).item() == np.float32(np.logaddexp(x, y))
    assert math.isnan(sg.logaddexp(sg.asarray(math.nan), sg.asarray(1.0)).item())


def test_smooth_where_the_formula_changes() -> None:
    at = [np.array([1.0, -1.0, 2.0]), np.array([1.0, 1.0, 0.0])]
    for function in (sg.logaddexp, sg.hypot):
        inputs = [sg.tensor(x, requires_grad=True) for x in at]
        gradcheck(function, inputs)
        gradgradcheck(function, inputs)


def test_hypot_without_overflow() -> None:
    cases = [(3e200, 4e200), (3e-200, 4e-200), (0.0, 0.0), (math.inf, math.nan), (-math.inf, 1.0), (math.nan, 1.0)]
    for x, y in cases:
        found = sg.hypot(sg.asarray(np.array(x)), sg.asarray(np.array(y))).item()
        np.testing.assert_allclose(found, np.hypot(x, y), rtol=1e-15)


# ---------------------------------------------------------------- bad input


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: sg.zeros((-1,)), ShapeError, "must not be negative"),
    (lambda: sg.zeros(2, dtype="float16"), DTypeError, "got float16"),
    (lambda: sg.zeros(2, device="tpu"), DeviceError, "got 'tpu'"),
    (lambda: sg.arange(1, 2, 0), ShapeError, "step must not be 0"),
    (lambda: sg.linspace(0, 1, -1), ShapeError, "num must not be negative"),
    (lambda: sg.tril(sg.zeros(3)), ShapeError, "tril: takes matrices"),
    (lambda: sg.meshgrid(sg.zeros((2, 2))), ShapeError, "meshgrid: takes vectors"),
    (lambda: sg.meshgrid(sg.zeros(2), indexing="yx"), ValueError, "'xy' or 'ij'"),
    (lambda: sg.exp(sg.asarray([1])), DTypeError, "exp: takes a floating dtype; got int64"),
    (lambda: sg.logical_and(sg.asarray([1]), True), DTypeError, "logical_and: takes booleans; got int64"),
    (lambda: sg.add(sg.zeros(2), sg.zeros(3)), ShapeError, r"add: .* got \(2,\) and \(3,\)"),
    (lambda: sg.add(sg.asarray([True]), sg.asarray([True])), DTypeError, "add: takes a numeric dtype; got bool"),
    (lambda: sg.reshape(sg.zeros(6), (4, -1)), ShapeError, "cannot fill"),
    (lambda: sg.reshape(sg.zeros(6), (-1, -1)), ShapeError, "at most one extent"),
    (lambda: sg.reshape(sg.zeros(6), (4,)), ShapeError, "number of elements must stay"),
    (lambda: sg.reshape(sg.zeros((0, 3)), (0, -1)), ShapeError, "cannot fill"),
    (lambda: sg.permute_dims(sg.zeros((2, 3)), (0, 0)), ShapeError, "order of"),
    (lambda: sg.permute_dims(sg.zeros((2, 3)), (0, 2)), ShapeError, r"axis must lie in \[-2, 2\)"),
    (lambda: sg.moveaxis(sg.zeros((2, 3)), (0, 1), 0), ShapeError, "as many destinations"),
    (lambda: sg.squeeze(sg.zeros((2, 3)), 0), ShapeError, "only axes of extent 1"),
    (lambda: sg.expand_dims(sg.zeros(2), axis=3), ShapeError, "expand_dims: axis must lie"),
    (lambda: sg.broadcast_to(sg.zeros(2), (3,)), ShapeError, "equal or 1"),
    (lambda: sg.broadcast_arrays(sg.zeros(2), sg.zeros(3)), ShapeError, "broadcast_arrays: operands must broadcast"),
    (lambda: sg.concat([]), ShapeError, "at least one tensor"),
    (lambda: sg.stack([]), ShapeError, "at least one tensor"),
    (lambda: sg.concat([sg.zeros((2, 2)), sg.zeros((2, 3))]), ShapeError, "every axis but 0"),
    (lambda: sg.stack([sg.zeros(2), sg.zeros(3)]), ShapeError, "one shape"),
    (lambda: sg.split(sg.zeros(5), 2), ShapeError, "equal parts"),
    (lambda: sg.split(sg.zeros(5), [2, 2]), ShapeError, "add up to 5"),
    (lambda: sg.pad(sg.zeros(2), [(1, 1), (1, 1)]), ShapeError, "each of 1 axes"),
    (lambda: sg.pad(sg.zeros(2), [(-1, 1)]), ShapeError, "at least 0"),
    (lambda: sg.diff(sg.zeros(2), n=-1), ShapeError, "n must not be negative"),
    (lambda: sg.repeat(sg.zeros(2), -1), ShapeError, "repeat"),
    (lambda: sg.tile(sg.zeros(2), (-1,)), ShapeError, "tile"),
    (lambda: sg.sum(sg.zeros((2, 3)), axis=2), ShapeError, r"sum: axis must lie in \[-2, 2\)"),
    (lambda: sg.sum(sg.zeros((2, 3)), axis=(0, -2)), ShapeError, "distinct"),
    (lambda: sg.mean(sg.asarray([1])), DTypeError, "mean: takes a floating dtype; got int64"),
    (lambda: sg.var(sg.zeros(2), correction=2), ShapeError, "correction"),
    (lambda: sg.cumulative_sum(sg.zeros((2, 2))), ShapeError, "axis must be given"),
    (lambda: sg.take(sg.zeros((2, 2)), np.array([0])), ShapeError, "axis must be given"),
    (lambda: sg.take(sg.zeros(2), np.array([2])), IndexRangeError, r"lie in \[-2, 2\); got 2"),
    (lambda: sg.matmul(sg.zeros((2, 3)), sg.zeros((2, 3))), ShapeError, "second-to-last axis"),
    (lambda: sg.matmul(sg.zeros(()), sg.zeros(3)), ShapeError, "at least one axis"),
    (lambda: sg.matmul(sg.asarray([1]), sg.asarray([1])), DTypeError, "matmul: takes a floating"),
    (lambda: sg.matrix_transpose(sg.zeros(3)), ShapeError, "at least two axes"),
    (lambda: sg.outer(sg.zeros((2, 2)), sg.zeros(2)), ShapeError, "two vectors"),
    (lambda: sg.tensordot(sg.zeros((2, 3)), sg.zeros((2, 3)), axes=1), ShapeError, "equal extents"),
    (lambda: sg.tensordot(sg.zeros(2), sg.zeros(2), axes=5), ShapeError, "tensordot"),
    (lambda: sg.einsum("ij,jk", sg.zeros((2, 3))), ShapeError, "one term for each operand"),
    (lambda: sg.einsum("ij", sg.zeros(3)), ShapeError, "does not fit an operand"),
    (lambda: sg.einsum("i->k", sg.zeros(3)), ShapeError, "must be distinct and occur"),
    (lambda: sg.einsum("i->ii", sg.zeros(3)), ShapeError, "must be distinct and occur"),
    (lambda: sg.einsum("i1->i", sg.zeros((3, 2))), ShapeError, "does not fit an operand"),
    (lambda: sg.einsum("i,i->", sg.zeros(3), sg.zeros(2)), ShapeError, "is both 3 and 2"),
    (lambda: sg.where(True, "a", 1.0), TypeError, "got str"),
]


@pytest.mark.parametrize(("call", "error", "match"), BAD, ids=[match for _, _, match in BAD])
def test_bad_input(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, StaticgradError) or error in (TypeError, ValueError)


def test_numbers_alone_make_tensors() -> None:
    assert isinstance(sg.exp(1.0), Tensor)
    assert sg.add(1, 2).item() == 3
    assert sg.pow(2, 3).item() == 8
    assert sg.where(True, 1.0, 2.0).item() == 1.0
    assert sg.maximum(np.array([1.0]), 2.0).tolist() == [2.0]
