"""Tensor itself: operators and promotion, values out, copies, pickling, and what its errors say."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.graph.errors import DerivativeError, DeviceError, DTypeError, ShapeError, StaticgradError
from staticgrad.tensor import Tensor

DTYPES = [*("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), "float32", "float64"]
BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow]
COMPARE = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


# ---------------------------------------------------------------- operators


@pytest.mark.parametrize("op", BINARY + COMPARE)
def test_operators_against_numpy(op: Any) -> None:
    x, y = np.array([1.5, 2.0, 0.25]), np.array([2.0, 0.5, 3.0])
    expected = op(x, y)
    for a, b in [(sg.asarray(x), sg.asarray(y)), (x, sg.asarray(y)), (sg.asarray(x), y)]:
        out = op(a, b)
        assert isinstance(out, Tensor)
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("op", BINARY + COMPARE)
@pytest.mark.parametrize("number", [2, 2.0, True, np.float64(2.0), np.int8(2), np.float32(2.0)])
def test_operators_with_numbers_on_both_sides(op: Any, number: Any) -> None:
    x = np.array([1.5, 2.0, 0.25], np.float32)
    for got, expected in [
        (op(sg.asarray(x), number), op(x, float(number))),
        (op(number, sg.asarray(x)), op(float(number), x)),
    ]:
        assert isinstance(got, Tensor)
        assert got.dtype == (np.bool_ if op in COMPARE else np.float32)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("op", [operator.and_, operator.or_, operator.xor])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64"])
def test_bit_operators(op: Any, dtype: str) -> None:
    x, y = np.array([0, 1, 1, 5]).astype(dtype), np.array([0, 0, 1, 3]).astype(dtype)
    np.testing.assert_array_equal(op(sg.asarray(x), sg.asarray(y)).numpy(), op(x, y))
    assert op(True, sg.asarray(x)).dtype == dtype


def test_shifts_inversion_and_signs() -> None:
    x = sg.asarray(np.array([1, -4, 5], np.int32))
    assert ((x << 2).tolist(), (x >> 1).tolist(), (~x).tolist()) == ([4, -16, 20], [0, -2, 2], [-2, 3, -6])
    assert ((2 << sg.asarray([1, 2])).tolist(), (8 >> sg.asarray([1, 2])).tolist()) == ([4, 8], [4, 2])
    assert ((-x).tolist(), abs(x).tolist(), (+x).tolist()) == ([-1, 4, -5], [1, 4, 5], [1, -4, 5])
    assert (~sg.asarray([True, False])).tolist() == [False, True]


def test_matmul_operator() -> None:
    x, y = np.arange(6.0).reshape(2, 3), np.arange(3.0)
    for out in (sg.asarray(x) @ sg.asarray(y), x @ sg.asarray(y), sg.asarray(x) @ y):
        np.testing.assert_array_equal(out.numpy(), x @ y)
    with pytest.raises(TypeError):
        sg.asarray(x) @ 2.0


def test_foreign_operands() -> None:
    x = sg.asarray([1.0])
    assert (x == "text") is False
    assert (x != None) is True  # noqa: E711
    for other in ("text", None, [1.0], 1j):
        with pytest.raises(TypeError):
            x + other
    with pytest.raises(TypeError, match="operands are Tensors, NumPy arrays or numbers; got str"):
        sg.add(x, "text")


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in ("bool", "float32", "float64")])
@pytest.mark.parametrize("n", range(6))
def test_powers_of_integers_are_exact_modulo_the_range(dtype: str, n: int) -> None:
    x = np.array([0, 1, 2, 3, 7, 11, 100], dtype)
    with np.errstate(over="ignore"):
        expected = np.power(x, np.array(n, dtype))
    for out in (sg.asarray(x) ** n, sg.asarray(x) ** sg.asarray(np.full(7, n, dtype)), sg.pow(x, n)):
        assert out.dtype == dtype
        np.testing.assert_array_equal(out.numpy(), expected)


def test_powers_of_negative_integers() -> None:
    x = sg.asarray([-2, -1, 1, 3])
    assert (x**3).tolist() == [-8, -1, 1, 27]
    assert (x ** sg.asarray([-1, -3, -2, -1])).tolist() == [0, -1, 1, 0]
    assert (2 ** sg.asarray([0, 1, 10])).tolist() == [1, 2, 1024]
    assert (sg.asarray([True, False]) ** 2).tolist() == [1, 0]
    assert (x**0.5).dtype == np.float32
    with pytest.raises(DTypeError, match=r"integers have no negative powers; got int64\[4\] \*\* -1"):
        x**-1


@pytest.mark.parametrize("n", [-3, -2, -1, 0, 0.5, 1, 2, 3, 5, 7, 8, 9, 20, 2.0, 3.0, 1.7])
def test_powers_of_floating_numbers(n: Any) -> None:
    x = np.array([0.3, 1.0, 2.5])
    np.testing.assert_allclose((sg.asarray(x) ** n).numpy(), x**n, rtol=1e-14)
    found = sg.grad(lambda t: (t**n).sum())(sg.asarray(x))
    np.testing.assert_allclose(found.numpy(), n * x ** (n - 1.0), rtol=1e-13, atol=1e-300)


# ---------------------------------------------------------------- promotion


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_promotion_of_two_dtypes(first: str, second: str) -> None:
    a, b = np.dtype(first), np.dtype(second)
    x, y = sg.ones(2, dtype=first), sg.ones(2, dtype=second)
    common: Any = np.promote_types(a, b)
    if "f" in (a.kind, b.kind):  # an integer never widens a floating dtype
        common = max((d for d in (a, b) if d.kind == "f"), key=lambda d: d.itemsize)
    elif common.kind == "f":
        with pytest.raises(DTypeError, match="no common integer dtype"):
            sg.equal(x, y)
        return
    assert sg.result_type(x, y) == common
    assert sg.where(sg.asarray([True, False]), x, y).dtype == common
    assert sg.concat([x, y]).dtype == common


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [True, 2, 2.5])
def test_numbers_are_weak(dtype: str, number: Any) -> None:
    kind = np.dtype(dtype).kind
    expected = dtype
    if isinstance(number, float) and kind != "f":
        expected = "float32"
    elif kind == "b" and not isinstance(number, bool):
        expected = "int64"
    assert sg.where(sg.asarray([True]), sg.ones(1, dtype=dtype), number).dtype == expected


def test_a_choice_between_numbers_has_the_default_dtype() -> None:
    mask = sg.asarray([True, False])
    assert sg.where(mask, 1.0, 2).dtype == np.float32
    assert sg.where(mask, 1, 2).dtype == np.int64
    assert sg.where(mask, True, False).dtype == np.bool_


def test_numbers_that_do_not_fit() -> None:
    x = sg.ones(1, dtype="uint8")
    for number in (300, -1):
        with pytest.raises(DTypeError, match=f"add: {number} does not fit uint8"):
            x + number


def test_division_of_integers_is_floating() -> None:
    out = sg.asarray([1, 2]) / sg.asarray([2, 2])
    assert (out.dtype, out.tolist()) == (np.float32, [0.5, 1.0])
    assert (1 / sg.asarray([2, 4])).tolist() == [0.5, 0.25]
    assert (sg.asarray([True]) / 2).dtype == np.float32


# ---------------------------------------------------------------- values out


def test_numbers_of_one_element() -> None:
    x = sg.asarray([[2.5]])
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    assert list(range(5))[sg.asarray(3)] == 3
    assert not sg.asarray(0)


def test_numbers_of_many_elements() -> None:
    x = sg.asarray([1.0, 2.0])
    for ask in (float, int, bool):
        with pytest.raises(ShapeError, match=r"2 elements is ambiguous \(shape \(2,\)\); use sg.any, sg.all"):
            ask(x)
    with pytest.raises(ShapeError, match="item: takes a tensor of one element"):
        x.item()
    with pytest.raises(DTypeError, match="only integer tensors can index; got float32"):
        list(range(5))[sg.asarray(1.0)]


def test_numpy_shares_storage_both_ways() -> None:
    array = np.arange(3.0)
    x = sg.asarray(array)
    array[0] = 7.0
    assert x.tolist() == [7.0, 1.0, 2.0]
    x.numpy()[1] = 8.0
    assert array.tolist() == [7.0, 8.0, 2.0]
    assert np.shares_memory(np.asarray(x), array)
    assert not np.shares_memory(np.array(x, copy=True), array)
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="needs a copy"):
        np.asarray(x, dtype=np.float32, copy=False)


def test_iteration_and_length() -> None:
    x = sg.asarray([[1, 2], [3, 4]])
    assert len(x) == 2
    assert [row.tolist() for row in x] == [[1, 2], [3, 4]]
    for ask in (len, iter):
        with pytest.raises(TypeError, match="0-d tensor"):
            ask(sg.asarray(1.0))


def test_what_it_is() -> None:
    x = sg.zeros((2, 3), dtype="float64")
    assert (x.shape, x.ndim, x.size, x.nbytes, x.device) == ((2, 3), 2, 6, 48, "cpu")
    assert str(x.spec) == "float64[2, 3]"
    assert x.__array_namespace__() is sg
    assert not x.traced


def test_repr() -> None:
    assert repr(sg.asarray([1.0, 2.5])) == "Tensor([1. , 2.5])"
    assert repr(sg.asarray(np.array([1], np.int8))) == "Tensor([1], dtype=int8)"
    assert repr(sg.asarray([True])) == "Tensor([ True])"
    assert "dtype=float64" in repr(sg.zeros(2, dtype="float64"))


def test_tensors_hash_by_identity() -> None:
    x, y = sg.asarray([1.0]), sg.asarray([1.0])
    assert len({x, y, x}) == 2


# ---------------------------------------------------------------- copies, moves, writes


def test_astype_and_to() -> None:
    x = sg.asarray([1.0, 2.0])
    assert x.astype("float32", copy=False) is x
    assert not np.shares_memory(x.astype("float32").numpy(), x.numpy())
    assert x.to("float64").dtype == np.float64
    assert x.to("cpu", "int32").dtype == np.int32
    assert x.to(dtype=sg.int8, device="cpu").dtype == np.int8
    assert x.to("cpu") is x
    with pytest.raises(DeviceError, match="cuda:9 was asked for"):
        x.to("cuda:9")


@pytest.mark.parametrize("dtype", ["float16", "complex64", "U3", "datetime64[s]", "O", "longdouble"])
def test_dtypes_that_do_not_exist(dtype: str) -> None:
    with pytest.raises(DTypeError, match="dtypes are bool, int8 to int64"):
        sg.zeros(2).astype(dtype)
    with pytest.raises(DTypeError, match="astype: no such dtype: 'nonsense'"):
        sg.zeros(2).astype("nonsense")


def test_copy_writes_into_storage() -> None:
    array = np.zeros((2, 2), np.float32)
    x = sg.asarray(array)
    assert x.copy_(np.array([1, 2])) is x
    assert array.tolist() == [[1.0, 2.0], [1.0, 2.0]]
    x.copy_(3.5)
    x.copy_(sg.asarray([[1.0], [2.0]], dtype="float64"))
    assert array.tolist() == [[1.0, 1.0], [2.0, 2.0]]
    with pytest.raises(
        ShapeError, match=r"copy_: the source must broadcast to the tensor's shape \(2, 2\); got \(3,\)"
    ):
        x.copy_(np.ones(3))


def test_storage_that_cannot_be_written() -> None:
    array = np.ones(3)
    array.flags.writeable = False
    for x in (sg.asarray(array), sg.broadcast_to(sg.asarray([1.0]), (3,))):
        with pytest.raises(ValueError, match="broadcast view or shares a read-only array"):
            x.copy_(2.0)


def test_items_cannot_be_assigned() -> None:
    x = sg.zeros(3)
    with pytest.raises(TypeError, match=r"item assignment is not supported; .* sg.where"):
        x[0] = 1.0


def test_pickle_and_copies() -> None:
    x = sg.tensor([1.0, 2.0], requires_grad=True)
    for made in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert made.tolist() == [1.0, 2.0]
        assert made.requires_grad
        assert made.is_leaf
        assert not np.shares_memory(np.asarray(made), np.asarray(x))
    with pytest.raises(DerivativeError, match="only leaves can be pickled"):
        pickle.dumps(x * 2)


def test_methods() -> None:
    x = sg.asarray([[1.0, 4.0], [3.0, 2.0]])
    assert (x.sum().item(), x.mean().item(), x.max().item(), x.min().item()) == (10.0, 2.5, 4.0, 1.0)
    assert x.sum(axis=0, keepdims=True).tolist() == [[4.0, 6.0]]
    assert x.reshape(4).tolist() == x.reshape((4,)).tolist() == x.reshape(-1).tolist() == [1.0, 4.0, 3.0, 2.0]
    assert x.reshape(1, 2, 2).shape == (1, 2, 2)
    assert x.T.tolist() == x.mT.tolist() == [[1.0, 3.0], [4.0, 2.0]]
    with pytest.raises(ShapeError, match="T: takes a matrix"):
        sg.zeros(3).T  # noqa: B018


# ---------------------------------------------------------------- errors


def test_errors_end_with_the_callers_line() -> None:
    with pytest.raises(StaticgradError) as caught:
        sg.zeros((2, 3)) + sg.zeros(4)
    line = caught.traceback[0].lineno + 1
    assert str(caught.value).endswith(f"Called at {__file__}:{line}")
    assert "add: operands must broadcast to one shape; got (2, 3) and (4,)" in str(caught.value)


def test_errors_in_backward_name_the_op() -> None:
    with pytest.raises(DerivativeError, match="digamma: this derivative is not implemented"):
        sg.digamma(sg.tensor([1.0], requires_grad=True)).sum().backward()


def test_a_scalar_condition_of_where_must_be_boolean() -> None:
    with pytest.raises(DTypeError, match="select: takes a boolean dtype; got float32"):
        sg.where(sg.asarray([1.0]), 1.0, 2.0)
