"""The rows in PyTorch: eager with the fused Adam, or through torch.compile.

On a GPU a compiled row has two forms: torch.compile in the mode that replays CUDA graphs of its own, or the whole step,
compiled, captured as one CUDA graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.engines import Step
from benchmarks.rows import LEARNING_RATE, Arrays, Row, layer_widths

VERSION = torch.__version__
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def configure(threads: int) -> None:
    """Compute with `threads` threads."""
    torch.set_num_threads(threads)


def fetch(result: Any) -> np.ndarray[Any, Any]:
    """A result as a NumPy array."""
    found: np.ndarray[Any, Any] = result.detach().cpu().numpy()
    return found


def peak_memory() -> int:
    """Bytes of the GPU's memory."""
    return int(torch.cuda.max_memory_allocated())


def build(row: Row, arrays: Arrays, variant: str, device: str = "cpu", compiled: bool = False) -> Step:
    """The step of `row`. `variant`, of a compiled one, says what updates on the CPU, and what is replayed on a GPU."""
    torch.set_float32_matmul_precision({"float32": "highest", "tf32": "high"}[row.precision])
    data = {name: torch.from_numpy(array).to(device) for name, array in arrays.items() if "." not in name}
    mode = ("reduce-overhead" if variant == "reduce-overhead" else "default") if compiled else ""
    if row.optimizes:
        step = _training(row, arrays, data, variant, mode, device)
    else:
        step = _function(row, tuple(data.values()), mode)
    if device == "cpu":
        return step
    step = replace(step, wait=torch.cuda.synchronize)
    return _captured(step) if variant == "one graph" else step


def _compiled(function: Any, mode: str) -> Any:
    """`function` compiled in a mode of torch.compile; as it is in none."""
    if mode != "reduce-overhead":
        return torch.compile(function, dynamic=False) if mode else function
    replayed = torch.compile(function, dynamic=False, mode=mode)

    def call(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step gave back may be overwritten
        return replayed(*arguments)

    return call


def _resident(tensors: tuple[Any, ...], mode: str) -> tuple[Any, ...]:
    """Tensors that stay where they are, so that no replay copies them into its own memory first."""
    if mode == "reduce-overhead":
        import torch._dynamo

        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)
    return tensors


def _captured(step: Step) -> Step:
    """All that a step starts on the GPU as one CUDA graph, captured after three steps as PyTorch's notes tell."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = step.run()
    step.restart()

    def run() -> Any:
        graph.replay()
        return result

    return replace(step, run=run)


def _function(row: Row, arguments: tuple[Any, ...], mode: str) -> Step:
    if row.kind == "softmax_ce":
        return _with_gradient(nn.functional.cross_entropy, *arguments, mode=mode)
    if row.kind == "chain":
        return _with_gradient(partial(_chain, row.sizes["rounds"]), *arguments, mode=mode)
    function = _compiled(_functions(row)[row.kind], mode)  # nothing here asks for gradients
    return Step(partial(function, *_resident(arguments, mode)), lambda: None)


def _functions(row: Row) -> dict[str, Callable[..., Any]]:
    def elementwise(x: Any) -> Any:
        total = None
        for name in row.sizes["functions"]:
            value = getattr(torch, name)(x)
            total = value if total is None else total + value
        return total

    return {"overhead": lambda x: x + 1, "elementwise": elementwise}


def _chain(rounds: int, x: Any, a: Any, b: Any) -> Any:
    for _ in range(rounds):
        x = torch.tanh(x * a + b)
    return (x * x).mean()


def _with_gradient(function: Any, x: Any, *others: Any, mode: str) -> Step:
    loss_of = _compiled(function, mode)
    leaf, *others = _resident((x.clone().requires_grad_(), *others), mode)

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
    if row.kind == "adam":
        width = row.sizes["width"]
        layers = [nn.Linear(width, width, bias=False) for _ in range(row.sizes["matrices"])]
        return nn.Sequential(*layers), nn.functional.mse_loss, same  # no loss: the gradients are given
    bag = _Bag(row.sizes["vocabulary"], row.sizes["width"], row.sizes["classes"])
    return bag, nn.functional.cross_entropy, same


def _adam(parameters: Any, variant: str, mode: str, device: str, alone: bool) -> tuple[Any, Callable[[], Any]]:
    """The optimizer and its step: fused, unless the form or a row of nothing else asks for a compiled one."""
    capturable = device != "cpu"
    if variant == "compiled Adam" or (mode == "reduce-overhead" and alone):
        optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, capturable=capturable)
        return optimizer, _compiled(optimizer.step, mode)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True, capturable=capturable)
    return optimizer, optimizer.step


def _training(row: Row, arrays: Arrays, data: dict[str, Any], variant: str, mode: str, device: str) -> Step:
    model, criterion, names = _model(row, arrays)
    model.load_state_dict({names[name]: torch.from_numpy(arrays[name]) for name in names})
    model = model.to(device)
    parameters = tuple(model.parameters())
    optimizer, update = _adam(parameters, variant, mode, device, row.kind == "adam")
    initial = copy.deepcopy(model.state_dict())

    def restart() -> None:
        """In place: a new tensor of moments would compile again."""
        model.load_state_dict(initial)
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    if row.kind == "adam":
        for parameter, gradient in zip(parameters, _resident(tuple(data.values()), mode), strict=True):
            parameter.grad = gradient

        def update_alone() -> Any:
            update()
            return parameters

        return Step(update_alone, restart)
    loss_of = _compiled(lambda x, y: criterion(model(x), y), mode)
    x, y = _resident(tuple(data.values()), mode)

    def run() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, y)
        loss.backward()
        update()
        return loss.detach()

    return Step(run, restart)
