"""Every public array function: against NumPy, compiled, differentiated, and with bad input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special

import staticgrad as sg
import staticgrad.array
from staticgrad.autograd import gradcheck, gradgradcheck

Array = np.ndarray[Any, Any]

X = (np.arange(24.0).reshape(2, 3, 4) * 7 % 24) / 9 - 1.05
Y = (np.arange(24.0).reshape(2, 3, 4) * 5 % 24) / 11 - 0.97
P = np.abs(X) + 0.3  # positive
V = X[0, 0]  # a vector
M = X[0]  # a matrix
N = np.array([[3, -2, 0], [5, 1, 7]])
B = X > 0
I = np.array([2, 0, -1])  # noqa: E741
NAN = np.where(X > 1, np.nan, np.where(X < -1, -np.inf, X))

# name -> (the function of tensors, NumPy's, the operands); "d" marks those that are differentiated in all operands
Example = tuple[Callable[..., Any], Callable[..., Any], tuple[Array, ...], str]


def _same(name: str, *operands: Array, numpy: Any = None, mark: str = "d") -> Example:
    return getattr(sg, name), numpy or getattr(np, name), operands, mark


def _with(name: str, mark: str, x: Array, **options: Any) -> Example:
    """One operand, and options that NumPy's function of the same name has too."""
    return lambda t: getattr(sg, name)(t, **options), lambda t: getattr(np, name)(t, **options), (x,), mark


def _softmax(x: Array, axis: int = -1) -> Array:
    return scipy.special.softmax(x, axis=axis)


