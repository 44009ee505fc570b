"""Bound calls: as fast as they are, they notice everything that the ordinary call notices."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.compile import CompiledFunction
from staticgrad.graph.errors import DerivativeError
from staticgrad.kernels.cpu import array_call

Array = np.ndarray[Any, Any]


def bound_calls(compiled: Any) -> int:
    return sum(made.bound_calls for _, _, made in compiled._history)


def is_bound(compiled: Any, call: Callable[[], Any]) -> bool:
    """Whether `call` went through a bound call."""
    before = bound_calls(compiled)
    call()
    return bound_calls(compiled) > before


def warmed(function: Any, *args: Any, **kwargs: Any) -> Any:
    """`function` compiled and called until its calls with these arguments are bound."""
    compiled = function if isinstance(function, CompiledFunction) else sg.compile(function)
    for _ in range(2):
        compiled(*args, **kwargs)
    assert is_bound(compiled, lambda: compiled(*args, **kwargs))
    return compiled


class Training:
    """A small model, its optimizer and a step."""

    def __init__(self, seed: int = 0) -> None:
        sg.random.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.01)
        rng = np.random.default_rng(seed)
        self.x = sg.asarray(rng.standard_normal((5, 3)).astype(np.float32))
        self.y = sg.asarray(rng.integers(0, 2, 5))
        self.train = sg.compile(self.step)

    def step(self, x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self) -> list[Array]:
        found = [p.detach().numpy().copy() for p in self.model.parameters()]
        found += [p.grad.numpy().copy() for p in self.model.parameters()]
        return found + [t.numpy().copy() for entries in self.optimizer.state.values() for t in entries.values()]

    def warm(self) -> Training:
        warmed(self.train, self.x, self.y)
        return self


def ordinary(compiled: Any, *args: Any, **kwargs: Any) -> Any:
    return compiled._ordinary_call(args, kwargs)


# ---------------------------------------------------------------- the same results


def test_steps_are_those_of_ordinary_calls_bit_for_bit() -> None:
    one, other = Training(), Training()
    for _ in range(6):
        a = one.train(one.x, one.y)
        b = ordinary(other.train, other.x, other.y)
        assert a.item() == b.item()
    assert one.train.last.bound_calls >= 3
    assert other.train.last.bound_calls == 0
    assert all(np.array_equal(a, b) for a, b in zip(one.state(), other.state(), strict=True))
    assert one.train.last.calls == 6
    assert one.train.cache_info().hits == other.train.cache_info().hits == 5


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1,
        lambda x: (x + 1, [x * 2, None], {"a": x, "b": (x - 1,)}),
        lambda x: {"n": 3, "text": "t", "x": x * 2},
    ],
)
def test_results_of_every_structure(function: Any) -> None:
    x = sg.asarray([1.0, 2.0, 3.0])
    compiled = warmed(function, x)
    expected, got = function(x), compiled(x)
    assert repr(expected) == repr(got)


def test_arguments_of_every_structure() -> None:
    def f(batch: Any, scale: Any, *, mode: str, extra: Any = None) -> Any:
        out = batch["x"] * scale + batch["pair"][0] - batch["pair"][1][0]
        return out if mode == "plain" else -out

    x, y, z = (sg.asarray([float(k), 2.0]) for k in range(3))
    batch = {"x": x, "pair": (y, [z.numpy()])}
    compiled = warmed(f, batch, 2.0, mode="plain", extra=None)
    assert compiled(batch, 3.0, mode="plain", extra=None).tolist() == f(batch, 3.0, mode="plain").tolist()
    assert compiled(batch, 3.0, mode="minus", extra=None).tolist() == f(batch, 3.0, mode="minus").tolist()
    turned = {"pair": (y, [z.numpy()]), "x": x}
    assert compiled(turned, 3.0, mode="plain", extra=None).tolist() == f(turned, 3.0, mode="plain").tolist()
    with pytest.raises(TypeError):
        compiled(batch, 3.0, mode="plain", other=1)


def test_numbers_are_passed_by_value() -> None:
    compiled = warmed(lambda x, n, k: x * n + k, sg.asarray([1.0, 2.0]), 2.0, 3)
    assert compiled(sg.asarray([1.0, 2.0]), 5.0, 4).tolist() == [9.0, 14.0]
    with pytest.raises(OverflowError):
        compiled(sg.asarray([1.0, 2.0]), 5.0, 2**80)
    assert compiled(sg.asarray([1.0, 2.0]), 5.0, True).tolist() == [6.0, 11.0]


# ---------------------------------------------------------------- what it notices of arguments


def test_another_shape_dtype_or_kind() -> None:
    x = sg.asarray(np.ones((2, 3), np.float32))
    compiled = warmed(lambda x: x + 1, x)
    for other in (np.ones((3, 2), np.float32), np.ones((2, 3)), np.ones((2, 3), np.int32)):
        got = compiled(sg.asarray(other))
        assert got.shape == other.shape
        assert got.dtype == other.dtype
    assert compiled(np.ones((2, 3), np.float32)).shape == (2, 3)
    assert compiled(5).item() == 6
    assert compiled.cache_info().currsize == 6


def test_a_dtype_object_of_its_own_is_the_same_dtype() -> None:
    import pickle

    array = np.ones(3, np.float32)
    compiled = warmed(lambda x: x + 1, array)
    copy = pickle.loads(pickle.dumps(array))
    assert is_bound(compiled, lambda: compiled(copy))
    swapped = array.astype(">f4")
    assert compiled(swapped).tolist() == [2.0, 2.0, 2.0]


def test_requires_grad() -> None:
    x = sg.asarray([1.0, 2.0])
    compiled = warmed(lambda x: x * x, x)
    y = sg.asarray([1.0, 2.0]).requires_grad_()
    sg.sum(compiled(y)).backward()
    assert y.grad is not None
    assert y.grad.tolist() == [2.0, 4.0]
    assert is_bound(compiled, lambda: compiled(x))


@pytest.mark.parametrize("make", [lambda a: a[::2], lambda a: a[::-1][:2], lambda a: np.asfortranarray(a)[:2]])
def test_arrays_that_are_not_contiguous(make: Any) -> None:
    whole = np.arange(8.0).reshape(4, 2)
    compiled = warmed(lambda x: x * 2, whole[:2])
    given = make(whole)
    assert compiled(given).tolist() == (given * 2).tolist()


def test_unaligned_and_read_only_arrays() -> None:
    compiled = warmed(lambda x: x * 2, np.ones(3))
    raw = np.zeros(25, np.uint8)
    unaligned = raw[1:].view(np.float64)
    unaligned[:] = 3.0
    assert compiled(unaligned).tolist() == [6.0] * 3
    fixed = np.full(3, 4.0)
    fixed.flags.writeable = False
    assert is_bound(compiled, lambda: compiled(fixed))
    assert compiled(fixed).tolist() == [8.0] * 3
    memory = np.frombuffer(bytes(24), np.float64)
    assert compiled(memory).tolist() == [0.0] * 3


def test_arguments_that_share_memory_with_written_state() -> None:
    def run(call: Any) -> list[Any]:
        weight = sg.asarray([1.0, 2.0, 3.0])

        def f(x: Any) -> Any:
            weight.copy_(weight + x)
            return x * weight

        compiled = sg.compile(f)
        for _ in range(3):
            compiled(sg.asarray([1.0, 1.0, 1.0]))
        results = [call(compiled, weight), call(compiled, weight.numpy()), call(compiled, weight.numpy()[:])]
        return [r.tolist() for r in results] + [weight.tolist()]

    assert run(lambda f, x: f(x)) == run(lambda f, x: ordinary(f, x))


def test_memory_that_numpy_does_not_own() -> None:
    buffer = bytearray(48)
    weight = sg.asarray(np.array([1.0, 2.0, 3.0]))

    def f(x: Any) -> None:
        weight.copy_(weight + x)

    compiled = warmed(f, np.ones(3))
    outside = np.frombuffer(buffer, np.float64)
    before = weight.numpy().copy()
    assert is_bound(compiled, lambda: compiled(outside.reshape(2, 3)[1]))
    assert weight.tolist() == before.tolist()
    overlapping = np.frombuffer(memoryview(weight.numpy()), np.float64)
    compiled(overlapping)
    assert weight.tolist() == (before * 2).tolist()


# ---------------------------------------------------------------- what it notices of everything else


def test_a_changed_guard() -> None:
    class Options:
        scale = 2.0
        items: list[float]

    options = Options()
    options.items = [1.0]
    factor = 3.0

    def f(x: Any) -> Any:
        return x * options.scale * factor + options.items[0]

    x = sg.asarray([1.0])
    compiled = warmed(f, x)
    assert compiled(x).item() == 7.0
    options.scale = 4.0
    assert compiled(x).item() == 13.0
    factor = 1.0
    assert compiled(x).item() == 5.0
    options.items[0] = 2.0
    assert compiled(x).item() == 6.0
    options.scale, factor, options.items[0] = 2.0, 3.0, 1.0
    assert compiled(x).item() == 7.0
    assert compiled.cache_info().currsize == 4


def test_frozen_parameters_and_changed_modules() -> None:
    one, other = Training().warm(), Training()
    for _ in range(3):
        other.step(other.x, other.y)
    for run in (one, other):
        run.model[0].weight.requires_grad_(False)
    for run, call in ((one, one.train), (other, other.step)):
        for _ in range(3):
            call(run.x, run.y)
    np.testing.assert_allclose(one.model[0].weight.detach().numpy(), other.model[0].weight.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(one.model[2].weight.detach().numpy(), other.model[2].weight.detach().numpy(), rtol=1e-4)


def test_the_learning_rate_is_read_at_each_call() -> None:
    run = Training().warm()
    before = run.model[0].weight.detach().numpy().copy()
    run.optimizer.param_groups[0]["lr"] = 0.0
    assert is_bound(run.train, lambda: run.train(run.x, run.y))
    assert np.array_equal(before, run.model[0].weight.detach().numpy())
    for lr in (0.5, np.float64(0.5), 1, np.float32(0.5)):
        run.optimizer.param_groups[0]["lr"] = lr
        run.train(run.x, run.y)
        assert not np.array_equal(before, run.model[0].weight.detach().numpy())
        before = run.model[0].weight.detach().numpy().copy()
    assert run.train.cache_info().currsize == 1


def test_state_in_other_storage() -> None:
    run, reference = Training().warm(), Training().warm()
    weight = run.model[0].weight
    old = weight._value
    weight._value = old.copy()
    kept = old.copy()
    for _ in range(3):
        run.train(run.x, run.y)
        ordinary(reference.train, reference.x, reference.y)
    assert np.array_equal(old, kept)
    assert all(np.array_equal(a, b) for a, b in zip(run.state(), reference.state(), strict=True))
    assert is_bound(run.train, lambda: run.train(run.x, run.y))


def test_a_loaded_state_dict() -> None:
    run, reference = Training().warm(), Training(1)
    run.model.load_state_dict(reference.model.state_dict())
    run.optimizer.load_state_dict(reference.optimizer.state_dict())
    for _ in range(3):
        run.train(reference.x, reference.y)
        ordinary(reference.train, reference.x, reference.y)
    assert all(np.array_equal(a, b) for a, b in zip(run.state(), reference.state(), strict=True))


def test_grad_mode_tangents_and_capture() -> None:
    x = sg.asarray([1.0, 2.0])
    compiled = warmed(lambda x: x * x, x)
    with sg.no_grad():
        assert not is_bound(compiled, lambda: compiled(x))
    _, tangent = sg.jvp(compiled, (x,), (sg.asarray([1.0, 1.0]),))
    assert tangent.tolist() == [2.0, 4.0]
    assert sg.grad(lambda x: sg.sum(compiled(x)))(x).tolist() == [2.0, 4.0]
    assert sg.compile(lambda x: compiled(x) + 1)(x).tolist() == [2.0, 5.0]


def test_versions_count_the_writes() -> None:
    run = Training().warm()
    weight = run.model[0].weight
    version = weight._version[0]
    assert is_bound(run.train, lambda: run.train(run.x, run.y))
    assert weight._version[0] == version + 1


def test_a_result_whose_backward_pass_is_over_says_so() -> None:
    run = Training().warm()
    loss = run.train(run.x, run.y)
    assert loss.requires_grad
    with pytest.raises(DerivativeError, match="freed"):
        loss.backward()


# ---------------------------------------------------------------- who owns what


def test_results_that_are_kept_are_not_overwritten() -> None:
    x = sg.asarray([1.0, 2.0])
    compiled = warmed(lambda x: x + 1, x)
    kept = [compiled(sg.asarray([float(k), 0.0])) for k in range(5)]
    assert [t.tolist() for t in kept] == [[k + 1.0, 1.0] for k in range(5)]


@pytest.mark.parametrize("hold", [lambda g: g, lambda g: g.numpy(), lambda g: g.numpy()[:1]])
def test_gradients_that_are_kept_are_not_overwritten(hold: Any) -> None:
    run = Training().warm()
    weight = run.model[0].weight
    kept = hold(weight.grad)
    before = np.array(kept.numpy() if hasattr(kept, "numpy") else kept)
    for _ in range(3):
        run.train(run.x, run.y)
    assert np.array_equal(before, kept.numpy() if hasattr(kept, "numpy") else kept)
    assert is_bound(run.train, lambda: run.train(run.x, run.y))


def test_gradients_that_were_cleared_come_back() -> None:
    run, reference = Training().warm(), Training().warm()
    for _ in range(3):
        run.optimizer.zero_grad()
        run.train(run.x, run.y)
        ordinary(reference.train, reference.x, reference.y)
    assert all(np.array_equal(a, b) for a, b in zip(run.state(), reference.state(), strict=True))


def test_gradients_that_are_cleared_outside_before_each_call() -> None:
    weight = sg.asarray([1.0, 2.0]).requires_grad_()

    def f(x: Any) -> Any:
        loss = sg.sum(weight * x)
        loss.backward()
        return loss

    compiled = sg.compile(f)
    kept = []
    for k in range(6):
        weight.grad = None
        compiled(sg.asarray([float(k), 1.0]))
        kept.append(weight.grad)
    assert [g.tolist() for g in kept if g is not None] == [[float(k), 1.0] for k in range(6)]
    assert compiled.last.bound_calls >= 3


def test_gradients_that_add_up() -> None:
    weight = sg.asarray([1.0, 2.0]).requires_grad_()

    def f(x: Any) -> Any:
        loss = sg.sum(weight * x)
        loss.backward()
        return loss

    compiled = sg.compile(f)
    x = sg.asarray([1.0, 3.0])
    for _ in range(6):
        compiled(x)
    assert weight.grad is not None
    assert weight.grad.tolist() == [6.0, 18.0]
    assert compiled.last.bound_calls >= 2


def test_binding_is_given_up_where_it_never_fits() -> None:
    run = Training().warm()
    kept = []
    for _ in range(30):
        run.train(run.x, run.y)
        kept.append(run.model[0].weight.grad)
    assert run.train._bound == ()
    assert len({id(g) for g in kept}) == 30


def test_an_index_out_of_range_is_still_an_error() -> None:
    table = sg.asarray(np.arange(6.0).reshape(3, 2))
    compiled = warmed(lambda i: sg.take(table, i, axis=0), sg.asarray([0, 1]))
    for _ in range(2):
        with pytest.raises(IndexError, match="take"):
            compiled(sg.asarray([0, 7]))
    assert is_bound(compiled, lambda: compiled(sg.asarray([2, 1])))
    assert compiled(sg.asarray([2, 1])).tolist() == [[4.0, 5.0], [2.0, 3.0]]


def test_threads_may_call_at_once() -> None:
    compiled = warmed(lambda x: sg.sum(x * 2.0), sg.asarray(np.ones(1000)))
    wrong: list[float] = []

    def work(k: int) -> None:
        x = sg.asarray(np.full(1000, float(k)))
        for _ in range(300):
            value = compiled(x).item()
            if value != 2000.0 * k:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_is_kept_alive_after_the_function_is_gone() -> None:
    import weakref

    run = Training().warm()
    gone = weakref.ref(run.train.last.program)
    del run
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- without machine code


def test_the_python_form_of_the_native_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_call, "_maker", lambda: None)
    run, reference = Training().warm(), Training().warm()
    for _ in range(3):
        run.train(run.x, run.y)
        ordinary(reference.train, reference.x, reference.y)
    assert all(np.array_equal(a, b) for a, b in zip(run.state(), reference.state(), strict=True))


def test_a_wrong_number_of_arrays_runs_nothing() -> None:
    compiled = warmed(lambda x: x + 1, sg.asarray([1.0]))
    workspace = compiled.last.program.free[-1]
    assert workspace.run() == -1
    assert workspace.run(np.ones(1), np.ones(1), np.ones(1)) == -1
