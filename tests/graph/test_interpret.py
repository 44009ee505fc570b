"""Graphs run node by node on NumPy."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from builder import Builder

from staticgrad.graph.errors import GraphError, IndexRangeError
from staticgrad.graph.interpret import interpret
from staticgrad.graph.location import Location
from staticgrad.graph.node import Node


def test_outputs_and_updates() -> None:
    b = Builder()
    x, w = b.argument((2, 3)), b.state((3,))
    y = b("mul", x, w)
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2, 3], np.float32)]
    outputs, updates = interpret(b.graph(y, b("sum", y, axis=(0, 1)), updates=[(w, b("neg", w))]), arrays)
    np.testing.assert_array_equal(outputs[0], [[0, 2, 6], [3, 8, 15]])
    assert outputs[1].shape == ()
    assert outputs[1] == 34
    np.testing.assert_array_equal(updates[0], [-1, -2, -3])
    np.testing.assert_array_equal(arrays[1], [1, 2, 3])


def test_two_states_swap() -> None:
    b = Builder()
    x, y = b.state(()), b.state(())
    _, updates = interpret(b.graph(updates=[(x, y), (y, x)]), [np.float32(1), np.float32(2)])
    assert [float(value) for value in updates] == [2, 1]


def test_results_share_no_memory() -> None:
    b = Builder()
    x = b.argument((2, 3))
    flat = b("reshape", x, shape=(6,))
    array = np.zeros((2, 3), np.float32)
    outputs, _ = interpret(b.graph(x, flat, flat, b.constant([1.0, 2.0])), [array])
    for i, output in enumerate(outputs):
        assert output.flags.writeable
        assert output.flags.c_contiguous
        assert not any(np.shares_memory(output, other) for other in (array, *outputs[:i]))


def test_every_node_is_watched_in_order() -> None:
    b = Builder()
    x = b.argument((3,))
    y = b("exp", b("neg", x))
    seen: list[tuple[str, list[float]]] = []
    interpret(
        b.graph(y), [np.zeros(3, np.float32)], watch=lambda node, value: seen.append((node.op.name, value.tolist()))
    )
    assert [name for name, _ in seen] == ["input", "neg", "exp"]
    assert seen[-1][1] == [1, 1, 1]


def test_values_are_released_after_their_last_reader() -> None:
    b = Builder()
    x = b.argument((1000,))
    for _ in range(50):
        x = b("tanh", x)
    alive: list[weakref.ref[Any]] = []
    most = 0

    def watch(node: Node, value: Any) -> None:
        nonlocal most
        alive.append(weakref.ref(value))
        gc.collect()
        most = max(most, sum(reference() is not None for reference in alive))

    interpret(b.graph(x), [np.zeros(1000, np.float32)], watch=watch)
    assert most <= 3  # the argument, the operand and the result


def test_floating_point_flags_are_ignored() -> None:
    b = Builder()
    (result,), _ = interpret(b.graph(b("log", b("div", b.argument(()), 0.0))), [np.float32(-1)])
    assert np.isnan(result)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([], "got 0 arrays for 1 inputs"),
        ([np.zeros(4, np.float32)], r"input 0 \('x'\) must be float32\[3\]; got float32\[4\]"),
        ([np.zeros(3)], r"must be float32\[3\]; got float64\[3\]"),
    ],
)
def test_arrays_that_do_not_fit(arrays: list[Any], message: str) -> None:
    b = Builder()
    graph = b.graph(b("neg", b.argument((3,), name="x")))
    with pytest.raises(GraphError, match=message):
        interpret(graph, arrays)


def test_a_type_that_the_reference_does_not_give_is_named_with_its_line() -> None:
    b = Builder()
    x = b.argument((3,))
    wrong = Node(b("neg", x).op, (x,), {}, (4,), x.dtype, location=Location("train.py", 7, "step"))
    with pytest.raises(GraphError, match=r"neg: the reference must give .* float32\[4\]; got float32\[3\].*train.py:7"):
        interpret(b.graph(wrong), [np.zeros(3, np.float32)])


def test_an_index_out_of_range() -> None:
    b = Builder()
    with pytest.raises(IndexRangeError, match="take"):
        interpret(b.graph(b("take", b.constant([1.0, 2.0]), b.constant(5, "int64"), axis=0)), [])
