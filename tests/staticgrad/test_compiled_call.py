"""Derivatives of compiled functions: transforms of them, `backward` through a call, functions inside functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn
from staticgrad.graph.errors import DerivativeError

X = np.array([0.5, -1.0, 2.0])


def close(found: Any, expected: Any) -> None:
    flat, structure = sg.tree_flatten(found)
    wanted, expected_structure = sg.tree_flatten(expected)
    assert structure == expected_structure
    for a, b in zip(flat, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-12)


def scalar(x: Any, scale: Any = 2.0) -> Any:
    return sg.sum(sg.sin(x) * x * scale)


def vector(x: Any) -> Any:
    return sg.tanh(x) * x[::-1] if isinstance(x, np.ndarray) else sg.tanh(x) * sg.flip(x)


# ---------------------------------------------------------------- inlining


def test_a_compiled_function_inside_another_is_part_of_its_program() -> None:
    inner = sg.compile(scalar)
    outer = sg.compile(lambda x: inner(x) + inner(x * 2, scale=1.0))
    close(outer(X), scalar(sg.asarray(X)) + scalar(sg.asarray(X * 2), 1.0))
    assert outer.cache_info().misses == 1
    assert inner.cache_info().misses == 0
    close(inner(X), scalar(sg.asarray(X)))


# ---------------------------------------------------------------- transforms


def along(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: sg.jvp(f, (x,), (sg.ones_like(x),))[1]


def total_grad(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: sg.sum(sg.grad(f)(x))


TRANSFORMS: list[Callable[[Any, Any], Any]] = [
    lambda f, x: sg.grad(f)(x),
    lambda f, x: sg.value_and_grad(f)(x, scale=3.0),
    lambda f, x: sg.jvp(f, (x,), (x * 2,)),
    lambda f, x: sg.grad(total_grad(f))(x),
    lambda f, x: along(sg.grad(f))(x),
    lambda f, x: sg.grad(along(f))(x),
    lambda f, x: along(along(f))(x),
    lambda f, x: sg.vjp(f, x)[1](sg.asarray(2.0, dtype=np.float64)),
]
NAMES = ["grad", "value_and_grad", "jvp", "grad grad", "jvp grad", "grad jvp", "jvp jvp", "vjp"]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=NAMES)
def test_transforms_in_any_order_with_compile(transform: Callable[[Any, Any], Any]) -> None:
    x = sg.asarray(X)
    expected = transform(scalar, x)
    close(transform(sg.compile(scalar), x), expected)
    close(sg.compile(lambda x: transform(scalar, x))(x), expected)
    close(sg.compile(lambda x: transform(sg.compile(scalar), x))(x), expected)


def test_a_transform_of_a_compiled_function_is_compiled() -> None:
    gradient = sg.grad(sg.compile(scalar))
    close(gradient(X), sg.grad(scalar)(X))
    close(sg.grad(lambda x: sg.sum(gradient(x)))(X), sg.grad(total_grad(scalar))(X))
    assert gradient.cache_info().misses == 1  # type: ignore[attr-defined]
    both = sg.value_and_grad(sg.compile(scalar), has_aux=False)
    close(both(X), sg.value_and_grad(scalar)(X))


def test_vjp_and_jvp_of_several_results() -> None:
    def function(a: Any, b: Any) -> Any:
        return {"p": a * b, "q": [sg.sum(a)]}

    a, b = sg.asarray(X), sg.asarray(X + 1)
    cotangent = {"p": sg.asarray(X * 3), "q": [sg.asarray(2.0, dtype=np.float64)]}
    for f in (function, sg.compile(function)):
        out, pullback = sg.vjp(f, a, b)
        close(out, function(a, b))
        close(pullback(cotangent), (X * 3 * (X + 1) + 2, X * 3 * X))
        close(sg.jvp(f, (a, b), (b, a))[1], {"p": (X + 1) ** 2 + X**2, "q": [np.sum(X + 1)]})


# ---------------------------------------------------------------- backward through a call


def test_backward_through_a_call_with_dropout() -> None:
    """Forward compiled, backward and update outside: the gradients are those of the same mask."""
    found = []
    for compiled in (False, True):
        sg.random.manual_seed(2)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))
        run = sg.compile(lambda x, model=model: model(x)) if compiled else model
        x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
        for _ in range(2):  # the second call adds to the gradients
            out = run(sg.asarray(x))
            assert out.requires_grad
            assert not out.is_leaf
            loss = sg.mean(out**2)
            loss.backward()
        found.append([loss.item(), *[np.array(p.grad) for p in model.parameters()], sg.random.get_state()])
    for dynamic, static in zip(*found, strict=True):
        np.testing.assert_allclose(static, dynamic, rtol=2e-5, atol=1e-7)


def test_backward_runs_as_a_program_of_its_own() -> None:
    weight = nn.Parameter(X.copy())
    compiled = sg.compile(lambda x: sg.sum((weight * x) ** 2))
    for i in range(3):
        compiled(X).backward()
        close(weight.grad, (i + 1) * 2 * X**3)
    (pullback,) = compiled.last.pullbacks.values()
    assert pullback.cache_info().misses == 1  # type: ignore[attr-defined]


def test_gradients_of_arguments_and_of_some_results() -> None:
    compiled = sg.compile(lambda a, b: (a * b, sg.exp(a), sg.asarray(b) * 1))
    a, b = sg.asarray(X, copy=True).requires_grad_(), sg.asarray(X + 1, copy=True)
    product, exponential, plain = compiled(a, b)
    assert (product.requires_grad, exponential.requires_grad, plain.requires_grad) == (True, True, False)
    sg.sum(exponential).backward()
    close(a.grad, np.exp(X))
    a.grad = None
    product, exponential, plain = compiled(a, b)
    (sg.sum(product) + sg.sum(exponential * 2)).backward()
    close(a.grad, X + 1 + 2 * np.exp(X))
    assert b.grad is None


def test_a_chain_of_compiled_calls_and_ops() -> None:
    weight = nn.Parameter(X.copy())
    first, second = sg.compile(lambda x: sg.sin(weight * x)), sg.compile(lambda y: sg.sum(y * weight))
    gradients = []
    for f, g in ((first, second), (first.fn, second.fn)):
        weight.grad = None
        x = sg.asarray(X, copy=True).requires_grad_()
        g(f(x) * x).backward()
        gradients.append([np.array(weight.grad), np.array(x.grad)])
    close(gradients[0], gradients[1])


def test_double_backward_through_a_call() -> None:
    weight = nn.Parameter(X.copy())
    compiled = sg.compile(lambda x: sg.sum(sg.sin(weight) * x))
    for f in (compiled, compiled.fn):
        weight.grad = None
        x = sg.asarray(X, copy=True).requires_grad_()
        f(x).backward(create_graph=True)
        penalty = sg.sum(x.grad**2)  # sin(w)^2
        assert penalty.requires_grad
        weight.grad = None
        penalty.backward()
        close(weight.grad, np.sin(2 * X))


def test_backward_twice_needs_retain_graph() -> None:
    weight = nn.Parameter(X.copy())
    compiled = sg.compile(lambda x: sg.sum(weight**2 * x))
    out = compiled(X)
    out.backward(retain_graph=True)
    out.backward()
    close(weight.grad, 2 * 2 * X * X)
    with pytest.raises(DerivativeError, match=r"backward: .*freed by an earlier backward; pass retain_graph=True"):
        out.backward()

    def whole(x: Any) -> Any:
        loss = sg.sum(weight**2 * x)
        loss.backward()
        return loss

    for f in (whole, sg.compile(whole)):
        loss = f(X)
        with pytest.raises(DerivativeError, match=r"backward: .*freed.*retain_graph=True"):
            loss.backward()


def test_an_input_changed_after_the_call() -> None:
    weight = nn.Parameter(X.copy())
    compiled = sg.compile(lambda x: sg.sum(weight**2 * x))
    out = compiled(X)
    with sg.no_grad():
        weight.copy_(X * 2)
    with pytest.raises(
        DerivativeError, match=r"backward: an input of the compiled call \(float64\[3\]\) was changed in"
    ):
        out.backward()
    compiled(X).backward()
    close(weight.grad, 2 * 2 * X * X)


def test_state_that_the_call_itself_writes_is_kept_for_backward() -> None:
    """A running mean that is read and then updated: the gradient is that of the value it had."""
    mean = sg.asarray(np.ones(3))
    weight = nn.Parameter(X.copy())

    def function(x: Any) -> Any:
        out = sg.sum(weight * mean * x)
        mean.copy_(mean * 0.5)
        return out

    compiled = sg.compile(function)
    for expected in (X, X * 0.5, X * 0.25):
        weight.grad = None
        compiled(X).backward()
        close(weight.grad, expected)


def test_no_grad_leaves_no_place_on_the_tape() -> None:
    weight = nn.Parameter(X.copy())
    compiled = sg.compile(lambda x: sg.sum(weight * x))
    with sg.no_grad():
        out = compiled(X)
    assert not out.requires_grad
    with pytest.raises(DerivativeError, match="backward"):
        out.backward()
    assert compiled(X).requires_grad
    inside = sg.compile(lambda x: compiled(x).detach() * 1)
    assert not inside(X).requires_grad


def test_gradcheck_of_a_compiled_function() -> None:
    x = sg.asarray(X, copy=True).requires_grad_()
    assert sg.gradcheck(sg.compile(vector), (x,))


def test_jvp_of_a_compiled_function_is_compiled_once():
    def squares(x):
        return sg.sum(x * x)

    compiled = sg.compile(squares)
    x = sg.asarray([1.0, 2.0])
    for _ in range(3):
        assert sg.jvp(compiled, (x,), (x,))[1].item() == 10.0
    assert compiled.derived("jvp", squares).cache_info().misses == 1


def test_a_failed_call_clears_the_gradients_that_it_may_have_begun_to_write():
    weight = sg.tensor([1.0, 2.0], requires_grad=True)

    @sg.compile
    def step(table, index):
        weight.grad = None
        sg.sum(weight * weight).backward()
        return sg.take(table, index)

    table = np.ones(3, np.float32)
    for _ in range(3):
        step(table, np.array([1]))
    assert weight.grad.numpy().tolist() == [2.0, 4.0]
    with pytest.raises(IndexError):
        step(table, np.array([7]))
    assert weight.grad is None
    step(table, np.array([1]))
    assert weight.grad.numpy().tolist() == [2.0, 4.0]
