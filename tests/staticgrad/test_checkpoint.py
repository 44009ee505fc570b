"""Checkpoints: a run goes on where it stopped, and what does not fit changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import staticgrad as sg
from staticgrad import nn, optim, random
from staticgrad.checkpoint import load_checkpoint, save_checkpoint
from staticgrad.saving import save_file, write_arrays


def tensor(*values: float) -> Any:
    return sg.asarray(np.array(values, np.float32))


class Model:
    """Two tensors by name, loaded in place, as a Module does."""

    def __init__(self, **tensors: Any) -> None:
        self.tensors = tensors or {"weight": tensor(1, 2), "bias": tensor(3)}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.tensors)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            self.tensors[name].copy_(value)

    def values(self) -> dict[str, list[float]]:
        return {name: np.asarray(value).tolist() for name, value in self.tensors.items()}


class Optimizer:
    """State of the form that PyTorch's optimizers have."""

    def __init__(self, model: Model, *, stepped: bool, lr: float = 0.1) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(model.tensors.values()), "lr": lr, "betas": (0.9, 0.999), "foreach": None}
        ]
        self.state: dict[int, dict[str, Any]] = {}
        if stepped:
            for index, parameter in enumerate(model.tensors.values()):
                moment = sg.asarray(np.full(parameter.shape, lr, np.float32))
                self.state[index] = {"step": 7, "moment": moment, "scale": sg.asarray(np.float32(2))}

    def state_dict(self) -> dict[str, Any]:
        groups, count = [], 0
        for group in self.param_groups:
            indices = list(range(count, count := count + len(group["params"])))
            groups.append(group | {"params": indices})
        return {"state": self.state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = dict(state_dict["state"])
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})

    def values(self) -> dict[int, dict[str, Any]]:
        return {index: {k: np.asarray(v).tolist() for k, v in entry.items()} for index, entry in self.state.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


@pytest.mark.parametrize("stepped", [False, True])
def test_everything_comes_back(path: Path, stepped: bool) -> None:
    model = Model()
    optimizer = Optimizer(model, stepped=True, lr=0.5)
    random.manual_seed(11)
    state = np.array(random.get_state())
    extra = {"best": 0.25, 3: ["a", None, True], "scheduler": {"last": (1, 2.5)}, "ema": tensor(8, 9)}
    save_checkpoint(path, model=model, optimizer=optimizer, step=40, extra=extra)

    random.manual_seed(12)
    other = Model(weight=tensor(0, 0), bias=tensor(0))
    stale = Optimizer(other, stepped=stepped)
    step, read = load_checkpoint(path, model=other, optimizer=stale)
    assert step == 40
    np.testing.assert_array_equal(np.asarray(read.pop("ema")), [8, 9])
    extra.pop("ema")
    assert read == extra
    assert other.values() == model.values()
    assert stale.values() == optimizer.values()
    assert stale.state[0]["step"] == 7
    assert stale.param_groups[0]["lr"] == 0.5
    assert stale.param_groups[0]["betas"] == (0.9, 0.999)
    np.testing.assert_array_equal(random.get_state(), state)


def test_parts_may_be_left_out(path: Path) -> None:
    model = Model()
    random.manual_seed(1)
    save_checkpoint(path, model=model, random=False)
    random.manual_seed(2)
    state = np.array(random.get_state())
    assert load_checkpoint(path, random=False) == (0, None)
    np.testing.assert_array_equal(random.get_state(), state)
    with pytest.raises(ValueError, match="saved without its random state; leave out random="):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="saved without its optimizer state"):
        load_checkpoint(path, optimizer=Optimizer(model, stepped=True), random=False)
    save_checkpoint(path, step=3)
    with pytest.raises(ValueError, match="saved without its model state"):
        load_checkpoint(path, model=model)
    assert load_checkpoint(path).step == 3


def test_a_checkpoint_is_one_plain_safetensors_file(path: Path) -> None:
    model = Model()
    save_checkpoint(path, model=model, optimizer=Optimizer(model, stepped=True))
    assert os.listdir(path.parent) == [path.name]
    with safetensors.safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        header = json.loads(file.metadata()["staticgrad.checkpoint"])
    assert {"model.weight", "model.bias", "random.state"} < names
    assert header["model"] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"weight": tensor(1, 2), "scale": tensor(3)}, r"missing in the file: bias\n  unexpected in the file: scale"),
        ({"weight": tensor(1, 2, 3), "bias": tensor(3)}, r"weight: shape \(3,\) saved, \(2,\) here"),
        ({"weight": tensor(1, 2), "bias": sg.asarray(np.zeros(1))}, "bias: dtype float64 saved, float32 here"),
    ],
    ids=["keys", "shape", "dtype"],
)
def test_a_model_that_does_not_fit_changes_nothing(path: Path, saved: dict[str, Any], message: str) -> None:
    source = Model(**saved)
    save_checkpoint(path, model=source, optimizer=Optimizer(source, stepped=False))
    random.manual_seed(5)
    state = np.array(random.get_state())
    model = Model()
    optimizer = Optimizer(model, stepped=True)
    before = model.values(), optimizer.values()
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, model=model, optimizer=optimizer)
    assert (model.values(), optimizer.values()) == before
    np.testing.assert_array_equal(random.get_state(), state)


