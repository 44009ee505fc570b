"""Whether a matrix product is left to a library or computed by kernels of ours: the faster one, measured on the GPU.

Measured together with what follows the product, once for each product, layout and epilogue. The answer is kept for this
kind of GPU in the disk cache, and for this process in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from staticgrad.graph.errors import OutOfMemoryError
from staticgrad.graph.node import Graph, Node
from staticgrad.kernels import precision
from staticgrad.kernels.cache import DiskCache, content_key
from staticgrad.kernels.cuda.array import Buffer
from staticgrad.kernels.cuda.hardware import Bound, BoundLaunch, Hardware
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.library import BoundProduct, Library, may_ask
from staticgrad.kernels.cuda.library_product import AnyLaunch
from staticgrad.kernels.kernel import Operand
from staticgrad.kernels.table import STATUS_BYTES

MARGIN = 0.97  # of our kernel's time: the library must be this much faster
BYTE = 0x3F  # what operands are filled with for a measurement: small positive numbers
CHUNK = 1 << 20  # bytes that are written from the host to begin with

Launches = Sequence[AnyLaunch]
_known: dict[str, bool] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class ProductChoice:
    """The choice for the products of one program.

    Attributes:
        precision: of the library's products.
        cache: where answers are kept on disk.
    """

    hardware: Hardware
    library: Library
    precision: str
    cache: DiskCache | None = None

    @classmethod
    def of(cls, graph: Graph, hardware: Hardware, cache: DiskCache | None = None) -> ProductChoice | None:
        """What decides for a graph; None where there is nothing to choose."""
        if not may_ask(graph, hardware.target) or hardware.library is None:
            return None
        return cls(hardware, hardware.library, precision.current(), cache)

    @property
    def key(self) -> str:
        """The part of a program's key that says what there was to choose from."""
        return f"{self.library.name} {self.library.version} {self.precision}"

    def library_is_faster(self, own: Launches, other: Launches, own_bytes: int) -> bool:
        """Whether launches with the library's products take less time than our own kernels.

        Args:
            own_bytes: working memory that suffices for either.
        """
        described = [repr([_described(launch) for launch in launches]) for launches in (own, other)]
        machine = f"{self.hardware.identity} {self.hardware.title} {self.library.name} {self.library.version}"
        key = content_key("cuda product", machine, *described)
        with _lock:
            if key in _known:
                return _known[key]
            found = self.cache.get("choice", key) if self.cache is not None and self.hardware.identity else None
            try:
                faster = found == b"library" if found is not None else self._measured(own, other, own_bytes)
            except OutOfMemoryError:  # no room to try: large products are what libraries are good at
                return True
            if found is None and self.cache is not None and self.hardware.identity:
                self.cache.put("choice", key, b"library" if faster else b"own")
            if self.hardware.identity:
                _known[key] = faster
            return faster

    def _measured(self, own: Launches, other: Launches, own_bytes: int) -> bool:
        memory = _Memory(self.hardware, own_bytes)
        ours, theirs = (self.hardware.seconds(self._bound(launches, memory)) for launches in (own, other))
        return theirs < MARGIN * ours

    def _bound(self, launches: Launches, memory: _Memory) -> list[Bound]:
        kernels = {launch.kernel.symbol: launch.kernel for launch in launches if isinstance(launch, Launch)}
        functions = self.hardware.load(self.hardware.compile(list(kernels.values())), kernels)
        bound: list[Bound] = []
        for launch in launches:
            addresses = [memory.address(operand) for operand in launch.operands]
            if isinstance(launch, Launch):
                bound.append(BoundLaunch(functions[launch.kernel.symbol], addresses, launch.grid, launch.block))
            else:
                bound.append(BoundProduct(launch.call, addresses))
        return bound


class _Memory:
    """Memory in the place of a program's for the time of a measurement."""

    def __init__(self, hardware: Hardware, own_bytes: int) -> None:
        self._hardware = hardware
        self._own_bytes = own_bytes
        self._buffers: dict[tuple[str, Node | None], Buffer] = {}

    def address(self, operand: Operand) -> int:
        key = (operand.kind, operand.node if operand.kind == "storage" else None)
        if key not in self._buffers:
            self._buffers[key] = self._filled(operand)
        return self._buffers[key].address + (0 if operand.kind == "error" else operand.offset)

    def _filled(self, operand: Operand) -> Buffer:
        if operand.kind in ("status", "error"):  # no error has been reported
            buffer = Buffer(self._hardware, STATUS_BYTES)
            self._hardware.write(buffer.address, np.zeros(STATUS_BYTES, np.uint8))
            return buffer
        nbytes = operand.node.nbytes if operand.kind == "storage" and operand.node is not None else self._own_bytes
        buffer = Buffer(self._hardware, nbytes)
        filled = min(nbytes, CHUNK)
        self._hardware.write(buffer.address, np.full(filled, BYTE, np.uint8))
        while filled < nbytes:
            more = min(filled, nbytes - filled)
            self._hardware.copy(buffer.address + filled, buffer.address, more)
            filled += more
        return buffer


def _described(launch: AnyLaunch) -> tuple[object, ...]:
    if isinstance(launch, Launch):
        return launch.kernel.symbol, launch.grid, launch.block
    return (launch.call,)


__all__ = ["ProductChoice"]
