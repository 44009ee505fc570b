"""The rows in staticgrad, written as a user would: `nn`, `optim`, and `sg.compile` around the step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import staticgrad as sg
from benchmarks.engines import NotOfferedError, Step
from benchmarks.rows import LEARNING_RATE, Arrays, Row, layer_widths
from staticgrad import nn, optim
from staticgrad.graph.errors import DeviceError

VERSION = sg.__version__
_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def configure(threads: int) -> None:
    """Nothing: the environment says how many threads."""


def fetch(result: Any) -> np.ndarray[Any, Any]:
    """A result as a NumPy array."""
    return np.asarray(result.to("cpu"))


def peak_memory() -> int:
    """Bytes of the GPU's memory."""
    return int(sg.cuda.max_memory_allocated())


def build(row: Row, arrays: Arrays, variant: str, device: str = "cpu", compiled: bool = True) -> Step:
    """The step of `row`; without `compiled` it runs op by op.

    Raises:
        NotOfferedError: this staticgrad has no matrix products of the row's precision.
    """
    decorate: Callable[[Any], Any] = sg.compile if compiled else lambda function: function
    wait: dict[str, Callable[[], None]] = {}
    if device == "cuda":
        _use(row.precision)
        decorate, wait = partial(sg.compile, device=device), {"wait": sg.cuda.synchronize}
    data = {name: _placed(sg.asarray(array), device) for name, array in arrays.items() if "." not in name}
    if row.optimizes:
        return replace(_training(row, arrays, data, decorate, device), **wait)
    function = decorate(_functions(row)[row.kind])
    arguments = tuple(data.values())
    return Step(partial(function, *arguments), lambda: None, _profile_of(function, *arguments), **wait)


def _placed(value: Any, device: str) -> Any:
    """A tensor or module on the device."""
    return value if device == "cpu" else value.to(device)


def _use(precision: str) -> None:
    """Have matrix products computed so for the rest of the process, which does one row."""
    if precision == "float32":
        return
    try:
        sg.cuda.set_matmul_precision(precision)
    except DeviceError as error:
        raise NotOfferedError(str(error)) from error


def _profile_of(function: Any, *arguments: Any) -> Callable[[], list[tuple[str, str, float]]] | None:
    def profile() -> list[tuple[str, str, float]]:
        return [(row.cost.ops, row.cost.kernel, row.seconds) for row in function.profile(*arguments).rows]

    return profile if hasattr(function, "profile") else None


def _functions(row: Row) -> dict[str, Callable[..., Any]]:
    def elementwise(x: Any) -> Any:
        total = None
        for name in row.sizes["functions"]:
            value = getattr(sg, name)(x)
            total = value if total is None else total + value
        return total

    def chain(x: Any, a: Any, b: Any) -> Any:
        for _ in range(row.sizes["rounds"]):
            x = sg.tanh(x * a + b)
        return sg.mean(x * x)

    return {
        "overhead": lambda x: x + 1,
        "elementwise": elementwise,
        "chain": sg.value_and_grad(chain),
        "softmax_ce": sg.value_and_grad(nn.functional.cross_entropy),
    }


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Any) -> Any:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class _Bag(nn.Module):
    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(vocabulary, width), nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        return self.linear(self.embedding(x).mean(axis=1))


def _model(row: Row, arrays: Arrays) -> tuple[nn.Module, Callable[[Any, Any], Any], dict[str, str]]:
    """The model, its loss, and the name in its state of each weight."""
    weights = [name for name in arrays if "." in name]
    if row.kind == "mlp":
        layers: list[nn.Module] = []
        for fan_in, fan_out in layer_widths(arrays):
            layers += [nn.Linear(fan_in, fan_out), _ACTIVATIONS[row.activation]()]
        names = {name: f"{2 * int(name.split('.')[0])}.{name.split('.')[1]}" for name in weights}
        return nn.Sequential(*layers[:-1]), nn.functional.cross_entropy, names
    same = {name: name for name in weights}
    if row.kind == "adam":
        width = row.sizes["width"]
        layers = [nn.Linear(width, width, bias=False) for _ in range(row.sizes["matrices"])]
        return nn.Sequential(*layers), nn.functional.mse_loss, same  # no loss: the gradients are given
    if row.kind == "layernorm_mlp":
        blocks = [_Block(row.sizes["width"], row.sizes["hidden"]) for _ in range(row.sizes["blocks"])]
        return nn.Sequential(*blocks), nn.functional.mse_loss, same
    bag = _Bag(row.sizes["vocabulary"], row.sizes["width"], row.sizes["classes"])
    return bag, nn.functional.cross_entropy, same


def _training(row: Row, arrays: Arrays, data: dict[str, Any], decorate: Callable[[Any], Any], device: str) -> Step:
    model, criterion, names = _model(row, arrays)
    model.load_state_dict({names[name]: arrays[name] for name in names})
    model = _placed(model, device)
    parameters = list(model.parameters())
    optimizer = optim.Adam(parameters, lr=LEARNING_RATE)

    @decorate
    def step(x: Any, y: Any) -> Any:
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    @decorate
    def update(*gradients: Any) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    initial = {names[name]: arrays[name].copy() for name in names}
    fresh = copy.deepcopy(optimizer.state_dict())

    def restart() -> None:
        model.load_state_dict(initial)
        optimizer.load_state_dict(fresh)

    arguments = tuple(data.values())
    if row.kind != "adam":
        return Step(partial(step, *arguments), restart, _profile_of(step, *arguments))

    def run() -> Any:
        update(*arguments)
        return tuple(parameters)

    return Step(run, restart, _profile_of(update, *arguments))
