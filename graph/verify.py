"""Is this a graph that keeps the rules of the IR? Run after capture, and in tests after every rewrite."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache

from staticgrad.graph.errors import GraphError, StaticgradError
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.op import Op
from staticgrad.graph.ops.leaf import graph_input

ROLES = ("argument", "state", "scalar")


def verify(graph: Graph) -> None:
    """Check every node and the graph's own lists; iterative, linear in nodes and edges.

    The rules: a node's type is what its op infers from its operands; operands are older than the node that reads
    them; attributes are hashable; inputs are input leaves, each listed once, numbered in order; every input that is
    read is listed; an update pairs a state input, at most once, with a value of the same type.

    Raises:
        GraphError: a rule is broken; the message names the node and the user's line.
    """
    _check_inputs(graph.inputs)
    _check_nodes(graph)
    _check_updates(graph)


def _check_inputs(inputs: Sequence[Node]) -> None:
    seen: set[Node] = set()
    for position, leaf in enumerate(inputs):
        if leaf.op is not graph_input:
            raise _broken(leaf, f"input {position} of a graph must be an input leaf; got op {leaf.op.name}")
        if leaf in seen:
            raise _broken(leaf, f"an input must be listed once; input {position} was listed before")
        seen.add(leaf)
        if leaf.attributes.get("index") != position:
            raise _broken(leaf, f"inputs must be numbered in order; position {position} holds {_told(leaf)}")
        if leaf.attributes.get("role") not in ROLES:
            raise _broken(leaf, f"the role of an input must be one of {ROLES}; got {leaf.attributes.get('role')!r}")
        _check_type(leaf)


def _check_nodes(graph: Graph) -> None:
    inputs = set(graph.inputs)
    last = -1
    for node in graph.nodes:
        if node.op is graph_input:
            if node not in inputs:
                raise _broken(node, f"every input that is read must be listed; this one is not: {_told(node)}")
        else:
            _check_operands(node)
            _check_attributes(node)
            _check_type(node)
        if node.serial <= last:
            raise _broken(node, f"two nodes must not share a serial number; {node.serial} came twice")
        last = node.serial


def _check_operands(node: Node) -> None:
    expected, count = len(node.op.operands), len(node.operands)
    if count < 1 if node.op.variadic else count != expected:
        raise _broken(node, f"takes {'at least 1' if node.op.variadic else expected} operands; got {count}")
    for position, operand in enumerate(node.operands):
        if operand.serial >= node.serial:
            raise _broken(node, f"operands must be older than their reader; operand {position}, {operand!r}, is not")


def _check_attributes(node: Node) -> None:
    for name, value in node.attributes.items():
        try:
            hash(value)
        except TypeError:
            raise _broken(node, f"attributes must be hashable; {name} is a {type(value).__name__}") from None

    expected = _attributes_of(node.op)
    if expected is not None and node.attributes.keys() != expected:
        raise _broken(node, f"its attributes must be {sorted(expected)}; got {sorted(node.attributes)}")


@cache
def _attributes_of(op: Op) -> frozenset[str] | None:
    """The attributes of an elementwise op; for the others `infer` checks them."""
    if op.scalar is None:
        return None
    parameters = inspect.signature(op.scalar).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def _check_type(node: Node) -> None:
    try:
        inferred = node.op.infer([operand.spec for operand in node.operands], node.attributes)
    except StaticgradError as error:
        raise _broken(node, f"its operands break its own rule: {error}") from error
    except TypeError as error:
        raise _broken(node, f"its attributes {dict(node.attributes)} are not those of the op: {error}") from error
    if inferred.shape != node.shape or inferred.dtype != node.dtype:
        raise _broken(node, f"the type must be what the op infers, {inferred}; the node has {node.spec}")


def _check_updates(graph: Graph) -> None:
    inputs = set(graph.inputs)
    seen: set[Node] = set()
    for leaf, value in graph.updates:
        if leaf not in inputs or leaf.attributes["role"] != "state":
            raise _broken(leaf, "only a state input of the graph can be updated")
        if leaf in seen:
            raise _broken(leaf, f"a state must be updated once; {_told(leaf)} has two new values")
        seen.add(leaf)
        if value.spec != leaf.spec:
            raise _broken(value, f"a new value must have the type of its state, {leaf.spec}; got {value.spec}")


def _told(leaf: Node) -> str:
    return f"input {leaf.attributes.get('index')} ({leaf.attributes.get('role')} {leaf.attributes.get('name')!r})"


def _broken(node: Node, rule: str) -> GraphError:
    return GraphError(f"{node.op.name}: {rule}. Node {node.serial}, captured at {node.location}")
