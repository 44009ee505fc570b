"""Where arrays live and ops run: what the library asks of a device, and the devices by name.

The rest of the library holds arrays without knowing whose they are: `device_of(array)` answers with the device, and
its methods do what NumPy does for arrays of the CPU.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.graph.errors import DeviceError
from staticgrad.graph.node import DType, Graph, Shape
from staticgrad.graph.op import Op

if TYPE_CHECKING:
    from staticgrad.kernels.cache import DiskCache
    from staticgrad.kernels.program import CompiledGraph, PreparedRuns

Array = Any  # a NumPy array, or what another device has in its place
HostArray = np.ndarray[Any, Any]


class Device(ABC):
    """One device.

    Attributes:
        name: "cpu", "cuda:0", ….
    """

    name: str

    @property
    def label(self) -> str:
        """How a printed tensor tells where it lives; empty for the default."""
        return f"device={self.name!r}"

    def holds(self, array: Array) -> bool:
        """Whether an array lives here."""
        return bool(array.device == self.name)

    @abstractmethod
    def place(self, array: Array) -> Array:
        """An array of the same elements that lives here; itself where it does already."""

    @abstractmethod
    def host(self, array: Array) -> HostArray:
        """The elements of an array that lives here, for NumPy; where it is the CPU's, the array itself."""

    @abstractmethod
    def shared(self, array: Array, asked: str) -> HostArray:
        """An array that lives here as one of NumPy's that shares its memory, for what is called `asked` in the error.

        Raises:
            DeviceError: NumPy cannot reach the memory.
        """

    @abstractmethod
    def owner(self, array: Array) -> Any:
        """What owns the memory of an array, and has its `nbytes`: it lives as long as the memory is held."""

    @abstractmethod
    def bounds(self, array: Array) -> tuple[int, int]:
        """The addresses that an array's elements lie between."""

    @abstractmethod
    def empty(self, shape: Shape, dtype: DType) -> Array:
        """A new array whose elements are not defined."""

    @abstractmethod
    def assign(self, target: Array, source: Array) -> None:
        """Overwrite an array that lives here by one that lives anywhere, broadcast and cast.

        Raises:
            ValueError: the target must not be written: it is a view of other elements, or read-only.
        """

    @abstractmethod
    def run(self, op: Op, values: Sequence[Array], attributes: Mapping[str, Any], dtype: DType) -> Array:
        """What an op gives for these operands; numbers may be arrays of the CPU without axes."""

    @abstractmethod
    def contiguous(self, array: Array) -> Array:
        """The array as a program takes it: with its elements in order; itself where they are."""

    @abstractmethod
    def overlaps(self, array: Array, others: Sequence[Array]) -> bool:
        """Whether an array shares memory with one of several that live here."""

    @property
    def names(self) -> dict[str, Any]:
        """What the conditions of `refusals` may use beside."""
        return {}

    @abstractmethod
    def binds(self, array: Array, *, written: bool) -> bool:
        """Whether a program can be bound to an array of state for many calls, also one that it writes."""

    @abstractmethod
    def refusals(self, name: str, *, written: bool) -> list[str]:
        """The conditions, as text, under which a bound call does not take the array called `name` as an argument.

        They may use `ndarray`, `written` (the ids of written arrays and of what owns their memory), and
        `overlaps(array)`, whether an array that lives here reaches into written memory. `written` says whether there is
        any.
        """

    @abstractmethod
    def prepare(
        self, program: Any, fixed: Mapping[int, Array], numbers: Mapping[int, str], changing: Sequence[int]
    ) -> PreparedRuns:
        """Runs of a program that have most of their arrays in common; see `kernels.program.PreparedRuns`."""

    @abstractmethod
    def compile(
        self, graph: Graph, *, reuse: bool = True, poison: bool = False, cache: DiskCache | None = None
    ) -> CompiledGraph:
        """A program that computes a graph here, or the same one from `cache` if it has been compiled before.

        Args:
            reuse: False gives every value bytes of its own, and copies state at the end.
            poison: fill memory with NaN before each run, and each slot when its value is dead.
            cache: where programs are kept on disk; None keeps nothing.
        """

    @abstractmethod
    def load(self, data: bytes) -> CompiledGraph:
        """A program from its bytes."""


_devices: dict[str, Device] = {}
_opening = threading.RLock()  # a GPU is opened once, whatever it is called and whoever asks first


def find_device(name: str | None) -> Device:
    """The device of a name: "cpu", "cuda" (its first GPU) or "cuda:1"; None is the CPU.

    Raises:
        DeviceError: there is no such device here; says why.
    """
    name = "cpu" if name is None else str(name)
    found = _devices.get(name)
    if found is not None:
        return found
    kind, _, number = name.partition(":")
    if kind == "cpu" and number in ("", "0"):
        from staticgrad.kernels.cpu.device import CPU

        return _devices.setdefault(name, _devices.setdefault("cpu", CPU()))
    if kind == "cuda" and (not number or number.isdigit()):
        from staticgrad.kernels.cuda.device import CUDA

        with _opening:
            whole_name = f"cuda:{int(number or 0)}"
            if whole_name not in _devices:
                _devices[whole_name] = CUDA(int(number or 0))
            return _devices.setdefault(name, _devices[whole_name])
    raise DeviceError(f"device: there are 'cpu', 'cuda' and 'cuda:0', 'cuda:1', …; got {name!r}")


def device_of(array: Array) -> Device:
    """The device that an array lives on."""
    return find_device(array.device)


def names_device(target: Any) -> bool:
    """Whether a text is the name of a device rather than of a dtype."""
    return isinstance(target, str) and target.partition(":")[0] in ("cpu", "cuda")


def drawn_to(name: str, arrays: Sequence[Array]) -> str | None:
    """Where a program runs that nobody gave a device: with those of its arrays that do not live on the CPU; else None.

    Raises:
        DeviceError: they live on several devices.
    """
    away = [array for array in arrays if array.device != "cpu"]
    return common_device(name, away).name if away else None


def common_device(name: str, values: Sequence[Array]) -> Device:
    """The one device of an op's operands; numbers, which are the CPU's arrays without axes, go with any.

    Raises:
        DeviceError: the operands live on different devices.
    """
    found = "cpu"
    settled = False  # whether an operand says so that is no number
    for value in values:
        device = value.device
        if value.shape or device != "cpu":
            if settled and device != found:
                raise _on_several(name, values, found)
            found, settled = device, True
    return _devices.get(found) or find_device(found)


def _on_several(name: str, values: Sequence[Array], first: str) -> DeviceError:
    listed = ", ".join(f"{value.dtype}{list(value.shape)} on {value.device}" for value in values)
    return DeviceError(f"{name}: operands must live on one device; got {listed}; move one with .to({first!r})")


def forget(name: str) -> None:
    """Open a device anew when it is asked for next."""
    for known in [known for known, device in _devices.items() if device.name == name]:
        del _devices[known]


__all__ = [
    "Array",
    "Device",
    "HostArray",
    "common_device",
    "device_of",
    "drawn_to",
    "find_device",
    "forget",
    "names_device",
]
