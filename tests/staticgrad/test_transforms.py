"""grad, value_and_grad, vjp, jvp: arguments, trees, compositions, and no confusion between nested ones."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.graph.errors import DerivativeError, DTypeError, ShapeError
from staticgrad.tensor import Tensor


def f64(*values: float) -> Tensor:
    return sg.tensor(list(values), dtype="float64")


def number(value: float) -> Tensor:
    return sg.tensor(value, dtype="float64")


def cube(x: Tensor) -> Tensor:
    return (x**3).sum()


# ---------------------------------------------------------------- grad and value_and_grad


def test_grad_and_value() -> None:
    assert sg.grad(cube)(f64(1.0, 2.0)).tolist() == [3.0, 12.0]
    value, found = sg.value_and_grad(cube)(f64(1.0, 2.0))
    assert (value.item(), found.tolist()) == (9.0, [3.0, 12.0])
    assert not value.requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("argnums", "expected"),
    [
        (0, [6.0]),
        (1, [2.0]),
        (-1, [2.0]),
        (-2, [6.0]),
        ((0,), ([6.0],)),
        ((0, 1), ([6.0], [2.0])),
        ([1, 0], ([2.0], [6.0])),
        ((-1, 0), ([2.0], [6.0])),
    ],
)
def test_argnums(argnums: Any, expected: Any) -> None:
    found = sg.grad(lambda x, y: (x * y * 2).sum(), argnums)(f64(1.0), f64(3.0))
    assert (found.tolist() if isinstance(found, Tensor) else tuple(g.tolist() for g in found)) == expected


def test_wrong_argnums() -> None:
    with pytest.raises(DerivativeError, match="argnums 2 but the function was called with 1 arguments"):
        sg.grad(cube, 2)(f64(1.0))
    with pytest.raises(DerivativeError, match="argnums -2"):
        sg.grad(cube, -2)(f64(1.0))
    with pytest.raises(DerivativeError, match="name each argument once"):
        sg.grad(lambda x, y: cube(x), (0, -2))(f64(1.0), f64(1.0))


def test_auxiliary_results() -> None:
    def loss(x: Tensor) -> Any:
        y = x * x
        return y.sum(), {"y": y, "note": "text"}

    found, aux = sg.grad(loss, has_aux=True)(f64(3.0))
    assert found.tolist() == [6.0]
    assert (aux["y"].tolist(), aux["note"], aux["y"].requires_grad) == ([9.0], "text", False)
    (value, aux), found = sg.value_and_grad(loss, has_aux=True)(f64(3.0))
    assert (value.item(), aux["y"].tolist(), found.tolist()) == (9.0, [9.0], [6.0])


Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Layer:
    weight: Tensor
    bias: Tensor


def test_arguments_may_be_trees() -> None:
    tree = {"layers": [Layer(f64(2.0), f64(3.0))], "pair": Pair(f64(4.0), (f64(5.0), None))}

    def loss(t: Any) -> Tensor:
        layer = t["layers"][0]
        return (layer.weight * layer.bias * t["pair"].left + t["pair"].right[0]).sum()

    found = sg.grad(loss)(tree)
    assert isinstance(found["layers"][0], Layer)
    assert isinstance(found["pair"], Pair)
    assert found["layers"][0].weight.tolist() == [12.0]
    assert found["layers"][0].bias.tolist() == [8.0]
    assert found["pair"].left.tolist() == [6.0]
    assert found["pair"].right[0].tolist() == [1.0]
    assert found["pair"].right[1] is None


def test_keywords_are_passed_on() -> None:
    assert sg.grad(lambda x, *, factor: (x * factor).sum())(f64(1.0), factor=4.0).tolist() == [4.0]


def test_arrays_and_numbers_as_arguments() -> None:
    assert sg.grad(cube)(np.array([2.0])).tolist() == [12.0]
    assert sg.grad(lambda x: x * x)(3.0).item() == 6.0


def test_an_argument_that_is_not_used() -> None:
    assert sg.grad(lambda x, y: cube(x), 1)(f64(1.0), f64(5.0, 6.0)).tolist() == [0.0, 0.0]
    assert sg.grad(lambda x: number(1.0))(f64(1.0)).tolist() == [0.0]


def test_what_grad_refuses() -> None:
    with pytest.raises(DTypeError, match=r"floating arguments; got int64\[1\]; convert with astype"):
        sg.grad(cube)(sg.tensor([1]))
    with pytest.raises(DerivativeError, match=r"one floating element; got float64\[2\]; use sg.vjp"):
        sg.grad(lambda x: x * 2)(f64(1.0, 2.0))
    with pytest.raises(DerivativeError, match="one floating element; got int64"):
        sg.grad(lambda x: sg.argmax(x))(f64(1.0, 2.0))
    with pytest.raises(DerivativeError, match="one floating element; got float"):
        sg.grad(lambda x: 3.0)(f64(1.0))


def test_grad_leaves_no_grad_attributes_and_works_under_no_grad() -> None:
    x = sg.tensor([2.0], dtype="float64", requires_grad=True)
    with sg.no_grad():
        assert sg.grad(cube)(x).tolist() == [12.0]
    assert x.grad is None


def test_no_grad_inside_stops_derivatives() -> None:
    def loss(x: Tensor) -> Tensor:
        with sg.no_grad():
            constant = x * 10
        return (constant * x).sum()

    assert sg.grad(loss)(f64(2.0)).tolist() == [20.0]


def test_outer_backward_reaches_through_grad() -> None:
    x = sg.tensor([2.0], dtype="float64", requires_grad=True)
    sg.grad(cube)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [12.0]


def test_a_closure_over_a_tensor_that_requires_grad() -> None:
    w = sg.tensor([3.0], dtype="float64", requires_grad=True)
    sg.grad(lambda x: (x * x * w).sum())(f64(2.0)).sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [4.0]


def test_stop_gradient() -> None:
    assert sg.grad(lambda x: (x * sg.stop_gradient(x)).sum())(f64(3.0)).tolist() == [3.0]
    _, tangent = sg.jvp(lambda x: x * sg.stop_gradient(x), (f64(3.0),), (f64(1.0),))
    assert tangent.tolist() == [3.0]


# ---------------------------------------------------------------- vjp and jvp


def test_vjp_of_trees() -> None:
    def function(x: Tensor, pair: Any) -> Any:
        return {"sum": x + pair[0], "product": [x * pair[1]]}

    out, pullback = sg.vjp(function, f64(2.0), (f64(3.0), f64(4.0)))
    assert (out["sum"].tolist(), out["product"][0].tolist()) == ([5.0], [8.0])
    of_x, (of_a, of_b) = pullback({"sum": f64(1.0), "product": [f64(10.0)]})
    assert (of_x.tolist(), of_a.tolist(), of_b.tolist()) == ([41.0], [1.0], [20.0])
    again, _ = pullback({"sum": f64(0.0), "product": [f64(1.0)]})
    assert again.tolist() == [4.0]


def test_vjp_errors() -> None:
    out, pullback = sg.vjp(lambda x: (x, x * 2), f64(1.0, 2.0))
    with pytest.raises(DerivativeError, match="the result's structure"):
        pullback(f64(1.0, 1.0))
    with pytest.raises(ShapeError, match=r"must have shape \(2,\); got \(1,\)"):
        pullback((f64(1.0), f64(1.0)))
    with pytest.raises(DTypeError, match="dtype float64; got float32"):
        pullback((out[0], sg.tensor([1.0, 2.0], dtype="float32")))
    with pytest.raises(DerivativeError, match="must return tensors; got str"):
        sg.vjp(lambda x: "text", f64(1.0))
    with pytest.raises(DTypeError, match="vjp: derivatives are taken for floating"):
        sg.vjp(lambda x: x, sg.tensor([1]))


def test_vjp_with_an_integer_result() -> None:
    out, pullback = sg.vjp(lambda x: (x * 2, sg.argmax(x)), f64(1.0, 2.0))
    assert pullback((f64(1.0, 1.0), out[1] * 0))[0].tolist() == [2.0, 2.0]


def test_jvp_of_trees() -> None:
    def function(t: Any) -> Any:
        return [t["a"] * t["b"], t["a"].sum()]

    out, tangent = sg.jvp(function, ({"a": f64(2.0), "b": f64(3.0)},), ({"a": f64(1.0), "b": f64(10.0)},))
    assert [x.tolist() for x in out] == [[6.0], 2.0]
    assert [x.tolist() for x in tangent] == [[23.0], 1.0]


def test_jvp_of_what_does_not_vary() -> None:
    out, tangent = sg.jvp(lambda x: (f64(5.0), sg.floor(x)), (f64(1.5),), (f64(1.0),))
    assert [x.tolist() for x in tangent] == [[0.0], [0.0]]
    assert out[0].tolist() == [5.0]


def test_jvp_errors() -> None:
    with pytest.raises(DerivativeError, match="structure of primals"):
        sg.jvp(cube, (f64(1.0),), (f64(1.0), f64(1.0)))
    with pytest.raises(ShapeError, match=r"tangent must have shape \(1,\); got \(2,\)"):
        sg.jvp(cube, (f64(1.0),), (f64(1.0, 2.0),))
    with pytest.raises(DTypeError, match="tangent must have dtype float64"):
        sg.jvp(cube, (f64(1.0),), (sg.tensor([1.0], dtype="float32"),))
    with pytest.raises(DTypeError, match="jvp: derivatives are taken for floating"):
        sg.jvp(cube, (sg.tensor([1]),), (sg.tensor([1]),))
    with pytest.raises(DerivativeError, match="must return tensors; got str"):
        sg.jvp(lambda x: "text", (f64(1.0),), (f64(1.0),))


def test_concat_with_operands_that_do_not_vary() -> None:
    fixed = f64(np.inf, np.nan)
    _, tangent = sg.jvp(lambda x: sg.concat([fixed, x]), (f64(1.0),), (f64(2.0),))
    assert tangent.tolist() == [0.0, 0.0, 2.0]


def test_tangents_broadcast_with_their_operands() -> None:
    column, row = sg.reshape(f64(1.0, 2.0), (2, 1)), f64(3.0, 4.0, 5.0)
    _, tangent = sg.jvp(lambda x, y: x + y, (column, row), (column, row))
    assert tangent.tolist() == [[4.0, 5.0, 6.0], [5.0, 6.0, 7.0]]


# ---------------------------------------------------------------- compositions


def along(f: Any) -> Any:
    """The derivative of a function of one number, by forward mode."""
    return lambda x: sg.jvp(f, (x,), (number(1.0),))[1]


@pytest.mark.parametrize("first", [sg.grad, along])
@pytest.mark.parametrize("second", [sg.grad, along])
@pytest.mark.parametrize("third", [sg.grad, along])
@pytest.mark.parametrize(
    ("f", "derivatives"),
    [
        (lambda x: sg.exp(x) * x, lambda x, n: np.exp(x) * (x + n)),
        (lambda x: sg.tanh(x), lambda x, n: [1, -2 * np.tanh(x)][n - 1] / np.cosh(x) ** 2 if n < 3 else None),
        (lambda x: x**5, lambda x, n: [5 * x**4, 20 * x**3, 60 * x**2][n - 1]),
        (lambda x: 1 / x, lambda x, n: [-1, 2, -6][n - 1] / x ** (n + 1)),
        (lambda x: sg.sqrt(x), lambda x, n: [0.5, -0.25, 0.375][n - 1] * x ** (0.5 - n)),
    ],
)
def test_three_orders_in_every_composition(first: Any, second: Any, third: Any, f: Any, derivatives: Any) -> None:
    x = number(0.7)
    orders = [first(f), second(first(f)), third(second(first(f)))]
    for n, derivative in enumerate(orders, 1):
        expected = derivatives(0.7, n)
        if expected is not None:
            np.testing.assert_allclose(derivative(x).item(), expected, rtol=1e-12)


@pytest.mark.parametrize("outer", [sg.grad, along])
@pytest.mark.parametrize("inner", [sg.grad, along])
def test_perturbations_are_not_confused(outer: Any, inner: Any) -> None:
    """Siskind and Pearlmutter, "Confusing the tangent for the perturbation": d/dx (x · d/dy (x + y)) = 1, not 2."""
    assert outer(lambda x: x * inner(lambda y: x + y)(number(1.0)))(number(1.0)).item() == 1.0
    assert outer(lambda x: x * inner(lambda y: x * y)(number(2.0)))(number(3.0)).item() == 6.0
    assert outer(lambda x: inner(lambda y: x * x * y * y)(x * 2))(number(3.0)).item() == 12.0 * 9.0


@pytest.mark.parametrize("outer", [sg.grad, along])
@pytest.mark.parametrize("inner", [sg.grad, along])
def test_an_inner_derivative_of_a_constant(outer: Any, inner: Any) -> None:
    assert outer(lambda x: inner(lambda y: x * x)(x) + x)(number(3.0)).item() == 1.0


def test_a_dual_number_kept_from_an_earlier_call_means_nothing_later() -> None:
    kept: list[Tensor] = []

    def keeps(x: Tensor) -> Tensor:
        kept.append(x)
        return x * x

    sg.jvp(keeps, (number(2.0),), (number(1.0),))
    _, tangent = sg.jvp(lambda x: x * kept[0], (number(5.0),), (number(1.0),))
    assert tangent.item() == 2.0


def test_hessian_vector_products_three_ways() -> None:
    def f(x: Tensor) -> Tensor:
        return (sg.sin(x) * sg.flip(x) ** 3).sum()

    x, v = f64(0.3, -0.8, 1.2), f64(1.0, 2.0, -0.5)
    forward_over_reverse = sg.jvp(sg.grad(f), (x,), (v,))[1]
    reverse_over_forward = sg.grad(lambda x: sg.jvp(f, (x,), (v,))[1])(x)
    reverse_over_reverse = sg.grad(lambda x: (sg.grad(f)(x) * v).sum())(x)
    np.testing.assert_allclose(forward_over_reverse, reverse_over_forward, rtol=1e-13)
    np.testing.assert_allclose(forward_over_reverse, reverse_over_reverse, rtol=1e-13)


def test_vjp_inside_jvp_and_jvp_inside_vjp() -> None:
    def f(x: Tensor) -> Tensor:
        return sg.exp(x) * x

    x, u, v = f64(0.5, 1.5), f64(1.0, -2.0), f64(0.3, 0.7)
    _, mixed = sg.jvp(lambda x: sg.vjp(f, x)[1](u)[0], (x,), (v,))
    _, pullback = sg.vjp(lambda x: sg.jvp(f, (x,), (v,))[1], x)
    np.testing.assert_allclose(mixed, pullback(u)[0], rtol=1e-13)
    np.testing.assert_allclose(mixed, np.exp(np.asarray(x)) * (np.asarray(x) + 2) * np.asarray(u) * np.asarray(v))


def test_the_pullback_is_linear_in_its_cotangent_and_differentiable() -> None:
    _, pullback = sg.vjp(sg.exp, f64(0.0, 1.0))
    found = sg.grad(lambda ct: (pullback(ct)[0] ** 2).sum())(f64(1.0, 1.0))
    np.testing.assert_allclose(found, 2 * np.exp([0.0, 2.0]))


def test_backward_inside_a_transformed_function() -> None:
    def slope(x: Tensor) -> Tensor:
        y = x.detach().requires_grad_()
        (y**3).sum().backward()
        assert y.grad is not None
        return (y.grad * x).sum()

    assert sg.grad(slope)(f64(2.0)).tolist() == [12.0]


def test_forward_mode_through_backward() -> None:
    """A gradient accumulated while tangents are about carries them on."""

    def slope(x: Tensor) -> Tensor:
        y = sg.grad(cube)(x)
        return y * y

    _, tangent = sg.jvp(slope, (f64(1.0),), (f64(1.0),))
    assert tangent.tolist() == [36.0]


def test_results_and_their_tangents_are_off_the_tape():
    def f(x):
        return sg.sum(sg.tanh(x) * x)

    x = sg.asarray([0.5, 0.2])
    value, tangent = sg.jvp(sg.grad(f), (x,), (x,))
    back = sg.vjp(sg.grad(f), x)[1](x)[0]
    assert not any(t.requires_grad for t in (value, tangent, back))
    weight = sg.tensor([2.0, 3.0], requires_grad=True)
    assert sg.jvp(sg.grad(lambda x: f(x * weight)), (x,), (x,))[1].requires_grad
