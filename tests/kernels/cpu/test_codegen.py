"""The text of generated kernels: readable, canonical, in the operands' dtypes; and that every op has a lowering."""

from __future__ import annotations

import numpy as np
import pytest
from builder import Builder

from staticgrad.graph.fusion import fuse
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.op import registry
from staticgrad.graph.plan import make_plan
from staticgrad.kernels.cpu.lower import lower
from staticgrad.kernels.cpu.structural import lowered_ops
from staticgrad.kernels.expressions import converted, elementwise_expression, literal
from staticgrad.kernels.kernel import Kernel

F32, F64, BOOL, INT = (np.dtype(name) for name in ("float32", "float64", "bool", "int32"))


def kernels(graph: Graph) -> list[Kernel]:
    return list(lower(graph, make_plan(graph, fuse(graph))).kernels.values())


def source(*outputs: Node, builder: Builder) -> str:
    (kernel,) = kernels(builder.graph(*outputs))
    return kernel.source


def body(text: str) -> str:
    return text.rpartition('"""\n')[2]


def test_a_kernel_reads_like_this() -> None:
    b = Builder()
    x, y = b.argument((3, 4)), b.argument((4,))
    text = source(b("tanh", b("mul", b("add", x, y), 2.0)), builder=b)
    assert text == (
        "def kernel(p0, p1, p2, begin, end):\n"
        '    """add mul tanh\n'
        "\n"
        "    p0: float32, read\n"
        "    p1: float32, read\n"
        "    p2: float32, written\n"
        '    """\n'
        "    for i0 in range(begin, end):\n"
        "        at0 = i0 * 4\n"
        "        for i1 in range(4):\n"
        "            a0 = p0[at0 + i1]\n"
        "            a1 = p1[i1]\n"
        "            t0 = a0 + a1\n"
        "            t1 = t0 * float32(2.0)\n"
        "            t2 = tanh(t1)\n"
        "            p2[at0 + i1] = t2\n"
    )


def test_axes_that_all_operands_share_are_one_loop() -> None:
    b = Builder()
    x = b.argument((2, 3, 4))
    flat = b("reshape", x, shape=(4, 6))
    assert body(source(b("exp", flat), builder=b)).count("for ") == 1


def test_row_values_are_computed_once_for_a_row() -> None:
    b = Builder()
    x, scale = b.argument((3, 4)), b.argument((3, 1))
    lines = body(source(b("mul", x, b("exp", scale)), builder=b)).splitlines()
    (line,) = (line for line in lines if "exp" in line)
    assert line.startswith(" " * 8 + "r")


def test_long_sums_are_added_in_parts() -> None:
    b = Builder()
    text = source(b("sum", b.argument((10_000,)), axis=(0,)), builder=b)
    assert "for start in range(0, 10000, 4096):" in text
    assert "float64(c0)" in text


def test_an_expensive_value_of_one_pass_is_kept_and_a_cheap_one_is_not() -> None:
    b = Builder()
    x = b.argument((8, 5))

    def divided(value: Node) -> Node:
        total = b("reshape", b("sum", value, axis=(1,)), shape=(8, 1))
        return b("div", value, total)

    assert "working memory" in source(divided(b("exp", x)), builder=b)
    cheap = Builder()
    y = cheap.argument((8, 5))
    value = cheap("add", y, 1.0)
    total = cheap("reshape", cheap("sum", value, axis=(1,)), shape=(8, 1))
    text = source(cheap("div", value, total), builder=cheap)
    assert "working memory" not in text
    assert text.count("+ float32(1.0)") == 2


def test_equal_work_is_one_kernel_whatever_it_is_called() -> None:
    b = Builder()
    x, y = b.argument((16,), name="first"), b.argument((16,), name="second")
    first = b("matmul", b("reshape", b("tanh", x), shape=(4, 4)), b("reshape", b("tanh", y), shape=(4, 4)))
    found = kernels(b.graph(first))
    assert len(found) == 1
    assert "first" not in found[0].source


def test_the_steps_of_a_sequence_are_one_kernel() -> None:
    b = Builder()
    steps, weight = b.argument((5, 2, 4)), b.argument((4, 4))
    hidden = b.argument((2, 4))
    for step in range(5):
        taken = b("slice", steps, start=(step, 0, 0), stop=(step + 1, 2, 4), step=(1, 1, 1))
        hidden = b("tanh", b("add", b("matmul", hidden, weight), b("reshape", taken, shape=(2, 4))))
    assert len(kernels(b.graph(hidden))) == 1


def test_loops_of_any_length_over_elements_are_one_kernel() -> None:
    b = Builder()
    x, y = b.argument((16,)), b.argument((5, 7))
    assert len(kernels(b.graph(b("tanh", x), b("tanh", y)))) == 1


def test_storage_that_is_taken_over_is_one_pointer() -> None:
    b = Builder()
    weight, gradient = b.state((8,)), b.argument((8,))
    graph = b.graph(updates=[(weight, b("sub", weight, gradient))])
    (kernel,) = kernels(graph)
    assert len(kernel.dtypes) == 2
    assert "read and written in place" in kernel.source
    lowered = lower(graph, make_plan(graph, fuse(graph), reuse=False))
    (apart,) = lowered.kernels.values()
    assert len(apart.dtypes) == 3


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (0.5, F32, "float32(0.5)"),
        (-1, F64, "float64(-1.0)"),
        (np.inf, F32, "float32(inf)"),
        (-np.inf, F32, "float32(-inf)"),
        (np.nan, F64, "float64(nan)"),
        (3, INT, "int32(3)"),
        (1, BOOL, "True"),
    ],
)
def test_literals_have_the_dtype_of_the_operands(value: float, dtype: np.dtype, text: str) -> None:
    assert literal(value, dtype) == text


def test_conversions() -> None:
    assert converted("a", F32, F32) == "a"
    assert converted("a", F32, BOOL) == "(a != float32(0.0))"
    assert converted("a", BOOL, INT) == "int32(a)"


def test_integers_keep_their_width() -> None:
    b = Builder()
    x = b.argument((3,), "int32")
    assert elementwise_expression(b("add", x, x), ["a", "b"]) == "int32(a + b)"


def test_every_op_has_a_lowering() -> None:
    families = ("elementwise", "reduction", "view", "leaf")
    missing = {
        op.name
        for op in registry.values()
        if op.kind not in families and op.name not in {"matmul", "iota", *lowered_ops()}
    }
    assert not missing
