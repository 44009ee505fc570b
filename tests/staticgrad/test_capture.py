"""What a captured function reads and writes: state by reference, modes, numbers, gradients, random streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.errors import CaptureError, DerivativeError

X = np.array([1.0, 2.0], np.float32)


def values(result: Any) -> list[Any]:
    return np.asarray(result).tolist()


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=2e-6, atol=1e-7)


# ---------------------------------------------------------------- writes


def both(function: Callable[..., Any], *args: Any, calls: int = 1) -> tuple[list[Any], list[Any]]:
    """(results and arguments after) of `calls` calls in each mode, on copies of the arguments."""
    found = []
    for run in (function, sg.compile(function)):
        given = [x.copy() if isinstance(x, np.ndarray) else x for x in args]
        tensors = [sg.asarray(x, copy=False) for x in given]
        results = [values(part) for _ in range(calls) for part in sg.tree_flatten(run(*tensors))[0]]
        found.append([results, [values(x) for x in given]])
    return found[0], found[1]


def test_arguments_written_with_copy() -> None:
    def function(x: Any, y: Any) -> Any:
        before = x * 1
        x.copy_(x + y)
        y.copy_(sg.sum(x))
        return before, x * 2, y + 1

    for x in (X, np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2]):
        dynamic, static = both(function, x, np.ones(x.shape, np.float64), calls=2)
        assert static == dynamic


def test_a_written_argument_counts_as_changed() -> None:
    def function(x: Any) -> None:
        x.copy_(x * 2)

    for run in (function, sg.compile(function)):
        weight, x = nn.Parameter(X.copy()), sg.asarray(X, copy=True)
        product = sg.sum(weight * x)
        run(x)
        with pytest.raises(DerivativeError, match=r"backward: .*changed in place"):
            product.backward()


def test_an_argument_that_shares_memory_with_state() -> None:
    weight = sg.tensor([1.0, 2.0, 3.0])

    def function(x: Any) -> Any:
        weight.copy_(weight * 2)
        return x + weight[:1]

    compiled = sg.compile(function)
    view = sg.asarray(weight.numpy()[1:], copy=False)
    weight.copy_(sg.tensor([1.0, 2.0, 3.0]))
    assert values(compiled(view)) == [4, 5]  # the argument as it was when the call began
    assert values(weight) == [2, 4, 6]
    assert values(compiled(weight)) == [6, 8, 10]
    assert values(weight) == [4, 8, 12]


def test_state_that_shares_memory_with_written_state_is_refused() -> None:
    array = np.ones(4, np.float32)
    first, second = sg.asarray(array[:3], copy=False), sg.asarray(array[1:], copy=False)

    def function(x: Any) -> Any:
        first.copy_(first + x)
        return second * 1

    with pytest.raises(CaptureError, match=r"first and second share memory and one of them is written; give each"):
        sg.compile(function)(1.0)
    assert array.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("layout", [lambda a: a.T, lambda a: np.repeat(a, 2, axis=1)[:, ::2]], ids=["T", "strided"])
def test_parameters_in_storage_that_is_not_contiguous(layout: Callable[[Any], Any]) -> None:
    start = np.arange(6, dtype=np.float32).reshape(2, 3) / 6
    results = []
    for compiled in (False, True):
        storage = layout(start.copy())
        weight = sg.asarray(storage, copy=False).requires_grad_()
        opt = optim.SGD([weight], lr=0.1, momentum=0.9)

        def step(x: Any, weight: Any = weight, opt: Any = opt) -> Any:
            loss = sg.sum((weight * x) ** 2)
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        run = sg.compile(lambda x, step=step: step(x)) if compiled else step
        losses = [run(2.0).item() for _ in range(3)]
        assert weight.detach().numpy() is storage or np.shares_memory(weight.detach().numpy(), storage)
        results.append((losses, storage.copy(), np.array(weight.grad)))
    for dynamic, static in zip(*results, strict=True):
        close(static, dynamic)


# ---------------------------------------------------------------- modes and hyperparameters


def test_the_mode_of_a_model_and_of_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    compiled = sg.compile(lambda x: model(x))
    for train, grad, misses in ((True, True, 1), (False, True, 2), (True, True, 2), (True, False, 3), (False, True, 3)):
        model.train(train)
        with sg.set_grad_enabled(grad):
            found = compiled(X)
        assert found.requires_grad is grad
        if not train:
            close(found.detach(), model(sg.asarray(X)).detach())
        assert compiled.cache_info().misses == misses


def test_hyperparameters() -> None:
    """A learning rate is read at each call; betas are part of the program."""
    results = []
    for static in (False, True):
        weight = nn.Parameter(np.ones(3, np.float32))
        opt = optim.Adam([weight], lr=0.1)

        def step(x: Any, weight: Any = weight, opt: Any = opt) -> None:
            opt.zero_grad()
            sg.sum(sg.sin(weight * x)).backward()
            opt.step()

        compiled = sg.compile(lambda x, step=step: step(x))
        run = compiled if static else step
        run(2.0)
        for lr in (0.5, 0.01):
            opt.param_groups[0]["lr"] = lr
            run(2.0)
        if static:
            assert compiled.cache_info().misses == 1
        opt.param_groups[0]["betas"] = (0.5, 0.6)
        run(2.0)
        if static:
            assert compiled.cache_info().misses == 2
            assert "betas" in compiled.explain()
        results.append(np.array(weight))
    close(results[1], results[0])


# ---------------------------------------------------------------- gradients


def gradients(script: Callable[[Any, Any, Callable[..., Any]], list[Any]]) -> None:
    """Run `script(weight, optimizer, maker)` in both modes and compare what it returns."""
    found = []
    for make in (lambda f: f, lambda f: sg.compile(f)):
        weight = nn.Parameter(np.array([1.0, -2.0], np.float32))
        found.append(script(weight, optim.SGD([weight], lr=0.5), make))
    for dynamic, static in zip(*found, strict=True):
        assert (dynamic is None) == (static is None)
        if dynamic is not None:
            close(static, dynamic)


def snapshot(tensor: Any) -> Any:
    return None if tensor.grad is None else np.array(tensor.grad)


def test_gradients_are_set_and_accumulate() -> None:
    def script(weight: Any, opt: Any, make: Any) -> list[Any]:
        def accumulate(x: Any) -> None:
            sg.sum(weight**2 * x).backward()

        run, found = make(accumulate), []
        for x in (1.0, 2.0, 3.0):
            run(x)
            found.append(snapshot(weight))
        opt.zero_grad()
        run(1.0)
        found.append(snapshot(weight))
        weight.grad = sg.tensor([100.0, 100.0])
        run(1.0)
        found.append(snapshot(weight))
        return found

    gradients(script)


def test_gradients_cleared_at_either_end() -> None:
    def script(weight: Any, opt: Any, make: Any) -> list[Any]:
        def clear_last(x: Any) -> None:
            sg.sum(weight**2 * x).backward()
            opt.step()
            opt.zero_grad()

        def clear_first(x: Any) -> None:
            opt.zero_grad()
            sg.sum(weight**2 * x).backward()
            opt.step()

        def clear_to_zeros(x: Any) -> None:
            opt.zero_grad(set_to_none=False)
            sg.sum(weight**2 * x).backward()

        found = []
        for function in (clear_last, clear_first, clear_to_zeros, clear_last):
            run = make(function)
            for x in (0.1, 0.2):
                run(x)
                found += [snapshot(weight), np.array(weight)]
        return found

    gradients(script)


def test_a_step_of_several_parts() -> None:
    """Backward in one compiled function, the update in another: the gradient passes between them."""

    def script(weight: Any, opt: Any, make: Any) -> list[Any]:
        backward, update = make(lambda x: sg.sum(weight**2 * x).backward()), make(lambda: opt.step())
        found = []
        for x in (0.1, 0.2, 0.3):
            backward(x)
            backward(x)
            update()
            found += [snapshot(weight), np.array(weight)]
            opt.zero_grad()
        return found

    gradients(script)


KEPT: list[Callable[[Any], Any]] = [
    lambda g: g,
    lambda g: g.detach(),
    lambda g: g.numpy(),
    lambda g: np.asarray(g)[::2],
    lambda g: memoryview(np.asarray(g)),
    lambda g: g[:1],
    lambda g: {"nested": [g]}["nested"],
]


@pytest.mark.parametrize("keep", KEPT, ids=["tensor", "detach", "numpy", "slice", "memoryview", "view", "list"])
def test_a_gradient_that_is_kept_is_not_overwritten(keep: Callable[[Any], Any]) -> None:
    weight = nn.Parameter(X.copy())
    opt = optim.SGD([weight], lr=0.1)

    def step(x: Any) -> None:
        opt.zero_grad()
        sg.sum(weight**2 * x).backward()
        opt.step()

    compiled = sg.compile(step)
    compiled(1.0)
    kept = keep(weight.grad)
    before = np.array(kept)
    compiled(2.0)
    compiled(3.0)
    np.testing.assert_array_equal(np.array(kept), before)


def test_gradients_do_not_share_memory() -> None:
    first, second = nn.Parameter(X.copy()), nn.Parameter(X.copy())

    @sg.compile
    def step(x: Any) -> Any:
        total = first + second
        sg.sum(total * x).backward()
        return first.grad, x * 1

    returned, _ = step(X)
    arrays = [np.asarray(t) for t in (first.grad, second.grad, returned)]
    assert [values(a) for a in arrays] == [[1, 2]] * 3
    for i, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in (*arrays[i + 1 :], X))


def test_gradients_of_arguments() -> None:
    def function(x: Any) -> None:
        sg.sum(x**3).backward()

    for run in (function, sg.compile(function)):
        x = sg.tensor([1.0, 2.0], requires_grad=True)
        run(x)
        run(x)
        assert values(x.grad) == [6, 24]


# ---------------------------------------------------------------- random streams


def test_random_streams_are_the_same() -> None:
    generator = sg.random.Generator(7) if hasattr(sg.random, "Generator") else None

    def draws(x: Any) -> Any:
        own = sg.random.uniform((2,), generator=generator) if generator is not None else x
        return nn.functional.dropout(x, 0.5, training=True), sg.random.normal((3,)), sg.random.uniform((2,)), own

    compiled = sg.compile(draws)
    for seed in (1, 2):
        found = []
        for run in (draws, compiled):
            sg.random.manual_seed(seed)
            if generator is not None:
                generator.manual_seed(seed)
            results = [np.array(part) for _ in range(3) for part in run(np.ones(8, np.float32))]
            found.append([*results, sg.random.get_state(), sg.random.normal((2,))])
        for dynamic, static in zip(*found, strict=True):
            close(static, dynamic)
        close(found[1][-2], found[0][-2])
    assert compiled.cache_info().misses == 1


# ---------------------------------------------------------------- values that escape


def test_a_traced_value_that_escapes_is_named() -> None:
    class Holder:
        __slots__ = ("value",)  # no __dict__: not seen by the watch over side effects

    holder = Holder()

    def function(x: Any) -> Any:
        holder.value = x * 2
        return x

    compiled = sg.compile(function)
    compiled(X)
    with pytest.raises(CaptureError, match=r"mul: this value belongs to a graph whose capture has ended.*test_capture"):
        sg.sum(holder.value)
    with pytest.raises(CaptureError, match="Return it from the function instead"):
        sg.compile(lambda x: x + holder.value)(X)


def test_writing_into_a_tensor_that_requires_grad_is_refused_in_both_modes() -> None:
    weight = nn.Parameter(X.copy())

    def function(x: Any) -> Any:
        weight.copy_(x)
        return x

    for run in (function, sg.compile(function)):
        with pytest.raises(DerivativeError, match=r"copy_: the tensor .* requires grad.*sg.no_grad"):
            run(sg.asarray(X * 2))
    assert values(weight) == [1, 2]