EXAMPLES: dict[str, list[Example]] = {
    **{
        name: [_same(name, X, mark="d")]
        for name in ("abs", "cos", "cosh", "exp", "exp2", "expm1", "sin", "sinh", "square", "tanh", "negative")
    },
    **{name: [_same(name, P)] for name in ("cbrt", "log", "log10", "log1p", "log2", "sqrt", "reciprocal")},
    **{name: [_same(name, X, mark="")] for name in ("ceil", "floor", "round", "sign", "signbit", "trunc")},
    **{name: [_same(name, NAN, mark=""), _same(name, N, mark="")] for name in ("isfinite", "isinf", "isnan")},
    **{
        name: [_same(name, X, Y)]
        for name in ("add", "subtract", "multiply", "hypot", "logaddexp", "maximum", "minimum")
    },
    **{
        name: [_same(name, X, np.roll(X, 1), mark=""), _same(name, N, N[:, :1], mark="")]
        for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
    },
    **{name: [_same(name, B, Y > 0, mark="")] for name in ("logical_and", "logical_or", "logical_xor")},
    **{
        f"bitwise_{short}": [_same(f"bitwise_{short}", N, N[:1], mark=""), _same(f"bitwise_{short}", B, Y > 0, mark="")]
        for short in ("and", "or", "xor")
    },
    "tan": [_same("tan", Y)],
    "acos": [_same("acos", Y * 0.8, numpy=np.arccos)],
    "acosh": [_same("acosh", P + 1, numpy=np.arccosh)],
    "asin": [_same("asin", Y * 0.8, numpy=np.arcsin)],
    "asinh": [_same("asinh", X, numpy=np.arcsinh)],
    "atan": [_same("atan", X, numpy=np.arctan)],
    "atan2": [_same("atan2", X, P, numpy=np.arctan2)],
    "atanh": [_same("atanh", Y * 0.8, numpy=np.arctanh)],
    "bitwise_invert": [
        _same("bitwise_invert", N, numpy=np.invert, mark=""),
        _same("bitwise_invert", B, numpy=np.invert, mark=""),
    ],
    "bitwise_left_shift": [(sg.bitwise_left_shift, np.left_shift, (N, np.array([1, 2, 3])), "")],
    "bitwise_right_shift": [(sg.bitwise_right_shift, np.right_shift, (N, np.array([1, 2, 3])), "")],
    "clip": [
        (lambda x: sg.clip(x, -0.5, 0.7), lambda x: np.clip(x, -0.5, 0.7), (X,), "d"),
        (lambda x: sg.clip(x, max=0.7), lambda x: np.minimum(x, 0.7), (X,), "d"),
        (lambda x, a: sg.clip(x, a), lambda x, a: np.maximum(x, a), (X, Y[0, 0] + 0.02), "d"),
    ],
    "copysign": [_same("copysign", X, Y)],
    "digamma": [_same("digamma", P, numpy=scipy.special.digamma, mark="")],
    "divide": [_same("divide", X, P)],
    "erf": [_same("erf", X, numpy=scipy.special.erf)],
    "erfc": [_same("erfc", X, numpy=scipy.special.erfc)],
    "floor_divide": [_same("floor_divide", X, P, mark=""), _same("floor_divide", N, np.array([2, -3, 4]), mark="")],
    "fmod": [_same("fmod", X, P)],
    "isclose": [
        _same("isclose", X, X + 1e-6 * Y, mark=""),
        (lambda x: sg.isclose(x, x, equal_nan=True), lambda x: np.isclose(x, x, equal_nan=True), (NAN,), ""),
    ],
    "lgamma": [_same("lgamma", P, numpy=scipy.special.gammaln, mark="1")],
    "logical_not": [_same("logical_not", B, mark="")],
    "nan_to_num": [
        _same("nan_to_num", NAN, mark=""),
        (
            lambda x: sg.nan_to_num(x, nan=1.0, neginf=-7.0),
            lambda x: np.nan_to_num(x, nan=1.0, neginf=-7.0),
            (NAN,),
            "",
        ),
    ],
    "positive": [_same("positive", X)],
    "pow": [_same("pow", P, Y), (lambda x: sg.pow(x, 3), lambda x: x**3, (X,), "d")],
    "remainder": [_same("remainder", X, P)],
    "rsqrt": [_same("rsqrt", P, numpy=lambda x: 1 / np.sqrt(x))],
    "sigmoid": [_same("sigmoid", X, numpy=scipy.special.expit)],
    "where": [(lambda x, y: sg.where(sg.asarray(B), x, y), lambda x, y: np.where(B, x, y), (X, Y[0]), "d")],
    "astype": [(lambda x: sg.astype(x, "int32"), lambda x: x.astype("int32"), (X,), "")],
    # shapes
    "broadcast_arrays": [(lambda x, y: sg.broadcast_arrays(x, y), np.broadcast_arrays, (X, V), "d")],
    "broadcast_to": [(lambda x: sg.broadcast_to(x, (2, 3, 4)), lambda x: np.broadcast_to(x, (2, 3, 4)), (V,), "d")],
    "concat": [
        (lambda x, y: sg.concat([x, y], axis=-1), lambda x, y: np.concatenate([x, y], axis=-1), (X, Y), "d"),
        (lambda x, y: sg.concat([x, y], axis=None), lambda x, y: np.concatenate([x, y], axis=None), (X, V), "d"),
    ],
    "diff": [_with("diff", "d", X, n=1, axis=-1), _with("diff", "d", X, n=2, axis=1)],
    "expand_dims": [(lambda x: sg.expand_dims(x, axis=-2), lambda x: np.expand_dims(x, -2), (X,), "d")],
    "flip": [_same("flip", X), (lambda x: sg.flip(x, axis=(0, -1)), lambda x: np.flip(x, (0, -1)), (X,), "d")],
    "moveaxis": [
        (lambda x: sg.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1), (X,), "d"),
        (lambda x: sg.moveaxis(x, (0, 1), (2, 0)), lambda x: np.moveaxis(x, (0, 1), (2, 0)), (X,), "d"),
    ],
    "pad": [
        (lambda x: sg.pad(x, [(1, 0), (0, 2)]), lambda x: np.pad(x, [(1, 0), (0, 2)]), (M,), "d"),
        (lambda x: sg.pad(x, [(1, 2)], value=5), lambda x: np.pad(x, [(1, 2)], constant_values=5), (V,), "d"),
    ],
    "permute_dims": [(lambda x: sg.permute_dims(x, (2, 0, 1)), lambda x: np.transpose(x, (2, 0, 1)), (X,), "d")],
    "repeat": [
        (lambda x: sg.repeat(x, 3), lambda x: np.repeat(x, 3), (M,), "d"),
        (lambda x: sg.repeat(x, 2, axis=1), lambda x: np.repeat(x, 2, axis=1), (M,), "d"),
    ],
    "reshape": [(lambda x: sg.reshape(x, (4, -1)), lambda x: np.reshape(x, (4, -1)), (X,), "d")],
    "roll": [
        (lambda x: sg.roll(x, 5), lambda x: np.roll(x, 5), (M,), "d"),
        (lambda x: sg.roll(x, -1, axis=1), lambda x: np.roll(x, -1, axis=1), (M,), "d"),
    ],
    "split": [
        (lambda x: sg.split(x, 2, axis=-1), lambda x: np.split(x, 2, axis=-1), (X,), "d"),
        (lambda x: sg.split(x, [1, 3], axis=-1), lambda x: np.split(x, [1], axis=-1), (X,), "d"),
    ],
    "squeeze": [_same("squeeze", X[:1]), (lambda x: sg.squeeze(x, 1), lambda x: np.squeeze(x, 1), (X[:1, :1],), "d")],
    "stack": [(lambda x, y: sg.stack([x, y], axis=1), lambda x, y: np.stack([x, y], axis=1), (X, Y), "d")],
    "swapaxes": [(lambda x: sg.swapaxes(x, 0, -1), lambda x: np.swapaxes(x, 0, -1), (X,), "d")],
    "tile": [(lambda x: sg.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3)), (M,), "d")],
    "unstack": [(lambda x: sg.unstack(x, axis=1), lambda x: list(np.moveaxis(x, 1, 0)), (X,), "d")],
    # selection
    "take": [
        (lambda x: sg.take(x, sg.asarray(I), axis=1), lambda x: np.take(x, I, axis=1), (X,), "d"),
        (lambda x: sg.take(x, sg.asarray(I)), lambda x: np.take(x, I), (V,), "d"),
    ],
    "take_along_axis": [
        (
            lambda x: sg.take_along_axis(x, sg.argmax(x, axis=1, keepdims=True), axis=1),
            lambda x: np.max(x, axis=1, keepdims=True),
            (X,),
            "d",
        )
    ],
    "scatter_add": [
        (
            lambda x, u: sg.scatter_add(x, sg.asarray(np.array([1, 1, 0])), u, axis=0),
            lambda x, u: _scatter(x, u),
            (M, M * 2),
            "d",
        )
    ],
    # products
    "einsum": [
        (lambda *xs, s=subscripts: sg.einsum(s, *xs), lambda *xs, s=subscripts: np.einsum(s, *xs), operands, "d")
        for subscripts, operands in (
            ("ijk->kij", (X,)),
            ("ijk->j", (X,)),
            ("ijk,ilk->ijl", (X, Y)),
            ("ij,jk", (M, M.T.copy())),
            ("ba", (M,)),
            ("i,j->ij", (V, V[:3])),
            ("i,i->", (V, V)),
            ("ii->i", (M[:, :3],)),
            ("ii", (M[:, :3],)),
            ("ijj,jk->ki", (X[:, :, :3], M)),
            ("...ij,...jk->...ik", (X, np.swapaxes(Y, 1, 2))),
            ("...i,i->...", (X, V)),
            ("ij,jk,kl->il", (M[:2], M.T.copy(), M[:, :2])),
            ("bij,bik,b->jk", (X, Y, V[:2])),
            ("ij,ij->ij", (M, M + 1)),
        )
    ]
    + [(lambda x, y: sg.einsum("ij,kj->ik", x, y), lambda x, y: np.einsum("ij,kj->ik", x, y), (N, N), "")],
    "matmul": [
        _same("matmul", X, np.swapaxes(Y, 1, 2)),
        _same("matmul", X, M.T.copy()),
        _same("matmul", V, M.T.copy()),
        _same("matmul", X, V),
        _same("matmul", V, V),
    ],
    "matrix_transpose": [(sg.matrix_transpose, lambda x: np.swapaxes(x, -1, -2), (X,), "d")],
    "outer": [_same("outer", V, V[:3])],
    "tensordot": [
        (lambda x, y: sg.tensordot(x, y), lambda x, y: np.tensordot(x, y), (X, np.moveaxis(Y, 0, 2)), "d"),
        (lambda x, y: sg.tensordot(x, y, axes=0), lambda x, y: np.tensordot(x, y, 0), (V, V), "d"),
        (
            lambda x, y: sg.tensordot(x, y, axes=((0, 2), (0, -1))),
            lambda x, y: np.tensordot(x, y, ((0, 2), (0, -1))),
            (X, Y),
            "d",
        ),
    ],
    "vecdot": [
        (sg.vecdot, lambda x, y: np.sum(x * y, -1), (X, Y), "d"),
        (lambda x, y: sg.vecdot(x, y, axis=0), lambda x, y: np.sum(x * y, 0), (X, Y), "d"),
    ],
    # reductions
    **{
        name: [_same(name, X), _with(name, "d", X, axis=(0, -1)), _with(name, "d", X, axis=1, keepdims=True)]
        for name in ("sum", "prod", "max", "min", "mean", "var", "std")
    },
    **{name: [_same(name, B, mark=""), _with(name, "", N, axis=0)] for name in ("all", "any", "count_nonzero")},
    **{name: [_same(name, X, mark=""), _with(name, "", X, axis=1, keepdims=True)] for name in ("argmax", "argmin")},
    "allclose": [_same("allclose", X, X + 1e-12, mark=""), _same("allclose", X, Y, mark="")],
    "cumulative_sum": [
        (lambda x: sg.cumulative_sum(x, axis=1), lambda x: np.cumsum(x, axis=1), (X,), "d"),
        (
            lambda x: sg.cumulative_sum(x, include_initial=True),
            lambda x: np.concatenate([[0], np.cumsum(x)]),
            (V,),
            "d",
        ),
        (lambda x: sg.cumulative_sum(x, axis=0, reverse=True), lambda x: np.cumsum(x[::-1], axis=0)[::-1], (X,), "d"),
    ],
    "cumsum": [(lambda x: sg.cumsum(x, axis=1), lambda x: np.cumsum(x, axis=1), (N,), "")],
    "logsumexp": [
        (sg.logsumexp, scipy.special.logsumexp, (X * 300,), "d"),
        (lambda x: sg.logsumexp(x, axis=1), lambda x: scipy.special.logsumexp(x, axis=1), (X,), "d"),
    ],
    "log_softmax": [(sg.log_softmax, lambda x: scipy.special.log_softmax(x, axis=-1), (X,), "d")],
    "softmax": [
        (sg.softmax, _softmax, (X,), "d"),
        (lambda x: sg.softmax(x, axis=0), lambda x: _softmax(x, 0), (X,), "d"),
    ],
    "nanmean": [_same("nanmean", np.where(X > 1, np.nan, X), mark="")],
    "nansum": [_same("nansum", np.where(X > 1, np.nan, X), mark="")],
    "norm": [
        (sg.norm, lambda x: np.sqrt(np.sum(x * x)), (X,), "d"),
        (lambda x: sg.norm(x, axis=1, ord=1), lambda x: np.sum(np.abs(x), 1), (X,), "d"),
        (lambda x: sg.norm(x, axis=0, ord=3), lambda x: np.sum(np.abs(x) ** 3, 0) ** (1 / 3), (X,), "d"),
        (lambda x: sg.norm(x, axis=0, ord=math.inf), lambda x: np.max(np.abs(x), 0), (X,), "d"),
    ],
    # creation
    "arange": [
        (lambda: sg.arange(5), lambda: np.arange(5), (), ""),
        (lambda: sg.arange(5, 1, -2), lambda: np.arange(5, 1, -2), (), ""),
        (lambda: sg.arange(0.5, 3, 0.5), lambda: np.arange(0.5, 3, 0.5, np.float32), (), ""),
        (lambda: sg.arange(3, 1), lambda: np.arange(3, 1), (), ""),
    ],
    "asarray": [
        (lambda: sg.asarray([[1, 2], [3, 4]]), lambda: np.array([[1, 2], [3, 4]]), (), ""),
        (lambda: sg.asarray([1.5, 2]), lambda: np.array([1.5, 2], np.float32), (), ""),
        (lambda: sg.asarray(True), lambda: np.array(True), (), ""),
        (
            lambda x: sg.asarray([x[0], [x[1, 0], 2.0, x[0, 1], 0.5]]),
            lambda x: np.array([x[0], [x[1, 0], 2, x[0, 1], 0.5]]),
            (M,),
            "d",
        ),
    ],
    "empty": [(lambda: sg.empty((2, 0)), lambda: np.zeros((2, 0), np.float32), (), "")],
    "empty_like": [(lambda x: sg.empty_like(x) * 0, np.zeros_like, (X,), "")],
    "eye": [(lambda: sg.eye(3, 4, k=1), lambda: np.eye(3, 4, k=1, dtype=np.float32), (), "")],
    "from_numpy": [(lambda: sg.from_numpy(X), lambda: X, (), "")],
    "full": [
        (lambda: sg.full((2, 3), 7), lambda: np.full((2, 3), 7), (), ""),
        (lambda x: sg.full((3,), x), lambda x: np.full((3,), x), (np.array(2.5),), "d"),
    ],
    "full_like": [(lambda x: sg.full_like(x, 3), lambda x: np.full_like(x, 3), (X,), "")],
    "linspace": [
        (lambda: sg.linspace(0, 1, 5), lambda: np.linspace(0, 1, 5, dtype=np.float32), (), ""),
        (lambda: sg.linspace(0, 1, 4, endpoint=False), lambda: np.linspace(0, 1, 4, False, dtype=np.float32), (), ""),
        (lambda: sg.linspace(0, 1, 0), lambda: np.zeros(0, np.float32), (), ""),
    ],
    "meshgrid": [
        (lambda x, y: sg.meshgrid(x, y), lambda x, y: np.meshgrid(x, y), (V, V[:3]), "d"),
        (lambda x, y: sg.meshgrid(x, y, indexing="ij"), lambda x, y: np.meshgrid(x, y, indexing="ij"), (V, V[:3]), "d"),
    ],
    "ones": [(lambda: sg.ones((2, 3)), lambda: np.ones((2, 3), np.float32), (), "")],
    "ones_like": [(sg.ones_like, np.ones_like, (X,), "")],
    "tensor": [(lambda: sg.tensor([1, 2], dtype="float64"), lambda: np.array([1.0, 2.0]), (), "")],
    "tril": [(sg.tril, np.tril, (X,), "d"), (lambda x: sg.tril(x, k=-1), lambda x: np.tril(x, -1), (N,), "")],
    "triu": [(sg.triu, np.triu, (X,), "d"), (lambda x: sg.triu(x, k=1), lambda x: np.triu(x, 1), (B,), "")],
    "zeros": [(lambda: sg.zeros(3, dtype="int8"), lambda: np.zeros(3, np.int8), (), "")],
    "zeros_like": [(lambda x: sg.zeros_like(x, dtype="bool"), lambda x: np.zeros(x.shape, bool), (X,), "")],
}
NO_VALUES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"),
    *("e", "inf", "nan", "newaxis", "pi", "can_cast", "finfo", "iinfo", "isdtype", "result_type"),
}


