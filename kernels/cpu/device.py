"""The CPU as a device: NumPy's arrays and ops, and native programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.graph.errors import FileFormatError
from staticgrad.graph.node import DType, Graph, Shape
from staticgrad.graph.op import Op
from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.device import Array, Device, HostArray, device_of

log = logging.getLogger("staticgrad")


class CPU(Device):
    """The CPU."""

    name = "cpu"
    binds_calls = True
    label = ""

    def place(self, array: Array) -> HostArray:
        return array if type(array) is np.ndarray else device_of(array).host(array)

    def host(self, array: Array) -> HostArray:
        found: HostArray = array
        return found

    def shared(self, array: Array, asked: str) -> HostArray:
        return self.host(array)

    def owner(self, array: Array) -> HostArray:
        while isinstance(array.base, np.ndarray):
            array = array.base
        return self.host(array)

    def bounds(self, array: Array) -> tuple[int, int]:
        low, high = np.lib.array_utils.byte_bounds(array)
        return int(low), int(high)

    def empty(self, shape: Shape, dtype: DType) -> HostArray:
        return np.empty(shape, dtype)

    def assign(self, target: Array, source: Array) -> None:
        if not target.flags.writeable:
            raise ValueError("the array is a broadcast view or read-only")
        np.copyto(target, self.place(source), casting="unsafe")

    def run(self, op: Op, values: Sequence[Array], attributes: Mapping[str, Any], dtype: DType) -> HostArray:
        with np.errstate(all="ignore"):
            return np.asarray(op.reference(*values, **attributes), dtype)

    def contiguous(self, array: Array) -> HostArray:
        array = self.place(array)
        return array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")

    def overlaps(self, array: Array, others: Sequence[Array]) -> bool:
        if array.base is not None or any(array is other for other in others):
            return any(np.may_share_memory(array, other) for other in others)
        return any(other.base is array for other in others)

    def compile(self, graph: Graph, *, reuse: bool = True, poison: bool = False, cache: DiskCache | None = None) -> Any:
        from staticgrad.kernels.cpu.program import compile_graph

        return compile_graph(graph, reuse=reuse, poison=poison, cache=cache)

    def load(self, data: bytes) -> Any:
        from staticgrad.kernels.cpu.program import Program, compile_graph

        try:
            return Program.from_bytes(data)
        except FileFormatError:
            raise
        except ValueError as error:
            log.warning("staticgrad: the saved program is compiled again: %s", error)
            return compile_graph(Program.graph_of(data))
