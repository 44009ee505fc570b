"""Matrix products of a library on a GPU: what cuBLAS is asked for, who computes a product, and CUDA graphs of both.

The library is NumPy on the simulator's memory, or a cuBLAS that reads matrices by columns as the real one does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for, graphs
from hypothesis import HealthCheck, given, settings

import staticgrad as sg
from staticgrad.graph.errors import DeviceError, IndexRangeError
from staticgrad.graph.interpret import interpret
from staticgrad.graph.node import Graph, Node
from staticgrad.kernels import precision
from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cuda import product_choice
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.cublas import _FUNCTIONS, Cublas, LoadedLibrary, StatusError, gemm
from staticgrad.kernels.cuda.gpu import GPU
from staticgrad.kernels.cuda.hardware import Bound, BoundLaunch
from staticgrad.kernels.cuda.launch_graph import Function, LaunchGraph
from staticgrad.kernels.cuda.library import BoundProduct, ProductCall, packed
from staticgrad.kernels.cuda.program import Program, compile_graph
from staticgrad.kernels.cuda.simulator import SMALL, Memory, SimulatedGPU
from staticgrad.kernels.device import find_device

Array = np.ndarray[Any, Any]
TARGET = replace(SMALL, library_from=1)
CALL = ProductCall("float32", "float32", 2, 3, 4, False, False, 4, 3, 3)


def run(program: Program, arrays: Sequence[Array]) -> list[Array]:
    """Outputs, then the state as the run leaves it."""
    gpu, leaves = program.hardware, program.graph.inputs
    states = {n: DeviceArray.from_host(gpu, a) for n, a in enumerate(arrays) if leaves[n].attributes["role"] == "state"}
    outputs = [DeviceArray.empty(gpu, node.shape, node.dtype) for node in program.graph.outputs]
    program.run([states.get(number, array) for number, array in enumerate(arrays)], outputs)
    return [array.to_host() for array in (*outputs, *states.values())]


def expected(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    outputs, updates = interpret(graph, [array.copy() for array in arrays])
    final = {leaf: value for (leaf, _), value in zip(graph.updates, updates, strict=True)}
    states = [(leaf, a) for leaf, a in zip(graph.inputs, arrays, strict=True) if leaf.attributes["role"] == "state"]
    return [*outputs, *(final.get(leaf, array) for leaf, array in states)]


def check(graph: Graph, gpu: SimulatedGPU, calls: str | None = None) -> Program:
    """The program of a graph, which gives what it should; `calls` is what computes its groups, "k" for a kernel."""
    program = compile_graph(graph, gpu)
    arrays = arrays_for(graph, 1)
    for found, wanted in zip(run(program, arrays), expected(graph, arrays), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    if calls is not None:
        assert " ".join(_short(call) for call in program.calls if call) == calls
    return program


def _short(call: str) -> str:
    return "+".join("k" if name.startswith("kernel_") else name for name in call.split("+"))


# ---------------------------------------------------------------- what cuBLAS is asked for


class ColumnBlas:
    """cuBLAS's functions on the simulator's memory: matrices by columns, with the checks that BLAS makes."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.queued: list[tuple[Any, ...]] = []
        self.computes: set[int] = set()

    def create(self) -> int:
        return 77

    def get_version(self, handle: int) -> int:
        return 130_100

    def set_stream(self, handle: int, stream: int) -> None:
        self.queued.append(("stream", handle, stream))

    def set_workspace(self, handle: int, address: int, nbytes: int) -> None:
        self.memory.at(address)[:nbytes] = 0xFF
        self.queued.append(("workspace", handle, address))

    def gemm_ex_64(self, handle: int, ta: int, tb: int, m: int, n: int, k: int, *rest: int) -> None:
        alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, best = rest
        stacks = [(a, a_type, lda, 0), (b, b_type, ldb, 0), (c, c_type, ldc, 0)]
        self._product(handle, (ta, tb), (m, n, k), stacks, (alpha, beta), 1, compute, best)

    def gemm_strided_batched_ex_64(self, handle: int, ta: int, tb: int, m: int, n: int, k: int, *rest: int) -> None:
        alpha, *first, beta, c, c_type, ldc, stride_c, batch, compute, best = rest
        stacks = [(*first[:4],), (*first[4:],), (c, c_type, ldc, stride_c)]
        self._product(handle, (ta, tb), (m, n, k), stacks, (alpha, beta), batch, compute, best)

    def _product(
        self, handle: int, flips: Any, sizes: Any, stacks: Any, scalars: Any, batch: int, compute: int, best: int
    ) -> None:
        m, n, k = sizes
        assert (handle, best) == (77, -1)
        number = ctypes.c_double if compute == 70 else ctypes.c_float
        assert [number.from_address(address).value for address in scalars] == [1.0, 0.0]
        shapes = [(k, m) if flips[0] else (m, k), (n, k) if flips[1] else (k, n), (m, n)]
        a, b, c = (self._columns(stack, shape, batch) for stack, shape in zip(stacks, shapes, strict=True))
        a, b = (x.transpose(0, 2, 1) if flip else x for x, flip in zip((a, b), flips, strict=True))
        c[...] = np.matmul(a, b)
        self.computes.add(compute)
        self.queued.append(("product",))

    def _columns(self, stack: Any, shape: tuple[int, int], batch: int) -> Array:
        address, kind, leading, stride = stack
        dtype = np.dtype(("float32", "float64")[kind])
        if leading < max(1, shape[0]):
            raise StatusError(7)
        strides = tuple(dtype.itemsize * distance for distance in (stride, 1, leading))
        return np.ndarray((batch, *shape), dtype, self.memory.at(address), 0, strides)


