"""`CompiledFunction.run`: the same as single calls in the documented order, bit for bit."""

from __future__ import annotations

import _thread
import threading
import time
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.errors import CaptureError

Array = np.ndarray[Any, Any]


class Training:
    """A small model, its optimizer, data and a step."""

    def __init__(self, rows: int = 23, **options: Any) -> None:
        sg.random.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.01)
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((rows, 3)).astype(np.float32)
        self.y = rng.integers(0, 2, rows)
        self.train = sg.compile(self.step, **options)

    def step(self, x: Any, y: Any) -> Any:
        out = self.model(x)
        loss = nn.functional.cross_entropy(out, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss, "largest": sg.max(out), "none": None}

    def state(self) -> list[Array]:
        found = [p.detach().numpy().copy() for p in self.model.parameters()]
        found += [p.grad.numpy().copy() for p in self.model.parameters() if p.grad is not None]
        return found + [t.numpy().copy() for entries in self.optimizer.state.values() for t in entries.values()]


def by_single_calls(run: Training, batch_size: int, epochs: int, shuffle: int | None, drop_last: bool) -> Any:
    """What `run.train.run` documents, as a loop."""
    loader = sg.data.DataLoader(
        sg.data.TensorDataset(run.x, run.y),
        batch_size,
        shuffle=shuffle is not None,
        drop_last=drop_last,
        seed=shuffle or 0,
    )
    found = [run.train(x, y) for _ in range(epochs) for x, y in loader]
    return {key: np.array([step[key].item() for step in found], np.float32) for key in ("loss", "largest")}


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [None, 0, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 23])
def test_the_same_as_single_calls_bit_for_bit(batch_size: int, shuffle: int | None, drop_last: bool) -> None:
    one, other = Training(), Training()
    expected = by_single_calls(other, batch_size, 3, shuffle, drop_last)
    data = (sg.asarray(one.x), sg.asarray(one.y))
    got = one.train.run(data, batch_size=batch_size, epochs=3, shuffle=shuffle, drop_last=drop_last)
    assert list(got) == ["loss", "largest", "none"]
    assert got["none"] is None
    for key, values in expected.items():
        assert got[key].dtype == np.float32
        assert np.array_equal(got[key].numpy(), values), key
    assert all(np.array_equal(a, b) for a, b in zip(one.state(), other.state(), strict=True))
    assert one.model[0].weight._version[0] == other.model[0].weight._version[0]


def test_most_steps_are_native() -> None:
    run = Training(400)
    calls = []
    original = run.train._ordinary_call
    run.train._ordinary_call = lambda args, kwargs: calls.append(0) or original(args, kwargs)  # type: ignore[method-assign]
    run.train.run((run.x, run.y), batch_size=4, epochs=3, shuffle=1)
    assert len(calls) <= 2
    assert run.train.last.calls == 300
    plain = sg.compile(lambda x: sg.sum(x))
    plain.run((run.x,), batch_size=4, epochs=3)
    before = plain.last.ordinary_calls
    plain.run((run.x,), batch_size=4, epochs=3)
    assert plain.last.ordinary_calls == before


def test_calls_after_a_run_are_bound() -> None:
    run = Training(40)
    run.step = lambda x, y: Training.step(run, x, y)["loss"]  # type: ignore[method-assign]
    train = sg.compile(run.step)
    data = (run.x, run.y)
    for _ in range(3):
        train(run.x[:4], run.y[:4])
    run.model[0].weight._value = run.model[0].weight._value.copy()
    train.run(data, batch_size=4)
    bound = train.last.bound_calls
    for _ in range(3):
        train(run.x[:4], run.y[:4])
    assert train.last.bound_calls >= bound + 2


def test_keyword_arguments_and_results_with_axes() -> None:
    compiled = sg.compile(lambda *, a, b: (a * 2, [b - a]))
    a, b = np.arange(12.0).reshape(6, 2), np.ones((6, 2))
    for _ in range(2):
        double, (difference,) = compiled.run({"b": b, "a": a}, batch_size=2, epochs=2)
        assert double.shape == (6, 2, 2)
        assert np.array_equal(double.numpy().reshape(12, 2), np.concatenate([a, a]) * 2)
        assert np.array_equal(difference.numpy().reshape(12, 2), np.concatenate([b - a, b - a]))


