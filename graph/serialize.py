"""A graph as a content hash, and as JSON text that brings it back.

JSON layout: `format`, `version`, `locations` and `scopes` (tables), `nodes` (op, operands by position, attributes,
scope, location; in topological order), then `inputs`, `outputs` and `updates` by position. Types are not stored: each
op infers them again. Attribute values that JSON lacks are objects of one key: `tuple`, `float` (hexadecimal), `dtype`,
`value` (dtype, shape, base64 of the bytes).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.graph.errors import FileFormatError, StaticgradError
from staticgrad.graph.location import Location
from staticgrad.graph.node import DType, Graph, Node
from staticgrad.graph.op import registry
from staticgrad.graph.ops.leaf import Value, graph_input
from staticgrad.graph.verify import verify

FORMAT = "staticgrad graph"
VERSION = 1
_KINDS = "biufc"  # dtypes that a file may name


# ---------------------------------------------------------------- content hash


def graph_key(graph: Graph) -> str:
    """A SHA-256 in hexadecimal of what the graph computes; equal for graphs that differ in nothing but names.

    Ops, attributes, shapes, dtypes, the roles of inputs and the wiring of outputs and updates count. The names of
    inputs, scopes, locations, serial numbers and the order in which nodes were made do not.
    """
    numbers: dict[Node, int] = {leaf: number for number, leaf in enumerate(graph.inputs)}
    lines = [f"input {leaf.attributes['role']} {_type(leaf)}" for leaf in graph.inputs]
    types: dict[tuple[Any, ...], str] = {}  # most values of a graph are of a few types
    for node in canonical_order(graph):
        if node in numbers:
            continue
        numbers[node] = len(numbers)
        operands = ",".join([str(numbers[operand]) for operand in node.operands])
        key = (node.shape, node.dtype)
        kind = types.get(key)
        if kind is None:
            kind = types[key] = _type(node)
        lines.append(f"{node.op.name} {operands} {_canonical(node.attributes) if node.attributes else ''} {kind}")
    lines.append(f"outputs {[numbers[node] for node in graph.outputs]}")
    lines.append(f"updates {[(numbers[leaf], numbers[value]) for leaf, value in graph.updates]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def canonical_order(graph: Graph) -> list[Node]:
    """Every node, operands before readers, in an order that follows from the results alone; iterative."""
    ordered: list[Node] = []
    seen: set[Node] = set()
    for result in graph.results:
        pending = [result]
        while pending:
            node = pending[-1]
            missing = False
            for operand in reversed(node.operands):
                if operand not in seen:
                    pending.append(operand)
                    missing = True
            if missing:
                continue
            pending.pop()
            if node not in seen:
                seen.add(node)
                ordered.append(node)
    return ordered


def _type(node: Node) -> str:
    return f"{node.dtype.str}{node.shape}"


def _canonical(attributes: Mapping[str, Any]) -> str:
    if not attributes:
        return ""
    return ";".join([f"{name}={_canonical_value(attributes[name])}" for name in sorted(attributes)])


def _canonical_value(value: Any) -> str:
    if isinstance(value, Value):
        return f"{value.dtype.str}{value.shape}{hashlib.sha256(value.data).hexdigest()}"
    if isinstance(value, tuple):
        return f"({','.join([_canonical_value(item) for item in value])})"
    if isinstance(value, np.dtype):
        return value.str
    if isinstance(value, float):
        return value.hex()
    return repr(value)


# ---------------------------------------------------------------- to JSON


def to_json(graph: Graph) -> str:
    """The graph as JSON text, with names, scopes and locations; `from_json` gives it back without loss.

    Raises:
        TypeError: an attribute of a type that the format does not know.
    """
    nodes = sorted({*graph.nodes, *graph.inputs}, key=lambda node: node.serial)
    numbers = {node: number for number, node in enumerate(nodes)}
    locations = _Table()
    scopes = _Table()
    told = [
        [
            node.op.name,
            [numbers[operand] for operand in node.operands],
            {name: _encoded(value, node) for name, value in node.attributes.items()},
            scopes.position(node.scope),
            locations.position(node.location),
        ]
        for node in nodes
    ]
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "locations": locations.rows,
            "scopes": scopes.rows,
            "nodes": told,
            "inputs": [numbers[leaf] for leaf in graph.inputs],
            "outputs": [numbers[node] for node in graph.outputs],
            "updates": [[numbers[leaf], numbers[value]] for leaf, value in graph.updates],
        },
        separators=(",", ":"),
        allow_nan=False,
    )


class _Table:
    """Distinct rows, each stored once."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._positions: dict[Any, int] = {}

    def position(self, row: Any) -> int:
        known = self._positions.get(row)
        if known is None:
            known = self._positions[row] = len(self.rows)
            self.rows.append(row)
        return known


