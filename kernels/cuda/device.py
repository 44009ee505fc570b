"""A GPU as a device: arrays in its memory, ops that run at once, and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.graph.errors import DeviceError
from staticgrad.graph.node import DType, Graph, Shape, Spec
from staticgrad.graph.op import Op
from staticgrad.graph.ops import arithmetic
from staticgrad.graph.ops.shape import broadcast_to
from staticgrad.graph.rewrite import rewrite
from staticgrad.kernels import precision
from staticgrad.kernels.cache import DiskCache, default_cache
from staticgrad.kernels.cuda.any_length import node_of
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.hardware import Hardware
from staticgrad.kernels.cuda.operation import ElementwiseOps, Operation, program_operation
from staticgrad.kernels.cuda.program import Prepared, Program, compile_graph
from staticgrad.kernels.device import Array, Device, HostArray

KEPT_OPS = 4096  # that a process has ready


class CUDA(Device):
    """One GPU.

    Raises:
        DeviceError: it cannot be used; says why.
    """

    def __init__(self, ordinal: int) -> None:
        self.hardware = _open(ordinal)
        self.name = self.hardware.name
        self._operations: dict[tuple[Any, ...], Operation] = {}
        self._elementwise = ElementwiseOps(self.hardware)

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
        if source.shape or isinstance(source, DeviceArray):
            source = self.place(source)
        if source.dtype != target.dtype:
            source = self.run(arithmetic.cast, [source], {"dtype": target.dtype}, target.dtype)
        if source.shape != target.shape:
            source = self.run(broadcast_to, [source], {"shape": target.shape}, target.dtype)
        target.assign(source)

    def run(self, op: Op, values: Sequence[Array], attributes: Mapping[str, Any], dtype: DType) -> DeviceArray:
        key: tuple[Any, ...]
        if len(values) == 2:
            x, y = values
            key = (op, type(x), x.dtype, x.shape, type(y), y.dtype, y.shape)
        elif len(values) == 1:
            (x,) = values
            key = (op, type(x), x.dtype, x.shape)
        else:
            key = (op, *[part for value in values for part in (type(value), value.dtype, value.shape)])
        if attributes:
            key = (*key, *attributes.items(), *map(type, attributes.values()))  # 1 and 1.0 and True are told apart
        if op.name == "matmul":
            key = (*key, precision.current())
        operation = self._operations.get(key)
        if operation is None:
            operation = self._new_operation(op, values, attributes)
            if len(self._operations) >= KEPT_OPS:
                self._operations.clear()
            self._operations[key] = operation
        return operation(values)

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

    def _new_operation(self, op: Op, values: Sequence[Array], attributes: Mapping[str, Any]) -> Operation:
        """What runs an op on operands of the types that these have."""
        if op.name == "reshape":  # the one view whose elements lie as they did
            shape = op.infer([Spec(value.shape, value.dtype) for value in values], attributes).shape
            return lambda values: values[0].reshaped(shape)
        types = [(value.shape, value.dtype, not isinstance(value, DeviceArray)) for value in values]
        if op.kind == "elementwise" or op.name == "broadcast_to":
            found = self._elementwise.operation(op, types, attributes)
            if found is not None:
                return found
        node = node_of(op, [dtype for _, dtype, _ in types], attributes, [shape for shape, _, _ in types])
        graph = rewrite(Graph(node.operands, (node,), ()))
        program = compile_graph(graph, self.hardware, cache=default_cache())
        numbers = any(number for *_, number in types)
        return program_operation(self.hardware, program, numbers=numbers, writable=op.kind != "view")


def _open(ordinal: int) -> Hardware:
    from staticgrad.kernels.cuda import toolkit

    if toolkit.SIMULATED:
        from staticgrad.kernels.cuda.simulator import SimulatedGPU

        if ordinal:
            raise DeviceError(f"device: cuda:{ordinal} was asked for and there is 1 GPU, which is simulated")
        return SimulatedGPU()
    from staticgrad.kernels.cuda.gpu import GPU

    return GPU(ordinal)