def _stream(handle: int) -> Any:
    return SimpleNamespace(handle=handle, workspace=None)


class FakeGPU(SimulatedGPU):
    """The simulator with a stream, and with cuBLAS as its library."""

    def __init__(self, target: Any = TARGET) -> None:
        super().__init__(target)
        self._stream = _stream(5)
        self.blas = ColumnBlas(self.memory)
        self._library = Cublas(self, self.blas)  # type: ignore[arg-type, assignment]


def _operand(b: Builder, kind: str, batch: tuple[int, ...], rows: int, columns: int, dtype: str) -> Node:
    """A stack of (rows, columns) matrices that lies in memory in some way."""
    if kind == "plain":
        return b.argument((*batch, rows, columns), dtype)
    if kind == "transposed":
        axes = (*range(len(batch)), len(batch) + 1, len(batch))
        return b("permute_dims", b.argument((*batch, columns, rows), dtype), axes=axes)
    if kind == "part":  # rows further apart than they are long, and an offset
        whole = b.argument((*batch, rows + 2, columns + 3), dtype)
        ends = (*batch, rows + 1, columns + 2)
        return b("slice", whole, start=(0,) * len(batch) + (1, 2), stop=ends, step=(1,) * len(ends))
    if kind == "same for all":
        return b("broadcast_to", b.argument((rows, columns), dtype), shape=(*batch, rows, columns))
    assert kind == "outer axes swapped"  # a batch of two axes that no one stride describes
    order = (1, 0, 2, 3)
    return b("permute_dims", b.argument((batch[1], batch[0], rows, columns), dtype), axes=order)


