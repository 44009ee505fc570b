"""Hooks: their order, what they may replace, removal, and gradients kept for computed tensors."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.autograd import grad
from staticgrad.graph.errors import DerivativeError, ShapeError
from staticgrad.tensor import Tensor


def leaf(*values: float) -> Tensor:
    return sg.tensor(list(values), dtype="float64", requires_grad=True)


def test_hooks_run_in_order_and_each_sees_what_the_last_returned() -> None:
    x = leaf(1.0)
    seen: list[Any] = []
    x.register_hook(lambda g: seen.append(("first", g.tolist())))
    x.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: seen.append(("third", g.tolist())))
    (x * 2).sum().backward()
    assert seen == [("first", [2.0]), ("third", [20.0])]
    assert x.grad is not None
    assert x.grad.tolist() == [20.0]


def test_a_hook_sees_the_whole_gradient_once() -> None:
    x = leaf(3.0)
    y = x * x
    seen: list[Any] = []
    y.register_hook(lambda g: seen.append(g.tolist()))
    (y * 2 + y * y).sum().backward()
    assert seen == [[20.0]]


def test_a_replaced_gradient_flows_on() -> None:
    x = leaf(3.0)
    y = x * 2
    y.register_hook(lambda g: g * 0 + 1)
    (y * y).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0]


def test_hooks_run_for_grad_too() -> None:
    x = leaf(3.0)
    y = x * 2
    x.register_hook(lambda g: g + 1)
    y.register_hook(lambda g: g * 10)
    of_y, of_x = grad(y.sum(), [y, x])
    assert of_y is not None
    assert of_x is not None
    assert (of_y.tolist(), of_x.tolist()) == ([10.0], [21.0])


def test_removal() -> None:
    x = leaf(1.0)
    seen: list[str] = []
    handle = x.register_hook(lambda g: seen.append("a"))
    with x.register_hook(lambda g: seen.append("b")):
        (x * 2).sum().backward()
    (x * 2).sum().backward()
    handle.remove()
    handle.remove()
    (x * 2).sum().backward()
    assert seen == ["a", "b", "a"]


def test_a_hook_may_remove_itself() -> None:
    x = leaf(1.0)
    seen: list[int] = []
    handles: list[Any] = []

    def once(g: Tensor) -> None:
        seen.append(1)
        handles[0].remove()

    handles.append(x.register_hook(once))
    x.register_hook(lambda g: seen.append(2))
    (x * 2).sum().backward()
    (x * 2).sum().backward()
    assert seen == [1, 2, 2]


def test_post_accumulate_hooks_see_the_tensor_with_its_gradient() -> None:
    x = leaf(1.0)
    seen: list[Any] = []
    x.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.tolist()))
    handle = x.register_post_accumulate_grad_hook(lambda t: setattr(t, "grad", None))
    (x * 2).sum().backward()
    assert x.grad is None
    handle.remove()
    (x * 3).sum().backward()
    (x * 3).sum().backward()
    assert seen == [[2.0], [3.0], [6.0]]


def test_a_step_inside_a_post_accumulate_hook() -> None:
    x = leaf(1.0)

    def step(t: Tensor) -> None:
        with sg.no_grad():
            t.copy_(t - 0.5 * t.grad)
        t.grad = None

    x.register_post_accumulate_grad_hook(step)
    (x * x).sum().backward()
    assert x.detach().tolist() == [0.0]


def test_retain_grad() -> None:
    x = leaf(2.0)
    y = x * x
    y.retain_grad()
    y.retain_grad()
    (y * 3).sum().backward(retain_graph=True)
    assert y.grad is not None
    assert y.grad.tolist() == [3.0]
    (y * 3).sum().backward()
    assert y.grad.tolist() == [6.0]
    x.retain_grad()  # a leaf has its gradient anyway


def test_a_retained_gradient_is_taken_after_the_hooks() -> None:
    y = leaf(2.0) * 1
    y.register_hook(lambda g: g * 5)
    y.retain_grad()
    y.sum().backward()
    assert y.grad is not None
    assert y.grad.tolist() == [5.0]


def test_retaining_keeps_no_tensor_alive() -> None:
    y = leaf(2.0) * 2
    y.retain_grad()
    total, held = (y + 1).sum(), weakref.ref(y)
    del y
    gc.collect()
    assert held() is None
    total.backward()


def test_errors() -> None:
    x, constant = leaf(1.0), sg.tensor([1.0])
    with pytest.raises(DerivativeError, match="register_hook: the tensor does not require grad"):
        constant.register_hook(print)
    with pytest.raises(DerivativeError, match="retain_grad: the tensor does not require grad"):
        constant.retain_grad()
    with pytest.raises(DerivativeError, match="only leaves accumulate"):
        (x * 2).register_post_accumulate_grad_hook(print)
    with pytest.raises(TypeError, match="must be callable; got int"):
        x.register_hook(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [np.ones(1), 3.0])
def test_a_hook_must_return_a_gradient(wrong: Any) -> None:
    x = leaf(1.0)
    x.register_hook(lambda g: wrong)
    with pytest.raises(ShapeError, match=r"hook: must return None or a gradient of float64\[1\]"):
        (x * 2).sum().backward()


def test_a_hook_must_keep_the_shape() -> None:
    y = leaf(1.0, 2.0) * 2
    y.register_hook(lambda g: g.sum())
    with pytest.raises(ShapeError, match=r"float64\[2\]"):
        y.sum().backward()


def test_an_error_in_a_hook_reaches_the_caller() -> None:
    x = leaf(1.0)

    def fails(g: Tensor) -> None:
        raise RuntimeError("mine")

    x.register_hook(fails)
    with pytest.raises(RuntimeError, match="mine"):
        (x * 2).sum().backward()


def test_hooks_take_part_in_higher_orders() -> None:
    x = leaf(2.0)
    y = x * x
    with y.register_hook(lambda g: g * y):
        (first,) = grad(y.sum(), x, create_graph=True)  # y * 2x = 2x³
    assert first is not None
    (second,) = grad(first.sum(), x)
    assert second is not None
    assert second.tolist() == [24.0]
