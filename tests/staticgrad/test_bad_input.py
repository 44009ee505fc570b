"""What a wrong program gets: an error that names the op, what came, the user's line and the way out, in both modes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import data, nn, optim
from staticgrad.graph.errors import (
    DeviceError,
    DTypeError,
    IndexRangeError,
    ShapeError,
    StaticgradError,
    TracedValueError,
)

X = np.ones((2, 3), np.float32)
LINEAR = nn.Linear(4, 2)
MODES: list[Any] = [lambda f: f, lambda f: sg.compile(f)]
both_modes = pytest.mark.parametrize("mode", MODES, ids=["dynamic", "static"])


def cross_entropy(x: Any, y: Any) -> Any:
    return nn.functional.cross_entropy(x, y)


# (function of X, error, what its message says)
WRONG_OPERANDS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (
        lambda x: x @ np.ones((4, 2), np.float32),
        ShapeError,
        r"matmul: the last axis of the first operand must equal.*got \(2, 3\) and \(4, 2\)",
    ),
    (
        lambda x: x @ np.ones((3, 2), np.float32) + np.ones(3, np.float32),
        ShapeError,
        r"add: operands must broadcast to one shape; got \(2, 2\) and \(3,\); axes are aligned from the right",
    ),
    (
        lambda x: (x > 0) @ np.ones((3, 2), np.bool_),
        DTypeError,
        r"matmul: takes a floating dtype; got bool; convert it first with astype",
    ),
    (lambda x: LINEAR(x), ShapeError, r"linear: .* in_features=4 elements; got input of shape \(2, 3\)"),
    (
        lambda x: LINEAR(sg.astype(sg.ones((1, 4)) * x[0, 0], np.int64)),
        DTypeError,
        r"linear: input must be floating; got int64; convert it with sg\.astype",
    ),
    (
        lambda x: LINEAR(sg.ones((1, 4), dtype=np.float64) * sg.sum(x)),
        DTypeError,
        r"linear: input and weight must have one dtype; got float64 and float32; convert .* or the model with \.to\(",
    ),
    (lambda x: cross_entropy(x, np.zeros(3, np.int64)), ShapeError, r"cross_entropy: labels must have shape \(2,\)"),
    (
        lambda x: cross_entropy(x, np.zeros(2, np.float32)),
        DTypeError,
        r"cross_entropy: labels must be integers of shape \(2,\).*got float32 .* convert labels with sg\.astype",
    ),
    (
        lambda x: cross_entropy(sg.astype(x, np.int64), np.zeros(2, np.int64)),
        DTypeError,
        r"cross_entropy: input must be floating; got int64; convert it with sg\.astype",
    ),
    (
        lambda x: cross_entropy(x, np.array([0, 3])),
        IndexRangeError,
        r"cross_entropy: a label must lie in \[0, 3\); got 3",
    ),
    (lambda x: sg.concat([x, x[:, :2]]), ShapeError, r"concat: .*\(2, 3\).*\(2, 2\)"),
    (lambda x: sg.reshape(x, (4, 2)), ShapeError, r"reshape: .*\(2, 3\).*\(4, 2\)"),
    (lambda x: sg.mean(x[:0]), ShapeError, r"mean: no mean exists over no elements; got shape \(0, 3\)"),
    (lambda x: sg.max(x[:0]), ShapeError, r"max: no value exists over an empty axis; got shape \(0, 3\)"),
    (
        lambda x: cross_entropy(x[:0], np.zeros(0, np.int64)),
        ShapeError,
        r"cross_entropy: the mean over no elements is undefined.*skip empty batches, or use reduction='sum'",
    ),
    (
        lambda x: nn.functional.mse_loss(x[:0], x[:0]),
        ShapeError,
        r"mse_loss: the mean over no elements is undefined.*skip empty batches",
    ),
]


@both_modes
@pytest.mark.parametrize(("function", "error", "message"), WRONG_OPERANDS)
def test_wrong_operands(function: Any, error: type[Exception], message: str, mode: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        mode(function)(sg.asarray(X))
    assert isinstance(caught.value, StaticgradError)
    named = re.search(r"(Called|Captured) at (.*):(\d+)$", str(caught.value))
    assert named is not None, str(caught.value)
    assert Path(named[2]).name == "test_bad_input.py"
    code = function.__code__
    lines = {line for *_, line in (cross_entropy if "cross_entropy" in message else function).__code__.co_lines()}
    assert int(named[3]) in lines | {line for *_, line in code.co_lines()}
    assert named[1] == ("Called" if mode is MODES[0] else "Captured")


# ---------------------------------------------------------------- traced values that are asked for their number


ASKING: list[tuple[str, Callable[[Any], Any]]] = [
    (r"a Python branch \(bool\(\)\)", lambda x: x if sg.sum(x) > 0 else -x),
    (r"a Python branch \(bool\(\)\)", lambda x: [x for _ in range(2) if sg.any(x > 0)]),
    (r"a Python branch \(bool\(\)\)", lambda x: sg.max(x) and x),
    (r"float\(\)", lambda x: float(sg.sum(x))),
    (r"int\(\)", lambda x: int(sg.sum(x))),
    (r"item\(\)", lambda x: sg.sum(x).item()),
    (r"numpy\(\)", lambda x: (x * 2).numpy()),
    (r"np\.asarray", lambda x: np.asarray(x * 2)),
    (r"tolist\(\)", lambda x: (x * 2).tolist()),
    (r"an index", lambda x: list(range(sg.astype(sg.sum(x), np.int64)))),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("asked", "function"), ASKING)
def test_the_number_of_a_traced_value(asked: str, function: Any) -> None:
    function(sg.asarray(X))  # fine at once
    line = function.__code__.co_firstlineno
    here = rf"test_bad_input\.py:{line}"
    message = (
        rf"^{asked}: this value is being captured and has no number yet \(.* from \w+ at .*{here}\); "
        r"use sg\.where for a choice by value, pass the number through static_argnames .*, or move this line out of "
        rf"the compiled function\. Captured at .*{here}$"
    )
    compiled = sg.compile(function)
    with pytest.raises(TracedValueError, match=message):
        compiled(X)
    assert compiled.cache_info().misses == 0
    assert isinstance(sg.asarray(X) * 2, sg.Tensor)  # no capture is left open


# ---------------------------------------------------------------- devices


DEVICES: list[Callable[[], Any]] = [
    lambda: sg.zeros(3, device="cuda:9"),
    lambda: sg.asarray(X, device="cuda:9"),
    lambda: sg.tensor([1.0], device="cuda:9"),
    lambda: sg.ones_like(sg.asarray(X), device="cuda:9"),
    lambda: sg.asarray(X).to("cuda:9"),
    lambda: nn.Parameter(X.copy()).to(device="cuda:9"),
    lambda: LINEAR.to("cuda:9"),
    lambda: LINEAR.to(np.float64, device="cuda:9"),
    lambda: nn.Sequential(LINEAR).to(device="cuda:9"),
    lambda: nn.Linear(2, 2, device="cuda:9"),
    lambda: nn.Embedding(2, 2, device="cuda:9"),
    lambda: nn.LayerNorm(2, device="cuda:9"),
]


@both_modes
@pytest.mark.parametrize("function", DEVICES)
def test_devices_that_do_not_exist(function: Any, mode: Any) -> None:
    with pytest.raises(DeviceError, match="cuda:9 was asked for and there is 1 GPU"):
        mode(function)()
    assert LINEAR.weight.dtype == np.float32


def test_the_device_that_exists() -> None:
    layer = nn.Linear(2, 2, device="cpu")
    assert layer.to("cpu") is layer
    assert layer.to(np.float64, device="cpu").weight.dtype == np.float64
    assert sg.compile(lambda x: x, device="cpu")(X).device == "cpu"


# ---------------------------------------------------------------- training


def training() -> tuple[Any, list[Any]]:
    """A step, and the tensors of its state."""
    sg.random.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3))
    opt = optim.Adam(model.parameters(), lr=0.1)

    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(sg.asarray(x)), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    state = [*model.parameters(), sg.random.default_generator.state]
    return step, state + [tensor for entries in opt.state.values() for tensor in entries.values()]


def content(state: list[Any]) -> list[bytes]:
    return [np.array(tensor).tobytes() for tensor in state]


@both_modes
@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_change_nothing(mode: Any, label: int) -> None:
    step, state = training()
    run = mode(step)
    run(X, np.array([0, 1]))
    parameters = [tensor for tensor in state if tensor.requires_grad]
    gradients = [np.array(parameter.grad) for parameter in parameters]
    before = content(state[: len(parameters)])
    optimizer = content(state[len(parameters) + 1 :])
    with pytest.raises(
        IndexRangeError, match=rf"cross_entropy: a label must lie in \[0, 3\); got {label}.*test_bad_input"
    ):
        run(X, np.array([1, label]))
    assert content(state[: len(parameters)]) == before
    assert content(state[len(parameters) + 1 :]) == optimizer
    left = [(parameter.grad, old) for parameter, old in zip(parameters, gradients, strict=True)]
    kept = [(np.array(grad), old) for grad, old in left if grad is not None]  # cleared if it had begun to replace it
    assert len(kept) >= len(left) - 1
    for gradient, old in kept:
        np.testing.assert_array_equal(gradient, old)
    assert np.isfinite(run(X, np.array([2, 1])).item())


def test_labels_out_of_range_leave_the_random_state_of_a_program() -> None:
    """A program that fails is as if it had not been called, its random state included."""
    step, state = training()
    run = sg.compile(step)
    run(X, np.array([0, 1]))
    before = content(state)
    with pytest.raises(IndexRangeError):
        run(X, np.array([0, 7]))
    assert content(state) == before


@both_modes
def test_an_empty_batch_changes_nothing(mode: Any) -> None:
    step, state = training()
    run = mode(step)
    run(X, np.array([0, 1]))
    parameters = content([tensor for tensor in state if tensor.requires_grad])
    with pytest.raises(ShapeError, match=r"the mean over no elements is undefined; got input of shape \(0, 3\)"):
        run(X[:0], np.zeros(0, np.int64))
    assert content([tensor for tensor in state if tensor.requires_grad]) == parameters
    run(X, np.array([0, 1]))


@both_modes
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad])
def test_an_optimizer_over_no_parameters(mode: Any, kind: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}: there must be parameters to optimize; got none; pass model"
    ):
        mode(lambda: kind([], lr=0.1))()
    with pytest.raises(ValueError, match="got none"):
        kind(nn.Sequential(nn.Tanh()).parameters(), lr=0.1)


@both_modes
def test_an_interrupt_between_or_in_steps_leaves_whole_steps(mode: Any) -> None:
    """Ctrl-C in the middle of an epoch: the state is that after some whole number of steps."""
    step, state = training()
    run = mode(step)
    states = [content(state)]
    for _ in range(4):
        run(X, np.array([0, 1]))
        states.append(content(state))
    step, state = training()
    run = mode(step)

    class Interrupting(data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            if index == 5:
                raise KeyboardInterrupt
            return X[index % 2], np.int64(index % 2)

    def epoch() -> None:
        for x, y in data.DataLoader(Interrupting(), batch_size=2):
            run(x, y)

    with pytest.raises(KeyboardInterrupt):
        epoch()
    assert content(state) == states[2]
    run(X, np.array([0, 1]))
    assert content(state) == states[3]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_around_the_native_call(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Python raises it right before or right after the native call: the state is that of a whole number of steps.

    One parameter has a storage that is not contiguous, on a copy of which the program works.
    """
    found = []
    for interrupts in (False, True):
        weight = sg.asarray(np.ones((3, 2), np.float32).T).requires_grad_()
        opt = optim.Adam([weight], lr=0.1)

        @sg.compile
        def step(x: Any, weight: Any = weight, opt: Any = opt) -> Any:
            loss = sg.sum((weight * x) ** 2)
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        state = [weight.detach(), *opt.state[weight].values()]
        step(X)
        states = [content(state)]
        native = type(step.last.program).run

        def interrupted(self: Any, *arguments: Any, native: Any = native) -> None:
            if when == "after":
                native(self, *arguments)
            raise KeyboardInterrupt

        if interrupts:
            with monkeypatch.context() as patch:
                patch.setattr(type(step.last.program), "run", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    step(X)
        elif when == "after":
            step(X)
        states.append(content(state))
        step(X)
        found.append([*states, content(state)])
    assert found[0] == found[1]


# ---------------------------------------------------------------- files


def test_a_file_in_the_place_of_a_directory(tmp_path: Path) -> None:
    """Stands for a directory that may not be read, also where the tests run as root."""
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises((OSError, ValueError), match="file"):
        data.read_idx(path / "train-images-idx3-ubyte")
    with pytest.raises(OSError, match="file"):
        sg.save_file({"x": X}, path / "weights")
    compiled = sg.compile(lambda x: x * 2)
    compiled(X)
    with pytest.raises(OSError, match="file"):
        compiled.save(path / "program")
    assert path.read_text() == "x"
