"""A stand-in for `cuda.bindings.driver`, without a GPU: kernels run in the simulator, on memory of its own.

Its functions take what the real ones take and answer as they do, in the types of the real module: a tuple of the code
and the results, which are None where the code is an error. Arguments of kernels are read from the addresses that are
passed, when the real driver would read them. What the real driver answers by chance or by a crash, such as the use of
what was destroyed, is noted in `faults`.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from cuda.bindings import driver as real
from fake_device import Context, Event, Function, Launch, Module, Refused, Stream, in_some_order

from staticgrad.kernels.cuda import simulator
from staticgrad.kernels.cuda.gpu import GPU
from staticgrad.kernels.kernel import Kernel

MAGIC = b"code of the fake\n"
INVALID_VALUE, INVALID_IMAGE, INVALID_CONTEXT, INVALID_HANDLE, NOT_FOUND = 1, 200, 201, 400, 500
RESULTS: dict[str, int] = {}  # of each function, how many it gives beside the code

T = TypeVar("T")


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


@dataclass(eq=False)
class Node:
    launch: Launch
    after: list[Node]


@dataclass(eq=False)
class Graph:
    nodes: list[tuple[int, Node]] = field(default_factory=list)  # with their handles


@dataclass(eq=False)
class Executable:
    """A graph that runs: its launches by node, and the event behind its last run."""

    order: list[Node]
    launches: dict[Node, Launch]
    last: Event = field(default_factory=Event)


def image(kernels: Sequence[Kernel], capability: tuple[int, int]) -> bytes:
    """What the fake loads as machine code; in the place of `toolkit.machine_code`."""
    return MAGIC + json.dumps([(kernel.source, [dtype.name for dtype in kernel.dtypes]) for kernel in kernels]).encode()


def open_gpu(driver: FakeDriver, ordinal: int = 0) -> GPU:
    """A GPU on the fake, whose kernels are generated for the simulator's few threads."""
    gpu = GPU(ordinal, driver=driver, compiler=image)
    gpu.target = simulator.SMALL
    return gpu


