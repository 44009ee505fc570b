"""Compiled programs against the interpreter: every op's samples, graphs at random, threads, errors, bytes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builder import Builder, Choice, arrays_for, graphs
from hypothesis import HealthCheck, given, settings

from staticgrad.graph.errors import FileFormatError, IndexRangeError
from staticgrad.graph.interpret import interpret
from staticgrad.graph.location import Location
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.op import Op, registry
from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cpu.native import compile_count
from staticgrad.kernels.cpu.program import Program, compile_graph

Array = np.ndarray[Any, Any]


def run(program: Program, arrays: Sequence[Array]) -> list[Array]:
    """Outputs, then all inputs as the run leaves them."""
    inputs = [array.copy() for array in arrays]
    outputs = [np.full(node.shape, 7).astype(node.dtype) for node in program.graph.outputs]
    program.run(inputs, outputs)
    return outputs + inputs


def expected(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    outputs, updates = interpret(graph, [array.copy() for array in arrays])
    final = {leaf: value for (leaf, _), value in zip(graph.updates, updates, strict=True)}
    return [*outputs, *(final.get(leaf, array) for leaf, array in zip(graph.inputs, arrays, strict=True))]


def compare(found: Sequence[Array], wanted: Sequence[Array], rtol: float = 1e-6, atol: float = 1e-6) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def check(graph: Graph, seed: int = 0, **tolerance: float) -> Program:
    arrays = arrays_for(graph, seed)
    program = compile_graph(graph)
    compare(run(program, arrays), expected(graph, arrays), **tolerance)
    return program


# ---------------------------------------------------------------- every op


def cases(op: Op) -> list[tuple[tuple[Array, ...], dict[str, Any]]]:
    if op.samples is not None:
        return [(tuple(map(np.asarray, sample.operands)), dict(sample.attributes)) for sample in op.samples()]
    generator = np.random.default_rng(0)
    dtypes = ("float32", "float64") if op.domain else ("bool", "uint8", "int32", "int64")
    found = []
    for dtype in dtypes:
        arrays = []
        for position, name in enumerate(op.operands):
            low, high = (op.domain[position].low, op.domain[position].high) if op.domain else (0, 4)
            values = generator.uniform(low, high, size=(3, 5) if position == 0 else (5,))
            arrays.append(values > 0 if name == "condition" else values.astype(dtype))
        found.append((tuple(arrays), {"dtype": np.dtype("int32")} if op.name == "cast" else {}))
    return found


def applied(op: Op, arrays: Sequence[Array], attributes: dict[str, Any]) -> tuple[Graph, list[Array]] | None:
    b = Builder()
    try:
        out = b(op.name, *(b.argument(array.shape, array.dtype) for array in arrays), **attributes)
    except TypeError:  # a dtype that the op does not take
        return None
    return b.graph(out), [np.ascontiguousarray(array).reshape(array.shape) for array in arrays]


@pytest.mark.parametrize("op", [op for op in registry.values() if op.kind != "leaf" and op.operands], ids=repr)
def test_every_op_on_its_samples(op: Op) -> None:
    checked = 0
    for arrays, attributes in cases(op):
        made = applied(op, arrays, attributes)
        if made is not None:
            graph, inputs = made
            tolerance = 2e-5 if inputs[-1].dtype == np.float32 else 1e-9
            compare(run(compile_graph(graph), inputs), expected(graph, inputs), rtol=tolerance, atol=tolerance)
            checked += 1
    assert checked


# ---------------------------------------------------------------- shapes and dtypes at the edge


def test_no_elements_anywhere() -> None:
    b = Builder()
    x, y = b.argument((0, 4)), b.argument((4, 3))
    product = b("matmul", x, y)
    total = b("sum", x, axis=(0,))
    check(b.graph(b("exp", x), product, total, b("concat", x, x, axis=0), b("prod", x, axis=(0, 1))))


def test_an_inner_extent_of_zero_gives_zeros() -> None:
    b = Builder()
    product = b("matmul", b.argument((3, 0)), b.argument((0, 2)))
    check(b.graph(b("add", product, 1.0), product))


def test_single_numbers_and_extents_of_one() -> None:
    b = Builder()
    x, y = b.argument(()), b.argument((1, 1, 5, 1))
    spread = b("mul", x, y)
    largest = b("max", spread, axis=(0, 1, 3))
    check(b.graph(b("exp", x), spread, largest, b("argmax", spread, axis=(0,)), b("sum", x, axis=())))


def test_results_that_are_inputs_views_constants_or_positions() -> None:
    b = Builder()
    x, s = b.argument((2, 3)), b.state((2, 3))
    turned = b("permute_dims", x, axes=(1, 0))
    flat = b("reshape", turned, shape=(6,))
    graph = b.graph(
        x, turned, flat, b.constant(2.0), b.constant([1.0, 2.0]), b("iota", size=4, dtype=np.dtype("int64")), x,
        updates=[(s, x)],
    )  # fmt: skip
    check(graph)


def test_two_states_trade_places() -> None:
    b = Builder()
    s, t = b.state((4,)), b.state((4,))
    check(b.graph(b("add", s, t), updates=[(s, t), (t, s)]))


def test_a_state_is_updated_from_its_own_reversal() -> None:
    b = Builder()
    s = b.state((5,))
    check(b.graph(updates=[(s, b("mul", b("slice", s, start=(4,), stop=(-1,), step=(-1,)), 2.0))]))


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integers_wrap_as_in_numpy(name: str) -> None:
    b = Builder()
    x = b.argument((6,), name)
    total = b("sum", x, axis=(0,))
    graph = b.graph(
        b("mul", x, x), b("sub", b("neg", x), total), total, b("max", x, axis=(0,)), b("prod", x, axis=(0,))
    )
    check(graph, rtol=0, atol=0)


def test_booleans() -> None:
    b = Builder()
    x, y = b.argument((4, 5), "bool"), b.argument((4, 5), "bool")
    both = b("bitwise_and", x, b("logical_not", y))
    graph = b.graph(
        both,
        b("bitwise_xor", x, y),
        b("any", both, axis=(1,)),
        b("all", x, axis=(0,)),
        b("select", x, y, both),
        b("cast", x, dtype=np.dtype("float32")),
        b("equal", x, y),
    )
    check(graph, rtol=0, atol=0)


def test_nan_wins_in_extremes() -> None:
    b = Builder()
    x = b.argument((3, 70))
    graph = b.graph(*(b(name, x, axis=(1,)) for name in ("max", "min", "argmax", "argmin")), b("max", x, axis=(0,)))
    (array,) = arrays_for(graph)
    array[1, 37], array[1, 60], array[2, 3], array[2, 5] = np.nan, np.nan, np.inf, -np.inf
    compare(run(compile_graph(graph), [array]), expected(graph, [array]), rtol=0, atol=0)


@pytest.mark.parametrize("axis", [(0,), (1,), (2,), (3,), (0, 2), (1, 3), (0, 3), (1, 2), (0, 1, 3), (0, 1, 2, 3)])
def test_reductions_over_any_axes(axis: tuple[int, ...]) -> None:
    b = Builder()
    x = b.argument((3, 4, 5, 6))
    turned = b("permute_dims", x, axes=(2, 0, 3, 1))
    check(b.graph(b("sum", b("square", x), axis=axis), b("max", turned, axis=axis), b("prod", x, axis=axis)), atol=1e-4)


def test_long_sums_are_as_exact_as_pairwise_ones() -> None:
    b = Builder()
    x = b.argument((3, 200_000))
    graph = b.graph(b("sum", x, axis=(1,)), b("sum", x, axis=(0, 1)))
    array = np.random.default_rng(0).uniform(0, 1, x.shape).astype(np.float32)
    rows, total = run(compile_graph(graph), [array])[:2]
    np.testing.assert_array_max_ulp(rows, array.astype(float).sum(1).astype(np.float32), 2)
    np.testing.assert_array_max_ulp(total, array.astype(float).sum().astype(np.float32), 2)


def test_long_sums_along_leading_axes_do_not_drift() -> None:
    b = Builder()
    x = b.argument((30_000, 12))
    y = b.argument((50, 200, 3, 7))
    graph = b.graph(b("sum", x, axis=(0,)), b("sum", y, axis=(0, 1)), b("sum", y, axis=(0, 1, 3)))
    arrays = [np.random.default_rng(0).uniform(0, 1, leaf.shape).astype(np.float32) for leaf in graph.inputs]
    found = run(compile_graph(graph, poison=True), arrays)
    wanted = [arrays[0].sum(0, dtype=float), arrays[1].sum((0, 1), dtype=float), arrays[1].sum((0, 1, 3), dtype=float)]
    for one, other in zip(found, wanted, strict=False):
        np.testing.assert_array_max_ulp(one, other.astype(np.float32), 1)


def test_products_of_strided_and_stretched_stacks() -> None:
    b = Builder()
    x = b("permute_dims", b.argument((2, 5, 3, 4)), axes=(0, 2, 1, 3))  # heads taken out of rows
    y = b("permute_dims", b.argument((2, 5, 3, 4)), axes=(0, 2, 1, 3))
    scores = b("matmul", x, y, transpose_y=True)
    back = b("matmul", scores, x, transpose_x=True)
    stretched = b("matmul", x, b("broadcast_to", b.argument((4, 2)), shape=(3, 4, 2)))
    backwards = b("slice", b.argument((4, 4)), start=(3, 3), stop=(-1, -1), step=(-1, -1))
    check(b.graph(scores, back, stretched, b("matmul", backwards, backwards)), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- graphs at random


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(Choice(dtype="float64"), steps=25))
def test_random_graphs_give_equal_bits_however_memory_is_planned(graph: Graph) -> None:
    arrays = arrays_for(graph)
    with np.errstate(all="ignore"):
        wanted = expected(graph, arrays)
    planned = run(compile_graph(graph), arrays)
    compare(planned, wanted, rtol=1e-7, atol=1e-8)
    for variant in ({"poison": True}, {"reuse": False}, {"reuse": False, "poison": True}):
        found = run(compile_graph(graph, **variant), arrays)
        assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(found, planned, strict=True))


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(Choice(dtype="float64", unary=("neg", "abs", "square", "floor", "sign")), steps=20))
def test_random_graphs_on_special_values(graph: Graph) -> None:
    arrays = arrays_for(graph, special=True)
    with np.errstate(all="ignore"):
        wanted = expected(graph, arrays)
    compare(run(compile_graph(graph), arrays), wanted, rtol=1e-6, atol=1e-8)


def test_a_chain_of_3000_ops_is_a_few_kernels() -> None:
    b = Builder()
    x = value = b.argument((64,))
    for _ in range(1000):
        value = b("mul", b("tanh", b("add", value, x)), 1.01)
    program = check(b.graph(value), rtol=1e-5)
    assert len(program.calls) <= 70
    assert len(program.sources) <= 3


# ---------------------------------------------------------------- indices out of range


def picked(node: str) -> tuple[Graph, list[Array]]:
    b = Builder()
    b.location = Location("model.py", 12, "step")
    x, labels = b.argument((4, 3)), b.argument((4,), "int64")
    if node == "take":
        out = b("take", x, labels, axis=0)
    elif node == "scatter_add":
        out = b("scatter_add", x, labels, shape=(4, 3), axis=0)
    elif node == "take_along_axis":
        out = b("take_along_axis", b("exp", x), b("reshape", labels, shape=(4, 1)), axis=1)
    else:
        column = b("slice", x, start=(0, 0), stop=(4, 1), step=(1, 1))
        out = b(node, column, b("reshape", labels, shape=(4, 1)), size=3, axis=1)
    return b.graph(out), [np.ones((4, 3), np.float32), np.array([0, 2, -1, 1])]


@pytest.mark.parametrize("node", ["take", "scatter_add", "take_along_axis", "scatter_add_along_axis"])
def test_an_index_out_of_range_names_op_index_and_line(node: str) -> None:
    graph, (x, labels) = picked(node)
    program = compile_graph(graph)
    compare(run(program, [x, labels]), expected(graph, [x, labels]))
    wrong = labels.copy()
    wrong[2] = 9
    with pytest.raises(IndexRangeError, match=rf"{node}.*got 9.*model\.py:12"):
        run(program, [x, wrong])
    wrong[2] = -9
    with pytest.raises(IndexRangeError, match="got -9"):
        run(program, [x, wrong])
    compare(run(program, [x, labels]), expected(graph, [x, labels]))  # the program is as good as before


# ---------------------------------------------------------------- threads, the cache, bytes


def small_model() -> Graph:
    b = Builder()
    x, weight = b.argument((16, 8)), b.state((8, 8))
    hidden = b("tanh", b("matmul", x, weight))
    return b.graph(b("sum", hidden, axis=(1,)), updates=[(weight, b("mul", weight, 0.5))])


def test_threads_share_a_program_but_no_memory() -> None:
    program = compile_graph(small_model())
    arrays = [arrays_for(program.graph, seed) for seed in range(4)]
    wanted = [run(program, inputs) for inputs in arrays]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(200):
            found = run(program, arrays[seed])
            if not all(np.array_equal(a, b) for a, b in zip(found, wanted[seed], strict=True)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_cache_saves_every_compilation(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    cache = DiskCache(tmp_path / "cache")
    first = compile_graph(small_model(), cache=cache)
    before = compile_count()
    again = compile_graph(small_model(), cache=cache)
    assert again.from_cache
    assert compile_count() == before
    arrays = arrays_for(first.graph)
    compare(run(again, arrays), run(first, arrays), rtol=0, atol=0)
    assert again.sources == first.sources
    assert again.plan.peak_bytes == first.plan.peak_bytes == again.arena_bytes
    assert not compile_graph(small_model(), reuse=False, cache=cache).from_cache


WITHOUT_NUMBA = """
import sys
from pathlib import Path
import numpy as np
from staticgrad.kernels.cpu.program import Program
program = Program.from_bytes(Path(sys.argv[1]).read_bytes())
inputs = [np.ones(leaf.shape, leaf.dtype) for leaf in program.graph.inputs]
outputs = [np.empty(node.shape, node.dtype) for node in program.graph.outputs]
program.run(inputs, outputs)
print("numba" in sys.modules, outputs[0].tolist())
"""


def test_another_process_runs_a_program_without_numba(tmp_path: Path) -> None:
    program = compile_graph(small_model())
    stored = tmp_path / "program"
    stored.write_bytes(program.to_bytes())
    printed = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA, str(stored)], capture_output=True, text=True, check=True
    ).stdout
    ones = [np.ones(leaf.shape, leaf.dtype) for leaf in program.graph.inputs]
    assert printed.strip() == f"False {run(program, ones)[0].tolist()}"


def test_a_program_comes_back_from_bytes() -> None:
    program = compile_graph(small_model())
    again = Program.from_bytes(program.to_bytes())
    arrays = arrays_for(program.graph)
    compare(run(again, arrays), run(program, arrays), rtol=0, atol=0)


def described(text: bytes) -> bytes:
    """The beginning of a program with this description of itself."""
    return b"".join((Program.magic, len(text).to_bytes(8, "little"), text))


@pytest.mark.parametrize(
    "data",
    [b"", b"nothing", Program.magic + b"\xff" * 20, *map(described, (b"[]", b"{", b"{}", b'{"graph": null}'))],
)
def test_bytes_that_are_no_program(data: bytes) -> None:
    with pytest.raises(FileFormatError, match="program"):
        Program.from_bytes(data)


def test_read_only_arguments_are_fine() -> None:
    b = Builder()
    x: Node = b.argument((4,))
    program = compile_graph(b.graph(b("exp", x)))
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = False
    out = np.empty(4, np.float32)
    program.run([array], [out])
    np.testing.assert_allclose(out, np.exp(array), rtol=1e-6)
