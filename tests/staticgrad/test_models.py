"""Whole trainings: dynamic = static = without reuse = poisoned.

Every model is trained four times from the same values. The three compiled runs differ in where values lie and must
give equal bits. The dynamic run computes the same values with other roundings (NumPy's functions, other orders of
sums): it may differ by what `DYNAMIC` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from models import MODELS, Model, Residual, Trial, adam, cross_entropy, labels, trial

import staticgrad as sg
from staticgrad import nn
from staticgrad.compile import CompiledFunction
from staticgrad.graph.errors import GraphError
from staticgrad.graph.node import Graph
from staticgrad.graph.plan import Slot
from staticgrad.graph.plan_check import check_plan
from staticgrad.graph.rewrite import rewrite
from staticgrad.graph.verify import verify
from staticgrad.kernels.cpu import program as cpu_program

Array = np.ndarray[Any, Any]

# An element may differ between the modes, after six steps, by this many units of roundoff of its array's largest.
DYNAMIC = 64
# The planner's promise: the arena is at most this much above the bytes that live at once.
ARENA = 1.02

KINDS: dict[str, dict[str, Any]] = {
    "planned": {},
    "no reuse": {"reuse": False},
    "poisoned": {"poison": True},
    "planned anew": {"cache": None},
    "poisoned anew": {"poison": True, "cache": None},
}


def run(model: Model, kind: str | None, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Array], Any]:
    """Train once, dynamic or compiled in one of `KINDS`: everything that it made, by name, and the step that ran."""
    sg.random.manual_seed(3)
    trial = model.build()
    step = trial.step if kind is None else sg.compile(trial.step)
    with monkeypatch.context() as patch:
        if kind is not None:
            patch.setattr(cpu_program, "compile_graph", changed(cpu_program.compile_graph, KINDS[kind]))
        found = {f"loss {i}": np.array(step(*batch).detach().numpy()) for i, batch in enumerate(trial.batches)}
    return found | left_by(trial), step


def changed(compile_graph: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    return lambda graph, **given: compile_graph(graph, **{**given, **options})


def left_by(trial: Trial) -> dict[str, Array]:
    """Parameters, gradients, buffers, the optimizer's state and the random state."""
    found = {name: tensor.numpy().copy() for name, tensor in trial.model.state_dict().items()}
    for name, parameter in trial.model.named_parameters():
        if parameter.grad is not None:
            found[f"{name}.grad"] = parameter.grad.numpy().copy()
    for number, entries in trial.optimizer.state_dict()["state"].items():
        found |= {f"optimizer {number}.{name}": np.array(tensor.numpy()) for name, tensor in entries.items()}
    found["random state"] = np.array(sg.random.get_state())
    return found


def check_close(dynamic: dict[str, Array], static: dict[str, Array]) -> None:
    assert dynamic.keys() == static.keys()
    for name, value in dynamic.items():
        other = static[name]
        assert (value.shape, value.dtype) == (other.shape, other.dtype), name
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(other, value, err_msg=name)
            continue
        assert np.isfinite(value).all(), name
        allowed = DYNAMIC * np.finfo(value.dtype).eps * np.abs(value).max(initial=1e-3)
        np.testing.assert_allclose(other, value, rtol=0, atol=allowed, err_msg=name)


def check_bits(static: dict[str, Array], other: dict[str, Array]) -> None:
    assert static.keys() == other.keys()
    for name, value in static.items():
        assert value.tobytes() == other[name].tobytes(), f"{name}: {value} against {other[name]}"


def check_plans(step: CompiledFunction) -> None:
    """One program, sound and as small as promised."""
    assert step.cache_info().misses == 1, step.explain()
    verify(step.graph)
    check_plan(step.graph, step.plan)
    assert step.plan.peak_bytes <= ARENA * step.plan.lower_bound_bytes


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_dynamic_static_without_reuse_and_poisoned_agree(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def verified(graph: Graph) -> Graph:
        verify(graph)
        return rewrite(graph)

    dynamic, _ = run(model, None, monkeypatch)
    monkeypatch.setattr("staticgrad.specialize.rewrite", verified)
    static, step = run(model, "planned", monkeypatch)
    check_plans(step)
    check_close(dynamic, static)
    for kind in ("no reuse", "poisoned"):
        other, step = run(model, kind, monkeypatch)
        check_plan(step.graph, step.plan)
        assert step.plan.reuse is (kind == "poisoned")
        check_bits(static, other)


# ---------------------------------------------------------------- the tests tested

DEEP = next(model for model in MODELS if model.name == "tanh 4")


def test_an_overlapping_plan_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    static, _ = run(DEEP, "planned", monkeypatch)
    monkeypatch.setattr("staticgrad.graph.plan.plan_offsets", lambda intervals, alignment: [0] * len(intervals))
    overlapping, step = run(DEEP, "planned anew", monkeypatch)
    with pytest.raises(AssertionError):
        check_bits(static, overlapping)
    with pytest.raises(GraphError):
        check_plan(step.graph, step.plan)


def test_memory_freed_too_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_early(slots: Sequence[Slot], count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        return tuple(tuple((s.offset, s.nbytes) for s in slots if s.lower == i) for i in range(count))

    static, _ = run(DEEP, "planned", monkeypatch)
    monkeypatch.setattr("staticgrad.graph.plan._frees", too_early)
    poisoned, step = run(DEEP, "poisoned anew", monkeypatch)
    with pytest.raises(AssertionError):
        check_bits(static, poisoned)
    with pytest.raises(GraphError):
        check_plan(step.graph, step.plan)


def test_another_rounding_is_caught() -> None:
    value = {"x": np.ones(3, np.float32)}
    check_close(value, {"x": value["x"] * np.float32(1 + 1e-6)})
    with pytest.raises(AssertionError):
        check_close(value, {"x": value["x"] * np.float32(1 + 1e-5)})
    with pytest.raises(AssertionError):
        check_bits(value, {"x": value["x"] * np.float32(1 + 1e-7)})


# ---------------------------------------------------------------- equal layers

BLOCKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[nn.Module]]]] = {
    "tanh layers": (lambda: nn.Linear(6, 16), lambda: [nn.Linear(16, 16), nn.Tanh()]),
    "residual blocks": (lambda: nn.Linear(6, 16), lambda: [Residual(16, 24)]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_equal_layers_share_their_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, block = BLOCKS[name]
    counts = []
    for depth in (3, 12):
        layers = [layer for _ in range(depth) for layer in block()]
        network = nn.Sequential(first(), *layers, nn.Linear(16, 3))
        training = trial(network, cross_entropy, adam, labels((7, 6), 3))
        step = sg.compile(training.step)
        step(*training.batches[0])
        assert len(step.last.program.calls) > 3 * depth
        counts.append(len(step.last.program.sources))
    assert counts[1] <= counts[0] + 2
