"""gradcheck and gradgradcheck: what passes, what fails, and what they ask of their inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.autograd import gradcheck, gradgradcheck
from staticgrad.graph.errors import DerivativeError, DTypeError
from staticgrad.tensor import Tensor


def leaf(*values: float, dtype: str = "float64") -> Tensor:
    return sg.tensor(list(values), dtype=dtype, requires_grad=True)


CHECKS = [gradcheck, gradgradcheck]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: sg.exp(x) * y,
        lambda x, y: (x * y).sum(),
        lambda x, y: {"a": x / y, "b": [sg.sin(x), sg.argmax(y)]},
        lambda x, y: sg.softmax(x) @ sg.log_softmax(y),
        lambda x, y: x * 1.0,
    ],
)
def test_right_derivatives_pass(check: Any, function: Any) -> None:
    assert check(function, [leaf(0.3, -0.7), leaf(1.5, 0.8)])


@pytest.mark.parametrize("check", CHECKS)
def test_inputs_that_are_held(check: Any) -> None:
    table, index = sg.tensor([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 0])
    assert check(lambda x, t, i, n: sg.take(x, i, axis=0) * t.astype("float64") * n, [leaf(0.3, 0.4), table, index, 3])
    assert check(sg.tanh, leaf(0.3, 0.4))


def broken(x: Tensor) -> Tensor:
    """A cube whose derivative forgets one factor."""
    return x * x * x.detach()


def broken_twice(x: Tensor) -> Tensor:
    """Right values and first derivatives of x², but no second ones."""
    return x.detach() * x * 2 - (x * x).detach()


def test_wrong_derivatives_fail() -> None:
    with pytest.raises(DerivativeError, match=r"reverse mode of input 0 differs from five-point differences at \(0,\)"):
        gradcheck(broken, [leaf(0.5, 2.0)])
    assert not gradcheck(broken, [leaf(0.5, 2.0)], raise_exception=False)
    assert gradcheck(broken_twice, [leaf(0.5, 2.0)])
    with pytest.raises(DerivativeError, match="five-point differences"):
        gradgradcheck(broken_twice, [leaf(0.5, 2.0)])
    assert not gradgradcheck(broken_twice, [leaf(0.5, 2.0)], raise_exception=False)


def test_a_discontinuity_fails() -> None:
    assert gradcheck(sg.floor, [leaf(0.5)])
    assert not gradcheck(sg.floor, [leaf(1.001)], raise_exception=False)


@pytest.mark.parametrize("check", CHECKS)
def test_what_it_asks_of_inputs(check: Any) -> None:
    with pytest.raises(DerivativeError, match="nothing to check"):
        check(sg.exp, [sg.tensor([1.0])])
    with pytest.raises(DTypeError, match="float64; input 1 is float32"):
        check(lambda x, y: x, [leaf(1.0), leaf(1.0, dtype="float32")])


def test_inputs_are_left_as_they_were() -> None:
    x = leaf(0.5, 2.0)
    gradcheck(sg.exp, [x])
    assert x.grad is None
    assert x.detach().tolist() == [0.5, 2.0]


def test_forward_mode_can_be_left_out() -> None:
    calls: list[bool] = []

    def function(x: Tensor) -> Tensor:
        calls.append(x._tangents is not None)
        return sg.exp(x)

    assert gradcheck(function, [leaf(0.5)], check_forward_ad=False)
    assert not any(calls)
    assert gradcheck(function, [leaf(0.5)])
    assert any(calls)
