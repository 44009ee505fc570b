"""Rows too long for registers: sums that need the row's largest value or mean take no pass of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from builder import Builder

from staticgrad.graph.interpret import interpret
from staticgrad.graph.node import Graph, Node
from staticgrad.kernels.cuda import simulator
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.program import compile_graph
from staticgrad.kernels.cuda.simulator import SimulatedGPU
from staticgrad.kernels.cuda.target import Target

Array = np.ndarray[Any, Any]
TARGETS = (
    simulator.SMALL,
    Target(warp=4, block=4, largest_block=8, processors=3, small=0),
    Target(warp=4, block=8, largest_block=8, processors=1, small=100_000),
)
LENGTHS = (1001, 1024, 1028, 1500)  # odd, whole steps, one vector more, half a step more


def column(b: Builder, values: Node) -> Node:
    return b("reshape", values, shape=(*values.shape, 1))


def softmax(b: Builder, x: Node) -> list[Node]:
    powers = b("exp", b("sub", x, column(b, b("max", x, axis=(1,)))))
    return [b("div", powers, column(b, b("sum", powers, axis=(1,))))]


def log_sum(b: Builder, x: Node) -> list[Node]:
    """log Σ eˣ, where infinite largest values are replaced by 0."""
    largest = column(b, b("max", x, axis=(1,)))
    finite = b("less", b("abs", largest), float("inf"))
    shift = b("select", finite, largest, b.constant(0.0, x.dtype))
    total = b("sum", b("exp", b("sub", x, shift)), axis=(1,))
    return [b("add", b("log", total), b("reshape", shift, shape=total.shape))]


def normalised(b: Builder, x: Node) -> list[Node]:
    scale = 1 / x.shape[1]
    centred = b("sub", x, column(b, b("mul", b("sum", x, axis=(1,)), scale)))
    variance = b("mul", b("sum", b("square", centred), axis=(1,)), scale)
    return [b("mul", centred, column(b, b("rsqrt", b("add", variance, 1e-5)))), variance]


def graph_of(make: Callable[[Builder, Node], list[Node]], shape: Sequence[int], dtype: str = "float32") -> Graph:
    b = Builder()
    return b.graph(*make(b, b.argument(shape, dtype)))


def run(graph: Graph, array: Array, target: Target = simulator.SMALL) -> list[Array]:
    gpu = SimulatedGPU(target)
    outputs = [DeviceArray.empty(gpu, node.shape, node.dtype) for node in graph.outputs]
    compile_graph(graph, gpu).run([array], outputs)
    return [found.to_host() for found in outputs]


def passes(graph: Graph) -> int:
    """How many loops over a row there are."""
    (source,) = [s for s in compile_graph(graph, SimulatedGPU()).sources.values() if "while j <" in s]
    return source.count("while j <")


@pytest.mark.parametrize(("make", "count"), [(softmax, 2), (log_sum, 1), (normalised, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_long_row_is_read_once_for_both_sums(make: Any, count: int, dtype: str) -> None:
    assert passes(graph_of(make, (3, 1028), dtype)) == count


def test_a_row_in_registers_is_left_as_it_is() -> None:
    (source,) = compile_graph(graph_of(softmax, (3, 256)), SimulatedGPU()).sources.values()
    assert "top" not in source
    assert source.count("load4") == 4


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", LENGTHS)
@pytest.mark.parametrize("make", [softmax, log_sum, normalised])
def test_values(make: Any, size: int, target: Target) -> None:
    graph = graph_of(make, (3, size))
    array = np.random.default_rng(size).normal(scale=5, size=(3, size)).astype("float32")
    for found, wanted in zip(run(graph, array, target), interpret(graph, [array])[0], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("make", [softmax, log_sum])
def test_infinite_and_missing_values_are_as_on_the_cpu(make: Any) -> None:
    size, least = 1028, np.float32(-np.inf)
    rows = [np.linspace(-300, -200, size), np.linspace(500, -500, size), np.full(size, least)]
    for place in (0, 5, 1027):
        for value in (np.inf, np.nan, least):
            rows.append(np.linspace(-1, 1, size))
            rows[-1][place] = value
        rows.append(np.full(size, least))  # one number among infinities
        rows[-1][place] = -200
    array = np.asarray(rows, "float32")
    graph = graph_of(make, array.shape)
    with np.errstate(all="ignore"):
        (wanted,) = interpret(graph, [array])[0]
    (found,) = run(graph, array)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-30)


def test_a_variance_far_from_zero_keeps_its_digits() -> None:
    generator = np.random.default_rng(3)
    size = 1500
    rows = generator.normal(size=(4, size))
    rows[0] += 1e4
    rows[1] *= 1e-3
    rows[1] += 100
    rows[2, :7] = 3e3  # the first values that some threads meet say nothing of the rest
    rows[3] = np.linspace(0, 1e3, size)
    array = rows.astype("float32")
    _, found = run(graph_of(normalised, array.shape), array)
    wanted = array.astype("float64").var(axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def squares(b: Builder, x: Node) -> list[Node]:
    """The sum of (x - mean)²."""
    mean = b("mul", b("sum", x, axis=(1,)), 1 / x.shape[1])
    return [b("sum", b("square", b("sub", x, column(b, mean))), axis=(1,))]


def test_a_sum_of_squares_is_never_negative() -> None:
    """Squares of numbers as small as these have few digits, or none."""
    rows = np.repeat(np.logspace(-24, -18, 100)[:, None], 1001, axis=1)
    rows[:, :64] *= 1.3  # the first values that each thread meets
    array = rows.astype("float32")
    (found,) = run(graph_of(squares, array.shape), array)
    assert np.all(found >= 0)
