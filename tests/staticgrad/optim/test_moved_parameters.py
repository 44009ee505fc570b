"""Parameters that move between devices after their optimizer was made: it goes on as if they had always been there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.kernels.cuda import toolkit

pytestmark = pytest.mark.skipif(not toolkit.SIMULATED, reason="the simulator plays the GPU")

MAKERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda params: optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: optim.Adam(params, lr=0.1, amsgrad=True),
    "RMSprop": lambda params: optim.RMSprop(params, lr=0.05, momentum=0.5, centered=True),
    "Adagrad": lambda params: optim.Adagrad(params, lr=0.1, lr_decay=0.1),
}
X = np.linspace(-1.0, 2.0, 12, dtype=np.float32).reshape(4, 3)


def build(make: Callable[[Any], optim.Optimizer]) -> tuple[nn.Linear, optim.Optimizer]:
    sg.random.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, make(model.parameters())


def train(model: nn.Linear, optimizer: optim.Optimizer, places: Sequence[str]) -> list[float]:
    """A step at each place; "compiled cuda" is one of a program."""

    def step(x: Any) -> Any:
        loss = (model(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    losses = []
    for place in places:
        kind, _, device = place.rpartition(" ")
        model.to(device)
        run = sg.compile(step, device=device) if kind else step
        losses.append(run(sg.asarray(X, device=device)).item())
    return losses


def check_state(optimizer: optim.Optimizer, other: optim.Optimizer) -> None:
    for one, two in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            wanted = two[name].to("cpu").numpy()
            np.testing.assert_allclose(tensor.to("cpu").numpy(), wanted, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize(
    "places",
    [
        ["cuda"] * 4,
        ["cpu", "cpu", "cuda", "cuda", "cpu", "cpu"],
        ["cpu", "compiled cuda", "cuda", "compiled cuda", "cpu", "compiled cpu", "cuda"],
    ],
    ids=["before the first step", "there and back", "both modes"],
)
def test_state_follows_its_parameters(kind: str, places: list[str]) -> None:
    model, optimizer = build(MAKERS[kind])
    stayed, untouched = build(MAKERS[kind])
    found = train(model, optimizer, places)
    np.testing.assert_allclose(found, train(stayed, untouched, ["cpu"] * len(places)), rtol=1e-4)
    check_state(optimizer, untouched)
    last = sg.zeros(1, device=places[-1].split()[-1]).device
    names = optimizer.state_names(optimizer.param_groups[0])
    assert {optimizer.state[p][name].device for p in model.parameters() for name in names} == {last}


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize(("saved_on", "loaded_on"), [("cpu", "cuda"), ("cuda", "cpu"), ("compiled cuda", "cuda")])
def test_state_is_loaded_on_another_device(kind: str, saved_on: str, loaded_on: str) -> None:
    model, optimizer = build(MAKERS[kind])
    train(model, optimizer, [saved_on] * 3)
    other, resumed = build(MAKERS[kind])
    other.load_state_dict(model.state_dict())
    other.to(loaded_on)
    resumed.load_state_dict(optimizer.state_dict())
    names = resumed.state_names(resumed.param_groups[0])
    for parameter in other.parameters():
        assert {resumed.state[parameter][name].device for name in names} <= {parameter.device}
    losses = train(model, optimizer, ["cpu"] * 2)
    np.testing.assert_allclose(train(other, resumed, [loaded_on] * 2), losses, rtol=1e-4)
    check_state(resumed, optimizer)


def test_parameters_of_one_group_may_live_on_different_devices() -> None:
    here, there = nn.Parameter(sg.asarray([1.0, -2.0])), nn.Parameter(sg.asarray([1.0, -2.0], device="cuda"))
    optimizer = optim.Adam([here, there], lr=0.25)
    for _ in range(3):
        optimizer.zero_grad()
        for parameter in (here, there):
            (parameter**2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(there.detach().to("cpu").numpy(), here.detach().numpy(), rtol=1e-5)


def test_state_stays_the_same_tensors_where_nothing_moves() -> None:
    model, optimizer = build(MAKERS["Adam"])
    train(model, optimizer, ["cpu"])
    before = {id(tensor._value) for entries in optimizer.state.values() for tensor in entries.values()}
    train(model, optimizer, ["cpu"] * 2)
    assert {id(tensor._value) for entries in optimizer.state.values() for tensor in entries.values()} == before
