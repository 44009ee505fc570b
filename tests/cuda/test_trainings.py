"""Whole trainings on the GPU against the CPU's; random numbers, which are the same bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_runs import check_same, check_units, on_cpu, on_gpu
from gpu_sizes import SIZES
from models import MODELS, Model, cross_entropy, labels, mlp, momentum, trial
from trainings import check_close, check_plans_agree, host, trained

import staticgrad as sg
from staticgrad import nn, optim

BY_NAME = {model.name: model for model in MODELS}
BATCHES = labels((SIZES.batch, SIZES.layers[0]), SIZES.layers[-1])
LARGE = Model("large", lambda: trial(mlp(*SIZES.layers), cross_entropy, momentum, BATCHES))


@pytest.mark.parametrize("model", [*MODELS[:: SIZES.models], LARGE], ids=lambda model: model.name)
def test_a_training_gives_what_the_cpu_gives(model: Model) -> None:
    check_close(trained(model, "cpu"), trained(model, "cuda"))


@pytest.mark.parametrize("name", ["dropout in float64", "tied words"])
def test_planned_without_reuse_and_poisoned_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_plans_agree(BY_NAME[name], monkeypatch)


def test_two_trainings_give_the_same_bits() -> None:
    first, second = trained(LARGE, "cuda"), trained(LARGE, "cuda")
    for name, value in first.items():
        check_same(second[name], value, name)


def test_the_same_step_runs_op_by_op() -> None:
    """Dynamic mode on the GPU: every op a program of its own."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((SIZES.batch, 5)).astype(np.float32), random.integers(0, 3, SIZES.batch)
    found = []
    for device in ("cpu", "cuda"):
        sg.random.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Dropout(0.25), nn.Linear(4, 3)).to(device)
        opt = optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            loss = nn.functional.cross_entropy(model(sg.asarray(x, device=device)), sg.asarray(y, device=device))
            opt.zero_grad()
            loss.backward()
            opt.step()
        found.append({"loss": host(loss), **{name: host(tensor) for name, tensor in model.state_dict().items()}})
    check_close(*found)


# ---------------------------------------------------------------- random numbers


def test_random_bits_are_the_same() -> None:
    from builder import Builder

    generator = np.random.default_rng(0)
    key = np.array([generator.integers(0, 2**63)], np.uint64)
    counter = generator.integers(0, 2**63, SIZES.drawn).astype(np.uint64)
    counter[: min(5, SIZES.drawn)] = [0, 1, 2**32 - 1, 2**32, 2**64 - 1]
    b = Builder()
    graph = b.graph(b("random_bits", b.argument((1,), "uint64"), b.argument(counter.shape, "uint64")))
    given = [key, counter]
    check_same(on_gpu(graph, given)[0], on_cpu(graph, given)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_draws_are_the_same(dtype: str) -> None:
    """Two draws in a row, and one that follows: the generator's state moves on alike."""

    def draw() -> Any:
        kind = np.dtype(dtype)
        return (
            sg.random.uniform((SIZES.drawn,), dtype=kind),
            sg.random.randint(0, 9, (SIZES.drawn,)),
            sg.random.normal((SIZES.drawn,), dtype=kind),
        )

    drawn = []
    for device in ("cpu", "cuda"):
        sg.random.manual_seed(7)
        compiled = sg.compile(draw, device=device)
        drawn.append([*map(host, compiled()), *map(host, compiled()), host(sg.random.uniform((5,)))])
    for number, (one, other) in enumerate(zip(*drawn, strict=True)):
        if number % 3 == 2 and number < 6:  # normal: through a logarithm, a root and a cosine
            check_units(other, one, 16, least=1.0)
        else:
            check_same(other, one)
