"""What cuBLAS is asked for, by a cuBLAS that reads matrices by columns as the real one does; how it is found."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for
from column_blas import CALL, FakeGPU, check, run, stream

import staticgrad as sg
from staticgrad.graph.errors import DeviceError
from staticgrad.graph.node import Node
from staticgrad.kernels import precision
from staticgrad.kernels.cuda.cublas import _FUNCTIONS, Cublas, LoadedLibrary, StatusError, gemm
from staticgrad.kernels.cuda.gpu import GPU
from staticgrad.kernels.cuda.library import BoundProduct
from staticgrad.kernels.cuda.program import compile_graph
from staticgrad.kernels.device import find_device


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


def test_the_workspace_follows_the_stream_and_is_that_of_thestream() -> None:
    gpu = FakeGPU()
    a, b, c = (gpu.allocate(64) for _ in range(3))
    product = BoundProduct(CALL, [a, b, c])
    library: Any = gpu.library
    library.run(product)
    first = gpu.stream.workspace.address
    assert gpu.blas.queued == [("stream", 77, 5), ("workspace", 77, first), ("product",)]
    other, gpu._stream = gpu.stream, stream(6)
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


# ---------------------------------------------------------------- precision


def test_a_precision_holds_inside_its_block_and_in_programs_compiled_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU()
    monkeypatch.setattr(find_device("cuda"), "hardware", gpu)
    assert sg.cuda.get_matmul_precision() == "float32"
    with sg.cuda.matmul_precision("tf32"):
        assert sg.cuda.get_matmul_precision() == "tf32"
        with sg.cuda.matmul_precision("float32"):
            assert sg.cuda.get_matmul_precision() == "float32"
        b = Builder()
        program = compile_graph(b.graph(b("matmul", b.argument((5, 6)), b.argument((6, 4)))), gpu)
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
