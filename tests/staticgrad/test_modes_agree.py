"""Every op, compiled: the cases of the registry's suite and their gradients, against the dynamic run.

Ops whose kernels do the same arithmetic as NumPy must give the same bits. The vector maths may differ from NumPy's by
the few units in the last place that docs/vector_math.md lists; sums and products may be added up in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import op_checks
import pytest
from op_checks import Case

import staticgrad as sg
from staticgrad.graph.errors import DTypeError, IndexRangeError
from staticgrad.graph.node import Spec
from staticgrad.graph.op import Op, registry
from staticgrad.tensor import Tensor

Array = np.ndarray[Any, Any]

CASES = op_checks.grouped(op_checks.cases())
NAMES = sorted(CASES)
NEAR_ZERO = {"lgamma", "digamma", "gelu"}  # near their zeros only the absolute error is small
REORDERED = {"sum", "prod", "matmul", "cumulative_sum", "scatter_add", "scatter_add_along_axis"}
VECTOR_MATHS = {
    *(
        "acos",
        "acosh",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cbrt",
        "cos",
        "cosh",
        "digamma",
        "erf",
        "erfc",
        "exp",
        "gelu",
    ),
    *("exp2", "expm1", "lgamma", "log", "log10", "log1p", "log2", "pow", "sigmoid", "sin", "sinh", "tan", "tanh"),
}
VALUE_ULPS = 4  # of a function of the vector maths, against NumPy's, which has an error of its own
GRADIENT_ULPS = 64  # of the largest element: a gradient composes several ops and sums over broadcast axes


def with_gradients(case: Case) -> Callable[[Sequence[Any], Any], tuple[Tensor, ...]]:
    """The function from a case's operands and a cotangent to its result and its gradients."""
    varied = case.varied() if case.has_derivative() else []

    def function(operands: Sequence[Any], cotangent: Any) -> tuple[Tensor, ...]:
        def smooth(*moved: Tensor) -> Tensor:
            full = list(operands)
            for i, x in zip(varied, moved, strict=True):
                full[i] = x
            return case.call(*full)

        if not varied:
            return (case.call(*operands),)
        out, pullback = sg.vjp(smooth, *[operands[i] for i in varied])
        return (out, *pullback(cotangent))

    return function


def run_both(found: Sequence[Case]) -> list[tuple[Case, list[Array], list[Array]]]:
    """(case, dynamic arrays, static arrays) of all cases, compiled as one program."""
    functions = [with_gradients(case) for case in found]
    rng = np.random.default_rng(5)
    arguments = []
    for case in found:
        spec = case.spec()
        cotangent = Tensor(rng.standard_normal(spec.shape).astype(spec.dtype)) if spec.dtype.kind == "f" else None
        arguments.append(([Tensor(x.copy()) for x in case.operands], cotangent))

    def whole(arguments: Any) -> Any:
        return [function(*given) for function, given in zip(functions, arguments, strict=True)]

    dynamic, static = whole(arguments), sg.compile(whole)(arguments)
    return [
        (case, [np.asarray(x) for x in a], [np.asarray(x) for x in b])
        for case, a, b in zip(found, dynamic, static, strict=True)
    ]


def check_agreement(case: Case, dynamic: Sequence[Array], static: Sequence[Array]) -> None:
    """The first array is the result, the others are gradients."""
    assert [(x.shape, x.dtype) for x in dynamic] == [(x.shape, x.dtype) for x in static], str(case)
    check_value(case, dynamic[0], static[0])
    for a, b in zip(dynamic[1:], static[1:], strict=True):
        scale = max(1.0, float(np.max(np.abs(a), initial=0)))
        np.testing.assert_allclose(b, a, rtol=0, atol=GRADIENT_ULPS * np.finfo(a.dtype).eps * scale, err_msg=str(case))


def check_value(case: Case, dynamic: Array, static: Array) -> None:
    name = case.op.name
    if dynamic.dtype.kind != "f" or name not in VECTOR_MATHS | REORDERED:
        np.testing.assert_array_equal(static, dynamic, err_msg=str(case))
        if dynamic.dtype.kind == "f":
            known = ~np.isnan(dynamic)
            np.testing.assert_array_equal(np.signbit(static[known]), np.signbit(dynamic[known]), err_msg=str(case))
        return
    eps = float(np.finfo(dynamic.dtype).eps)
    scale = float(np.max(np.abs(dynamic[np.isfinite(dynamic)]), initial=1)) if name in REORDERED | NEAR_ZERO else 0.0
    np.testing.assert_allclose(static, dynamic, rtol=VALUE_ULPS * eps, atol=VALUE_ULPS * eps * scale, err_msg=str(case))


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name: str) -> None:
    for case, dynamic, static in run_both(CASES[name]):
        check_agreement(case, dynamic, static)


@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes(name: str) -> None:
    """The first case with elements, in float32 and in every integer dtype that the op takes."""
    first = next(case for case in CASES[name] if any(x.size > 1 for x in case.operands))
    found = list(in_other_dtypes(first))
    for case, dynamic, static in run_both(found) if found else ():
        check_agreement(case, dynamic, static)


def in_other_dtypes(case: Case) -> list[Case]:
    floating = [i for i, x in enumerate(case.operands) if x.dtype == np.float64]
    if not floating or "dtype" in case.attributes:
        return []
    found = []
    for dtype in ("float32", *op_checks.INTEGERS):
        operands = list(case.operands)
        for i in floating:
            operands[i] = operands[i].astype(dtype) if dtype == "float32" else whole_numbers(operands[i], dtype)
        try:
            case.op.infer([Spec(x.shape, x.dtype) for x in operands], case.attributes)
        except DTypeError:
            continue
        found.append(Case(case.op, tuple(operands), case.attributes))
    return found


def whole_numbers(x: Array, dtype: str) -> Array:
    whole = np.rint(x * 3)
    return np.where(whole == 0, 1, np.abs(whole) if dtype[0] == "u" else whole).astype(dtype)


@pytest.mark.parametrize("name", sorted(name for name in NAMES if registry[name].special))
def test_special_values(name: str) -> None:
    op: Op = registry[name]
    found = []
    for dtype in ("float32", "float64"):
        values = np.array(op.special, dtype)
        typed = [i for i in range(len(op.operands)) if i not in op.free]
        grids = iter(np.meshgrid(*[values] * len(typed), indexing="ij"))
        found.append(
            Case(
                op,
                tuple(
                    next(grids).copy() if i in typed else np.arange(len(values)) % 2 == 0
                    for i in range(len(op.operands))
                ),
            )
        )
    for case, dynamic, static in run_both(found):
        check_value(case, dynamic[0], static[0])


@pytest.mark.parametrize("name", NAMES)
def test_index_errors(name: str) -> None:
    op: Op = registry[name]
    for sample in op.errors:
        if sample.error is IndexRangeError:
            compiled = sg.compile(lambda *operands, op=op, sample=sample: op(*operands, **sample.attributes))
            with pytest.raises(IndexRangeError, match=sample.match):
                compiled(*[Tensor(np.asarray(x)) for x in sample.operands])
