"""A library of matrix products for the tests: cuBLAS as the simulator plays it, and programs that use it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from builder import arrays_for

from staticgrad.graph.interpret import interpret
from staticgrad.graph.node import Graph
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.cublas import Cublas, StatusError
from staticgrad.kernels.cuda.library import ProductCall
from staticgrad.kernels.cuda.program import Program, compile_graph
from staticgrad.kernels.cuda.simulator import SMALL, Memory, SimulatedGPU

Array = np.ndarray[Any, Any]
TARGET = replace(SMALL, library_from=1)
CALL = ProductCall("float32", 2, 3, 4, False, False, 4, 3, 3, precision="float32")


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
        assert " ".join(short(call) for call in program.calls if call) == calls
    return program


def short(call: str) -> str:
    return "+".join("k" if name.startswith("kernel_") else name for name in call.split("+"))


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


def stream(handle: int) -> Any:
    return SimpleNamespace(handle=handle, workspace=None)


class FakeGPU(SimulatedGPU):
    """The simulator with a stream, and with cuBLAS as its library."""

    def __init__(self, target: Any = TARGET) -> None:
        super().__init__(target)
        self._stream = stream(5)
        self.blas = ColumnBlas(self.memory)
        self._library = Cublas(self, self.blas)  # type: ignore[arg-type, assignment]