@pytest.mark.parametrize(
    "make", [lambda a: np.asfortranarray(a), lambda a: a[::2], lambda a: a.astype(">f8"), lambda a: a[:, ::-1]]
)
def test_data_in_any_layout(make: Any) -> None:
    compiled = sg.compile(lambda x: sg.sum(x, axis=1))
    data = make(np.arange(40.0).reshape(20, 2))
    for shuffle in (None, 0):
        got = compiled.run((data,), batch_size=2, epochs=2, shuffle=shuffle).numpy().ravel()
        order = np.arange(len(data))
        if shuffle is not None:
            order = np.concatenate([np.random.default_rng((0, epoch)).permutation(len(data)) for epoch in range(2)])
            assert np.array_equal(got, data.sum(axis=1)[order])
        else:
            assert np.array_equal(got, np.tile(data.sum(axis=1), 2))


def test_no_epochs_and_no_steps() -> None:
    run = Training()
    before = run.state()
    got = run.train.run((run.x, run.y), batch_size=5, epochs=0)
    assert got["loss"].shape == (0,)
    assert all(np.array_equal(a, b) for a, b in zip(before, run.state(), strict=True))


def test_what_changes_between_runs_is_seen() -> None:
    run = Training()
    data = (run.x, run.y)
    run.train.run(data, batch_size=4, epochs=2)
    run.optimizer.param_groups[0]["lr"] = 0.0
    before = run.state()[0]
    run.train.run(data, batch_size=4, epochs=2)
    assert np.array_equal(before, run.state()[0])
    run.model[0].weight.requires_grad_(False)
    run.optimizer.param_groups[0]["lr"] = 0.1
    run.train.run(data, batch_size=4, epochs=2)
    assert np.array_equal(before, run.state()[0])