@pytest.mark.parametrize("flags", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("first", ["plain", "transposed", "part", "same for all"])
@pytest.mark.parametrize("second", ["plain", "transposed", "part", "same for all"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_cublas_is_asked_for_what_numpy_computes(
    batch: tuple[int, ...], second: str, first: str, flags: tuple[bool, bool]
) -> None:
    b = Builder()
    dtype = "float64" if flags[0] else "float32"
    x = _operand(b, first, batch, *((5, 3) if flags[0] else (3, 5)), dtype)
    y = _operand(b, second, batch, *((4, 5) if flags[1] else (5, 4)), dtype)
    gpu = FakeGPU()
    check(b.graph(b("matmul", x, y, transpose_x=flags[0], transpose_y=flags[1])), gpu, "cublas")
    assert gpu.blas.computes == {70 if dtype == "float64" else 68}


def test_a_batch_that_no_one_stride_describes_is_several_products() -> None:
    b = Builder()
    x = _operand(b, "outer axes swapped", (2, 3), 4, 5, "float32")
    y = _operand(b, "plain", (2, 3), 5, 2, "float32")
    gpu = FakeGPU()
    check(b.graph(b("matmul", x, y)), gpu, "cublas")
    assert gpu.blas.queued.count(("product",)) == 2


def test_the_workspace_follows_the_stream_and_is_that_of_the_stream() -> None:
    gpu = FakeGPU()
    a, b, c = (gpu.allocate(64) for _ in range(3))
    product = BoundProduct(CALL, [a, b, c])
    library: Any = gpu.library
    library.run(product)
    first = gpu.stream.workspace.address
    assert gpu.blas.queued == [("stream", 77, 5), ("workspace", 77, first), ("product",)]
    other, gpu._stream = gpu.stream, _stream(6)
    library.run(product)
    assert gpu.blas.queued[3:5] == [("stream", 77, 6), ("workspace", 77, gpu.stream.workspace.address)]
    assert gpu.stream.workspace.address != other.workspace.address == first


@pytest.mark.parametrize(("asked", "code"), [("float32", 68), ("tf32", 77), ("bfloat16", 75)])
def test_the_precision_is_the_kind_of_computation(asked: str, code: int) -> None:
    name, arguments = gemm(replace(CALL, precision=asked), 1, 2, 10, 20, 30)
    assert (name, arguments[-2:]) == ("gemm_ex_64", [code, -1])


def test_what_cublas_answers_is_told_by_name() -> None:
    gpu = FakeGPU()
    library: Any = gpu.library
    with pytest.raises(DeviceError, match=r"CUBLAS_STATUS_INVALID_VALUE in gemm_ex_64 on cuda:0; the library has to"):
        library.run(BoundProduct(replace(CALL, ldb=2), [gpu.allocate(64)] * 3))

    def refuse() -> int:
        raise StatusError(1)

    gpu.blas.create = refuse  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="CUBLAS_STATUS_NOT_INITIALIZED in create"):
        Cublas(gpu, gpu.blas)  # type: ignore[arg-type]


class _Function:
    """A function of a library that ctypes has opened."""

    def __init__(self, name: str, status: int) -> None:
        self.name, self.status, self.given = name, status, ()
        self.argtypes: list[Any] = []

    def __call__(self, *arguments: Any) -> int:
        assert len(arguments) == len(self.argtypes)
        self.given = arguments
        if self.name == "cublasCreate_v2":
            ctypes.c_void_p.from_address(arguments[0]).value = 123
        if self.name == "cublasGetVersion_v2":
            ctypes.c_int.from_address(arguments[1]).value = 130_200
        return self.status


def _opened(status: int = 0) -> Any:
    names = [symbol for symbol, _ in _FUNCTIONS.values()] + ["cublasCreate_v2", "cublasGetVersion_v2"]
    return SimpleNamespace(**{name: _Function(name, status) for name in names})


def test_the_library_itself_takes_the_same_arguments_as_the_binding() -> None:
    opened = _opened()
    functions: Any = LoadedLibrary(opened)
    assert (functions.create(), functions.get_version(123)) == (123, 130_200)
    for batch in (1, 3):
        name, arguments = gemm(replace(CALL, batch=batch), 1, 2, 10, 20, 30)
        getattr(functions, name)(123, *arguments)
        called = getattr(opened, _FUNCTIONS[name][0])
        for value, kind in zip(called.given, called.argtypes, strict=True):
            assert kind(value).value == value
    with pytest.raises(StatusError) as caught:
        LoadedLibrary(_opened(13)).create()
    assert caught.value.status == 13


def test_where_the_library_is_missing_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda import pathfinder

    def missing(name: str) -> Any:
        raise pathfinder.DynamicLibNotFoundError(name)

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(DeviceError, match=r"cuBLAS is not installed; install it with: pip install 'staticgrad\[cublas"):
        LoadedLibrary.found()


def test_a_gpu_without_a_usable_library_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = GPU.__new__(GPU)
    monkeypatch.setattr(GPU, "_enter", lambda self: None)

    def unusable(gpu: GPU) -> Any:
        raise DeviceError("cuda: cuBLAS is not installed")

    monkeypatch.setattr("staticgrad.kernels.cuda.cublas.Cublas", unusable)
    assert (gpu.library, gpu.library_trouble) == (None, "cuda: cuBLAS is not installed")
    other = GPU.__new__(GPU)
    monkeypatch.setattr("staticgrad.kernels.cuda.cublas.Cublas", lambda gpu: "the library")
    assert (other.library, other.library_trouble) == ("the library", "")


# ---------------------------------------------------------------- what follows a product


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

    assert ProductCall(*json.loads(json.dumps(packed(CALL)))) == CALL


# ---------------------------------------------------------------- precision


def test_a_precision_holds_inside_its_block_and_in_programs_compiled_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU()
    monkeypatch.setattr(find_device("cuda"), "hardware", gpu)
    assert sg.cuda.get_matmul_precision() == "float32"
    with sg.cuda.matmul_precision("tf32"):
        assert sg.cuda.get_matmul_precision() == "tf32"
        with sg.cuda.matmul_precision("float32"):
            assert sg.cuda.get_matmul_precision() == "float32"
        program = compile_graph(_layer(), gpu)
    assert sg.cuda.get_matmul_precision() == "float32"
    run(program, arrays_for(program.graph))
    assert gpu.blas.computes == {77}
    try:
        sg.cuda.set_matmul_precision("bfloat16")
        assert sg.cuda.get_matmul_precision() == "bfloat16"
    finally:
        sg.cuda.set_matmul_precision("float32")


def test_ops_that_run_at_once_have_the_precision_of_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from staticgrad.kernels.cuda.device import CUDA

    gpu = FakeGPU()
    monkeypatch.setattr("staticgrad.kernels.cuda.device._open", lambda ordinal: gpu)
    device = CUDA(0)
    x = device.place(np.eye(4, dtype=np.float32))
    op = sg.graph.op.registry["matmul"]
    for asked, codes in (("float32", {68}), ("tf32", {68, 77}), ("float32", {68, 77})):
        with precision.Using(asked):
            device.run(op, [x, x], {"transpose_x": False, "transpose_y": False}, np.dtype(np.float32))
        assert gpu.blas.computes == codes


def test_a_precision_needs_a_name_and_a_library() -> None:
    with pytest.raises(DeviceError, match="matmul_precision: there are 'float32', 'tf32', 'bfloat16'; got 'float16'"):
        sg.cuda.matmul_precision("float16")
    with pytest.raises(DeviceError, match="only cuBLAS computes in 'tf32'; cuda: cuda:0 has no library"):
        sg.cuda.matmul_precision("tf32")
    with pytest.raises(DeviceError, match="only cuBLAS computes in 'bfloat16'"):
        sg.cuda.set_matmul_precision("bfloat16")
    with sg.cuda.matmul_precision("float32"):
        assert sg.cuda.get_matmul_precision() == "float32"


# ---------------------------------------------------------------- CUDA graphs


class Driver:
    """The driver's graphs, as far as sequences use them: a graph is the list of what it does."""

    CUDA_KERNEL_NODE_PARAMS = SimpleNamespace
    CUstreamCaptureMode = staticmethod(lambda mode: mode)

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.refuse_updates = False

    def cuGraphExecChildGraphNodeSetParams(self, executable: Any, node: int, part: Any) -> tuple[int]:  # noqa: N802
        if self.refuse_updates:
            return (910,)
        executable[node] = list(part)
        return (0,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        return 901, self._cuStreamEndCapture(stream)

    def call(self, name: str, *arguments: Any) -> Any:
        answer: Callable[..., Any] | None = getattr(self, f"_{name}", None)
        return answer(*arguments) if answer is not None else self.log.append(name)

    def _cuStreamCreate(self, flags: int) -> int:  # noqa: N802
        return 9

    def _cuStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        captured = [entry for entry in self.log if isinstance(entry, tuple)]
        self.log = []
        return captured

    def _cuGraphCreate(self, flags: int) -> Any:  # noqa: N802
        return []

    def _cuGraphAddKernelNode(self, graph: Any, after: Any, count: int, parameters: Any) -> int:  # noqa: N802
        assert list(after) == list(range(len(graph)))[-1:]
        graph.append(parameters.func)
        return len(graph) - 1

    def _cuGraphAddChildGraphNode(self, graph: Any, after: Any, count: int, part: Any) -> int:  # noqa: N802
        assert list(after) == list(range(len(graph)))[-1:]
        graph.append(list(part))
        return len(graph) - 1

    def _cuGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        return list(graph)

    def cuGraphLaunch(self, executable: Any, stream: int) -> tuple[int]:  # noqa: N802
        self.log.append(("graph", stream, [*executable]))
        return (0,)

    def _cuLaunchKernel(self, function: Any, *arguments: Any) -> None:  # noqa: N802
        self.log.append(("kernel", function))


class _Recorder(ColumnBlas):
    """Logs products where the driver logs kernels, as a stream does."""

    driver: Driver
    workspace = 0

    def set_workspace(self, handle: int, address: int, nbytes: int) -> None:
        self.workspace = address

    def gemm_ex_64(self, handle: int, *arguments: int) -> None:
        stream = self.queued[-1][2]
        self.driver.log.append(("product", stream, self.workspace, arguments[13]))  # c


class DrivenGPU(FakeGPU):
    """A GPU with the driver above."""

    def __init__(self) -> None:
        super().__init__()
        self.given_back: list[str] = []
        self.driver = Driver()
        self.call = self.driver.call
        self.blas = _Recorder(self.memory)
        self.blas.driver = self.driver
        self._library = Cublas(self, self.blas)  # type: ignore[arg-type, assignment]

    def give_back(self, *calls: tuple[Any, ...]) -> None:
        self.given_back += [name for name, *_ in calls]


def _sequence(gpu: DrivenGPU) -> LaunchGraph:
    kernels = [BoundLaunch(Function(name, None), [place], 1, 1) for place, name in enumerate("fg")]  # type: ignore[arg-type]
    launches: list[Bound] = [kernels[0], BoundProduct(CALL, [10, 20, 30]), kernels[1]]
    return LaunchGraph(gpu, launches)  # type: ignore[arg-type]


def _played(gpu: DrivenGPU, sequence: LaunchGraph) -> list[Any]:
    gpu.driver.log = []
    sequence.run()
    return gpu.driver.log


def test_products_become_parts_of_the_graph_in_order() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    first = _played(gpu, sequence)
    space = gpu.stream.workspace.address
    assert first == [("kernel", "f"), ("product", 5, space, 30), ("kernel", "g")]
    assert _played(gpu, sequence)[-1] == ("graph", 5, ["f", [("product", 9, space, 30)], "g"])
    assert _played(gpu, sequence) == [("graph", 5, ["f", [("product", 9, space, 30)], "g"])]  # nothing captured again


def test_new_addresses_and_another_streams_workspace_reach_the_graph() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    for _ in range(2):
        sequence.run()
    space = gpu.stream.workspace.address
    sequence.set_address(1, 2, 31)
    assert _played(gpu, sequence)[-1] == ("graph", 5, ["f", [("product", 9, space, 31)], "g"])
    other, gpu._stream = gpu.stream, _stream(6)
    found = _played(gpu, sequence)[-1]
    assert gpu.stream.workspace.address != other.workspace.address == space
    assert found == ("graph", 6, ["f", [("product", 9, gpu.stream.workspace.address, 31)], "g"])


def test_where_the_library_does_something_else_the_graph_is_made_again() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    for _ in range(2):
        sequence.run()
    gpu.driver.refuse_updates = True
    sequence.set_address(1, 2, 32)
    found = _played(gpu, sequence)
    assert found[-1] == ("graph", 5, ["f", [("product", 9, gpu.stream.workspace.address, 32)], "g"])
    assert gpu.given_back == ["cuGraphExecDestroy", "cuGraphDestroy"]


def test_a_capture_ends_where_the_library_fails() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    sequence.run()

    def refuse(*arguments: Any) -> None:
        raise StatusError(14)

    gpu.blas.gemm_ex_64 = refuse  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="CUBLAS_STATUS_INTERNAL_ERROR"):
        sequence.run()
    assert gpu.driver.log == []  # what ends a capture empties it


def test_times_are_the_median_of_several_measurements_of_one_run() -> None:
    from staticgrad.kernels.cuda.timing import COPIES, seconds_of

    milliseconds = iter([0.9, 8.0, 2.0, 4.0, 2.0, 6.0])  # the first run by itself, then two runs each time
    runs: list[int] = []
    answers = {"cuEventCreate": lambda flags: "event", "cuEventElapsedTime": lambda *events: next(milliseconds)}
    sequence = SimpleNamespace(run=lambda: runs.append(1))
    gpu: Any = SimpleNamespace(
        sequence=lambda launches: sequence if len(launches) == COPIES else None,
        stream=SimpleNamespace(handle=1),
        call=lambda name, *arguments: answers.get(name, lambda *rest: None)(*arguments),
    )
    assert seconds_of(gpu, [BoundProduct(CALL, [1, 2, 3])]) == pytest.approx(0.004 / 2 / COPIES)
    assert len(runs) == 3 + 1 + 5 * 2
