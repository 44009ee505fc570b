"""Content hashes and JSON of graphs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for, graphs
from hypothesis import given, settings

from staticgrad.graph.errors import FileFormatError
from staticgrad.graph.interpret import interpret
from staticgrad.graph.location import Location
from staticgrad.graph.node import Graph
from staticgrad.graph.serialize import from_json, graph_key, to_json


def example(factor: float = 0.5, name: str = "x", role: str = "state", swap: bool = False) -> Graph:
    b = Builder()
    x = b.argument((2, 3), name=name)
    w = b.state((2, 3), name="w") if role == "state" else b.argument((2, 3), name="w")
    b.scope, b.location = "model/hidden", Location("train.py", 12, "step")
    total = b("sum", b("mul", x, factor), axis=(0, 1))
    outputs = (total, x) if swap else (x, total)
    return b.graph(*outputs, updates=[(w, b("tanh", x))] if role == "state" else ())


def test_equal_graphs_have_equal_keys() -> None:
    key = graph_key(example())
    assert key == graph_key(example())
    assert len(key) == 64


def test_names_and_origins_do_not_count() -> None:
    b = Builder()
    x, w = b.argument((2, 3), name="other"), b.state((2, 3))
    new = b("tanh", x)  # made first here, last in the example
    total = b("sum", b("mul", x, 0.5), axis=(0, 1))
    assert graph_key(b.graph(x, total, updates=[(w, new)])) == graph_key(example())


def test_what_is_computed_counts() -> None:
    variants = [example(), example(0.25), example(-0.0), example(0.0), example(role="argument"), example(swap=True)]
    assert len({graph_key(graph) for graph in variants}) == len(variants)


def test_dtypes_attributes_and_unused_inputs_count() -> None:
    def variant(shape: tuple[int, ...], dtype: str, axis: int, extra: bool) -> str:
        b = Builder()
        x = b.argument(shape, dtype)
        if extra:
            b.argument(())
        return graph_key(b.graph(b("cumulative_sum", x, axis=axis)))

    keys = {
        variant((2, 3), "float32", 0, False),
        variant((3, 2), "float32", 0, False),
        variant((2, 3), "float64", 0, False),
        variant((2, 3), "float32", 1, False),
        variant((2, 3), "float32", 0, True),
    }
    assert len(keys) == 5


def test_a_long_chain_needs_no_recursion() -> None:
    b = Builder()
    x = b.argument((4,))
    for _ in range(20_000):
        x = b("tanh", b("add", x, x))
    graph = b.graph(x)
    assert graph_key(from_json(to_json(graph))) == graph_key(graph)


# ---------------------------------------------------------------- JSON


def test_the_way_back_loses_nothing() -> None:
    before = example(name="späße")
    after = from_json(to_json(before))
    assert str(after) == str(before)
    assert graph_key(after) == graph_key(before)
    assert to_json(after) == to_json(before)
    told = [(node.op, node.spec, dict(node.attributes), node.scope, node.location) for node in before.nodes]
    assert told == [(node.op, node.spec, dict(node.attributes), node.scope, node.location) for node in after.nodes]


def test_every_kind_of_constant_comes_back() -> None:
    b = Builder()
    values = [np.float32(-0.0), np.array([np.nan, np.inf]), np.zeros((0, 3), np.int8), np.array([[True]])]
    before = b.graph(*(b.constant(value, value.dtype) for value in values))
    (outputs, _), (expected, _) = interpret(from_json(to_json(before)), []), interpret(before, [])
    for output, value in zip(outputs, expected, strict=True):
        assert output.tobytes() == value.tobytes()
        assert output.shape == value.shape


@settings(max_examples=50)
@given(graphs())
def test_random_graphs_come_back(before: Graph) -> None:
    after = from_json(to_json(before))
    assert graph_key(after) == graph_key(before)
    arrays = arrays_for(before)
    for old, new in zip(interpret(before, arrays)[0], interpret(after, arrays)[0], strict=True):
        assert old.tobytes() == new.tobytes()


def test_an_attribute_that_cannot_be_saved_is_named() -> None:
    b = Builder()
    x = b.argument((2,))
    node = b("cumulative_sum", x, axis=np.int64(0))
    with pytest.raises(TypeError, match=r"cumulative_sum: an attribute .*int64"):
        to_json(b.graph(node))


# ---------------------------------------------------------------- bad content


def changed(**entries: Any) -> str:
    return json.dumps({**json.loads(to_json(example())), **entries})


def with_node(position: int, **parts: Any) -> str:
    content = json.loads(to_json(example()))
    for name, part in parts.items():
        content["nodes"][position][("op", "operands", "attributes", "scope", "location").index(name)] = part
    return json.dumps(content)


BAD = {
    "not text of JSON": ("{", "damaged"),
    "cut off": (to_json(example())[:-20], "damaged"),
    "not an object": ("[1, 2]", "something else"),
    "foreign": ('{"format": "onnx"}', "something else"),
    "newer": (changed(version=2), "reads version 1; got version 2"),
    "no nodes": (json.dumps({"format": "staticgrad graph", "version": 1}), "damaged"),
    "unknown op": (with_node(3, op="teleport"), "got 'teleport'"),
    "operand of later": (with_node(3, operands=[4, 2]), r"must lie in \[0, 3\)"),
    "negative operand": (with_node(3, operands=[-1, 2]), r"must lie in \[0, 3\)"),
    "fractional operand": (with_node(3, operands=[0.5, 2]), "expected int"),
    "too few operands": (with_node(3, operands=[0]), "damaged"),
    "attribute of another op": (with_node(3, attributes={"axis": 1}), "damaged"),
    "attribute of an unknown kind": (with_node(3, attributes={"axis": {"code": "1"}}), "unknown kind: 'code'"),
    "object dtype": (with_node(0, attributes={"dtype": {"dtype": "|O"}}), "boolean or a number"),
    "constant too short": (with_node(2, attributes={"value": {"value": ["<f4", [], "AAA="]}}), "cannot have 2 bytes"),
    "constant not base64": (with_node(2, attributes={"value": {"value": ["<f4", [], "?"]}}), "damaged"),
    "scope out of range": (with_node(2, scope=9), "must lie in"),
    "inputs out of order": (changed(inputs=[1, 0]), "numbered in order"),
    "output out of range": (changed(outputs=[99]), r"must lie in \[0, 6\)"),
    "update of a value": (changed(updates=[[3, 3]]), "only an input"),
    "update of three": (changed(updates=[[1, 2, 3]]), "damaged"),
    "deep nesting": (with_node(3, attributes={}).replace("{}", '{"tuple":[' * 20_000), "damaged"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_bad_content_is_an_error_of_the_file(text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        from_json(text)
