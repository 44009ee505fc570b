"""A graph as text that people can read: one line for each node, with the user's scope and line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from staticgrad.graph.location import UNKNOWN
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.ops.leaf import Value, constant

_SHOWN_ELEMENTS = 6  # constants up to this size are written out


def format_graph(graph: Graph) -> str:
    """The whole graph: inputs with role and name, the nodes in order, then outputs and updates.

    A line reads `%3 = tanh %2 : float32[32, 64]   # model/hidden  train.py:12`.
    """
    names = {leaf: f"%{number}" for number, leaf in enumerate(graph.inputs)}
    computed = [node for node in graph.nodes if node not in names]
    names.update({node: f"%{number}" for number, node in enumerate(computed, len(graph.inputs))})
    lines = [_header(graph, len(computed))]
    lines += [_with_origin(f"  {names[leaf]} = {_input(leaf)} : {leaf.spec}", leaf) for leaf in graph.inputs]
    lines += [_with_origin(f"  {_assignment(node, names)} : {node.spec}", node) for node in computed]
    lines.append(f"  return {', '.join(names[node] for node in graph.outputs) or 'nothing'}")
    lines += [f"  update {names[leaf]} with {names[value]}{_state_name(leaf)}" for leaf, value in graph.updates]
    return "\n".join(lines)


def _header(graph: Graph, computed: int) -> str:
    counted = ((len(graph.inputs), "input"), (computed, "node"), (len(graph.outputs), "output"))
    told = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counted)
    count = len(graph.updates)
    return f"graph: {told}, {count} update{'' if count == 1 else 's'}"


def _input(leaf: Node) -> str:
    return f"{leaf.attributes['role']} {leaf.attributes['name'] or '(unnamed)'}"


def _state_name(leaf: Node) -> str:
    name = leaf.attributes["name"]
    return f"   # {name}" if name else ""


def _assignment(node: Node, names: Mapping[Node, str]) -> str:
    words = [f"{names[node]} = {node.op.name}"]
    words += [names[operand] for operand in node.operands]
    if node.op is constant:
        words.append(format_value(node.attributes["value"]))
    else:
        words += [f"{name}={_attribute(value)}" for name, value in node.attributes.items()]
    return " ".join(words)


def format_value(value: Value) -> str:
    """A constant's content, in full when small."""
    array = value.array()
    if array.size > _SHOWN_ELEMENTS:
        return f"[{_number(array.flat[0])}, … {array.size} elements]"
    if array.ndim == 0:
        return _number(array[()])
    return "[" + ", ".join(_number(element) for element in array.flat) + "]"


def _number(element: Any) -> str:
    return str(element.item()) if element.dtype.kind != "f" or element.dtype.itemsize == 8 else str(element)


def _attribute(value: Any) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_attribute(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, Value):
        return format_value(value)
    return str(value)


def _with_origin(line: str, node: Node) -> str:
    """The line with the scope and the user's file and line behind it, for what has them."""
    told = [node.scope] if node.scope else []
    if node.location != UNKNOWN:
        told.append(f"{os.path.basename(node.location.file)}:{node.location.line}")
    return f"{line}   # {'  '.join(told)}" if told else line