def function(results: int = 0) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """A method as a function of the driver, that gives so many results beside the code."""

    def made(method: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        name = method.__name__
        RESULTS[name] = results

        @functools.wraps(method)
        def called(self: FakeDriver, *arguments: Any) -> tuple[Any, ...]:
            inspect.signature(method).bind(self, *arguments)
            self.calls.append((name, arguments))
            try:
                if self.refuse[name]:
                    raise Refused(self.refuse[name].pop(0))
                found = method(self, *arguments)
            except Refused as refused:
                return (real.CUresult(refused.code), *[None] * results)
            return (real.CUresult(0), *(found if results > 1 else [found] * results))

        return called

    return made


class FakeDriver:
    """The module.

    Attributes:
        devices: the GPUs there are.
        calls: every call, by name and arguments.
        refuse: codes that the next calls of a function are answered with, by its name.
        faults: what must not happen.
    """

    CUresult = real.CUresult
    CUdevice_attribute = real.CUdevice_attribute
    CUmemPool_attribute = real.CUmemPool_attribute
    CUDA_KERNEL_NODE_PARAMS = real.CUDA_KERNEL_NODE_PARAMS
    cuuint64_t = real.cuuint64_t

    def __init__(self, *devices: Device, version: int = 13000) -> None:
        self.devices = devices or (Device(),)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.refuse: dict[str, list[int]] = defaultdict(list)
        self.faults: list[str] = []
        self._version = version
        self._objects: dict[int, tuple[Any, Context | None]] = {}  # what handles stand for, and whose they are
        self._numbers = itertools.count(0x1000, 0x10)
        self._thread = threading.local()
        self._pinned: dict[int, Any] = {}

    # ------------------------------------------------------------ what tests ask

    def names(self, since: int = 0) -> list[str]:
        """The functions called, from one call on."""
        return [name for name, _ in self.calls[since:]]

    def held(self, kind: type) -> int:
        """How many objects of a kind have not been given back."""
        return sum(isinstance(found, kind) for found, _ in self._objects.values())

    def pinned(self, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """An array in pinned memory, which the driver reads late."""
        address = self.cuMemHostAlloc(4 * count, 0)[1]
        return np.frombuffer(self._pinned[address], np.float32)

    # ------------------------------------------------------------ handles and contexts

    def _new(self, kind: Callable[[int], T], found: Any, context: Context | None = None) -> T:
        number = next(self._numbers)
        self._objects[number] = found, context
        return kind(number)

    def _find(self, handle: Any, kind: type[T], what: int = INVALID_HANDLE) -> T:
        found, _ = self._objects.get(int(handle), (None, None))
        if not isinstance(found, kind):
            self.faults.append(f"{handle!r} is no {kind.__name__}")
            raise Refused(what)
        return found

    def _drop(self, handle: Any, kind: type[T]) -> T:
        found = self._find(handle, kind)
        del self._objects[int(handle)]
        return found

    @property
    def _stack(self) -> list[Context]:
        """The contexts of this Python thread; the last one is current."""
        found: list[Context] = self._thread.__dict__.setdefault("stack", [])
        return found

    @property
    def _current(self) -> Context:
        if not self._stack or not any(device.context is self._stack[-1] for device in self.devices):
            raise Refused(INVALID_CONTEXT)
        self._stack[-1].check()
        return self._stack[-1]

    def _stream(self, handle: Any, *, current: bool = True) -> Stream:
        found = self._find(handle, Stream)
        found.context.check()
        if current and self._current is not found.context:
            raise Refused(INVALID_HANDLE)
        return found

    # ------------------------------------------------------------ errors, devices

    @function(results=1)
    def cuGetErrorName(self, error: Any) -> bytes:
        return real.CUresult(error).name.encode()

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
            raise Refused(device.lost)
        if device.context is None:
            device.context = Context(device.total_bytes)
        device.retained += 1
        return self._new(real.CUcontext, device.context, device.context)

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
        self._stack[-1:] = [self._find(ctx, Context)]

    @function()
    def cuCtxPushCurrent(self, ctx: Any) -> None:
        self._stack.append(self._find(ctx, Context))

    @function(results=1)
    def cuCtxPopCurrent(self) -> Any:
        self._stack.pop()

    @function()
    def cuCtxSynchronize(self) -> None:
        self._current.complete_all()

    # ------------------------------------------------------------ memory

    @function(results=1)
    def cuDeviceGetDefaultMemPool(self, dev: Any) -> Any:
        return self._new(real.CUmemoryPool, self.devices[int(dev)])

    @function(results=1)
    def cuMemPoolGetAttribute(self, pool: Any, attr: Any) -> Any:
        context = self._find(pool, Device).context
        assert context is not None
        return real.cuuint64_t({
            "USED_MEM_CURRENT": context.used,
            "USED_MEM_HIGH": context.high,
            "RESERVED_MEM_CURRENT": context.reserved,
        }[attr.name.removeprefix("CU_MEMPOOL_ATTR_")])  # fmt: skip

    @function()
    def cuMemPoolSetAttribute(self, pool: Any, attr: Any, value: real.cuuint64_t) -> None:
        context = self._find(pool, Device).context
        assert context is not None
        if attr.name == "CU_MEMPOOL_ATTR_USED_MEM_HIGH":
            if int(value):
                raise Refused(INVALID_VALUE)
            context.high = context.used

    @function()
    def cuMemPoolTrimTo(self, pool: Any, minBytesToKeep: int) -> None:
        context = self._find(pool, Device).context
        assert context is not None
        context.trim()

    @function(results=2)
    def cuMemGetInfo(self) -> tuple[int, int]:
        (device,) = (device for device in self.devices if device.context is self._current)
        return device.total_bytes - self._current.reserved, device.total_bytes

    @function(results=1)
    def cuMemAllocAsync(self, bytesize: int, hStream: Any) -> Any:
        if not bytesize:
            raise Refused(INVALID_VALUE)
        stream = self._stream(hStream, current=False)
        return real.CUdeviceptr(stream.context.allocate(bytesize, stream))

    @function()
    def cuMemFreeAsync(self, dptr: Any, hStream: Any) -> None:
        stream = self._stream(hStream, current=False)
        try:
            stream.context.free(int(dptr), stream)
        except KeyError:
            self.faults.append(f"{int(dptr):#x} is freed and not allocated")
            raise Refused(INVALID_VALUE) from None

    @function(results=1)
    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> int:
        assert self._current
        memory = (ctypes.c_uint8 * bytesize)()
        self._pinned[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def _is_pinned(self, address: int) -> bool:
        return any(start <= address < start + len(memory) for start, memory in self._pinned.items())

    @function()
    def cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int | bytes, ByteCount: int, hStream: Any) -> None:
        stream = self._stream(hStream)
        if isinstance(srcHost, int) and self._is_pinned(srcHost):
            stream.queue(lambda: _put(stream, dstDevice, ctypes.string_at(srcHost, ByteCount)))
            return
        data = srcHost if isinstance(srcHost, bytes) else ctypes.string_at(srcHost, ByteCount)
        stream.queue(lambda: _put(stream, dstDevice, data[:ByteCount]))

    @function()
    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: Any) -> None:
        stream = self._stream(hStream)

        def fetch() -> None:
            ctypes.memmove(dstHost, stream.context.bytes_at(srcDevice, ByteCount).tobytes(), ByteCount)

        stream.queue(fetch)
        if not self._is_pinned(dstHost):
            stream.context.complete(stream)

    @function()
    def cuMemcpyDtoDAsync(self, dstDevice: int, srcDevice: int, ByteCount: int, hStream: Any) -> None:
        stream = self._stream(hStream)
        stream.queue(lambda: _put(stream, dstDevice, stream.context.bytes_at(srcDevice, ByteCount).tobytes()))

    # ------------------------------------------------------------ streams, events

    @function(results=1)
    def cuStreamCreate(self, Flags: int) -> Any:
        context = self._current
        stream = Stream(context)
        context.streams.append(stream)
        return self._new(real.CUstream, stream, context)

    @function()
    def cuStreamSynchronize(self, hStream: Any) -> None:
        stream = self._stream(hStream)
        stream.context.complete(stream)

    @function()
    def cuStreamWaitEvent(self, hStream: Any, hEvent: Any, Flags: int) -> None:
        self._stream(hStream).wait(self._find(hEvent, Event))

    @function(results=1)
    def cuEventCreate(self, Flags: int) -> Any:
        return self._new(real.CUevent, Event(), self._current)

    @function()
    def cuEventRecord(self, hEvent: Any, hStream: Any) -> None:
        self._stream(hStream).record(self._find(hEvent, Event))

    @function()
    def cuEventSynchronize(self, hEvent: Any) -> None:
        event = self._find(hEvent, Event)
        self._current.reach(event, len(event.streams))

    @function(results=1)
    def cuEventElapsedTime(self, hStart: Any, hEnd: Any) -> float:
        for event in (self._find(hStart, Event), self._find(hEnd, Event)):
            if len(event.streams) not in event.done:
                raise Refused(600)  # CUDA_ERROR_NOT_READY
        return 0.5

    @function()
    def cuEventDestroy(self, hEvent: Any) -> None:
        self._drop(hEvent, Event)

    # ------------------------------------------------------------ kernels

    @function(results=1)
    def cuModuleLoadData(self, image: bytes) -> Any:
        if not image.startswith(MAGIC):
            raise Refused(INVALID_IMAGE)
        kernels = [Kernel(source, tuple(map(np.dtype, dtypes))) for source, dtypes in json.loads(image[len(MAGIC) :])]
        return self._new(real.CUmodule, Module({kernel.symbol: kernel for kernel in kernels}), self._current)

    @function(results=1)
    def cuModuleGetFunction(self, hmod: Any, name: bytes) -> Any:
        module = self._find(hmod, Module)
        if name.decode() not in module.kernels:
            raise Refused(NOT_FOUND)
        return self._new(real.CUfunction, Function(module.kernels[name.decode()], module), self._current)

    @function()
    def cuModuleUnload(self, hmod: Any) -> None:
        module = self._drop(hmod, Module)
        module.loaded = False
        for number in [number for number, (found, _) in self._objects.items() if getattr(found, "module", 0) is module]:
            del self._objects[number]

    @function()
    def cuLaunchKernel(
        self, f: Any, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int, blockDimZ: int,
        sharedMemBytes: int, hStream: Any, kernelParams: int, extra: int,
    ) -> None:  # fmt: skip
        assert (gridDimY, gridDimZ, blockDimY, blockDimZ, sharedMemBytes, extra) == (1, 1, 1, 1, 0, 0)
        stream, one = self._stream(hStream), self._launch(f, kernelParams, gridDimX, blockDimX)
        stream.queue(lambda: self._run(stream.context, one))

    def _launch(self, f: Any, kernel_params: int, grid: int, block: int) -> Launch:
        """A launch whose arguments are read now."""
        found = self._find(f, Function)
        places = (ctypes.c_uint64 * len(found.kernel.dtypes)).from_address(kernel_params)
        return Launch(found, tuple(ctypes.c_uint64.from_address(place).value for place in places), grid, block)

    def _run(self, context: Context, one: Launch) -> None:
        if not one.function.module.loaded:
            self.faults.append("a kernel runs whose module was unloaded")
        context.launch(one)

    # ------------------------------------------------------------ graphs

    @function(results=1)
    def cuGraphCreate(self, flags: int) -> Any:
        return self._new(real.CUgraph, Graph(), self._current)

    @function(results=1)
    def cuGraphAddKernelNode(self, hGraph: Any, dependencies: list[Any], numDependencies: int, nodeParams: Any) -> Any:
        assert len(dependencies) == numDependencies
        node = Node(self._launch_of(nodeParams), [self._find(one, Node) for one in dependencies])
        handle = self._new(real.CUgraphNode, node, self._current)
        self._find(hGraph, Graph).nodes.append((int(handle), node))
        return handle

    def _launch_of(self, parameters: Any) -> Launch:
        """What a node does, with its arguments as they are now."""
        shape = [parameters.gridDimY, parameters.gridDimZ, parameters.blockDimY, parameters.blockDimZ]
        assert [*shape, parameters.sharedMemBytes, parameters.extra] == [1, 1, 1, 1, 0, 0]
        return self._launch(parameters.func, parameters.kernelParams, parameters.gridDimX, parameters.blockDimX)

    @function(results=1)
    def cuGraphInstantiate(self, hGraph: Any, flags: int) -> Any:
        nodes = [node for _, node in self._find(hGraph, Graph).nodes]
        order = in_some_order(nodes, lambda node: node.after)
        return self._new(real.CUgraphExec, Executable(order, {node: node.launch for node in nodes}), self._current)

    @function()
    def cuGraphExecKernelNodeSetParams(self, hGraphExec: Any, hNode: Any, nodeParams: Any) -> None:
        executable, node = self._find(hGraphExec, Executable), self._find(hNode, Node, INVALID_VALUE)
        assert node in executable.launches
        executable.launches[node] = self._launch_of(nodeParams)

    @function()
    def cuGraphLaunch(self, hGraphExec: Any, hStream: Any) -> None:
        executable, stream = self._find(hGraphExec, Executable), self._stream(hStream)
        stream.wait(executable.last)  # one run at a time
        for node in executable.order:
            one = executable.launches[node]
            stream.queue(lambda one=one: self._run(stream.context, one))
        stream.record(executable.last)

    @function()
    def cuGraphExecDestroy(self, hGraphExec: Any) -> None:
        self._drop(hGraphExec, Executable)

    @function()
    def cuGraphDestroy(self, hGraph: Any) -> None:
        for number, _ in self._drop(hGraph, Graph).nodes:
            del self._objects[number]


def _put(stream: Stream, address: int, data: bytes) -> None:
    stream.context.bytes_at(address, len(data))[:] = np.frombuffer(data, np.uint8)