def broken_optimizers() -> list[Any]:
    def entry(optimizer: Optimizer) -> None:
        optimizer.state[1]["velocity"] = optimizer.state[1].pop("moment")

    def shape(optimizer: Optimizer) -> None:
        optimizer.state[0]["moment"] = tensor(1, 2, 3)

    def option(optimizer: Optimizer) -> None:
        optimizer.param_groups[0]["momentum"] = optimizer.param_groups[0].pop("betas")

    def count(optimizer: Optimizer) -> None:
        optimizer.param_groups[0]["params"].pop()

    def stranger(optimizer: Optimizer) -> None:
        optimizer.state[9] = {}

    cases = [
        (entry, r"parameter 1: missing in the file: moment\n  parameter 1: unexpected in the file: velocity"),
        (shape, r"parameter 0: moment: shape \(3,\) saved, \(2,\)"),
        (option, r"group 0: missing in the file: betas\n  group 0: unexpected in the file: momentum"),
        (count, r"parameters in its groups: \[1\] saved, \[2\] in the optimizer"),
        (stranger, "state of a parameter 9 that is in no group"),
    ]
    return [pytest.param(change, message, id=change.__name__) for change, message in cases]


@pytest.mark.parametrize(("change", "message"), broken_optimizers())
def test_an_optimizer_that_does_not_fit_changes_nothing(path: Path, change: Any, message: str) -> None:
    source = Model(weight=tensor(5, 6), bias=tensor(7))
    optimizer = Optimizer(source, stepped=True)
    change(optimizer)
    save_checkpoint(path, model=source, optimizer=optimizer)
    model = Model()
    current = Optimizer(model, stepped=True)
    before = model.values(), current.values()
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, model=model, optimizer=current)
    assert (model.values(), current.values()) == before


def test_a_shape_is_checked_before_the_first_step(path: Path) -> None:
    source = Model()
    optimizer = Optimizer(source, stepped=True)
    optimizer.state[0]["moment"] = tensor(1, 2, 3)
    save_checkpoint(path, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"parameter 0: moment: shape \(3,\) saved, \(2,\) in the parameter"):
        load_checkpoint(path, optimizer=Optimizer(source, stepped=False))


@pytest.mark.parametrize("error", [RuntimeError("late"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_in_the_middle_is_taken_back(path: Path, error: BaseException) -> None:
    class Fragile(Optimizer):
        failures = 1

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            if self.failures:
                self.failures -= 1
                raise error

    source = Model(weight=tensor(5, 6), bias=tensor(7))
    save_checkpoint(path, model=source, optimizer=Optimizer(source, stepped=True, lr=9.0))
    random.manual_seed(5)
    state = np.array(random.get_state())
    model = Model()
    optimizer = Fragile(model, stepped=True)
    before = model.values(), optimizer.values(), optimizer.param_groups[0]["lr"]
    with pytest.raises(type(error)):
        load_checkpoint(path, model=model, optimizer=optimizer)
    assert (model.values(), optimizer.values(), optimizer.param_groups[0]["lr"]) == before
    np.testing.assert_array_equal(random.get_state(), state)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "is no checkpoint; load_file reads plain tensors"),
        ("{", "is no checkpoint"),
        ("[]", "is no checkpoint"),
        ('{"version": 99}', "reads version 1; .* has version 99"),
        ('{"version": 1}', "is damaged"),
        ('{"version": 1, "step": 0, "extra": {"tensor": "gone"}}', "is damaged"),
        ('{"version": 1, "step": 0, "extra": {"spell": []}}', "is damaged"),
        ('{"version": 1, "step": 0, "extra": null, "model": ["gone"]}', "is damaged"),
    ],
)
def test_foreign_and_damaged_checkpoints(path: Path, header: str | None, message: str) -> None:
    if header is None:
        save_file({"x": np.zeros(1)}, path)
    else:
        write_arrays({}, path, {"staticgrad.checkpoint": header}, caller="test")
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [({"f": len}, "got builtin_function_or_method"), ({(1,): 2}, r"text or integers; got \(1,\)"), ({1, 2}, "got set")],
    ids=["function", "key", "set"],
)
def test_what_cannot_be_kept_is_refused(path: Path, extra: Any, message: str) -> None:
    save_checkpoint(path, step=1)
    with pytest.raises(TypeError, match=message):
        save_checkpoint(path, step=2, extra=extra)
    assert load_checkpoint(path).step == 1


def test_a_random_state_of_another_form(path: Path) -> None:
    header = '{"version": 1, "step": 0, "extra": null}'
    write_arrays({"random.state": np.zeros(5)}, path, {"staticgrad.checkpoint": header}, caller="test")
    with pytest.raises(ValueError, match=r"random state in .* must be uint64 of shape \(2,\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_run_goes_on_to_the_bit(path: Path, mode: str) -> None:
    images, labels = sg.data.digits()
    dataset = sg.data.TensorDataset(images[:96], labels[:96])

    def start(seed: int) -> tuple[Any, Any, Any, Any]:
        random.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 10))
        optimizer = optim.Adam(model.parameters(), lr=1e-2)

        def step(x: Any, y: Any) -> Any:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        loader = sg.data.DataLoader(dataset, batch_size=32, shuffle=True)
        return model, optimizer, loader, sg.compile(step) if mode == "static" else step

    model, optimizer, loader, step = start(1)
    for x, y in loader:
        step(x, y)
    save_checkpoint(path, model=model, optimizer=optimizer, step=3, extra={"epoch": loader.epoch})
    expected = [float(step(x, y)) for x, y in loader]

    model, optimizer, loader, step = start(2)
    checkpoint = load_checkpoint(path, model=model, optimizer=optimizer)
    loader.epoch = checkpoint.extra["epoch"]
    assert [float(step(x, y)) for x, y in loader] == expected
    assert len(set(expected)) == 3
