"""Handles, devices and contexts of the stand-in for NVIDIA's driver, and what its calls are answered with."""
# ruff: noqa: N802 - the driver's names

from __future__ import annotations

import functools
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cuda.bindings import driver as real
from fake_device import Context, RefusedError, Stream

INVALID_CONTEXT, INVALID_HANDLE = 201, 400
RESULTS: dict[str, int] = {}  # of each function, how many it gives beside the code

T = TypeVar("T")


def function(results: int = 0) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """A method as a function of the driver, that gives so many results beside the code."""

    def made(method: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        name = method.__name__
        RESULTS[name] = results

        @functools.wraps(method)
        def called(self: Contexts, *arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            try:
                if self.refuse[name]:
                    raise RefusedError(self.refuse[name].pop(0))
                found = method(self, *arguments)
            except RefusedError as refused:
                return (real.CUresult(refused.code), *[None] * results)
            return (real.CUresult(0), *(found if results > 1 else [found] * results))

        return called

    return made


@dataclass
class Device:
    """One GPU that there is."""

    name: bytes = b"Fake GPU"
    capability: tuple[int, int] = (9, 0)
    processors: int = 2
    total_bytes: int = 1 << 30
    pools: bool = True
    lost: int = 0  # the code that a new context is refused with
    context: Context | None = None
    retained: int = 0


class Contexts:
    """What handles stand for, and the contexts of each Python thread.

    Attributes:
        devices: the GPUs there are.
        calls: every call, by name and arguments.
        refuse: codes that the next calls of a function are answered with, by its name.
        faults: what must not happen.
    """

    CUresult = real.CUresult
    CUdevice_attribute = real.CUdevice_attribute

    def __init__(self, devices: Sequence[Device], version: int) -> None:
        self.devices = devices
        self._version = version
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.refuse: dict[str, list[int]] = defaultdict(list)
        self.faults: list[str] = []
        self._objects: dict[int, tuple[Any, Context | None]] = {}  # by handle; and whose they are
        self._numbers = itertools.count(0x1000, 0x10)
        self._thread = threading.local()

    def names(self, since: int = 0) -> list[str]:
        """The functions called, from one call on."""
        return [name for name, _ in self.calls[since:]]

    def held(self, kind: type) -> int:
        """How many objects of a kind have not been given back."""
        return sum(isinstance(found, kind) for found, _ in self._objects.values())

    def new(self, kind: Callable[[int], T], found: Any, context: Context | None = None) -> T:
        number = next(self._numbers)
        self._objects[number] = found, context
        return kind(number)

    def find(self, handle: Any, kind: type[T], what: int = INVALID_HANDLE) -> T:
        found, _ = self._objects.get(int(handle), (None, None))
        if not isinstance(found, kind):
            self.faults.append(f"{handle!r} is no {kind.__name__}")
            raise RefusedError(what)
        return found

    def drop(self, handle: Any, kind: type[T]) -> T:
        found = self.find(handle, kind)
        del self._objects[int(handle)]
        return found

    @property
    def _stack(self) -> list[Context]:
        """The contexts of this Python thread; the last one is current."""
        found: list[Context] = self._thread.__dict__.setdefault("stack", [])
        return found

    @property
    def current(self) -> Context:
        if not self._stack or not any(device.context is self._stack[-1] for device in self.devices):
            raise RefusedError(INVALID_CONTEXT)
        self._stack[-1].check()
        return self._stack[-1]

    def stream_of(self, handle: Any, *, current: bool = True) -> Stream:
        found = self.find(handle, Stream)
        found.context.check()
        if current and self.current is not found.context:
            raise RefusedError(INVALID_HANDLE)
        return found

    # ------------------------------------------------------------ errors, devices, contexts

    @function(results=1)
    def cuGetErrorName(self, error: Any) -> bytes:
        return bytes(real.CUresult(error).name, "ascii")

    @function(results=1)
    def cuGetErrorString(self, error: Any) -> bytes:
        return b"what the driver says of it"

    @function(results=1)
    def cuDriverGetVersion(self) -> int:
        return self._version

    @function(results=1)
    def cuDeviceGetCount(self) -> int:
        return len(self.devices)

    @function(results=1)
    def cuDeviceGet(self, ordinal: int) -> Any:
        return real.CUdevice(ordinal)

    @function(results=1)
    def cuDeviceGetName(self, length: int, dev: Any) -> bytes:
        return (self.devices[int(dev)].name + b"\0").ljust(length)

    @function(results=1)
    def cuDeviceGetAttribute(self, attrib: Any, dev: Any) -> int:
        device = self.devices[int(dev)]
        return int({
            "COMPUTE_CAPABILITY_MAJOR": device.capability[0],
            "COMPUTE_CAPABILITY_MINOR": device.capability[1],
            "MULTIPROCESSOR_COUNT": device.processors,
            "MEMORY_POOLS_SUPPORTED": device.pools,
        }[attrib.name.removeprefix("CU_DEVICE_ATTRIBUTE_")])  # fmt: skip

    @function(results=1)
    def cuDevicePrimaryCtxRetain(self, dev: Any) -> Any:
        device = self.devices[int(dev)]
        if device.lost:
            raise RefusedError(device.lost)
        if device.context is None:
            device.context = Context(device.total_bytes)
        device.retained += 1
        return self.new(real.CUcontext, device.context, device.context)

    @function()
    def cuDevicePrimaryCtxRelease(self, dev: Any) -> None:
        self.devices[int(dev)].retained -= 1

    @function()
    def cuDevicePrimaryCtxReset(self, dev: Any) -> None:
        device = self.devices[int(dev)]
        for number in [number for number, (_, context) in self._objects.items() if context is device.context]:
            del self._objects[number]
        device.context = None

    @function()
    def cuCtxSetCurrent(self, ctx: Any) -> None:
        self._stack[-1:] = [self.find(ctx, Context)]

    @function()
    def cuCtxPushCurrent(self, ctx: Any) -> None:
        self._stack.append(self.find(ctx, Context))

    @function(results=1)
    def cuCtxPopCurrent(self) -> Any:
        self._stack.pop()
