"""The tape and the engine: every argument of backward and grad, what is kept alive, and depth without recursion."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.autograd import backward, grad
from staticgrad.graph.errors import DerivativeError, DTypeError, ShapeError
from staticgrad.tensor import Tensor


def leaf(*values: float, dtype: str = "float64") -> Tensor:
    return sg.tensor(list(values), dtype=dtype, requires_grad=True)


def values(x: Tensor | None) -> Any:
    assert x is not None
    return x.tolist() if not x.requires_grad else x.detach().tolist()


# ---------------------------------------------------------------- backward


def test_backward_fills_leaves_and_only_leaves() -> None:
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    product = x * y
    product.sum().backward()
    assert values(x.grad) == [3.0, 4.0]
    assert values(y.grad) == [1.0, 2.0]
    assert product.grad is None
    assert x.grad is not None
    assert not x.grad.requires_grad


def test_a_value_used_many_times_collects_all_its_cotangents() -> None:
    x = leaf(3.0)
    (x * x * x + x - x * 2).sum().backward()
    assert values(x.grad) == [26.0]


def test_gradient_argument() -> None:
    x = leaf(1.0, 2.0)
    (x * x).backward(Tensor(np.array([10.0, 1.0])))
    assert values(x.grad) == [20.0, 4.0]
    x.grad = None
    (x * x).backward(gradient=np.array([1.0, -1.0]))
    assert values(x.grad) == [2.0, -4.0]
    x.grad = None
    (x * x).sum().backward(gradient=3)
    assert values(x.grad) == [6.0, 12.0]


def test_gradient_argument_errors() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(DerivativeError, match=r"one element only; the tensor has shape \(2,\); pass gradient="):
        (x * 2).backward()
    with pytest.raises(ShapeError, match=r"must have the tensor's shape \(2,\); got \(3,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(DTypeError, match="dtype float64; got float32"):
        (x * 2).backward(np.ones(2, np.float32))
    with pytest.raises(TypeError, match="got str"):
        (x * 2).backward("ones")


def test_nothing_to_differentiate() -> None:
    with pytest.raises(DerivativeError, match="does not require grad"):
        sg.tensor([1.0]).sum().backward()
    with pytest.raises(DerivativeError, match="does not require grad"):
        (leaf(1.0) > 0).backward()


def test_second_backward_needs_retain_graph() -> None:
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert values(x.grad) == [8.0]
    with pytest.raises(
        DerivativeError, match=r"saved by sum were freed by an earlier backward; pass retain_graph=True"
    ):
        y.backward()


def test_an_op_that_saves_nothing_is_freed_as_well() -> None:
    y = (leaf(1.0) + 1).sum()
    y.backward()
    with pytest.raises(DerivativeError, match="freed"):
        y.backward()


def test_create_graph_keeps_the_graph_and_records_the_gradient() -> None:
    x = leaf(2.0)
    y = (x**3).sum()
    y.backward(create_graph=True)
    assert x.grad is not None
    assert x.grad.requires_grad
    first = x.grad
    x.grad = None
    first.sum().backward()
    assert values(x.grad) == [12.0]


def test_create_graph_without_retain_graph_frees() -> None:
    x = leaf(2.0)
    y = sg.exp(x).sum()
    y.backward(retain_graph=False, create_graph=True)
    with pytest.raises(DerivativeError, match="freed"):
        y.backward()


def test_inputs_argument() -> None:
    x, y = leaf(1.0), leaf(2.0)
    middle = x * y
    (middle * y).sum().backward(inputs=[x], retain_graph=True)
    assert values(x.grad) == [4.0]
    assert y.grad is None
    (middle * y).sum().backward(inputs=middle)
    assert values(middle.grad) == [2.0]
    assert values(x.grad) == [4.0]


def test_inputs_argument_errors_and_hooks() -> None:
    x, constant = leaf(1.0), sg.tensor([2.0], dtype="float64")
    y = (x * constant).sum()
    with pytest.raises(DerivativeError, match="at least one tensor"):
        y.backward(inputs=[])
    with pytest.raises(DerivativeError, match="does not require grad"):
        y.backward(inputs=[constant])
    seen: list[Any] = []
    x.register_post_accumulate_grad_hook(lambda t: seen.append(values(t.grad)))
    y.backward(inputs=[x])
    assert seen == [[2.0]]


def test_a_retained_gradient_named_as_input_is_filled_once() -> None:
    x = leaf(1.0)
    y = x * 2
    y.retain_grad()
    (y * 3).sum().backward(inputs=[y])
    assert values(y.grad) == [3.0]


def test_backward_of_several_tensors() -> None:
    x = leaf(1.0, 2.0)
    backward([x.sum(), x * x], [None, np.array([1.0, 10.0])])
    assert values(x.grad) == [3.0, 41.0]
    with pytest.raises(DerivativeError, match="one gradient for each tensor; got 1 for 2"):
        backward([x.sum(), x * x], [None])


def test_gradients_accumulate_over_backwards() -> None:
    x = leaf(1.0, 2.0)
    (x * 2).sum().backward()
    first = x.grad
    (x * x).sum().backward()
    assert values(x.grad) == [4.0, 6.0]
    assert values(first) == [2.0, 2.0]


def test_backward_from_a_leaf() -> None:
    x = leaf(1.0)
    x.backward()
    x.backward(Tensor(np.array([5.0])))
    assert values(x.grad) == [6.0]


def test_zero_derivative_is_zeros_not_nothing() -> None:
    x = leaf(1.5)
    sg.floor(x).sum().backward()
    assert values(x.grad) == [0.0]


def test_derivatives_stop_at_integers() -> None:
    x = leaf(1.5, 2.5)
    y = sg.argmax(x)
    assert not y.requires_grad
    assert not x.astype("int64").requires_grad


# ---------------------------------------------------------------- grad


def test_grad_returns_without_touching() -> None:
    x, y = leaf(1.0), leaf(2.0)
    found = grad((x * x * y).sum(), [x, y])
    assert [values(g) for g in found] == [[4.0], [1.0]]
    assert x.grad is None


def test_grad_of_a_computed_tensor() -> None:
    x = leaf(2.0)
    y = x * x
    (found,) = grad((y * y).sum(), y)
    assert values(found) == [8.0]


def test_grad_of_a_tensor_on_the_way_to_another() -> None:
    x = leaf(2.0)
    y = x * x
    of_y, of_x = grad((y * y).sum(), [y, x])
    assert (values(of_y), values(of_x)) == ([8.0], [32.0])


def test_grad_arguments() -> None:
    x, other = leaf(2.0), leaf(1.0)
    y = x * x
    assert values(grad(y, x, grad_outputs=[np.array([10.0])], retain_graph=True)[0]) == [40.0]
    with pytest.raises(DerivativeError, match="allow_unused=True"):
        grad(y, other, np.ones(1), retain_graph=True)
    assert grad(y, [other], np.ones(1), retain_graph=True, allow_unused=True) == (None,)
    with pytest.raises(DerivativeError, match="does not require grad"):
        grad(y, sg.tensor([1.0]))
    (first,) = grad(y.sum(), x, create_graph=True)
    assert first is not None
    assert values(grad(first.sum(), x)[0]) == [2.0]


def test_only_what_leads_to_the_inputs_is_computed() -> None:
    x, unknown = leaf(2.0), leaf(3.0)
    y = x * sg.digamma(unknown)  # digamma has no derivative, but none is asked for
    assert len(grad(y.sum(), x)) == 1


# ---------------------------------------------------------------- aliases


def test_gradients_never_share_memory() -> None:
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    given = np.ones(2)
    (x + y).backward(given)
    assert x.grad is not None
    assert y.grad is not None
    arrays = [np.asarray(x.grad), np.asarray(y.grad), given, np.asarray(x), np.asarray(y)]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[i + 1 :])
    assert np.asarray(x.grad).flags.writeable


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_given_gradient_is_copied(create_graph: bool) -> None:
    x = leaf(1.0)
    given = Tensor(np.ones(1))
    x.backward(given, create_graph=create_graph)
    given.copy_(np.array([7.0]))
    assert values(x.grad) == [1.0]


def test_the_gradient_of_a_view_or_a_sum_is_an_array_of_its_own() -> None:
    x = leaf(1.0, 2.0, 3.0, 4.0)
    sg.reshape(x, (2, 2)).sum().backward()
    assert x.grad is not None
    assert np.asarray(x.grad).strides == (8,)
    x.grad.copy_(np.arange(4.0))
    assert values(x.grad) == [0.0, 1.0, 2.0, 3.0]


def test_setting_grad_is_checked() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(ShapeError, match="shape and dtype"):
        x.grad = sg.tensor([1.0], dtype="float64")
    with pytest.raises(ShapeError, match="shape and dtype"):
        x.grad = sg.tensor([1.0, 2.0], dtype="float32")
    with pytest.raises(TypeError, match="ndarray"):
        x.grad = np.ones(2)  # type: ignore[assignment]


# ---------------------------------------------------------------- versions


def test_an_operand_changed_after_it_was_saved() -> None:
    x, factor = leaf(1.0), sg.tensor([2.0], dtype="float64")
    y = x * factor
    factor.copy_(np.array([5.0]))
    with pytest.raises(DerivativeError, match=r"operand y of mul .* changed in place .* \(version 1, saved at 0\)"):
        y.sum().backward()


def test_a_result_changed_after_it_was_saved() -> None:
    x = leaf(1.0)
    y = sg.exp(x)
    y.detach().copy_(np.array([0.0]))
    with pytest.raises(DerivativeError, match="result of exp"):
        y.sum().backward()


def test_a_view_counts_as_its_owner() -> None:
    x, table = leaf(1.0, 2.0), sg.tensor([[1.0, 2.0], [3.0, 4.0]], dtype="float64")
    y = x * table[0]
    table.copy_(np.zeros((2, 2)))
    with pytest.raises(DerivativeError, match="changed in place"):
        y.sum().backward()


def test_a_leaf_changed_under_no_grad_is_caught_if_it_was_saved() -> None:
    x = leaf(2.0)
    squared, doubled = x * x, x * 2
    with sg.no_grad():
        x.copy_(np.array([3.0]))
    doubled.sum().backward()
    with pytest.raises(DerivativeError, match="changed in place"):
        squared.sum().backward()


def test_what_no_rule_needs_may_change() -> None:
    x, shift = leaf(1.0), sg.tensor([2.0], dtype="float64")
    y = x + shift
    shift.copy_(np.array([9.0]))
    y.sum().backward()
    assert values(x.grad) == [1.0]


def test_writing_into_a_tensor_that_requires_grad() -> None:
    with pytest.raises(DerivativeError, match=r"copy_: .*`with sg.no_grad\(\):`"):
        leaf(1.0).copy_(np.array([2.0]))


# ---------------------------------------------------------------- detach, leaves, errors of state


def test_detach_shares_storage_and_stops_derivatives() -> None:
    x = leaf(2.0)
    y = (x * x).detach()
    assert y.is_leaf
    assert not y.requires_grad
    (x * y).sum().backward()
    assert values(x.grad) == [4.0]
    assert np.shares_memory(np.asarray(x.detach()), np.asarray(x))


def test_leaf_properties() -> None:
    x = leaf(1.0)
    y = x * 2
    assert x.is_leaf
    assert x.grad_fn is None
    assert not y.is_leaf
    assert y.grad_fn is not None
    assert y.grad_fn.name() == "MulBackward"
    assert repr(y.grad_fn) == "<MulBackward>"
    assert y.grad_fn.next_functions[0][0] is x
    assert "grad_fn=<MulBackward>" in repr(y)
    assert "requires_grad=True" in repr(x)


def test_requires_grad_rules() -> None:
    with pytest.raises(DTypeError, match="only floating"):
        sg.tensor([1]).requires_grad_()
    x = leaf(1.0)
    with pytest.raises(DerivativeError, match="use detach"):
        (x * 2).requires_grad_(False)
    x.requires_grad = False
    assert not (x * 2).requires_grad


def test_numpy_of_a_tensor_that_requires_grad() -> None:
    with pytest.raises(DerivativeError, match=r"t.detach\(\).numpy\(\)"):
        leaf(1.0).numpy()
    assert leaf(1.0).detach().numpy().tolist() == [1.0]


# ---------------------------------------------------------------- memory


class _Alive:
    """Whether an array is still held by something."""

    def __init__(self, x: Tensor) -> None:
        self._found = weakref.ref(x._value)

    def __bool__(self) -> bool:
        gc.collect()
        return self._found() is not None


def test_add_keeps_nothing() -> None:
    x = leaf(1.0)
    left, right = x * 2, x * 3
    held = [_Alive(left), _Alive(right)]
    out = left + right
    assert all(held)
    del left, right
    assert not any(held)
    out.sum().backward()
    assert values(x.grad) == [5.0]


def test_exp_keeps_its_result_only() -> None:
    x = leaf(1.0)
    middle = x * 2
    operand = _Alive(middle)
    out = sg.exp(middle)
    result = _Alive(out)
    del middle
    assert not operand
    total = out.sum()
    del out
    assert result
    total.backward()
    assert not result


def test_mul_by_a_constant_keeps_the_constant_only() -> None:
    x, factor = leaf(1.0), sg.tensor([3.0], dtype="float64")
    middle = x * 2
    operand = _Alive(middle)
    out = middle * factor
    del middle
    assert not operand
    out.sum().backward()
    assert values(x.grad) == [6.0]


@pytest.mark.parametrize("function", [lambda m: m.sum(), lambda m: sg.reshape(m, (1, 1)), lambda m: m[0], lambda m: -m])
def test_linear_ops_keep_no_operand(function: Any) -> None:
    middle = leaf(1.0) * 2
    node = function(middle).grad_fn
    assert node.saved == {}
    assert node.result is None


def test_saved_values_go_with_the_result() -> None:
    x = leaf(1.0)
    y = x * 2
    z = sg.exp(y) * y
    held = _Alive(y)
    del y
    assert held
    del z
    assert not held


def test_values_are_freed_while_backward_runs() -> None:
    x = leaf(1.0)
    first = sg.exp(x)
    held = _Alive(first)
    seen: list[bool] = []
    second = sg.exp(first)
    first.register_hook(lambda _: seen.append(bool(held)))
    total = sg.exp(second).sum()
    x.register_hook(lambda _: seen.append(bool(held)))
    del first, second
    total.backward()
    assert seen == [True, False]


# ---------------------------------------------------------------- depth and threads


@pytest.mark.parametrize("retain", [False, True])
def test_a_chain_of_a_hundred_thousand_ops(retain: bool) -> None:
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1e-5
    y.backward(np.ones(1), retain_graph=retain)
    assert values(x.grad) == [1.0]
    del y  # the whole tape goes at once, without recursion in C


def test_a_long_tape_is_dropped_without_backward() -> None:
    y = leaf(1.0)
    for _ in range(100_000):
        y = sg.tanh(y)
    held = weakref.ref(y)
    del y
    assert held() is None


def test_grad_through_a_long_chain() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(20_000):
            x = x * 1.0
        return x.sum()

    assert values(sg.grad(chain)(sg.tensor([2.0], dtype="float64"))) == [1.0]


def test_threads_differentiate_apart() -> None:
    found: dict[int, Any] = {}
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        x = leaf(float(number))
        barrier.wait()
        for _ in range(50):
            y = (x * x).sum()
            y.backward()
        found[number] = values(x.grad)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [100.0 * i] for i in range(4)}


# ---------------------------------------------------------------- higher orders on the tape


def test_third_derivative_by_backward() -> None:
    x = leaf(2.0)
    (first,) = grad((x**4).sum(), x, create_graph=True)
    (second,) = grad(first.sum(), x, create_graph=True)  # type: ignore[union-attr]
    (third,) = grad(second.sum(), x)  # type: ignore[union-attr]
    assert values(third) == [48.0]


def test_gradient_penalty() -> None:
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (slope,) = grad(sg.tanh(x * w).sum(), x, create_graph=True)
    (slope * slope).sum().backward()  # type: ignore[operator]
    h = 1e-5

    def penalty(w0: float) -> float:
        a, b = np.array([1.0, 2.0]), np.array([w0, 4.0])
        return float(np.sum((b * (1 - np.tanh(a * b) ** 2)) ** 2))

    assert w.grad is not None
    np.testing.assert_allclose(np.asarray(w.grad)[0], (penalty(3 + h) - penalty(3 - h)) / (2 * h), rtol=1e-6)
