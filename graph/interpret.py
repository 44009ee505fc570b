"""The meaning of a graph: its nodes run one by one by their NumPy references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.graph.errors import GraphError
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.ops.leaf import graph_input

Array = np.ndarray[Any, Any]
Watch = Callable[[Node, Array], None]


def interpret(
    graph: Graph, arrays: Sequence[Any], *, watch: Watch | None = None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Run `graph` on NumPy and return `(outputs, updates)` as fresh arrays; the arrays passed in stay as they are.

    A value is released after its last reader, so memory follows the graph's own need.

    Args:
        graph: the graph to run.
        arrays: one array for each of `graph.inputs`, of its shape and dtype.
        watch: called as `watch(node, value)` for every node in order, leaves included; `value` is not to be changed.

    Raises:
        GraphError: an array that does not fit its input, or a reference that answers with another type than its node.
        IndexRangeError: an index out of range.
    """
    values = _bind(graph, arrays)
    released = _last_reads(graph)
    for position, node in enumerate(graph.nodes):
        if node.op is not graph_input:
            values[node] = evaluate(node, [values[operand] for operand in node.operands])
        if watch is not None:
            watch(node, values[node])
        for finished in released.get(position, ()):
            del values[finished]
    outputs = tuple(_fresh(values[node]) for node in graph.outputs)
    updates = tuple(_fresh(values[node]) for _, node in graph.updates)
    return outputs, updates


def evaluate(node: Node, operands: Sequence[Array]) -> Array:
    """The value of one node from those of its operands, by the reference of its op; floating-point flags are ignored.

    Raises:
        GraphError: the reference answers with another shape or dtype than the node has.
    """
    with np.errstate(all="ignore"):
        value = np.asarray(node.op.reference(*operands, **node.attributes))
    if value.shape != node.shape or value.dtype != node.dtype:
        raise GraphError(
            f"{node.op.name}: the reference must give what the node says, {node.spec}; got {value.dtype}"
            f"{list(value.shape)}. Captured at {node.location}"
        )
    return value


def _bind(graph: Graph, arrays: Sequence[Any]) -> dict[Node, Array]:
    if len(arrays) != len(graph.inputs):
        raise GraphError(
            f"interpret: one array for each input; got {len(arrays)} arrays for {len(graph.inputs)} inputs"
        )
    values: dict[Node, Array] = {}
    for leaf, given in zip(graph.inputs, arrays, strict=True):
        array = np.asarray(given)
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise GraphError(
                f"interpret: input {leaf.attributes['index']} ({leaf.attributes['name']!r}) must be {leaf.spec}; "
                f"got {array.dtype}{list(array.shape)}"
            )
        values[leaf] = array
    return values


def _last_reads(graph: Graph) -> Mapping[int, list[Node]]:
    """For each position in `graph.nodes` the nodes whose values nobody reads after it."""
    kept = set(graph.results)
    last: dict[Node, int] = {}
    for position, node in enumerate(graph.nodes):
        for operand in node.operands:
            last[operand] = position
    released: dict[int, list[Node]] = {}
    for node, position in last.items():
        if node not in kept:
            released.setdefault(position, []).append(node)
    return released


def _fresh(value: Array) -> Array:
    """A contiguous copy, so that no result shares memory with an input, a constant or another result."""
    return np.array(value, order="C")
