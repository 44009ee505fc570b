"""Every op of the registry, through every check of `op_checks`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import op_checks
import pytest
import scipy.special
from op_checks import Case

import staticgrad as sg
from staticgrad.graph.errors import DerivativeError
from staticgrad.graph.op import Op, registry
from staticgrad.tensor import Tensor

Array = np.ndarray[Any, Any]

OPS = op_checks.checked_ops()
CASES = op_checks.grouped(op_checks.cases())
NAMES = sorted(CASES)

# ---------------------------------------------------------------- what each op should give, by another route

NUMPY: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "add": np.add,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "bitwise_and": np.bitwise_and,
    "bitwise_invert": np.invert,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "cast": lambda x, *, dtype: np.asarray(x, dtype),
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "copysign": np.copysign,
    "cos": np.cos,
    "cosh": np.cosh,
    "digamma": scipy.special.digamma,
    "div": np.true_divide,
    "equal": np.equal,
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "floor_divide": np.floor_divide,
    "fmod": np.fmod,
    "gelu": lambda x: 0.5 * x * (1 + scipy.special.erf(x * np.sqrt(0.5))),
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "isfinite": np.isfinite,
    "isinf": np.isinf,
    "isnan": np.isnan,
    "left_shift": np.left_shift,
    "less": np.less,
    "less_equal": np.less_equal,
    "lgamma": lambda x: np.where(np.isinf(x), np.inf, scipy.special.gammaln(x)),
    "log": np.log,
    "log10": np.log10,
    "log1p": np.log1p,
    "log2": np.log2,
    "logical_not": np.logical_not,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mul": np.multiply,
    "neg": np.negative,
    "not_equal": np.not_equal,
    "pow": np.power,
    "reciprocal": lambda x: 1 / x,
    "remainder": np.remainder,
    "right_shift": np.right_shift,
    "round": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select": np.where,
    "sigmoid": scipy.special.expit,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "trunc": np.trunc,
}

# The C library's scalar functions, for elementwise ops in their domain.
SCALAR: dict[str, Callable[..., float]] = {
    name: getattr(math, name)
    for name in (
        *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "copysign", "cos", "cosh", "erf"),
        *("erfc", "exp", "exp2", "expm1", "floor", "fmod", "isfinite", "isinf", "isnan", "lgamma", "log", "log10"),
        *("log1p", "log2", "pow", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
    )
} | {
    "abs": abs,
    "add": lambda x, y: x + y,
    "div": lambda x, y: x / y,
    "floor_divide": lambda x, y: x // y,
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x * math.sqrt(0.5))),
    "maximum": max,
    "minimum": min,
    "mul": lambda x, y: x * y,
    "neg": lambda x: -x,
    "remainder": lambda x, y: x % y,
    "round": lambda x: float(round(x)),
    "sign": lambda x: math.copysign(1.0, x),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "sub": lambda x, y: x - y,
}


def _wrapped(value: int, dtype: Any) -> Any:
    """A Python integer in the dtype, modulo its range."""
    return np.array(value % 2**64, np.uint64).astype(dtype)


def _fold(function: Callable[[Any, Any], Any], *start: Any) -> Callable[..., Array]:
    def folded(x: Array, *, axis: tuple[int, ...]) -> Array:
        kept = [i for i in range(x.ndim) if i not in axis]
        out = np.empty([x.shape[i] for i in kept], x.dtype)
        for place in np.ndindex(*out.shape):
            index: list[Any] = [slice(None)] * x.ndim
            for i, position in zip(kept, place, strict=True):
                index[i] = position
            values = x[tuple(index)].reshape(-1).tolist()
            total = functools.reduce(function, values, *start)
            out[place] = total if x.dtype.kind in "bf" else _wrapped(total, x.dtype)
        return out

    return folded


def _first(better: Callable[[Any, Any], bool]) -> Callable[..., Array]:
    def position(x: Array, *, axis: tuple[int, ...]) -> Array:
        lines = np.moveaxis(x, axis[0], -1)
        out = np.zeros(lines.shape[:-1], np.int64)
        for place in np.ndindex(*out.shape):
            for i, value in enumerate(lines[place]):
                if better(value, lines[place][out[place]]):
                    out[place] = i
        return out

    return position


def _scatter(x: Array, indices: Array, *, shape: tuple[int, ...], axis: int) -> Array:
    out = np.zeros(shape, x.dtype)
    for place in np.ndindex(*x.shape):
        index = indices[place[axis : axis + indices.ndim]]
        out[(*place[:axis], index, *place[axis + indices.ndim :])] += x[place]
    return out


def _along(x: Array, indices: Array, *, axis: int) -> Array:
    out = np.empty(indices.shape, x.dtype)
    for place in np.ndindex(*indices.shape):
        out[place] = x[(*place[:axis], indices[place], *place[axis + 1 :])]
    return out


def _scatter_along(x: Array, indices: Array, *, size: int, axis: int) -> Array:
    out = np.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
    for place in np.ndindex(*x.shape):
        out[(*place[:axis], indices[place], *place[axis + 1 :])] += x[place]
    return out


def _slice(x: Array, *, start: Any, stop: Any, step: Any) -> Array:
    return x[np.ix_(*[list(range(a, b, s)) for a, b, s in zip(start, stop, step, strict=True)])] if x.ndim else x


def _embed(x: Array, *, shape: Any, start: Any, step: Any) -> Array:
    out = np.zeros(shape, x.dtype)
    for place in np.ndindex(*x.shape):
        out[tuple(a + i * s for a, i, s in zip(start, place, step, strict=True))] = x[place]
    return out


def _running(x: Array, *, axis: int, reverse: bool = False) -> Array:
    lines = np.moveaxis(x.copy(), axis, 0)
    order = range(len(lines) - 2, -1, -1) if reverse else range(1, len(lines))
    for i in order:
        lines[i] += lines[i + 1 if reverse else i - 1]
    return np.moveaxis(lines, 0, axis)


def _matmul(x: Array, y: Array, *, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    return np.einsum(f"...{'ki' if transpose_x else 'ik'},...{'jk' if transpose_y else 'kj'}->...ij", x, y)


def _threefry(key: Array, counter: Array) -> Array:
    out = np.empty(np.broadcast_shapes(key.shape, counter.shape), np.uint64)
    for place, (k, c) in enumerate(np.broadcast(key, counter)):
        out.flat[place] = _threefry_word(int(k), int(c))
    return out


def _threefry_word(key: int, counter: int) -> int:
    """Threefry-2x32-20 on Python integers, after the paper's listing (Salmon and others, SC'11)."""
    ks = [key & 0xFFFFFFFF, key >> 32]
    ks.append(0x1BD11BDA ^ ks[0] ^ ks[1])
    x0, x1 = (counter + ks[0]) & 0xFFFFFFFF, ((counter >> 32) + ks[1]) & 0xFFFFFFFF
    for i in range(20):
        r = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x0 = (x0 + x1) & 0xFFFFFFFF
        x1 = ((x1 << r | x1 >> (32 - r)) & 0xFFFFFFFF) ^ x0
        if i % 4 == 3:
            s = i // 4 + 1
            x0, x1 = (x0 + ks[s % 3]) & 0xFFFFFFFF, (x1 + ks[(s + 1) % 3] + s) & 0xFFFFFFFF
    return x0 | x1 << 32


STRUCTURAL: dict[str, Callable[..., Any]] = {
    "all": _fold(lambda a, b: a and b, True),
    "any": _fold(lambda a, b: a or b, False),
    "argmax": _first(lambda a, b: a > b),
    "argmin": _first(lambda a, b: a < b),
    "broadcast_to": lambda x, *, shape: x + np.zeros(shape, x.dtype),
    "concat": lambda *xs, axis: np.moveaxis(np.array([row for x in xs for row in np.moveaxis(x, axis, 0)]), 0, axis),
    "cumulative_sum": _running,
    "embed": _embed,
    "matmul": _matmul,
    "max": _fold(max),
    "min": _fold(min),
    "permute_dims": lambda x, *, axes: np.moveaxis(x, axes, range(x.ndim)),
    "prod": _fold(lambda a, b: a * b, 1),
    "random_bits": _threefry,
    "reshape": lambda x, *, shape: np.array(x.ravel().tolist(), x.dtype).reshape(shape),
    "scatter_add": _scatter,
    "scatter_add_along_axis": _scatter_along,
    "slice": _slice,
    "sum": _fold(lambda a, b: a + b, 0),
    "take": lambda x, indices, *, axis, what="": x[(slice(None),) * axis + (indices,)],
    "take_along_axis": _along,
}


def expected_of(case: Case) -> Callable[..., Any]:
    name = case.op.name
    if name in SCALAR and case.op.domain:
        return np.vectorize(SCALAR[name], otypes=[case.spec().dtype])
    return STRUCTURAL[name] if name in STRUCTURAL else NUMPY[name]


# ---------------------------------------------------------------- the walk


@pytest.mark.parametrize("name", sorted(registry))
def test_definition_is_complete(name: str) -> None:
    op = registry[name]
    if "suite" in op.exempt:
        assert len(op.exempt["suite"]) > 10
        assert op.kind == "leaf" or op.name in ("identity", "iota")
    else:
        op_checks.check_definition(op)


def test_every_op_has_an_expectation() -> None:
    assert {op.name for op in OPS} == set(NUMPY) | set(STRUCTURAL)
    assert set(NAMES) == {op.name for op in OPS}


@pytest.mark.parametrize("name", NAMES)
def test_reference(name: str) -> None:
    for case in CASES[name]:
        op_checks.check_reference(case, expected_of(case))


@pytest.mark.parametrize("name", NAMES)
def test_first_order(name: str) -> None:
    for case in CASES[name]:
        if case.has_derivative():
            op_checks.check_first_order(case)


@pytest.mark.parametrize("name", NAMES)
def test_second_order(name: str) -> None:
    for case in CASES[name]:
        if case.has_derivative() and "second order" not in case.op.exempt:
            op_checks.check_second_order(case)
            op_checks.check_mixed_orders(case)


@pytest.mark.parametrize("name", NAMES)
def test_float32(name: str) -> None:
    for case in CASES[name]:
        op_checks.check_float32(case)


@pytest.mark.parametrize("name", NAMES)
def test_integer_dtypes(name: str) -> None:
    for case in CASES[name]:
        op_checks.check_integers(case, STRUCTURAL[name] if name in STRUCTURAL else NUMPY[name])


@pytest.mark.parametrize("name", NAMES)
def test_layouts(name: str) -> None:
    for case in CASES[name]:
        op_checks.check_layouts(case)


@pytest.mark.parametrize("name", NAMES)
def test_operands_unchanged(name: str) -> None:
    for case in CASES[name]:
        op_checks.check_operands_unchanged(case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(op.name for op in OPS if op.special))
def test_special_values(name: str, dtype: str) -> None:
    op_checks.check_special(registry[name], NUMPY[name], dtype)


@pytest.mark.parametrize("name", NAMES)
def test_errors(name: str) -> None:
    op_checks.check_errors(registry[name])


@pytest.mark.parametrize("name", sorted(op.name for op in OPS if "derivatives" in op.exempt))
def test_missing_derivative_says_why(name: str) -> None:
    op: Op = registry[name]
    x = Tensor(np.array([1.5, 2.5]))
    with pytest.raises(
        DerivativeError, match=f"{name}: this derivative is not implemented: {op.exempt['derivatives']}"
    ):
        sg.grad(lambda x: sg.sum(op(x)))(x)
    with pytest.raises(DerivativeError, match="not implemented"):
        sg.jvp(op, (x,), (x,))


def test_exemptions_are_needed() -> None:
    for op in OPS:
        if "second order" in op.exempt:
            with pytest.raises(DerivativeError, match="not implemented"):
                op_checks.check_second_order(CASES[op.name][1])


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_zero_dimensional_cases_exist(name: str) -> None:
    shapes = [x.shape for case in CASES[name] for x in case.operands]
    if registry[name].domain:
        assert () in shapes
    assert registry[name].domain == () or any(0 in shape for shape in shapes)