def _scatter(x: Array, updates: Array) -> Array:
    out = x.copy()
    np.add.at(out, np.array([1, 1, 0]), updates)
    return out


def _arrays(result: Any) -> list[Array]:
    return [np.asarray(x) for x in (result if isinstance(result, list | tuple) else [result])]


def _close(found: Any, expected: Any) -> None:
    for a, b in zip(_arrays(found), _arrays(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-6 if a.dtype == np.float32 else 1e-13, atol=1e-14)


# ---------------------------------------------------------------- every function


def test_every_public_name_has_an_example() -> None:
    assert set(staticgrad.array.__all__) == set(EXAMPLES) | NO_VALUES
    assert all(getattr(sg, name) is getattr(staticgrad.array, name) for name in staticgrad.array.__all__)


@pytest.mark.parametrize("name", EXAMPLES)
def test_against_numpy(name: str) -> None:
    for function, numpy, operands, _ in EXAMPLES[name]:
        with np.errstate(all="ignore"):
            _close(function(*[sg.asarray(x) for x in operands]), numpy(*operands))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if any(example[3] for example in EXAMPLES[name])])
def test_derivatives(name: str) -> None:
    for function, _, operands, mark in EXAMPLES[name]:
        if mark:
            inputs = [sg.tensor(x, requires_grad=True) for x in operands]
            gradcheck(function, inputs)
        if mark == "d":
            gradgradcheck(function, inputs, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ("from_numpy",)])
def test_compiled(name: str) -> None:
    examples = EXAMPLES[name]
    operands = [[sg.asarray(x.copy()) for x in example[2]] for example in examples]

    def whole(operands: Any) -> Any:
        results = [example[0](*given) for example, given in zip(examples, operands, strict=True)]
        return [list(r) if isinstance(r, tuple) else r for r in results]

    for found, expected in zip(sg.compile(whole)(operands), whole(operands), strict=True):
        _close(found, expected)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if inspect.isfunction(getattr(sg, name))])
def test_docstrings_and_types(name: str) -> None:
    function = getattr(sg, name)
    assert function.__doc__
    assert "return" in inspect.get_annotations(inspect.unwrap(function))
