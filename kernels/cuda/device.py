"""A GPU as a device: arrays in its memory, ops that run at once, and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from staticgrad.graph.errors import DeviceError
from staticgrad.graph.location import Location
from staticgrad.graph.node import DType, Graph, Node, Shape, Spec
from staticgrad.graph.op import Op
from staticgrad.graph.ops import arithmetic, leaf
from staticgrad.graph.ops.shape import broadcast_to
from staticgrad.graph.rewrite import rewrite
from staticgrad.kernels.cache import DiskCache, default_cache
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.hardware import Hardware
from staticgrad.kernels.cuda.program import Prepared, Program, compile_graph
from staticgrad.kernels.device import Array, Device, HostArray

KEPT_OPS = 4096  # programs of single ops that a process keeps
_ANYWHERE = Location("<op>", 0, "<op>")


class CUDA(Device):
    """One GPU.

    Raises:
        DeviceError: it cannot be used; says why.
    """

    def __init__(self, ordinal: int) -> None:
        self.hardware = _open(ordinal)
        self.name = self.hardware.name
        self._program_of = lru_cache(KEPT_OPS)(self._compiled_op)

    def place(self, array: Array) -> DeviceArray:
        if isinstance(array, DeviceArray):
            return array if array.hardware is self.hardware else self.place(array.to_host())
        return DeviceArray.from_host(self.hardware, array)

    def host(self, array: Array) -> HostArray:
        found: HostArray = array.to_host()
        return found

    def shared(self, array: Array, asked: str) -> HostArray:
        raise DeviceError(f"{asked}: the tensor lives on {self.name}; copy it first with .to('cpu')")

    def owner(self, array: Array) -> Any:
        return array.buffer

    def bounds(self, array: Array) -> tuple[int, int]:
        return array.address, array.address + array.nbytes

    def empty(self, shape: Shape, dtype: DType) -> DeviceArray:
        return DeviceArray.empty(self.hardware, shape, dtype)

    def assign(self, target: Array, source: Array) -> None:
        if not target.writable:
            raise ValueError("the array holds a copy of a view's elements")
        if source.dtype != target.dtype:
            source = self.run(arithmetic.cast, [source], {"dtype": target.dtype}, target.dtype)
        if source.shape != target.shape:
            source = self.run(broadcast_to, [source], {"shape": target.shape}, target.dtype)
        target.assign(self.place(source) if isinstance(source, DeviceArray) else source)

    def run(self, op: Op, values: Sequence[Array], attributes: Mapping[str, Any], dtype: DType) -> DeviceArray:
        if op.name == "reshape":  # the one view whose elements lie as they did
            shape = op.infer([Spec(value.shape, value.dtype) for value in values], attributes).shape
            return self.place(values[0]).reshaped(shape)
        key = (op, tuple((value.shape, value.dtype) for value in values), _hashable(attributes))
        program = self._program_of(key)
        (result,) = program.graph.outputs
        made = self.empty(result.shape, result.dtype)
        program.run([self.contiguous(value) for value in values], [made])
        made.writable = op.kind != "view"
        return made

    def contiguous(self, array: Array) -> Array:
        if isinstance(array, DeviceArray):
            return self.place(array)
        return array if array.flags.c_contiguous else np.array(array, order="C")

    def overlaps(self, array: Array, others: Sequence[Array]) -> bool:
        if not isinstance(array, DeviceArray):
            return False
        end = array.address + array.nbytes
        return any(array.address < other.address + other.nbytes and other.address < end for other in others)

    def binds(self, array: Array, *, written: bool) -> bool:
        return isinstance(array, DeviceArray) and array.hardware is self.hardware

    def refusals(self, name: str, *, written: bool) -> list[str]:
        here = f"getattr({name}, 'hardware', None) is hardware"
        found = [f"not ({here}) and not (type({name}) is ndarray and {name}.flags.c_contiguous)"]
        return [*found, f"{here} and overlaps({name})"] if written else found

    @property
    def names(self) -> dict[str, Any]:
        return {"hardware": self.hardware}

    def prepare(
        self, program: Any, fixed: Mapping[int, Array], numbers: Mapping[int, str], changing: Sequence[int]
    ) -> Prepared:
        return Prepared(program, fixed, numbers, changing)

    def compile(
        self, graph: Graph, *, reuse: bool = True, poison: bool = False, cache: DiskCache | None = None
    ) -> Program:
        return compile_graph(graph, self.hardware, reuse=reuse, poison=poison, cache=cache)

    def load(self, data: bytes) -> Program:
        return Program.from_bytes(data, self.hardware)

    def _compiled_op(self, key: tuple[Any, ...]) -> Program:
        """The program of one op on operands of these types."""
        op, types, attributes = key
        inputs = []
        for index, (shape, dtype) in enumerate(types):
            told = {"index": index, "role": "argument", "name": f"x{index}", "shape": shape, "dtype": dtype}
            inputs.append(Node(leaf.graph_input, (), told, shape, dtype, "", _ANYWHERE))
        given = {name: value for name, value, _ in attributes}
        spec = op.infer([Spec(shape, dtype) for shape, dtype in types], given)
        result = Node(op, tuple(inputs), given, spec.shape, spec.dtype, "", _ANYWHERE)
        graph = rewrite(Graph(tuple(inputs), (result,), ()))
        return compile_graph(graph, self.hardware, cache=default_cache())


def _hashable(attributes: Mapping[str, Any]) -> tuple[tuple[str, Any, type], ...]:
    """Attributes as part of a key; 1 and 1.0 and True are told apart."""
    return tuple((name, value, type(value)) for name, value in attributes.items())


def _open(ordinal: int) -> Hardware:
    from staticgrad.kernels.cuda import toolkit

    if toolkit.SIMULATED:
        from staticgrad.kernels.cuda.simulator import SimulatedGPU

        if ordinal:
            raise DeviceError(f"device: cuda:{ordinal} was asked for and there is 1 GPU, which is simulated")
        return SimulatedGPU()
    from staticgrad.kernels.cuda.gpu import GPU

    return GPU(ordinal)
