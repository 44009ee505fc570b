"""Graphs as text."""

from __future__ import annotations

import numpy as np
from builder import Builder

from staticgrad.graph.location import Location
from staticgrad.graph.printer import format_graph


def test_a_graph_reads_like_this() -> None:
    b = Builder()
    x, w, rate = b.argument((32, 64), name="x"), b.state((64, 10), name="fc.weight"), b.scalar(name="lr")
    b.scope, b.location = "model/hidden", Location("/home/ada/train.py", 12, "step")
    y = b("tanh", b("matmul", x, w, transpose_x=False, transpose_y=False))
    total = b("sum", y, axis=(0, 1))
    b.scope = ""
    new = b("sub", w, b("mul", w, b("mul", rate, 0.5)))
    assert format_graph(b.graph(total, updates=[(w, new)])) == "\n".join(
        (
            "graph: 3 inputs, 7 nodes, 1 output, 1 update",
            "  %0 = argument x : float32[32, 64]",
            "  %1 = state fc.weight : float32[64, 10]",
            "  %2 = scalar lr : float32[]",
            "  %3 = matmul %0 %1 transpose_x=False transpose_y=False : float32[32, 10]   # model/hidden  train.py:12",
            "  %4 = tanh %3 : float32[32, 10]   # model/hidden  train.py:12",
            "  %5 = sum %4 axis=(0, 1) : float32[]   # model/hidden  train.py:12",
            "  %6 = constant 0.5 : float32[]   # train.py:12",
            "  %7 = mul %2 %6 : float32[]   # train.py:12",
            "  %8 = mul %1 %7 : float32[64, 10]   # train.py:12",
            "  %9 = sub %1 %8 : float32[64, 10]   # train.py:12",
            "  return %5",
            "  update %1 with %9   # fc.weight",
        )
    )


def test_attributes_are_short() -> None:
    b = Builder()
    x = b.argument((3,), name="x")
    text = format_graph(
        b.graph(
            b("cast", x, dtype=np.dtype("float64")),
            b("reshape", x, shape=(3,)),
            b.constant(np.arange(100.0)),
            b.constant([1.5, -0.0, np.inf]),
            b.constant(True, "bool"),
        )
    )
    assert "cast %0 dtype=float64 :" in text
    assert "reshape %0 shape=(3,) :" in text
    assert "constant [0.0, … 100 elements] : float32[100]" in text
    assert "constant [1.5, -0.0, inf] :" in text
    assert "constant True : bool[]" in text


def test_inputs_that_nobody_reads_are_shown() -> None:
    b = Builder()
    b.argument((3,), name="unused")
    text = str(b.graph())
    assert "%0 = argument unused : float32[3]" in text
    assert "return nothing" in text


def test_long_graphs_are_complete() -> None:
    b = Builder()
    x = b.argument((3,))
    for _ in range(5_000):
        x = b("tanh", x)
    assert len(format_graph(b.graph(x)).splitlines()) == 5_003
