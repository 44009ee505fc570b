"""Programs for a GPU in the simulator, against the interpreter: every op's samples, graphs at random, errors, bytes.

Blocks of several sizes and warps of several widths run each graph, so that a value that depends on which thread came
first does not stay hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for, graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import run_program as run

from staticgrad.graph.errors import FileFormatError, IndexRangeError, OutOfMemoryError
from staticgrad.graph.interpret import interpret
from staticgrad.graph.node import Graph
from staticgrad.graph.op import Op, registry
from staticgrad.kernels.cuda import simulator
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.program import Program, compile_graph
from staticgrad.kernels.cuda.simulator import SimulatedGPU
from staticgrad.kernels.cuda.target import Target

Array = np.ndarray[Any, Any]
TARGETS = (
    simulator.SMALL,
    Target(warp=4, block=4, largest_block=8, processors=3, small=0),
    Target(warp=4, block=16, largest_block=16, processors=1, small=0),
    Target(warp=4, block=8, largest_block=8, processors=2, small=10_000),
)


def expected(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    outputs, updates = interpret(graph, [array.copy() for array in arrays])
    final = {leaf: value for (leaf, _), value in zip(graph.updates, updates, strict=True)}
    return [*outputs, *(final.get(leaf, array) for leaf, array in zip(graph.inputs, arrays, strict=True))]


def compare(found: Sequence[Array], wanted: Sequence[Array], rtol: float = 1e-5, atol: float = 1e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


# ---------------------------------------------------------------- every op


def samples(op: Op) -> list[tuple[tuple[Array, ...], dict[str, Any]]]:
    if op.samples is not None:
        return [(tuple(map(np.asarray, sample.operands)), dict(sample.attributes)) for sample in op.samples()]
    generator = np.random.default_rng(0)
    found = []
    for dtype in ("float32", "float64") if op.domain else ("bool", "uint8", "int32", "int64"):
        arrays = []
        for position, name in enumerate(op.operands):
            low, high = (op.domain[position].low, op.domain[position].high) if op.domain else (0, 4)
            values = generator.uniform(low, high, size=(3, 5) if position == 0 else (5,))
            arrays.append(values > 0 if name == "condition" else values.astype(dtype))
        found.append((tuple(arrays), {"dtype": np.dtype("int32")} if op.name == "cast" else {}))
    return found


@pytest.mark.parametrize("name", sorted(name for name, op in registry.items() if op.kind != "leaf" and op.operands))
def test_every_op_gives_what_its_reference_gives(name: str) -> None:
    op, ran = registry[name], 0
    gpu = SimulatedGPU()
    for arrays, attributes in samples(op):
        b = Builder()
        try:
            out = b(name, *(b.argument(array.shape, array.dtype) for array in arrays), **attributes)
        except TypeError:  # a dtype that the op does not take
            continue
        graph = b.graph(out)
        given = [np.ascontiguousarray(array).reshape(array.shape) for array in arrays]
        compare(run(compile_graph(graph, gpu), given), expected(graph, given))
        ran += 1
    assert ran


# ---------------------------------------------------------------- graphs at random


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs(), st.sampled_from(TARGETS))
def test_random_graphs(graph: Graph, target: Target) -> None:
    """Planned, without reuse and with poisoned slots: the same values, in the memory of one small GPU."""
    arrays = arrays_for(graph, 0)
    wanted = expected(graph, arrays)
    gpu = SimulatedGPU(target)
    plain = run(compile_graph(graph, gpu), arrays)
    compare(plain, wanted)
    for options in ({"reuse": False}, {"poison": True}):
        found = run(compile_graph(graph, gpu, **options), arrays)  # type: ignore[arg-type]
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_array_equal(one, other)
    assert gpu.memory.used == 0


# ---------------------------------------------------------------- rows and sums of every length


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 37), (3, 2), (5, 16), (9, 33), (2, 130), (40, 3), (300, 1)])
def test_rows_and_sums(rows: int, size: int, target: Target) -> None:
    b = Builder()
    x, w = b.argument((rows, size)), b.argument((size,))
    largest = b("reshape", b("max", x, axis=(1,)), shape=(rows, 1))
    powers = b("exp", b("sub", x, largest))
    soft = b("div", powers, b("reshape", b("sum", powers, axis=(1,)), shape=(rows, 1)))
    scaled = b("mul", soft, w)
    loss = b("sum", b("sum", scaled, axis=(1,)), axis=(0,))
    columns = b("sum", scaled, axis=(0,))
    graph = b.graph(scaled, loss, columns, b("argmax", x, axis=(1,)))
    arrays = arrays_for(graph, 1)
    program = compile_graph(graph, SimulatedGPU(target))
    first = run(program, arrays)
    compare(first, expected(graph, arrays))
    for one, other in zip(run(program, arrays), first, strict=True):
        np.testing.assert_array_equal(one, other)  # the same from run to run


# ---------------------------------------------------------------- what runs on what


def look_up() -> Graph:
    """A state that an index out of range must leave as it is."""
    b = Builder()
    table, rows = b.state((4, 3)), b.argument((5,), np.int64)
    found = b("take", table, rows, axis=0)
    sums = b("reshape", b("sum", found, axis=(0,)), shape=(1, 3))
    return b.graph(b("sum", found, axis=(0, 1)), updates=[(table, b("add", table, sums))])


def test_an_index_out_of_range_leaves_the_state_alone() -> None:
    program = compile_graph(look_up(), SimulatedGPU())
    gpu = program.hardware
    table = DeviceArray.from_host(gpu, np.arange(12, dtype=np.float32).reshape(4, 3))
    out = DeviceArray.empty(gpu, (), np.dtype(np.float32))
    rows = np.array([0, 1, 4, 2, 9])
    with pytest.raises(IndexRangeError, match=r"take: an index must lie in \[-4, 4\); got (4|9)"):
        program.run([table, rows], [out])
    np.testing.assert_array_equal(table.to_host(), np.arange(12, dtype=np.float32).reshape(4, 3))
    program.run([table, np.array([0, 0, 0, 0, 1])], [out])  # the error is not remembered
    assert out.to_host() == 24.0
    assert table.to_host()[0, 0] == 3.0


def test_results_and_state_may_move_between_runs() -> None:
    b = Builder()
    x, state = b.argument((6,)), b.state((6,))
    total = b("add", state, x)
    program = compile_graph(b.graph(b("mul", total, total), updates=[(state, total)]), SimulatedGPU())
    gpu, given = program.hardware, np.arange(6, dtype=np.float32)
    kept = []
    for turn in range(3):
        held = DeviceArray.from_host(gpu, np.full(6, turn, np.float32))
        out = DeviceArray.empty(gpu, (6,), np.dtype(np.float32))
        program.run([DeviceArray.from_host(gpu, given) if turn else given, held], [out])
        np.testing.assert_array_equal(held.to_host(), given + turn)
        kept.append(out)
    for turn, out in enumerate(kept):
        np.testing.assert_array_equal(out.to_host(), (given + turn) ** 2)


def test_a_program_goes_through_bytes() -> None:
    b = Builder()
    x = b.argument((7, 3))
    graph = b.graph(b("tanh", x))
    gpu = SimulatedGPU()
    again = Program.from_bytes(compile_graph(graph, gpu).to_bytes(), gpu)
    arrays = arrays_for(graph, 0)
    compare(run(again, arrays), expected(graph, arrays))
    with pytest.raises(FileFormatError, match="expected one compiled for a GPU"):
        Program.from_bytes(b"SGPROGRM something else", gpu)


def test_memory_that_is_not_there_is_an_error_that_says_what_is_needed() -> None:
    gpu = SimulatedGPU()
    gpu.total_bytes = 10_000
    b = Builder()
    x = b.argument((100, 100))
    graph = b.graph(b("matmul", b("matmul", x, x), x))
    program = compile_graph(graph, gpu)
    out = DeviceArray.empty
    with pytest.raises(OutOfMemoryError, match=r"are needed and [\d,]+ of 10,000 are free on cuda:0"):
        out(gpu, (100, 100), np.dtype(np.float32))
    with pytest.raises(OutOfMemoryError, match=r"The plan needs [\d,]+ bytes .*a memory budget"):
        program.run([np.zeros((100, 100), np.float32)], [DeviceArray.empty(gpu, (0,), np.dtype(np.float32))])
    assert gpu.memory.used == 0


def test_arrays_give_their_memory_back() -> None:
    gpu = SimulatedGPU()
    array = DeviceArray.from_host(gpu, np.arange(10.0))
    view = array.reshaped((5, 2))
    del array
    np.testing.assert_array_equal(view.to_host(), np.arange(10.0).reshape(5, 2))
    assert gpu.memory.used == 80
    del view
    assert gpu.memory.used == 0
    assert gpu.memory_used() == (0, 80)
