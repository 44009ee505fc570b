"""What the rest of the CUDA side asks of a GPU: memory, transfers, kernels, and sequences of launches.

`gpu.py` has it from NVIDIA's driver, `simulator.py` plays it with Python threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from staticgrad.graph.errors import OutOfMemoryError
from staticgrad.kernels.cuda.library import BoundProduct, Library
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Kernel

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.array import Buffer

Array = np.ndarray[Any, Any]


@dataclass
class BoundLaunch:
    """A launch with addresses of this process; `Sequence.run` reads them anew once `changed` says so."""

    function: Any
    addresses: list[int]
    grid: int
    block: int


Bound = BoundLaunch | BoundProduct


class Words(NamedTuple):
    """Words in which kernels tell the host something.

    Attributes:
        address: where kernels find them.
        values: what they are now.
        owner: holds the memory, if it is to be given back.
    """

    address: int
    values: Any
    owner: Any = None


class Reporting(Protocol):
    """A program whose runs may report an error."""

    def raise_reported(self) -> None:
        """Raise what a run has reported that was waited for."""


Start = Callable[[Any, int, Sequence[Any]], None]
"""Starts a kernel: takes the stream, the blocks, and an argument for each pointer and number of the kernel."""


@dataclass
class LaunchSequence(ABC):
    """Launches, and products of a library, that run with one call.

    Attributes:
        launches: in order; their addresses may be changed between two runs, by `set_address`.
        changed: the numbers of launches whose addresses have changed since the last run.
    """

    launches: list[Bound]
    changed: set[int] = field(default_factory=set)

    def set_address(self, number: int, position: int, address: int) -> None:
        """Change what one launch works on."""
        addresses = self.launches[number].addresses
        if addresses[position] != address:
            addresses[position] = address
            self.changed.add(number)

    @abstractmethod
    def run(self) -> None:
        """Start all launches, each behind those that it must wait for; does not wait for them."""

    @abstractmethod
    def run_timed(self, ends: Sequence[int]) -> list[float]:
        """Run the launches one by one; the seconds from the end of one part to that of the next, on the device.

        Args: `ends` has for each part the number of launches up to its end.
        """


class Hardware(ABC):
    """One GPU.

    Attributes:
        name: "cuda:0", ….
        title: as its maker has it.
        target: what kernels are generated for.
        capability: its generation, such as (9, 0).
        identity: the part of a cache's key that names what its machine code depends on; empty where there is none.
        blocking: whether a run that can fail is waited for, so that an error is raised by the call that met it.
        several: whether work has been queued on more than one stream; `use` has nothing to do as long as it has not.
        library: what computes matrix products beside our own kernels, where there is such a library.
        library_trouble: why there is none.
    """

    name: str
    title: str
    target: Target
    capability: tuple[int, int]
    identity: str
    several: bool = False
    blocking: bool = False

    def __init__(self) -> None:
        self._watched: set[Reporting] = set()

    @property
    @abstractmethod
    def stream(self) -> Any:
        """The queue that this Python thread puts its work into."""

    @property
    def library(self) -> Library | None:
        return None

    @property
    def library_trouble(self) -> str:
        return f"cuda: {self.name} has no library of matrix products"

    @abstractmethod
    def allocate(self, nbytes: int, stream: Any = None) -> int:
        """The address of new memory, aligned to 256 bytes, for work on a stream; by default this Python thread's.

        Raises:
            OutOfMemoryError: there is not as much free.
        """

    @abstractmethod
    def free(self, address: int, stream: Any = None) -> None:
        """Give an allocation back when the work queued on the stream that used it last is done; never raises."""

    @abstractmethod
    def use(self, buffers: Iterable[Buffer]) -> None:
        """Have the work that is queued next on the current stream wait for other streams' work on these buffers."""

    @abstractmethod
    def memory_used(self) -> tuple[int, int]:
        """Bytes that are allocated, and the most that were at any one time."""

    @abstractmethod
    def forget_peak(self) -> None:
        """Begin anew with the second number of `memory_used`."""

    @abstractmethod
    def memory_info(self) -> tuple[int, int]:
        """Bytes that are free, and all there are."""

    @abstractmethod
    def write(self, address: int, values: Array) -> None:
        """Copy a C-contiguous array to the device; it may be changed as soon as this returns."""

    @abstractmethod
    def read(self, values: Array, address: int) -> None:
        """Copy from the device into a C-contiguous array, after all work queued so far."""

    @abstractmethod
    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy inside the device's memory, in the order of the work queued."""

    @abstractmethod
    def compile(self, kernels: Sequence[Kernel]) -> bytes:
        """Machine code of kernels, for `load`."""

    @abstractmethod
    def load(self, code: bytes, kernels: Mapping[str, Kernel]) -> dict[str, Any]:
        """The functions of compiled kernels by symbol, for `BoundLaunch`."""

    @abstractmethod
    def starter(self, function: Any, kernel: Kernel, block: int) -> Start:
        """What starts one of the functions of `load` by itself, in blocks of so many threads."""

    @abstractmethod
    def sequence(self, launches: Sequence[Bound], after: Sequence[Sequence[int]] | None = None) -> LaunchSequence:
        """Ready launches to be run together.

        Args:
            after: for each launch the numbers of those before it that it must wait for; None where each waits for the
                one before it.
        """

    @abstractmethod
    def seconds(self, launches: Sequence[Bound]) -> float:
        """How long launches take, one after the other, once everything is loaded."""

    @abstractmethod
    def new_stream(self) -> Any:
        """A queue of work of its own; `on` puts what a block does into it."""

    @abstractmethod
    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Queue the work of this Python thread on a stream."""

    @abstractmethod
    def close(self) -> None:
        """Give everything on the device back; used after a failure, to begin anew."""

    @abstractmethod
    def report_words(self) -> Words:
        """New memory of the host that kernels can write, all zero."""

    @abstractmethod
    def finish(self, *, everywhere: bool = True) -> None:
        """Wait until all work is done, or all of the current stream; raises nothing that programs have reported.

        Raises:
            DeviceError: a launch has failed.
        """

    def synchronize(self) -> None:
        """Wait until all work is done.

        Raises:
            DeviceError: a launch has failed.
            IndexRangeError: a run has met an index out of range.
        """
        self.finish()
        self.raise_reported(everywhere=True)

    def watch(self, program: Reporting) -> None:
        """Have `raise_reported` look at the runs of a program that can fail."""
        self._watched.add(program)

    def raise_reported(self, *, everywhere: bool = False) -> None:
        """Raise what runs have reported that were waited for; `everywhere` if all streams were.

        Raises:
            IndexRangeError: a run has met an index out of range.
        """
        if not self._watched:
            return
        found = self._watched
        if everywhere or not self.several:
            self._watched = set()
        waiting = list(found)
        try:
            while waiting:
                waiting.pop().raise_reported()
        finally:
            self._watched.update(waiting)


def out_of_memory(hardware: Hardware, nbytes: int) -> OutOfMemoryError:
    """The error for memory that is not there."""
    free, total = hardware.memory_info()
    return OutOfMemoryError(
        f"cuda: {nbytes:,} bytes are needed and {free:,} of {total:,} are free on {hardware.name}; make the batch "
        "smaller, or free tensors that are no longer used"
    )
