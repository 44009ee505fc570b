"""The CPU as a device: NumPy's arrays and ops, and native programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.graph.errors import FileFormatError
from staticgrad.graph.node import DType, Graph, Shape
from staticgrad.graph.op import Op
from staticgrad.kernels.device import Array, Device, HostArray, device_of

if TYPE_CHECKING:
    from staticgrad.kernels.cache import DiskCache
    from staticgrad.kernels.cpu.program import Prepared, Program

log = logging.getLogger("staticgrad")


class CPU(Device):
    """The CPU."""

    name = "cpu"
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

    def binds(self, array: Array, *, written: bool) -> bool:
        if type(array) is not np.ndarray or not (array.flags.c_contiguous and array.flags.aligned):
            return False
        # NumPy knows who else can see the memory of an array where it, or the array it is a view of, owns it.
        return not written or array.base is None or (type(array.base) is np.ndarray and array.base.base is None)

    def refusals(self, name: str, *, written: bool) -> list[str]:
        found = [f"not (flags := {name}.flags).carray and not (flags.c_contiguous and flags.aligned)"]
        if written:
            viewed = f"(type(base) is not ndarray or base.base is not None) and overlaps({name})"
            found.append(
                f"id({name}) in written if (base := {name}.base) is None else (id(base) in written or ({viewed}))"
            )
        return found

    def prepare(
        self, program: Any, fixed: Mapping[int, Array], numbers: Mapping[int, str], changing: Sequence[int]
    ) -> Prepared:
        from staticgrad.kernels.cpu.program import Prepared

        return Prepared(program, fixed, numbers, changing)

    def compile(
        self, graph: Graph, *, reuse: bool = True, poison: bool = False, cache: DiskCache | None = None
    ) -> Program:
        from staticgrad.kernels.cpu.program import compile_graph

        return compile_graph(graph, reuse=reuse, poison=poison, cache=cache)

    def load(self, data: bytes) -> Program:
        from staticgrad.kernels.cpu.program import Program, compile_graph

        try:
            return Program.from_bytes(data)
        except FileFormatError:
            raise
        except ValueError as error:
            log.warning("staticgrad: the saved program is compiled again: %s", error)
            return compile_graph(Program.unpacked(data)[0])
