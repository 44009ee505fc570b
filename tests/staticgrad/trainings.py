"""Trainings compiled for a device, and all they leave behind: what the tests of the simulator and of a GPU share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from models import Model, Trial

import staticgrad as sg
from staticgrad.kernels.cuda import device as cuda_device

Array = np.ndarray[Any, Any]
ROUNDOFF = 256  # units of roundoff of an array's largest element, after three steps

KINDS: dict[str, dict[str, Any]] = {"planned": {}, "no reuse": {"reuse": False}, "poisoned": {"poison": True}}


def host(tensor: Any) -> Array:
    """A copy of a tensor's elements, wherever they are."""
    return np.array(tensor.detach().to("cpu").numpy())


def left_by(trial: Trial) -> dict[str, Array]:
    """Parameters, gradients, buffers, the optimizer's state and the random state."""
    found = {name: host(tensor) for name, tensor in trial.model.state_dict().items()}
    for name, parameter in trial.model.named_parameters():
        if parameter.grad is not None:
            found[f"{name}.grad"] = host(parameter.grad)
    for number, entries in trial.optimizer.state_dict()["state"].items():
        found |= {f"optimizer {number}.{name}": host(tensor) for name, tensor in entries.items()}
    found["random state"] = np.array(sg.random.get_state())
    return found


def trained(model: Model, device: str, steps: int = 3) -> dict[str, Array]:
    """Train a little, compiled for a device: everything that it made, by name."""
    sg.random.manual_seed(3)
    trial = model.build()
    step = sg.compile(trial.step, device=device)
    found = {f"loss {i}": host(step(*batch)) for i, batch in enumerate(trial.batches[:steps])}
    return found | left_by(trial)


def check_close(one: dict[str, Array], other: dict[str, Array]) -> None:
    """The same names, and values that differ by roundoff only."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(other[name], value, err_msg=name)
            continue
        tolerance = ROUNDOFF * np.finfo(value.dtype).eps * max(1e-3, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(other[name], value, rtol=0, atol=tolerance, err_msg=name)


def check_plans_agree(model: Model, monkeypatch: pytest.MonkeyPatch, steps: int = 2) -> None:
    """On a GPU a training gives the same bits planned, with a slot for every value, and with poisoned slots."""
    original = cuda_device.compile_graph
    found = []
    for options in KINDS.values():
        changed: Callable[..., Any] = lambda graph, gpu, options=options, **given: original(  # noqa: E731
            graph, gpu, **{**given, **options}
        )
        monkeypatch.setattr(cuda_device, "compile_graph", changed)
        found.append(trained(model, "cuda", steps))
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)
