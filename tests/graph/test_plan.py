"""Plans: by hand, broken on purpose, and over random graphs with views, reductions, updates and shared outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for, graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_replay import execute, single, singles

from staticgrad.graph.errors import GraphError
from staticgrad.graph.fusion import fuse
from staticgrad.graph.group import Group
from staticgrad.graph.interpret import interpret
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import Place, Plan, format_memory, make_plan
from staticgrad.graph.plan_check import check_plan
from staticgrad.graph.schedule import memory_need, order

SHAPE = (4, 5)


def run_both(graph: Graph, plan: Plan) -> None:
    """The plan on real bytes against the meaning of the graph."""
    inputs = arrays_for(graph)
    old = [array.copy() for array in inputs]
    expected, updates = interpret(graph, old)
    new = dict(zip([leaf for leaf, _ in graph.updates], updates, strict=True))
    outputs = [np.full(node.shape, 77, node.dtype) for node in graph.outputs]
    execute(graph, plan, inputs, outputs)
    for array, value in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(array, value)
    for leaf, array, before in zip(graph.inputs, inputs, old, strict=True):
        np.testing.assert_array_equal(array, new.get(leaf, before))


def plan_both_ways(graph: Graph, groups: Sequence[Group]) -> Plan:
    """The plan of `groups`, checked and run, and so the one without reuse; returns the first."""
    plans = [make_plan(graph, groups, reuse=reuse) for reuse in (True, False)]
    for plan in plans:
        check_plan(graph, plan)
        run_both(graph, plan)
    assert plans[1].peak_bytes == plans[1].naive_bytes == plans[0].naive_bytes
    return plans[0]


# ---------------------------------------------------------------- updates and outputs by hand


def test_two_states_that_trade_places() -> None:
    build = Builder()
    a, b = build.state(SHAPE), build.state(SHAPE)
    graph = build.graph(updates=[(a, b), (b, a)])
    plan = plan_both_ways(graph, [])
    assert len(plan.copies) == 3
    assert plan.peak_bytes == 128


def test_a_ring_of_states_and_a_tail() -> None:
    build = Builder()
    a, b, c, d, e = (build.state(SHAPE) for _ in range(5))
    graph = build.graph(a, updates=[(a, b), (b, c), (c, a), (d, c), (e, d)])
    assert len(plan_both_ways(graph, []).copies) == 7


def test_two_states_made_from_each_other() -> None:
    build = Builder()
    a, b = build.state(SHAPE), build.state(SHAPE)
    new_a, new_b = build("neg", b), build("tanh", a)
    graph = build.graph(updates=[(a, new_a), (b, new_b)])
    plan = plan_both_ways(graph, order(graph, singles(graph)))
    assert len(plan.copies) == 1  # one of them goes straight to its place


def test_the_second_read_of_the_old_state_comes_after_the_update() -> None:
    build = Builder()
    x, state = build.argument(SHAPE), build.state(SHAPE)
    new = build("add", state, x)
    from_new = build("tanh", new)
    from_both = build("mul", from_new, state)  # the old content, after the new one is needed
    graph = build.graph(from_both, updates=[(state, new)])
    plan = plan_both_ways(graph, order(graph, singles(graph)))
    assert plan.places[new].space == "arena"
    assert plan.copies == ((plan.places[new], Place("input", 1, 0), 80),)


def test_the_new_state_is_read_from_its_place() -> None:
    build = Builder()
    x, state = build.argument(SHAPE), build.state(SHAPE)
    new = build("add", state, x)
    out = build("tanh", new)
    graph = build.graph(out, updates=[(state, new)])
    plan = plan_both_ways(graph, singles(graph))
    assert plan.places[new] == plan.places[state] == Place("input", 1, 0)
    assert plan.copies == ()
    assert plan.peak_bytes == 0


def test_one_value_is_an_output_and_the_update_of_two_states() -> None:
    build = Builder()
    x, first, second = build.argument(SHAPE), build.state(SHAPE), build.state(SHAPE)
    new = build("add", first, x)
    graph = build.graph(new, new, updates=[(first, new), (second, new)])
    plan = plan_both_ways(graph, singles(graph))
    assert plan.places[new] == Place("output", 0, 0)
    assert len(plan.copies) == 3
    graph = build.graph(updates=[(first, new), (second, new)])
    plan = plan_both_ways(graph, singles(graph))
    assert plan.places[new] == Place("input", 1, 0)
    assert plan.copies == ((Place("input", 1, 0), Place("input", 2, 0), 80),)


def test_the_old_content_is_an_output() -> None:
    build = Builder()
    x, state = build.argument(SHAPE), build.state(SHAPE)
    new = build("add", state, x)
    graph = build.graph(state, updates=[(state, new)])
    plan = plan_both_ways(graph, singles(graph))
    assert [target.space for _, target, _ in plan.copies] == ["output", "input"]


def test_outputs_that_no_group_writes() -> None:
    build = Builder()
    x = build.argument(SHAPE)
    one, table = build.constant(1.5), build.constant([1.0, 2.0])
    flat = build("reshape", x, shape=(20,))
    turned = build("permute_dims", build("neg", x), axes=(1, 0))
    graph = build.graph(x, one, table, flat, turned, x, one)
    plan = plan_both_ways(graph, singles(graph))
    assert plan.constants == (one, table)
    assert len(plan.copies) == 5


def test_a_state_that_keeps_its_content() -> None:
    build = Builder()
    state = build.state(SHAPE)
    graph = build.graph(updates=[(state, state)])
    plan = plan_both_ways(graph, [])
    assert plan.copies == ()


def test_empty_and_zero_dimensional_values() -> None:
    build = Builder()
    empty, scalar = build.argument((0, 3)), build.state()
    total = build("sum", build("tanh", build("neg", empty)), axis=(0, 1))
    new = build("add", scalar, total)
    graph = build.graph(build("neg", empty), new, updates=[(scalar, new)])
    plan_both_ways(graph, singles(graph))


def test_scratch_lives_in_its_group_only() -> None:
    build = Builder()
    a = build("neg", build.argument((16,)))
    b = build("sum", a, axis=(0,))
    c = build("tanh", b)
    graph = build.graph(c)
    groups = [single(a, 100), single(b, 1000), single(c, 10)]
    plan = plan_both_ways(graph, groups)
    assert plan.peak_bytes == plan.lower_bound_bytes == 1024 + 64 + 64
    assert plan.naive_bytes == 128 + 1024 + 64 + 64 + 64
    assert len(plan.frees[1]) == 2


def test_memory_table() -> None:
    build = Builder()
    x = build.argument(SHAPE)
    a = build("neg", x)
    b = build("tanh", a)
    out = build("sum", b, axis=(0, 1))
    graph = build.graph(out)
    plan = make_plan(graph, [single(a), single(b, 32), single(out)])
    assert plan.order == ("neg", "tanh", "sum")
    text = format_memory(plan)
    assert text.splitlines()[0].split() == ["peak", "192", "B"]
    assert "neg float32[4, 5] at <unknown>:0" in text
    assert "then tanh float32[4, 5]" in text
    assert "working memory of tanh" in text
    assert "[0, 3)" in text


# ---------------------------------------------------------------- the checker is tested


@pytest.fixture
def case() -> tuple[Graph, Plan, dict[str, Node]]:
    """x -> a -> b; c = a * b (so that a and b are live together); a state updated from c."""
    build = Builder()
    x, state = build.argument(SHAPE), build.state(SHAPE)
    a = build("neg", x)
    b = build("tanh", a)
    c = build("mul", a, b)
    old = build("exp", state)
    new = build("add", state, c)
    graph = build.graph(old, updates=[(state, new)])
    plan = make_plan(graph, [single(node, 16 if node is b else 0) for node in (a, b, c, old, new)])
    check_plan(graph, plan)
    assert plan.copies == ()
    return graph, plan, {"x": x, "state": state, "a": a, "b": b, "c": c, "old": old, "new": new}


def broken(plan: Plan, places: dict[Node, Place] | None = None, **changes: Any) -> Plan:
    return dataclasses.replace(plan, places={**plan.places, **(places or {})}, **changes)


def regrouped(plan: Plan, position: int, **changes: Any) -> Plan:
    """The plan with one group changed."""
    groups = list(plan.groups)
    groups[position] = dataclasses.replace(groups[position], **changes)
    scratch = {groups[plan.groups.index(group)]: place for group, place in plan.scratch.items()}
    return broken(plan, groups=tuple(groups), scratch=scratch)


def test_a_live_value_that_is_overwritten_is_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, node = case
    here = plan.places[node["a"]]
    over = {node["b"]: here}
    with pytest.raises(GraphError, match=r"mul.* is read at|tanh.* is read at|neg.* is read at"):
        check_plan(graph, broken(plan, over, scratch={plan.groups[1]: Place("arena", 0, 256)}, peak_bytes=320))
    shifted = {node["c"]: Place("arena", 0, here.offset + 64)}
    with pytest.raises(GraphError, match="share bytes"):
        check_plan(graph, broken(plan, shifted))


def test_sharing_without_a_pair_is_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, _ = case
    with pytest.raises(GraphError, match="share bytes"):
        check_plan(graph, regrouped(plan, 2, in_place=()))
    with pytest.raises(GraphError, match="share bytes"):
        check_plan(graph, regrouped(plan, 4, in_place=()))


def test_working_memory_on_a_value_is_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, node = case
    with pytest.raises(GraphError, match="working memory"):
        check_plan(graph, broken(plan, scratch={plan.groups[1]: plan.places[node["a"]]}))
    with pytest.raises(GraphError, match="has no place"):
        check_plan(graph, broken(plan, scratch={}))


def test_wrong_frees_are_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, node = case
    alive = (plan.places[node["a"]].offset, 80)
    with pytest.raises(GraphError, match="freed while it is still needed"):
        check_plan(graph, broken(plan, frees=((alive,), *plan.frees[1:])))
    with pytest.raises(GraphError, match="freed while it is still needed"):
        check_plan(graph, broken(plan, frees=(((0, plan.peak_bytes),), *plan.frees[1:])))
    with pytest.raises(GraphError, match="dies and is not freed"):
        check_plan(graph, broken(plan, frees=(*plan.frees[:2], (), *plan.frees[3:])))
    with pytest.raises(GraphError, match="working memory is not freed"):
        check_plan(graph, broken(plan, frees=(plan.frees[0], (), *plan.frees[2:])))
    with pytest.raises(GraphError, match="one entry for each"):
        check_plan(graph, broken(plan, frees=()))


def test_a_wrong_order_is_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, _ = case
    a, b, c, old, new = plan.groups
    with pytest.raises(GraphError, match=r"input.* is read at"):  # the state is overwritten before its last reader
        check_plan(graph, broken(plan, groups=(a, b, c, new, old), frees=(*plan.frees[:3], *plan.frees[:2:-1])))
    with pytest.raises(GraphError, match=r"is read at"):
        check_plan(graph, broken(plan, groups=(b, a, c, old, new)))
    with pytest.raises(GraphError, match=r"dies and is not freed"):  # c is missing, and so the last reader of b
        check_plan(graph, broken(plan, groups=(a, b, old, new), frees=plan.frees[1:]))


def test_a_read_that_is_missing_from_its_group_is_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, _ = case
    with pytest.raises(GraphError, match="neither reads nor computes"):
        check_plan(graph, regrouped(plan, 0, reads=()))


def test_places_outside_are_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, node = case
    for place, message in [
        (Place("arena", 0, plan.peak_bytes - 64), "outside"),
        (Place("arena", 0, 8), "multiples of 64"),
        (Place("output", 3, 0), "outside"),
        (Place("input", 0, 0), "must not be written"),
    ]:
        with pytest.raises(GraphError, match=message):
            check_plan(graph, broken(plan, {node["a"]: place}))
    with pytest.raises(GraphError, match="must stay in its array"):
        check_plan(graph, broken(plan, {node["x"]: Place("arena", 0, 0)}))
    with pytest.raises(GraphError, match="has no place"):
        check_plan(graph, dataclasses.replace(plan, places={leaf: plan.places[leaf] for leaf in graph.inputs}))


def test_missing_results_are_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, _ = case
    with pytest.raises(GraphError, match="must hold"):
        check_plan(dataclasses.replace(graph, outputs=(graph.outputs[0],) * 2), plan)
    with pytest.raises(GraphError, match="must"):
        check_plan(dataclasses.replace(graph, updates=()), plan)
    build = Builder()
    a, b = build.state(SHAPE), build.state(SHAPE)
    swap = build.graph(updates=[(a, b), (b, a)])
    plan = make_plan(swap, [])
    for copies in (plan.copies[::-1], plan.copies[:2], plan.copies[1:]):
        with pytest.raises(GraphError, match=r"must hold|are not one value"):
            check_plan(swap, broken(plan, copies=copies))


def test_wrong_totals_are_found(case: tuple[Graph, Plan, dict[str, Node]]) -> None:
    graph, plan, _ = case
    with pytest.raises(GraphError, match="live together"):
        check_plan(graph, broken(plan, lower_bound_bytes=plan.lower_bound_bytes - 64))
    with pytest.raises(GraphError, match="must not fall"):
        check_plan(graph, broken(plan, naive_bytes=plan.peak_bytes - 64))


# ---------------------------------------------------------------- random graphs

UNARY = ("neg", "tanh", "exp", "reshape", "permute_dims", "sum", "copy_reshape")


def grow(build: Any, pool: list[Node], choice: tuple[str, int, int]) -> None:
    """Add one node to the pool."""
    name, first, second = choice
    x = pool[first % len(pool)]
    if name in ("add", "mul"):
        alike = [node for node in pool if node.shape == x.shape or node.shape == ()]
        pool.append(build(name, x, alike[second % len(alike)]))
    elif name in ("neg", "tanh", "exp"):
        pool.append(build("tanh" if name == "exp" else name, x))
    elif name == "permute_dims":
        pool.append(build(name, x, axes=tuple(reversed(range(x.ndim)))))
    elif name == "sum":
        pool.append(build(name, x, axis=(second % x.ndim,) if x.ndim else ()))
    else:
        turned = x if name == "reshape" else build("permute_dims", x, axes=tuple(reversed(range(x.ndim))))
        pool.append(build("reshape", turned, shape=SHAPE if x.size == 20 else (x.size,)))


@st.composite
def programs(draw: st.DrawFn) -> tuple[Any, ...]:
    """What `build_program` needs: counts, steps, results, and a priority for each group."""
    index = st.integers(0, 60)
    return (
        draw(st.integers(1, 2)),
        draw(st.integers(0, 4)),
        draw(st.lists(st.tuples(st.sampled_from(("add", "mul", *UNARY)), index, index), max_size=25)),
        draw(st.lists(index, max_size=4)),
        draw(st.lists(st.one_of(st.none(), index), min_size=4, max_size=4)),
        draw(st.lists(st.integers(0, 9), min_size=64, max_size=64)),
        draw(st.sampled_from((0, 24, 200))),
    )


def build_program(program: tuple[Any, ...]) -> tuple[Graph, list[Group]]:
    arguments, states, steps, outputs, updates, priorities, scratch = program
    build = Builder()
    pool = [build.argument(SHAPE) for _ in range(arguments)] + [build.state(SHAPE) for _ in range(states)]
    leaves = pool[arguments:]
    pool += [build.constant(0.5), build.constant(np.linspace(-1, 1, 20).reshape(SHAPE))]
    for step in steps:
        grow(build, pool, step)
    alike = [node for node in pool if node.shape == SHAPE]
    pairs = [
        (leaf, alike[chosen % len(alike)]) for leaf, chosen in zip(leaves, updates, strict=False) if chosen is not None
    ]
    graph = build.graph(*[pool[chosen % len(pool)] for chosen in outputs], updates=pairs)
    return graph, shuffled(singles(graph, scratch), priorities)


def shuffled(groups: list[Group], priorities: list[int]) -> list[Group]:
    """Another topological order: of the groups that can run, the one of the smallest priority."""
    left = list(zip(priorities, groups, strict=False))
    done: set[Node] = set()
    made = {node for group in groups for node in group.writes}
    sequence = []
    while left:
        ready = [entry for entry in left if all(node in done or node not in made for node in entry[1].reads)]
        entry = min(ready, key=lambda entry: entry[0])
        left.remove(entry)
        done.update(entry[1].writes)
        sequence.append(entry[1])
    return sequence


@given(programs())
@settings(max_examples=150)
def test_random_graphs(program: tuple[Any, ...]) -> None:
    graph, groups = build_program(program)
    plan = plan_both_ways(graph, groups)
    assert plan.lower_bound_bytes <= plan.peak_bytes <= plan.naive_bytes
    ordered = order(graph, groups)
    assert set(ordered) == set(groups)
    better = plan_both_ways(graph, ordered)
    assert memory_need(graph, ordered)[0] == better.lower_bound_bytes <= plan.lower_bound_bytes


@given(programs(), st.integers(0, 60), st.integers(0, 12))
@settings(max_examples=150)
def test_what_the_checker_accepts_runs_right(program: tuple[Any, ...], which: int, where: int) -> None:
    graph, groups = build_program(program)
    plan = make_plan(graph, groups)
    movable = [node for node, place in plan.places.items() if place.space == "arena"]
    if not movable:
        return
    moved = broken(plan, {movable[which % len(movable)]: Place("arena", 0, 64 * where)})
    try:
        check_plan(graph, moved)
    except GraphError:
        return
    run_both(graph, moved)


@given(graphs())
@settings(max_examples=100)
def test_random_graphs_of_all_kinds(graph: Graph) -> None:
    plan_both_ways(graph, singles(graph))
    plan_both_ways(graph, order(graph, singles(graph)))


@given(graphs())
@settings(max_examples=100)
def test_random_graphs_fused(graph: Graph) -> None:
    plan = plan_both_ways(graph, order(graph, fuse(graph)))
    assert plan.peak_bytes <= 1.02 * plan.lower_bound_bytes
