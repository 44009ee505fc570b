"""Orders that lower the peak: on training steps, on states with several readers, and on long chains."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from builder import Builder
from plan_replay import single, singles

from staticgrad.graph.group import Group
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import Place, make_plan
from staticgrad.graph.plan_check import check_plan
from staticgrad.graph.schedule import memory_need, order


def training_step(layers: int, width: int, batch: int) -> Graph:
    """Matmul and tanh, layer after layer, backward, then at the end one update for each weight, first layer first."""
    build = Builder()
    x = build.argument((batch, width))
    weights = [build.state((width, width)) for _ in range(layers)]
    saved = [x]
    for weight in weights:
        saved.append(build("tanh", build("matmul", saved[-1], weight)))
    change = saved[-1]
    gradients: list[Node] = []
    for layer in reversed(range(layers)):
        change = build("mul", change, saved[layer + 1])
        turned = build("permute_dims", saved[layer], axes=(1, 0))
        gradients.append(build("matmul", turned, change))
        if layer:
            turned = build("permute_dims", weights[layer], axes=(1, 0))
            change = build("matmul", change, turned)
    updates = [
        (weight, build("sub", weight, gradient)) for weight, gradient in zip(weights, reversed(gradients), strict=True)
    ]
    return build.graph(updates=updates)


def test_each_gradient_is_consumed_as_soon_as_it_is_there() -> None:
    layers, width, batch = 6, 64, 4
    graph = training_step(layers, width, batch)
    groups = singles(graph)
    ordered = order(graph, groups)
    plan = make_plan(graph, ordered)
    check_plan(graph, plan)
    assert plan.copies == ()
    for leaf, value in graph.updates:
        assert plan.places[value] == plan.places[leaf]
    one_gradient, activation = 4 * width * width, 4 * width * batch
    assert memory_need(graph, groups)[0] >= layers * one_gradient
    assert plan.peak_bytes <= one_gradient + (layers + 3) * activation


def test_all_readers_of_the_old_state_come_first() -> None:
    build = Builder()
    x, state = build.argument((8,)), build.state((8,))
    new = build("add", state, x)
    readers = [build("tanh", state), build("neg", state)]
    graph = build.graph(*readers, updates=[(state, new)])
    ordered = order(graph, singles(graph))
    assert ordered[-1].writes == (new,)
    plan = make_plan(graph, ordered)
    assert plan.places[new] == Place("input", 1, 0)
    assert plan.peak_bytes == 0


def test_the_larger_of_two_conflicting_updates_goes_straight() -> None:
    build = Builder()
    small, large = build.state((8,)), build.state((8, 8))
    from_large = build("add", small, build("sum", large, axis=(0,)))
    from_small = build("add", large, small)
    graph = build.graph(updates=[(small, from_large), (large, from_small)])
    one = Group("fused", (from_large.operands[1], from_large), (small, large), (from_large,), ((from_large, small),))
    groups = [one, single(from_small)]
    plan = make_plan(graph, order(graph, groups))
    check_plan(graph, plan)
    assert plan.places[from_small].space == "input"
    assert plan.places[from_large].space == "arena"


def test_many_states_that_conflict() -> None:
    build = Builder()
    states = [build.state((8,)) for _ in range(50)]
    updates = [(state, build("add", state, states[(index + 1) % 50])) for index, state in enumerate(states)]
    graph = build.graph(updates=updates)
    plan = make_plan(graph, order(graph, singles(graph)))
    check_plan(graph, plan)
    assert len(plan.copies) == 1  # a ring: one of the new values has to wait


def test_values_wanted_late_are_made_late() -> None:
    build = Builder()
    x = build.argument((1000,))
    seeds = [build.argument((2,)) for _ in range(10)]
    masks = [build("broadcast_to", seed, shape=(500, 2)) for seed in seeds]
    large = [build("tanh", build("neg", mask)) for mask in masks]
    value = x
    for mask in large:
        value = build("sin", build("mul", value, build("reshape", mask, shape=(1000,))))
    graph = build.graph(build("sum", value, axis=(0,)))
    groups = singles(graph)
    plan = make_plan(graph, order(graph, groups))
    check_plan(graph, plan)
    assert memory_need(graph, groups)[0] >= 10 * 4000
    assert plan.peak_bytes <= 2 * 4032


def test_the_order_is_the_same_each_time() -> None:
    graph = training_step(5, 16, 8)
    groups = singles(graph)
    first = order(graph, groups)
    assert all(order(graph, groups) == first for _ in range(3))


def test_no_groups() -> None:
    build = Builder()
    x = build.argument((3,))
    graph = build.graph(x)
    assert order(graph, []) == []
    plan = make_plan(graph, [])
    check_plan(graph, plan)
    assert (plan.peak_bytes, plan.lower_bound_bytes, plan.naive_bytes) == (0, 0, 0)


# ---------------------------------------------------------------- growth


def chain(length: int) -> tuple[Graph, list[Group]]:
    """Forward through `length` ops whose values are all saved, and back through them."""
    build = Builder()
    x, state = build.argument((16,)), build.state((16,))
    saved = [x]
    for _ in range(length // 2):
        saved.append(build("sin", saved[-1]))
    change = saved[-1]
    for value in reversed(saved):
        change = build("mul", change, value)
    new = build("sub", state, change)
    graph = build.graph(change, updates=[(state, new)])
    return graph, singles(graph)


def calls(function: Callable[[], Any]) -> int:
    """How many calls of Python and C functions the work takes."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def test_work_grows_in_proportion_to_the_chain() -> None:
    counts = []
    for length in (400, 4000):
        graph, groups = chain(length)
        counts.append(calls(lambda graph=graph, groups=groups: make_plan(graph, order(graph, groups))))
    assert counts[1] <= 13 * counts[0]


@pytest.mark.parametrize("length", [30_000])
def test_a_long_chain(length: int) -> None:
    graph, groups = chain(length)
    plan = make_plan(graph, order(graph, groups))
    assert plan.peak_bytes == plan.lower_bound_bytes
    check_plan(graph, plan)
