"""The rows in PyTorch: eager with the fused Adam, or through torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.engines import Step
from benchmarks.rows import LEARNING_RATE, TRANSCENDENTALS, Arrays, Row, layer_widths

VERSION = torch.__version__
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def configure(threads: int) -> None:
    """Compute with `threads` threads."""
    torch.set_num_threads(threads)


def build(row: Row, arrays: Arrays, variant: str, compiled: bool = False) -> Step:
    """The step of `row`. `variant`, of a compiled training step, says what updates: the fused or the compiled Adam."""
    data = {name: torch.from_numpy(array) for name, array in arrays.items() if "." not in name}
    if row.optimizes:
        return _training(row, arrays, data, variant, compiled)
    arguments = tuple(data.values())
    if row.kind == "softmax_ce":
        return _with_gradient(nn.functional.cross_entropy, *arguments, compiled=compiled)
    if row.kind == "chain":
        return _with_gradient(partial(_chain, row.sizes["rounds"]), *arguments, compiled=compiled)
    function = _compiled(_functions(row)[row.kind], compiled)  # nothing here asks for gradients
    return Step(partial(function, *arguments), lambda: None)


def _compiled(function: Any, compiled: bool) -> Any:
    return torch.compile(function, dynamic=False) if compiled else function


def _functions(row: Row) -> dict[str, Callable[..., Any]]:
    def elementwise(x: Any) -> Any:
        total = None
        for name in TRANSCENDENTALS:
            value = getattr(torch, name)(x)
            total = value if total is None else total + value
        return total

    return {"overhead": lambda x: x + 1, "elementwise": elementwise}


def _chain(rounds: int, x: Any, a: Any, b: Any) -> Any:
    for _ in range(rounds):
        x = torch.tanh(x * a + b)
    return (x * x).mean()


def _with_gradient(function: Any, x: Any, *others: Any, compiled: bool) -> Step:
    loss_of = _compiled(function, compiled)
    leaf = x.clone().requires_grad_()

    def run() -> Any:
        loss = loss_of(leaf, *others)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    return Step(run, lambda: None)


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Any) -> Any:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class _Bag(nn.Module):
    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary, width, mode="mean")
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        return self.linear(self.embedding(x))


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
    if row.kind == "layernorm_mlp":
        blocks = [_Block(row.sizes["width"], row.sizes["hidden"]) for _ in range(row.sizes["blocks"])]
        return nn.Sequential(*blocks), nn.functional.mse_loss, same
    bag = _Bag(row.sizes["vocabulary"], row.sizes["width"], row.sizes["classes"])
    return bag, nn.functional.cross_entropy, same


def _training(row: Row, arrays: Arrays, data: dict[str, Any], variant: str, compiled: bool) -> Step:
    model, criterion, names = _model(row, arrays)
    model.load_state_dict({names[name]: torch.from_numpy(arrays[name]) for name in names})
    if variant == "compiled Adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        update = torch.compile(optimizer.step, dynamic=False)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        update = optimizer.step
    loss_of = _compiled(lambda x, y: criterion(model(x), y), compiled)
    x, y = data["x"], data["y"]

    def run() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, y)
        loss.backward()
        update()
        return loss.detach()

    initial = copy.deepcopy(model.state_dict())

    def restart() -> None:
        """In place: a new tensor of moments would compile again."""
        model.load_state_dict(initial)
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    return Step(run, restart)