def test_gradients_that_add_up_and_gradients_that_are_kept() -> None:
    def gradients(many: bool) -> tuple[Array, Array]:
        weight = sg.asarray([1.0, 2.0]).requires_grad_()

        def f(x: Any) -> Any:
            loss = sg.sum(weight * x)
            loss.backward()
            return loss

        compiled = sg.compile(f)
        data = np.arange(20, dtype=np.float32).reshape(10, 2)
        for _ in range(2):
            if many:
                compiled.run((data,), batch_size=1, epochs=2)
            else:
                for row in [*data, *data]:
                    compiled(row[None])
        assert weight.grad is not None
        kept = weight.grad
        weight.grad = None
        if many:
            compiled.run((data,), batch_size=1)
        else:
            for row in data:
                compiled(row[None])
        assert weight.grad is not None
        return kept.numpy(), weight.grad.numpy()

    assert all(np.array_equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_kept_gradients_are_not_overwritten() -> None:
    run = Training()
    run.train.run((run.x, run.y), batch_size=4, epochs=2)
    kept = run.model[0].weight.grad
    assert kept is not None
    before = kept.numpy().copy()
    run.train.run((run.x, run.y), batch_size=4, epochs=2)
    assert np.array_equal(before, kept.numpy())


def test_data_that_the_function_writes_through_state() -> None:
    def final(many: bool) -> list[Any]:
        table = sg.asarray(np.arange(12.0).reshape(6, 2))

        def f(x: Any) -> Any:
            table.copy_(table + sg.sum(x))
            return sg.sum(x)

        compiled = sg.compile(f)
        if many:
            sums = compiled.run((table,), batch_size=1, epochs=2).tolist()
        else:
            sums = [compiled(sg.asarray(table.numpy()[i : i + 1])).item() for _ in range(2) for i in range(6)]
        return [sums, table.tolist()]

    assert final(True) == final(False)


def test_functions_that_a_loop_cannot_run_alone() -> None:
    x = np.arange(8.0).reshape(4, 2)
    weight = sg.asarray(np.ones(2)).requires_grad_()
    live = sg.compile(lambda x: x * weight)
    assert np.array_equal(live.run((x,), batch_size=1, epochs=2).numpy(), np.tile(x, (2, 1))[:, None])
    run, other = Training(check=True), Training()
    got = run.train.run((run.x, run.y), batch_size=5, shuffle=2)
    assert np.array_equal(got["loss"].numpy(), by_single_calls(other, 5, 1, 2, False)["loss"])


def test_a_run_inside_no_grad() -> None:
    run = Training()
    predict = sg.compile(lambda x: sg.argmax(run.model(x), axis=1))
    with sg.no_grad():
        found = predict.run((run.x,), batch_size=1, epochs=3).numpy()
        expected = np.array([predict(row[None]).tolist() for row in run.x])
    assert np.array_equal(found, np.tile(expected, (3, 1)))


# ---------------------------------------------------------------- stopping


def test_an_index_out_of_range_names_the_step() -> None:
    table, total = sg.asarray(np.arange(6.0).reshape(3, 2)), sg.asarray(0.0)

    def f(i: Any) -> Any:
        total.copy_(total + 1)
        return sg.take(table, i, axis=0)

    compiled = sg.compile(f)
    indices = np.zeros(40, np.int64)
    indices[[2 * 17]] = 9
    for _ in range(2):
        with pytest.raises(IndexError, match=r"take.*In step 17 of run"):
            compiled.run((indices,), batch_size=2)
    assert total.item() == 34
    assert compiled.run((indices[:30],), batch_size=2).shape == (15, 2, 2)
    indices[0] = -9
    with pytest.raises(IndexError, match="In step 0 of run"):
        compiled.run((indices,), batch_size=2)


def test_ctrl_c_ends_between_two_steps() -> None:
    count, other = sg.asarray(np.zeros(())), sg.asarray(np.zeros(()))
    started = threading.Event()

    def f(x: Any) -> Any:
        count.copy_(count + 1)
        other.copy_(other + 1)
        return sg.sum(x)

    compiled = sg.compile(f)
    data = np.ones((5000, 10))
    compiled.run((data,), batch_size=1)

    def interrupt() -> None:
        started.wait()
        time.sleep(0.05)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    started.set()
    with pytest.raises(KeyboardInterrupt):
        compiled.run((data,), batch_size=1, epochs=1000)
    thread.join()
    assert count.item() == other.item()
    assert compiled(data[:1]).item() == 10.0


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    run = Training()
    run.train.run((run.x, run.y), batch_size=5, epochs=2, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "run: step 10 of 10"
    assert all(line.startswith("run: step ") for line in lines)
    run.train.run((run.x, run.y), batch_size=5, epochs=0, progress=True)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arrays", "options", "error", "text"),
    [
        ((np.ones((4, 2)), np.ones(3)), {}, ValueError, "as many rows.*number 0 has 4, number 1 has 3"),
        ({"x": np.ones(4), "y": np.ones(5)}, {}, ValueError, "'x' has 4, 'y' has 5"),
        ((np.ones((0, 2)),), {}, ValueError, "at least one row"),
        ((), {}, TypeError, "an empty tuple"),
        (np.ones(4), {}, TypeError, "tuple, list or dict"),
        ((np.ones(4), [1, 2, 3, 4]), {}, TypeError, "number 1 is a list"),
        ((np.float64(3.0),), {}, TypeError, "number 0 is a float64"),
        ((np.array(3.0),), {}, ValueError, "0-d"),
        ((np.ones(4),), {"batch_size": 0}, ValueError, "batch_size must be at least 1; got 0"),
        ((np.ones(4),), {"batch_size": 5}, ValueError, "at most the 4 rows; got 5"),
        ((np.ones(4),), {"epochs": -1}, ValueError, "epochs must be at least 0; got -1"),
        ((np.ones(4),), {"shuffle": -1}, ValueError, "shuffle must be a seed"),
        ((np.ones(4),), {"shuffle": True}, ValueError, "shuffle must be a seed"),
        ((np.ones(4),), {"batch_size": 2.5}, TypeError, "integer"),
    ],
)
def test_arguments_of_run(arrays: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    compiled = sg.compile(lambda *args, **kwargs: args[0] + 1)
    with pytest.raises(error, match=text):
        compiled.run(arrays, **{"batch_size": 2, **options})
    assert compiled.cache_info().currsize == 0


def test_data_that_requires_grad() -> None:
    compiled = sg.compile(lambda x: x + 1)
    with pytest.raises(ValueError, match="must not require grad"):
        compiled.run((sg.asarray([1.0, 2.0]).requires_grad_(),), batch_size=1)


def test_results_that_cannot_be_stacked() -> None:
    with pytest.raises(TypeError, match=r"results must be arrays.*'text'"):
        sg.compile(lambda x: (x, "text")).run((np.ones(4),), batch_size=2)
    with pytest.raises(ValueError, match=r"last batch, of 1 rows.*drop_last=True"):
        sg.compile(lambda x: x + 1).run((np.ones(5),), batch_size=2)


def test_a_function_that_writes_its_arguments() -> None:
    def f(x: Any) -> Any:
        x.copy_(x + 1)
        return sg.sum(x)

    data = sg.asarray(np.ones(4))
    with pytest.raises(CaptureError, match="write its arguments"):
        sg.compile(f).run((data,), batch_size=2)
    assert data.tolist() == [1.0] * 4


def test_run_is_no_part_of_a_captured_function() -> None:
    inner = sg.compile(lambda x: x + 1)
    with pytest.raises(CaptureError, match="run: cannot be part"):
        sg.compile(lambda x: inner.run((np.ones(4),), batch_size=2))(np.ones(2))
