"""Hoisting: numbers that all rows give are made ahead, where loss and gradient are one kernel by it."""

from __future__ import annotations

import numpy as np
import pytest
from builder import Builder

from staticgrad.graph import fusion
from staticgrad.graph.fusion import fuse
from staticgrad.graph.group import Group
from staticgrad.graph.hoisting import ahead
from staticgrad.graph.interpret import interpret
from staticgrad.graph.members import Members
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import make_plan
from staticgrad.graph.plan_check import check_plan
from staticgrad.graph.schedule import order
from staticgrad.kernels.cpu.program import compile_graph

ROWS, CLASSES = 6, 10


def loss_and_gradient(b: Builder, x: Node, counts: Node) -> tuple[Node, Node, Node]:
    """The mean over the rows that count of log Σ eˣ, its derivative, and how many rows count."""
    number = b("sum", counts, axis=(0, 1))
    largest = b("reshape", b("max", x, axis=(1,)), shape=(ROWS, 1))
    powers = b("exp", b("sub", x, largest))
    total = b("reshape", b("sum", powers, axis=(1,)), shape=(ROWS, 1))
    each = b("mul", b("log", total), counts)
    loss = b("div", b("sum", each, axis=(0, 1)), number)
    gradient = b("mul", powers, b("div", b("div", counts, number), total))
    return loss, gradient, number


def counted(b: Builder) -> Node:
    """1 for each row whose label counts."""
    labels = b.argument((ROWS, 1), "int64")
    return b("cast", b("not_equal", labels, -100), dtype=np.dtype("float32"))


def group_of(node: Node, groups: list[Group]) -> Group:
    return next(group for group in groups if node in group.nodes)


def check(graph: Graph) -> None:
    """The plan holds, and the compiled graph computes what the interpreter does."""
    check_plan(graph, make_plan(graph, order(graph, fuse(graph))))
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal(leaf.shape).astype(leaf.dtype) if leaf.dtype.kind == "f"
        else np.where(np.arange(leaf.size) % 3, 1, -100).reshape(leaf.shape).astype(leaf.dtype)
        for leaf in graph.inputs
    ]  # fmt: skip
    outputs = [np.empty(node.shape, node.dtype) for node in graph.outputs]
    compile_graph(graph).run(arrays, outputs)
    for found, expected in zip(outputs, interpret(graph, arrays)[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_loss_and_gradient_are_one_kernel() -> None:
    b = Builder()
    loss, gradient, number = loss_and_gradient(b, b.argument((ROWS, CLASSES)), counted(b))
    graph = b.graph(loss, gradient)
    groups = fuse(graph)
    assert len(groups) == 2
    assert group_of(loss, groups) is group_of(gradient, groups) is not group_of(number, groups)
    assert all(node.size < ROWS * CLASSES for node in group_of(number, groups).nodes)
    check(graph)


def test_without_hoisting_the_exponentials_go_through_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion._Clusters, "hoist", lambda self: None)
    b = Builder()
    loss, gradient, _ = loss_and_gradient(b, b.argument((ROWS, CLASSES)), counted(b))
    groups = fuse(b.graph(loss, gradient))
    assert group_of(loss, groups) is not group_of(gradient, groups)
    assert any(node.op.name == "exp" for node in group_of(loss, groups).writes)


def test_a_number_that_takes_all_points_stays() -> None:
    b = Builder()
    x = b.argument((ROWS, CLASSES))
    counts = b("reshape", b("sum", b("tanh", x), axis=(1,)), shape=(ROWS, 1))  # from all points of each row
    loss, gradient, number = loss_and_gradient(b, x, counts)
    graph = b.graph(loss, gradient)
    assert group_of(number, fuse(graph)) is not group_of(gradient, fuse(graph))
    members = Members()
    group = group_of(number, fuse(graph))
    described = [found for node in group.nodes if (found := members.member(node)) is not None]
    assert ahead(described, {number}, ROWS * CLASSES) == set()
    check(graph)


def test_kernels_with_another_between_them_stay_apart_and_whole() -> None:
    b = Builder()
    x, weight = b.argument((ROWS, CLASSES)), b.argument((CLASSES, CLASSES))
    loss, gradient, number = loss_and_gradient(b, x, counted(b))
    powers = next(node for node in b.graph(gradient).nodes if node.op.name == "exp")
    between = b("matmul", powers, weight)  # reads the one and is read by the other
    graph = b.graph(loss, b("add", gradient, between), between)
    groups = fuse(graph)
    assert group_of(loss, groups) is group_of(number, groups)
    check(graph)


def test_other_readers_of_the_number_find_it() -> None:
    b = Builder()
    loss, gradient, number = loss_and_gradient(b, b.argument((ROWS, CLASSES)), counted(b))
    far = b("matmul", b("add", b.argument((3, 3)), number), b.argument((3, 3)))
    graph = b.graph(loss, gradient, far, number)
    groups = fuse(graph)
    assert group_of(loss, groups) is group_of(gradient, groups)
    check(graph)
