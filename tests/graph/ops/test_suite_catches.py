"""The suite is tested: each mistake, put into a private copy of an op, must make a check fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import op_checks
import pytest
from op_checks import Case

from staticgrad.autograd import tape
from staticgrad.graph.errors import DerivativeError, ShapeError
from staticgrad.graph.op import ErrorSample, NotImplementedRule, Op, Sample, registry

FAILURE = (AssertionError, DerivativeError)


def private(name: str, **changes: Any) -> Op:
    """A copy of a registered op with some fields changed; the registry does not know it."""
    return replace(registry[name], **changes)


def of(op: Op) -> Case:
    """A case whose operands are broadcast, where the op has two."""
    found = [case for case in op_checks.cases([op]) if case.has_derivative() and all(x.size > 1 for x in case.operands)]
    return next((case for case in found if len({x.shape for x in case.operands}) > 1), found[0])


def scaled(rule: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """The rule with its answer off by `factor`."""

    def wrong(change: Any, **saved: Any) -> Any:
        return rule(change, **saved) * factor

    wrong.__signature__ = inspect.signature(rule)  # type: ignore[attr-defined]
    return wrong


def first_order_only(change: Any, *, out: Any) -> Any:
    """The derivative of exp, from a value that does not vary."""
    return change * out.detach()


SOME = ["exp", "tanh", "mul", "div", "pow", "sum", "prod", "max", "matmul", "take", "slice", "embed", "cumulative_sum"]


@pytest.mark.parametrize("name", SOME)
def test_the_ops_themselves_pass(name: str) -> None:
    case = of(private(name))
    op_checks.check_first_order(case)
    op_checks.check_second_order(case)
    op_checks.check_mixed_orders(case)


@pytest.mark.parametrize("name", SOME)
def test_reverse_rule_off_by_a_thousandth(name: str) -> None:
    op = registry[name]
    wrong = private(name, vjp=(scaled(op.vjp[0], 1.001), *op.vjp[1:]))
    with pytest.raises(FAILURE, match="reverse mode of input 0 differs"):
        op_checks.check_first_order(of(wrong))


@pytest.mark.parametrize("name", [name for name in SOME if registry[name].linear == "no"])
def test_forward_rule_off_by_a_thousandth(name: str) -> None:
    op = registry[name]
    wrong = private(name, jvp=(scaled(op.jvp[0], 1.001), *op.jvp[1:]))
    with pytest.raises(FAILURE, match="forward and reverse mode differ"):
        op_checks.check_first_order(of(wrong))


@pytest.mark.parametrize("field", ["vjp", "jvp"])
def test_wrong_second_derivative(field: str) -> None:
    case = of(private("exp", **{field: (first_order_only,)}))
    op_checks.check_first_order(case)
    with pytest.raises(FAILURE):
        op_checks.check_second_order(case) if field == "vjp" else op_checks.check_mixed_orders(case)


def test_wrong_second_derivative_in_both_modes() -> None:
    case = of(private("exp", vjp=(first_order_only,), jvp=(first_order_only,)))
    op_checks.check_first_order(case)
    with pytest.raises(FAILURE, match="five-point differences"):
        op_checks.check_second_order(case)


@pytest.mark.parametrize("name", ["div", "pow", "atan2", "sub", "maximum"])
def test_two_cotangents_swapped(name: str) -> None:
    op = registry[name]
    wrong = private(name, vjp=op.vjp[::-1], jvp=op.jvp[::-1])
    with pytest.raises(FAILURE, match="five-point differences"):
        op_checks.check_first_order(of(wrong))


@pytest.mark.parametrize("name", ["add", "mul", "select"])
def test_no_sum_over_broadcast_axes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = of(private(name))
    op_checks.check_first_order(case)
    monkeypatch.setattr(tape, "sum_to", lambda cotangent, shape: cotangent)
    with pytest.raises(FAILURE, match="has shape"):
        op_checks.check_first_order(case)


def test_derivative_that_is_a_silent_zero() -> None:
    def nothing(change: Any) -> Any:
        return change * 0

    with pytest.raises(FAILURE):
        op_checks.check_first_order(of(private("tanh", vjp=(nothing,), jvp=(nothing,))))


def test_wrong_values() -> None:
    case = of(private("exp", reference=lambda x: np.exp(x) * (1 + 1e-12)))
    with pytest.raises(FAILURE):
        op_checks.check_reference(case, np.exp)


def test_wrong_shape() -> None:
    case = of(private("sum", reference=lambda x, *, axis: np.sum(x, axis=axis, keepdims=True)))
    with pytest.raises(FAILURE):
        op_checks.check_reference(case, lambda x, *, axis: np.sum(x, axis=axis))


def test_float32_widened() -> None:
    op = private(
        "sum",
        infer=lambda specs, attributes: registry["sum"].infer(specs, attributes)._replace(dtype=np.dtype(np.float64)),
    )
    with pytest.raises(FAILURE):
        op_checks.check_float32(of(op))


def test_wrong_in_one_integer_dtype() -> None:
    def wraps_late(x: Any) -> Any:
        return x * x if x.dtype != np.int8 else np.minimum(x.astype(np.int64) ** 2, 7).astype(np.int8)

    with pytest.raises(FAILURE, match="int8"):
        op_checks.check_integers(of(private("square", reference=wraps_late)), np.square)


def test_operand_written() -> None:
    def reference(x: Any) -> Any:
        x *= -1
        return x

    with pytest.raises((ValueError, AssertionError)):
        op_checks.check_operands_unchanged(of(private("neg", reference=reference)))


def test_result_that_is_the_operand() -> None:
    with pytest.raises(FAILURE, match="shares"):
        op_checks.check_operands_unchanged(of(private("cumulative_sum", reference=lambda x, **_: x)))


def test_layout_taken_for_contiguous() -> None:
    def reference(x: Any, *, axis: Any) -> Any:
        return np.sum(np.lib.stride_tricks.as_strided(x, x.shape, np.zeros(x.shape).strides), axis=axis)

    with pytest.raises(FAILURE):
        op_checks.check_layouts(of(private("sum", reference=reference)))


def test_wrong_at_a_special_value() -> None:
    op = private("exp", reference=lambda x: np.where(np.isneginf(x), 1.0, np.exp(x)))
    with pytest.raises(FAILURE):
        op_checks.check_special(op, np.exp, "float64")


def test_wrong_sign_of_zero() -> None:
    op = private("neg", reference=lambda x: 0 - x)
    with pytest.raises(FAILURE):
        op_checks.check_special(op, np.negative, "float64")


@pytest.mark.parametrize(
    "sample",
    [
        ErrorSample((np.ones(3),), {}, ShapeError, "broadcast"),  # nothing is wrong with the call
        ErrorSample((np.ones(3, np.int32),), {}, TypeError, "another message"),
        ErrorSample((np.ones(3, np.int32),), {}, ShapeError, "dtype"),
    ],
)
def test_error_that_does_not_come(sample: ErrorSample) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, TypeError)):
        op_checks.check_errors(private("exp", errors=(sample,)))


INCOMPLETE: Mapping[str, dict[str, Any]] = {
    "samples": {"domain": (), "samples": None},
    "error samples": {"errors": ()},
    "reverse answer": {"vjp": ()},
    "forward answer": {"jvp": ()},
    "special": {"special": ()},
    "missing must be in exempt": {"vjp": (NotImplementedRule("not yet"),)},
    "no checks": {"exempt": {"everything": "because it is hard to get right"}},
    "its reason": {"exempt": {"second order": "no"}},
}


@pytest.mark.parametrize("match", INCOMPLETE)
def test_incomplete_definition(match: str) -> None:
    op_checks.check_definition(private("exp"))
    with pytest.raises(AssertionError, match=match):
        op_checks.check_definition(private("exp", **INCOMPLETE[match]))


def test_cases_hold_what_the_checks_need() -> None:
    sample = Sample((np.ones(3),), {"axis": (0,)})
    assert [str(case) for case in op_checks.cases([private("sum", samples=lambda: [sample])])] == [
        "sum(float64[3], axis=(0,))"
    ]
    shapes = {tuple(x.shape for x in case.operands) for case in op_checks.cases([registry["add"]])}
    assert {((), ()), ((2, 1), (1, 3)), ((0, 3), (1, 3))} <= shapes
