"""Sinking: values that one later kernel reads are made there, where that saves memory and changes nothing else."""

from __future__ import annotations

import pytest
from builder import Builder, graphs
from hypothesis import given

from staticgrad.graph import fusion
from staticgrad.graph.fusion import MAX_NODES, MAX_READS, fuse
from staticgrad.graph.group import Group
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import Plan, make_plan
from staticgrad.graph.plan_check import check_plan
from staticgrad.graph.schedule import order


def planned(graph: Graph) -> Plan:
    plan = make_plan(graph, order(graph, fuse(graph)))
    check_plan(graph, plan)
    return plan


def group_of(node: Node, groups: list[Group]) -> Group:
    return next(group for group in groups if node in group.nodes)


def slopes_of_layers(depth: int) -> tuple[Graph, list[Node]]:
    """The gradients of `depth` layers x -> tanh(x @ w), with the slopes made on the way up."""
    b = Builder()
    values, slopes = [b.argument((32, 32))], []
    weights = [b.state((32, 32)) for _ in range(depth)]
    for weight in weights:
        values.append(b("tanh", b("matmul", values[-1], weight)))
        slopes.append(b("sub", 1.0, b("mul", values[-1], values[-1])))
    cotangent = b("matmul", values[-1], b.argument((32, 32)))
    gradients = []
    for weight, value, slope in zip(reversed(weights), reversed(values[:-1]), reversed(slopes), strict=True):
        cotangent = b("mul", cotangent, slope)
        gradients.append(b("matmul", value, cotangent, transpose_x=True))
        cotangent = b("matmul", cotangent, weight, transpose_y=True)
    return b.graph(cotangent, *gradients), slopes


def test_the_slope_of_tanh_is_made_where_it_is_read() -> None:
    graph, slopes = slopes_of_layers(4)
    groups = fuse(graph)
    for slope in slopes:
        group = group_of(slope, groups)
        assert slope not in group.writes
        names = sorted(node.op.name for node in group.nodes)
        assert names == ["matmul", "mul", "mul", "sub"]  # x * x, 1 - …, the cotangent and the product with it


def test_a_deep_model_needs_half_the_memory_and_as_many_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = slopes_of_layers(12)
    with_sinking = planned(graph)
    monkeypatch.setattr(fusion._Clusters, "sink", lambda self: None)
    without = planned(graph)
    assert with_sinking.peak_bytes <= 0.6 * without.peak_bytes
    assert len(with_sinking.groups) == len(without.groups)


def far_apart(b: Builder, value: Node) -> Node:
    """`value` after two products, so that what reads both lies in another kernel."""
    weight = b.state((16, 16))
    return b("matmul", b("tanh", b("matmul", value, weight)), weight)


def test_a_value_stays_if_its_source_would_have_to_be_stored_instead() -> None:
    b = Builder()
    x = b.argument((16, 16))
    hidden = b("exp", b("matmul", x, x))  # read in its own kernel only
    value = b("sub", 1.0, hidden)
    other = b("sqrt", hidden)
    groups = fuse(b.graph(b("mul", far_apart(b, other), value)))
    assert value in group_of(value, groups).writes
    assert group_of(value, groups) is group_of(other, groups)


def test_a_value_stays_if_what_it_is_made_from_is_larger() -> None:
    b = Builder()
    x, y = b.argument((16, 16)), b.argument((16, 16))
    first, second = b("exp", b("matmul", x, y)), b("exp", b("matmul", y, x))
    value = b("sub", first, second)
    groups = fuse(b.graph(b("mul", b("matmul", first, second), value)))
    assert value in group_of(value, groups).writes
    assert group_of(value, groups) is group_of(first, groups)


def test_a_sum_stays_where_it_is() -> None:
    b = Builder()
    x = b.argument((16, 16))
    y = b("exp", b("matmul", x, x))
    total = b("sum", y, axis=(1,))
    stretched = b("broadcast_to", b("reshape", total, shape=(16, 1)), shape=(16, 16))
    groups = fuse(b.graph(b("mul", far_apart(b, y), stretched)))
    assert group_of(total, groups) is group_of(y, groups)


def test_state_that_the_step_writes_is_read_no_later() -> None:
    b = Builder()
    x, state = b.argument((16, 16)), b.state((16, 16))
    hidden = b("tanh", b("matmul", x, x))
    value = b("mul", hidden, state)
    out = b("mul", far_apart(b, hidden), value)
    assert value not in group_of(value, fuse(b.graph(out))).writes
    updates = [(state, b("neg", b("matmul", x, hidden)))]
    assert value in group_of(value, fuse(b.graph(out, updates=updates))).writes


@given(graphs())
def test_plans_of_random_graphs_stay_sound(graph: Graph) -> None:
    groups = fuse(graph)
    check_plan(graph, make_plan(graph, groups))
    assert all(len(group.nodes) <= MAX_NODES for group in groups if group.kind == "fused")
    assert all(len(group.reads) <= MAX_READS for group in groups if group.kind == "fused")
