"""The verifier: every rule, broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builder import Builder

from staticgrad.graph.errors import GraphError
from staticgrad.graph.location import Location
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.op import registry
from staticgrad.graph.verify import verify

F32 = np.dtype("float32")


def node(op: str, *operands: Node, shape: tuple[int, ...] = (3,), dtype: Any = F32, **attributes: Any) -> Node:
    """A node with a type that nothing checks."""
    return Node(registry[op], operands, attributes, shape, np.dtype(dtype), location=Location("train.py", 7, "step"))


def leaf(index: int, role: str = "argument", shape: tuple[int, ...] = (3,)) -> Node:
    attributes = {"index": index, "role": role, "name": f"x{index}", "shape": shape, "dtype": F32}
    return Node(registry["input"], (), attributes, shape, F32, location=Location("train.py", 7, "step"))


def younger_operand() -> Graph:
    x = leaf(0)
    reader, operand = node("tanh", x), node("tanh", x)
    object.__setattr__(reader, "operands", (operand,))
    return Graph((x,), (reader,))


def shared_serial() -> Graph:
    x = leaf(0)
    first, second = node("tanh", x), node("exp", x)
    object.__setattr__(second, "serial", first.serial)
    return Graph((x,), (first, second))


def on(*leaves: Node) -> Callable[..., Graph]:
    return lambda *outputs, updates=(): Graph(leaves, outputs, updates)


X, S = leaf(0), leaf(1, "state")

BROKEN: dict[str, tuple[Graph, str]] = {
    "an input that is none": (
        on(node("iota", size=3, dtype=F32))(),
        "input 0 of a graph must be an input leaf; got op iota",
    ),
    "an input listed twice": (on(X, X)(), "an input must be listed once; input 1 was listed before"),
    "inputs out of order": (on(S, X)(), r"position 0 holds input 1 \(state 'x1'\)"),
    "a role of its own": (on(leaf(0, "parameter"))(), "role of an input must be one of .* got 'parameter'"),
    "an input that is not listed": (on(X)(node("add", X, S)), r"this one is not: input 1 \(state 'x1'\)"),
    "a missing operand": (on(X)(node("add", X)), "add: takes 2 operands; got 1"),
    "no operand at all": (on(X)(node("concat", axis=0)), "concat: takes at least 1 operands; got 0"),
    "an operand younger than its reader": (younger_operand(), "operands must be older than their reader; operand 0"),
    "one serial number twice": (shared_serial(), "must not share a serial number"),
    "an attribute that changes": (
        on(X)(node("sum", X, shape=(), axis=[0])),
        "attributes must be hashable; axis is a list",
    ),
    "operands against the rule": (
        on(X)(node("matmul", X, X)),
        "matmul: its operands break its own rule: matmul: the op",
    ),
    "an attribute of another op": (on(X)(node("sum", X, shape=(), axes=(0,))), "attributes .* are not those of the op"),
    "an attribute too many": (on(X)(node("tanh", X, axis=0)), r"tanh: its attributes must be \[\]; got \['axis'\]"),
    "another shape": (on(X)(node("tanh", X, shape=(4,))), r"infers, float32\[3\]; the node has float32\[4\]"),
    "another dtype": (on(X)(node("tanh", X, dtype="float64")), r"the node has float64\[3\]"),
    "an update of an argument": (on(X, S)(updates=((X, S),)), "only a state input of the graph can be updated"),
    "an update of a stranger": (on(X)(updates=((S, X),)), "only a state input of the graph can be updated"),
    "two updates of one state": (on(X, S)(updates=((S, X), (S, S))), "must be updated once"),
    "an update of another type": (
        on(X, S)(updates=((S, node("sum", X, shape=(), axis=(0,))),)),
        r"must have the type of its state, float32\[3\]; got float32\[\]",
    ),
}


@pytest.mark.parametrize(("graph", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_every_rule_broken_is_named_with_node_and_line(graph: Graph, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        verify(graph)
    assert "captured at train.py:7" in str(caught.value)


def test_a_graph_that_keeps_the_rules() -> None:
    b = Builder()
    x, w, rate = b.argument((2, 3)), b.state((3, 4)), b.scalar()
    y = b("matmul", x, w)
    verify(b.graph(y, x, y, updates=[(w, b("sub", w, b("mul", w, rate)))]))
    verify(Graph((), ()))


def test_a_chain_of_100000_nodes() -> None:
    b = Builder()
    x = b.argument((4,))
    for _ in range(100_000):
        x = b("tanh", x)
    verify(b.graph(x))
