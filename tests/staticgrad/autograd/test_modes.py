"""Grad modes, as contexts and as decorators, nested, reused, and each thread with its own."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.graph.errors import DerivativeError
from staticgrad.tensor import Tensor


def leaf(*values: float) -> Tensor:
    return sg.tensor(list(values), dtype="float64", requires_grad=True)


@pytest.mark.parametrize("mode", [sg.no_grad, sg.inference_mode, lambda: sg.set_grad_enabled(False)])
def test_nothing_is_recorded_inside(mode: Any) -> None:
    x = leaf(1.0)
    with mode():
        assert not sg.is_grad_enabled()
        y = x * 2
    assert sg.is_grad_enabled()
    assert not y.requires_grad
    assert (x * 2).requires_grad


def test_enable_grad_inside_no_grad() -> None:
    x = leaf(1.0)
    with sg.no_grad(), sg.enable_grad():
        y = x * 2
    assert y.requires_grad


def test_modes_end_when_an_error_passes() -> None:
    with pytest.raises(ValueError, match="mine"), sg.no_grad():
        raise ValueError("mine")
    assert sg.is_grad_enabled()


def test_one_mode_object_can_be_nested_and_used_again() -> None:
    mode = sg.no_grad()
    with mode:
        with mode:
            assert not sg.is_grad_enabled()
        assert not sg.is_grad_enabled()
    assert sg.is_grad_enabled()
    with mode:
        assert not sg.is_grad_enabled()
    assert sg.is_grad_enabled()


def test_decorators() -> None:
    x = leaf(1.0)

    @sg.no_grad()
    def off(x: Tensor) -> Tensor:
        """Doubled."""
        return x * 2

    @sg.enable_grad()
    def on(x: Tensor) -> Tensor:
        return x * 2

    @sg.set_grad_enabled(False)
    def switched_off(x: Tensor) -> Tensor:
        return x * 2

    @sg.inference_mode()
    def inferring(x: Tensor) -> Tensor:
        return x * 2

    assert sg.is_grad_enabled()
    assert (off.__name__, off.__doc__) == ("off", "Doubled.")
    assert [f(x).requires_grad for f in (off, on, switched_off, inferring)] == [False, True, False, False]
    assert sg.is_grad_enabled()
    with sg.no_grad():
        assert on(x).requires_grad
        assert not sg.is_grad_enabled()


def test_a_decorated_function_may_call_itself() -> None:
    @sg.no_grad()
    def down(x: Tensor, depth: int) -> Tensor:
        return x if depth == 0 else down(x * 2, depth - 1)

    assert not down(leaf(1.0), 5).requires_grad
    assert sg.is_grad_enabled()


def test_set_grad_enabled_acts_at_once() -> None:
    sg.set_grad_enabled(False)
    try:
        assert not sg.is_grad_enabled()
        with sg.set_grad_enabled(True):
            assert sg.is_grad_enabled()
        assert not sg.is_grad_enabled()
    finally:
        sg.set_grad_enabled(True)
    assert sg.is_grad_enabled()


def test_inference_mode_off_changes_nothing() -> None:
    x = leaf(1.0)
    with sg.inference_mode(False):
        assert (x * 2).requires_grad
    with sg.no_grad(), sg.inference_mode(False):
        assert not (x * 2).requires_grad


def test_a_result_of_inference_mode_cannot_be_saved() -> None:
    x = leaf(1.0)
    with sg.inference_mode():
        made = sg.exp(sg.tensor([2.0], dtype="float64"))
        viewed = sg.reshape(made, (1, 1))
    for saved in (made, viewed, made.detach()):
        with pytest.raises(DerivativeError, match=r"mul: operand y .* made under inference_mode\(\)"):
            x * saved
    assert (x + made).requires_grad  # a sum saves nothing
    assert (x * made.astype("float64")).requires_grad
    assert np.asarray(made * 2).tolist() == pytest.approx([2 * np.exp(2)])


def test_a_view_of_an_ordinary_tensor_stays_ordinary() -> None:
    table = sg.tensor([[1.0, 2.0]], dtype="float64")
    with sg.inference_mode():
        row = table[0]
    assert (leaf(1.0, 1.0) * row).requires_grad


def test_each_thread_has_its_own_mode() -> None:
    entered, checked = threading.Event(), threading.Event()
    seen: list[bool] = []

    def other() -> None:
        seen.append(sg.is_grad_enabled())
        with sg.no_grad():
            entered.set()
            checked.wait(10)
            seen.append(sg.is_grad_enabled())

    with sg.no_grad():
        thread = threading.Thread(target=other)
        thread.start()
    entered.wait(10)
    seen.append(sg.is_grad_enabled())
    checked.set()
    thread.join()
    assert seen == [True, True, False]


def test_backward_runs_under_no_grad() -> None:
    x = leaf(2.0)
    y = (x * x).sum()
    with sg.no_grad():
        y.backward()
    assert x.grad is not None
    assert not x.grad.requires_grad
    assert sg.is_grad_enabled()


def test_the_mode_is_put_back_when_backward_fails() -> None:
    with pytest.raises(DerivativeError, match="not implemented"):
        sg.digamma(leaf(1.0)).sum().backward()
    assert sg.is_grad_enabled()
