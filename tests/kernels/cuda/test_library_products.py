"""Products that a library computes, what follows them, and who computes a product: the faster one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for, graphs
from column_blas import CALL, TARGET, check, expected, run
from hypothesis import HealthCheck, given, settings

from staticgrad.graph.errors import DeviceError, IndexRangeError
from staticgrad.graph.node import Graph
from staticgrad.kernels import precision
from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cuda import product_choice
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.hardware import Bound
from staticgrad.kernels.cuda.library import BoundProduct, ProductCall
from staticgrad.kernels.cuda.program import Program, compile_graph
from staticgrad.kernels.cuda.simulator import SMALL, SimulatedGPU

Array = np.ndarray[Any, Any]


def _gpu() -> SimulatedGPU:
    return SimulatedGPU(TARGET, library=True)


def test_what_follows_is_computed_from_memory_in_the_place_of_the_product() -> None:
    b = Builder()
    x, w, bias = b.argument((5, 6)), b.argument((6, 4)), b.argument((4,))
    spread = b("broadcast_to", bias, shape=(5, 4))
    program = check(b.graph(b("tanh", b("add", b("matmul", x, w), spread))), _gpu(), "numpy+k")
    assert program._facts["own"] == 0


def test_a_product_that_is_a_result_too_is_kept() -> None:
    b = Builder()
    product = b("matmul", b.argument((5, 6)), b.argument((6, 4)))
    check(b.graph(product, b("mul", product, product)), _gpu(), "numpy+k")


def test_sums_of_columns_read_the_product_from_working_memory() -> None:
    b = Builder()
    product = b("matmul", b.argument((40, 6)), b.argument((6, 4)))
    program = check(b.graph(b("sum", b("mul", product, product), axis=(0,))), _gpu(), "numpy+k")
    assert program._facts["own"] >= product.nbytes


def test_a_product_that_is_read_late_is_not_replaced_before() -> None:
    b = Builder()
    product = b("matmul", b.argument((40, 6)), b.argument((6, 4)))
    program = check(b.graph(b("tanh", product), b("sum", product, axis=(0,))), _gpu(), "numpy+k+k")
    assert program._facts["own"] >= product.nbytes


def _guarded(*, follows: bool) -> tuple[Graph, list[Array]]:
    """A state that is replaced by a product, after a look-up that may fail."""
    b = Builder()
    table, rows, state = b.argument((4, 4)), b.argument((3,), np.int64), b.state((4, 4))
    found = b("take", table, rows, axis=0)
    product = b("matmul", b("matmul", found, table, transpose_x=False), table)
    new = b("matmul", product, product, transpose_x=True)
    new = b("tanh", new) if follows else new
    arrays = [np.eye(4, dtype=np.float32), np.array([0, 1, 9]), np.full((4, 4), 3, np.float32)]
    return b.graph(b("sum", found, axis=(0, 1)), updates=[(state, new)]), arrays


@pytest.mark.parametrize("follows", [False, True])
def test_a_product_does_not_touch_the_state_after_an_error(follows: bool) -> None:
    graph, arrays = _guarded(follows=follows)
    gpu = _gpu()
    program = compile_graph(graph, gpu)
    assert any("numpy" in call for call in program.calls)
    state = DeviceArray.from_host(gpu, arrays[2])
    out = DeviceArray.empty(gpu, (), np.dtype(np.float32))
    with pytest.raises(IndexRangeError):
        program.run([*arrays[:2], state], [out])
    np.testing.assert_array_equal(state.to_host(), arrays[2])
    arrays[1][2] = 2
    program.run([*arrays[:2], state], [out])
    np.testing.assert_allclose(state.to_host(), expected(graph, arrays)[-1], rtol=1e-5)


def test_small_products_and_those_of_vectors_stay_with_our_kernels() -> None:
    for rows, least, calls in ((1, 1, "k"), (4, 4 * 9 * 7 + 1, "k"), (4, 4 * 9 * 7, "numpy")):
        b = Builder()
        graph = b.graph(b("matmul", b.argument((rows, 9)), b.argument((9, 7))))
        check(graph, SimulatedGPU(replace(SMALL, library_from=least), library=True), calls)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_random_graphs_with_a_library(graph: Graph) -> None:
    """Planned, without reuse and with poisoned slots: the same values."""
    arrays = arrays_for(graph, 0)
    gpu = _gpu()
    plain = run(compile_graph(graph, gpu), arrays)
    for found, wanted in zip(plain, expected(graph, arrays), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for options in ({"reuse": False}, {"poison": True}):
        found = run(compile_graph(graph, gpu, **options), arrays)  # type: ignore[arg-type]
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_array_equal(one, other)
    assert gpu.memory.used == 0


# ---------------------------------------------------------------- who computes a product


class Timed(SimulatedGPU):
    """A GPU on which the library takes a time of our choice, beside one second for our kernels; counts questions."""

    def __init__(self, seconds: float) -> None:
        super().__init__(TARGET, library=True)
        self.identity = "timed"
        self.title = f"a GPU with a library of {seconds} s"
        self.library_seconds = seconds
        self.asked: list[list[str]] = []

    def seconds(self, launches: Sequence[Bound]) -> float:
        self.asked.append([type(one).__name__ for one in launches])
        self.sequence(launches).run()
        return self.library_seconds if any(isinstance(one, BoundProduct) for one in launches) else 1.0


def _layer() -> Graph:
    b = Builder()
    return b.graph(b("tanh", b("matmul", b.argument((5, 6)), b.argument((6, 4)))))


@pytest.fixture
def _nothing_known() -> None:
    product_choice._known.clear()


@pytest.mark.usefixtures("_nothing_known")
@pytest.mark.parametrize(("seconds", "calls"), [(0.9, "numpy+k"), (0.99, "k"), (2.0, "k")])
def test_the_faster_one_computes_a_product_and_what_follows_it(seconds: float, calls: str) -> None:
    gpu = Timed(seconds)
    check(_layer(), gpu, calls)
    assert gpu.asked == [["BoundLaunch"], ["BoundProduct", "BoundLaunch"]]


@pytest.mark.usefixtures("_nothing_known")
def test_the_answer_is_remembered_in_the_process_and_on_disk(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    gpu = Timed(2.0)
    for _ in range(2):
        assert "numpy" not in compile_graph(_layer(), gpu, cache=cache, reuse=False).calls[0]
    assert len(gpu.asked) == 2
    product_choice._known.clear()
    again = Timed(0.1)
    again.title = gpu.title
    assert "numpy" not in compile_graph(_layer(), again, cache=cache).calls[0]  # not the first program: another key
    assert not again.asked
    with precision.Using("tf32"):
        assert "numpy" in compile_graph(_layer(), again, cache=cache).calls[0]
    assert len(again.asked) == 2


@pytest.mark.usefixtures("_nothing_known")
def test_where_there_is_no_room_to_measure_the_library_computes() -> None:
    gpu = Timed(2.0)
    gpu.total_bytes = 100
    assert "numpy" in compile_graph(_layer(), gpu).calls[0]
    gpu.total_bytes = 2**20
    assert "numpy" not in compile_graph(_layer(), gpu).calls[0]


@pytest.mark.usefixtures("_nothing_known")
def test_programs_from_disk_know_which_products_were_the_librarys(tmp_path: Path) -> None:
    cache, gpu = DiskCache(tmp_path), Timed(0.1)
    compile_graph(_layer(), gpu, cache=cache)
    again = compile_graph(_layer(), gpu, cache=cache)
    assert again.from_cache
    newer = Timed(0.1)
    newer._library.version = "a newer one"  # type: ignore[union-attr]
    assert not compile_graph(_layer(), newer, cache=cache).from_cache
    graph = again.graph
    arrays = arrays_for(graph)
    np.testing.assert_allclose(run(again, arrays)[0], expected(graph, arrays)[0], rtol=1e-5)
    without = SimulatedGPU(TARGET)
    without.identity, without.title = gpu.identity, gpu.title
    assert not compile_graph(_layer(), without, cache=cache).from_cache
    with pytest.raises(DeviceError, match="it was compiled to use a library; cuda: cuda:0 has no library"):
        Program.from_bytes(again.to_bytes(), without)


def test_products_go_through_json() -> None:
    import json

    assert ProductCall(**json.loads(json.dumps(asdict(CALL)))) == CALL
