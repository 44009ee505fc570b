"""Ops at once: what is kept of an op on operands of known types, so that the next call has little to do.

An elementwise op has one kernel for operands of any length (`any_length.py`); another op is a program. What either
takes beside addresses is made out at the first call with these shapes, and costs no compilation for the former.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from staticgrad.graph.node import DType, Shape, Spec
from staticgrad.graph.op import Op
from staticgrad.graph.ops import arithmetic
from staticgrad.kernels.cache import content_key, default_cache
from staticgrad.kernels.cuda.any_length import AnyLength, Way, is_narrow, lanes_for, way_of
from staticgrad.kernels.cuda.array import Buffer, DeviceArray
from staticgrad.kernels.cuda.hardware import Hardware, Start
from staticgrad.kernels.cuda.launch import blocks_for
from staticgrad.kernels.kernel import Kernel

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.program import Program

KEPT_KERNELS = 4096
Operation = Callable[[Sequence[Any]], DeviceArray]
"""Runs an op: takes its operands, which are arrays of the device and, where that was so before, numbers of the CPU."""


class ElementwiseOps:
    """The elementwise ops of one GPU, and the kernels that they share."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self._starter = lru_cache(KEPT_KERNELS)(self._compiled)

    def operation(
        self, op: Op, types: Sequence[tuple[Shape, DType, bool]], attributes: Mapping[str, Any]
    ) -> Operation | None:
        """An op on operands of these shapes and dtypes; the last says which are numbers. None where no kernel fits."""
        spec = op.infer([Spec(shape, dtype) for shape, dtype, _ in types], attributes)
        view = op.kind == "view"
        if view:  # the one whose elements are converted to themselves
            op, attributes = arithmetic.cast, {"dtype": spec.dtype}
        lanes = lanes_for([*(dtype for _, dtype, number in types if not number), spec.dtype])
        found = [(Way("number"), ()) if number else way_of(shape, spec.shape, lanes) for shape, _, number in types]
        ways = tuple(one[0] for one in found if one is not None)
        if len(ways) < len(types):
            return None
        count = prod(spec.shape)
        extents = [extent for one in found if one is not None for extent in one[1]]
        narrow = is_narrow(count) or not extents
        what = AnyLength(op, tuple(dtype for _, dtype, _ in types), ways, tuple(attributes.items()), narrow)
        if not count:
            return lambda values: DeviceArray.empty(self.hardware, spec.shape, spec.dtype)
        grid = blocks_for(-(-count // lanes), self.hardware.target.block, 2**20)
        numbers = [position for position, way in enumerate(ways) if way.kind == "number"]
        launch = Launching(self._starter(what), grid, (count, *extents))
        return _elementwise(self.hardware, spec, launch, len(ways), numbers, writable=not view)

    def _compiled(self, what: AnyLength) -> Start:
        kernel = what.kernel(self.hardware.target)
        functions = self.hardware.load(machine_code(self.hardware, kernel), {kernel.symbol: kernel})
        return self.hardware.starter(functions[kernel.symbol], kernel, self.hardware.target.block)


class Launching(NamedTuple):
    """A launch of a kernel for any length: its blocks, and the numbers that go with the operands' shapes."""

    start: Start
    grid: int
    extents: tuple[int, ...]


def _elementwise(
    hardware: Hardware, spec: Spec, launch: Launching, count: int, numbers: Sequence[int], *, writable: bool
) -> Operation:
    """One launch on the addresses of `count` operands, and on the values of those at the positions `numbers`."""
    start, grid, extents = launch
    arrays = [position for position in range(count) if position not in numbers]
    shape, dtype, nbytes = spec.shape, spec.dtype, prod(spec.shape) * spec.dtype.itemsize

    def run(values: Sequence[Any]) -> DeviceArray:
        buffer = Buffer(hardware, nbytes)
        if hardware.several:
            hardware.use([*[value.buffer for value in values], buffer])
        start(buffer.stream, grid, (*[value.address for value in values], buffer.address, *extents))
        made = DeviceArray(buffer, shape, dtype)
        made.writable = writable
        return made

    def run_with_numbers(values: Sequence[Any]) -> DeviceArray:
        buffer = Buffer(hardware, nbytes)
        if hardware.several:
            hardware.use([*[values[position].buffer for position in arrays], buffer])
        addresses = [values[position].address for position in arrays]
        given = [values[position].item() for position in numbers]
        start(buffer.stream, grid, (*addresses, buffer.address, *extents, *given))
        made = DeviceArray(buffer, shape, dtype)
        made.writable = writable
        return made

    return run_with_numbers if numbers else run


def program_operation(hardware: Hardware, program: Program, *, numbers: bool, writable: bool) -> Operation:
    """A program of one op: its launches one by one where that is all there is to it, else a run of it.

    Args:
        numbers: whether there are numbers of the CPU's among the operands.
        writable: whether the result may be written.
    """
    (result,) = program.graph.outputs
    shape, dtype, nbytes = result.shape, result.dtype, result.nbytes
    launches = None if numbers else program.single_launches()

    def run(values: Sequence[Any]) -> DeviceArray:
        made = DeviceArray(Buffer(hardware, nbytes), shape, dtype)
        program.run(values, [made])
        made.writable = writable
        return made

    if launches is None:
        return run
    working_bytes, nothing = program.working_bytes, Buffer(hardware, 0)

    def run_singly(values: Sequence[Any]) -> DeviceArray:
        buffer = Buffer(hardware, nbytes)
        working = Buffer(hardware, working_bytes) if working_bytes else nothing
        if hardware.several:
            hardware.use([*[value.buffer for value in values], buffer])
        places = (working.address, *[value.address for value in values], buffer.address)
        for start, grid, addresses in launches:
            start(buffer.stream, grid, [places[entry] + offset for entry, offset in addresses])
        made = DeviceArray(buffer, shape, dtype)
        made.writable = writable
        return made

    return run_singly


def machine_code(hardware: Hardware, kernel: Kernel) -> bytes:
    """The machine code of one kernel, kept on disk where programs are."""
    if not hardware.identity:
        return hardware.compile([kernel])
    cache, key = default_cache(), content_key("cuda kernel", kernel.symbol, hardware.identity)
    code = cache.get("kernel", key)
    if code is None:
        code = hardware.compile([kernel])
        cache.put("kernel", key, code)
    return code