def _encoded(value: Any, node: Node) -> Any:
    if isinstance(value, np.dtype):
        return {"dtype": value.str}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item, node) for item in value]}
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Value):
        return {"value": [value.dtype.str, list(value.shape), base64.b64encode(value.data).decode()]}
    if value is None or type(value) in (bool, int, str):
        return value
    raise TypeError(
        f"{node.op.name}: an attribute of a saved graph must be a number, string, tuple, dtype or constant; "
        f"got {type(value).__name__}. Captured at {node.location}"
    )


# ---------------------------------------------------------------- from JSON


def from_json(text: str | bytes) -> Graph:
    """The graph that `to_json` wrote, checked by `verify`.

    Raises:
        FileFormatError: the text is not such a graph: damaged, of another format or version, of an op that this
            release does not have, or against the rules of the IR.
    """
    try:
        content = json.loads(text)
        _check_header(content)
        graph = _read(content)
        verify(graph)
    except FileFormatError:
        raise
    except (StaticgradError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise FileFormatError(
            f"graph: the text must be what to_json wrote; it is damaged: {type(error).__name__}: {error}; save it again"
        ) from error
    return graph


def _check_header(content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError(f"graph: the text must say that it is a {FORMAT!r}; this is something else")
    if content.get("version") != VERSION:
        raise FileFormatError(
            f"graph: this release reads version {VERSION}; got version {content.get('version')!r}; save it again"
        )


def _read(content: Mapping[str, Any]) -> Graph:
    scopes = [_of_type(scope, str) for scope in content["scopes"]]
    locations = [
        Location(_of_type(file, str), _of_type(line, int), _of_type(function, str))
        for file, line, function in content["locations"]
    ]
    nodes: list[Node] = []
    for name, operands, attributes, scope, location in content["nodes"]:
        op = registry.get(_of_type(name, str))
        if op is None:
            raise FileFormatError(f"graph: every op must be known to this release; got {name!r}")
        chosen = _chosen(nodes, operands)
        decoded = {key: _decoded(value) for key, value in _of_type(attributes, dict).items()}
        spec = op.infer([operand.spec for operand in chosen], decoded)
        (scope_text,), (origin,) = _chosen(scopes, [scope]), _chosen(locations, [location])
        nodes.append(Node(op, chosen, decoded, spec.shape, spec.dtype, scope_text, origin))
    pairs = [_chosen(nodes, pair) for pair in content["updates"]]
    updates = tuple((leaf, value) for leaf, value in pairs)
    if any(leaf.op is not graph_input for leaf, _ in updates):
        raise FileFormatError("graph: only an input can be updated")
    return Graph(_chosen(nodes, content["inputs"]), _chosen(nodes, content["outputs"]), updates)


def _chosen(items: Sequence[Any], positions: Any) -> tuple[Any, ...]:
    """The items at `positions`, which must be whole numbers within the list."""
    chosen = []
    for position in _of_type(positions, list):
        if not 0 <= _of_type(position, int) < len(items):
            raise FileFormatError(f"graph: a position must lie in [0, {len(items)}); got {position}")
        chosen.append(items[position])
    return tuple(chosen)


def _of_type(value: Any, expected: type) -> Any:
    if type(value) is not expected:
        raise FileFormatError(f"graph: expected {expected.__name__}; got {type(value).__name__}")
    return value


def _decoded(value: Any) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    ((kind, content),) = _of_type(value, dict).items()
    if kind == "tuple":
        return tuple(_decoded(item) for item in _of_type(content, list))
    if kind == "float":
        return float.fromhex(_of_type(content, str))
    if kind == "dtype":
        return _dtype(content)
    if kind == "value":
        return _value(*content)
    raise FileFormatError(f"graph: an attribute of an unknown kind: {kind!r}")


def _dtype(text: Any) -> DType:
    dtype: DType = np.dtype(_of_type(text, str))
    if dtype.kind not in _KINDS:
        raise FileFormatError(f"graph: a dtype must be a boolean or a number; got {dtype}")
    return dtype


def _value(dtype_text: Any, shape: Any, data: Any) -> Value:
    dtype = _dtype(dtype_text)
    extents = tuple(_of_type(extent, int) for extent in _of_type(shape, list))
    content = base64.b64decode(_of_type(data, str), validate=True)
    if any(extent < 0 for extent in extents) or len(content) != math.prod(extents) * dtype.itemsize:
        raise FileFormatError(f"graph: a constant of {dtype}{list(extents)} cannot have {len(content)} bytes")
    return Value(dtype, extents, content)
