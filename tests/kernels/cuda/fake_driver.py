"""A stand-in for `cuda.bindings.driver`, without a GPU: kernels run in the simulator, on memory of its own.

Its functions take what the real ones take and answer as they do, in the types of the real module: a tuple of the code
and the results, which are None where the code is an error. Arguments of kernels are read from the addresses that are
passed, when the real driver would read them. What the real driver answers by chance or by a crash, such as the use of
what was destroyed, is noted in `faults`.
"""

# ruff: noqa: N802 - the driver's names

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from cuda.bindings import driver as real
from fake_contexts import Contexts, Device, function
from fake_device import Context, Event, Function, Launch, Module, RefusedError, Stream, in_some_order

from staticgrad.kernels.cuda import simulator
from staticgrad.kernels.cuda.gpu import GPU
from staticgrad.kernels.kernel import Kernel

MAGIC = b"code of the fake\n"
INVALID_VALUE, INVALID_IMAGE, NOT_FOUND, NOT_READY = 1, 200, 500, 600


@dataclass(eq=False)
class Node:
    launch: Launch
    after: list[Node]


@dataclass(eq=False)
class NodeGraph:
    nodes: list[tuple[int, Node]] = field(default_factory=list)  # with their handles


@dataclass(eq=False)
class Executable:
    """A graph that runs: its launches by node, and the event behind its last run."""

    order: list[Node]
    launches: dict[Node, Launch]
    last: Event = field(default_factory=Event)


def image(kernels: Sequence[Kernel], capability: tuple[int, int]) -> bytes:
    """What the fake loads as machine code; in the place of `toolkit.machine_code`."""
    found = [(one.source, *([dtype.name for dtype in some] for some in (one.dtypes, one.values))) for one in kernels]
    return MAGIC + json.dumps(found).encode()


def open_gpu(driver: FakeDriver, ordinal: int = 0) -> GPU:
    """A GPU on the fake, whose kernels are generated for the simulator's few threads."""
    gpu = GPU(ordinal, driver=driver, compiler=image)
    gpu.target = simulator.SMALL
    return gpu


class FakeDriver(Contexts):
    """The module."""

    CUDA_KERNEL_NODE_PARAMS = real.CUDA_KERNEL_NODE_PARAMS
    CUmemPool_attribute = real.CUmemPool_attribute
    cuuint64_t = real.cuuint64_t

    def __init__(self, *devices: Device, version: int = 13000) -> None:
        super().__init__(devices or (Device(),), version)
        self._pinned: dict[int, Any] = {}

    def pinned(self, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """An array in pinned memory, which the driver reads late."""
        address = self.cuMemHostAlloc(4 * count, 0)[1]
        return np.frombuffer(self._pinned[address], np.float32)

    # ------------------------------------------------------------ memory

    @function(results=1)
    def cuDeviceGetDefaultMemPool(self, dev: Any) -> Any:
        return self.new(real.CUmemoryPool, self.devices[int(dev)])

    @function(results=1)
    def cuMemPoolGetAttribute(self, pool: Any, attr: Any) -> Any:
        context = self.find(pool, Device).context
        assert context is not None
        return real.cuuint64_t({
            "USED_MEM_CURRENT": context.used,
            "USED_MEM_HIGH": context.high,
            "RESERVED_MEM_CURRENT": context.reserved,
        }[attr.name.removeprefix("CU_MEMPOOL_ATTR_")])  # fmt: skip

    @function()
    def cuMemPoolSetAttribute(self, pool: Any, attr: Any, value: real.cuuint64_t) -> None:
        context = self.find(pool, Device).context
        assert context is not None
        if attr.name == "CU_MEMPOOL_ATTR_USED_MEM_HIGH":
            if int(value):
                raise RefusedError(INVALID_VALUE)
            context.high = context.used

    @function()
    def cuMemPoolTrimTo(self, pool: Any, minBytesToKeep: int) -> None:
        context = self.find(pool, Device).context
        assert context is not None
        context.trim()

    @function(results=2)
    def cuMemGetInfo(self) -> tuple[int, int]:
        (device,) = (device for device in self.devices if device.context is self.current)
        return device.total_bytes - self.current.reserved, device.total_bytes

    @function(results=1)
    def cuMemAllocAsync(self, bytesize: int, hStream: Any) -> Any:
        if not bytesize:
            raise RefusedError(INVALID_VALUE)
        stream = self.stream_of(hStream, current=False)
        return real.CUdeviceptr(stream.context.allocate(bytesize, stream))

    @function()
    def cuMemFreeAsync(self, dptr: Any, hStream: Any) -> None:
        stream = self.stream_of(hStream, current=False)
        try:
            stream.context.free(int(dptr), stream)
        except KeyError:
            self.faults.append(f"{int(dptr):#x} is freed and not allocated")
            raise RefusedError(INVALID_VALUE) from None

    @function(results=1)
    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> int:
        assert self.current
        memory = (ctypes.c_uint8 * bytesize)()
        self._pinned[ctypes.addressof(memory)] = memory
        self.current.memory.share(np.frombuffer(memory, np.uint8))
        return ctypes.addressof(memory)

    def _is_pinned(self, address: int) -> bool:
        return any(start <= address < start + len(memory) for start, memory in self._pinned.items())

    @function()
    def cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int | bytes, ByteCount: int, hStream: Any) -> None:
        stream = self.stream_of(hStream)
        if isinstance(srcHost, int) and self._is_pinned(srcHost):
            stream.queue(lambda: _put(stream, dstDevice, ctypes.string_at(srcHost, ByteCount)))
            return
        data = srcHost if isinstance(srcHost, bytes) else ctypes.string_at(srcHost, ByteCount)
        stream.queue(lambda: _put(stream, dstDevice, data[:ByteCount]))

    @function()
    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: Any) -> None:
        stream = self.stream_of(hStream)

        def fetch() -> None:
            ctypes.memmove(dstHost, stream.context.bytes_at(srcDevice, ByteCount).tobytes(), ByteCount)

        stream.queue(fetch)
        if not self._is_pinned(dstHost):
            stream.context.complete(stream)

    @function()
    def cuMemcpyDtoDAsync(self, dstDevice: int, srcDevice: int, ByteCount: int, hStream: Any) -> None:
        stream = self.stream_of(hStream)
        stream.queue(lambda: _put(stream, dstDevice, stream.context.bytes_at(srcDevice, ByteCount).tobytes()))

    # ------------------------------------------------------------ streams, events

    @function(results=1)
    def cuStreamCreate(self, Flags: int) -> Any:
        context = self.current
        stream = Stream(context)
        context.streams.append(stream)
        return self.new(real.CUstream, stream, context)

    @function()
    def cuStreamSynchronize(self, hStream: Any) -> None:
        stream = self.stream_of(hStream)
        stream.context.complete(stream)

    @function()
    def cuStreamWaitEvent(self, hStream: Any, hEvent: Any, Flags: int) -> None:
        self.stream_of(hStream).wait(self.find(hEvent, Event))

    @function(results=1)
    def cuEventCreate(self, Flags: int) -> Any:
        return self.new(real.CUevent, Event(), self.current)

    @function()
    def cuEventRecord(self, hEvent: Any, hStream: Any) -> None:
        self.stream_of(hStream).record(self.find(hEvent, Event))

    @function()
    def cuEventSynchronize(self, hEvent: Any) -> None:
        event = self.find(hEvent, Event)
        self.current.reach(event, len(event.streams))

    @function(results=1)
    def cuEventElapsedTime(self, hStart: Any, hEnd: Any) -> float:
        for event in (self.find(hStart, Event), self.find(hEnd, Event)):
            if len(event.streams) not in event.done:
                raise RefusedError(NOT_READY)
        return 0.5

    @function()
    def cuEventDestroy(self, hEvent: Any) -> None:
        self.drop(hEvent, Event)

    # ------------------------------------------------------------ kernels

    @function(results=1)
    def cuModuleLoadData(self, image: bytes) -> Any:
        if not image.startswith(MAGIC):
            raise RefusedError(INVALID_IMAGE)
        kernels = [
            Kernel(source, tuple(map(np.dtype, dtypes)), values=tuple(map(np.dtype, values)))
            for source, dtypes, values in json.loads(image[len(MAGIC) :])
        ]
        return self.new(real.CUmodule, Module({kernel.symbol: kernel for kernel in kernels}), self.current)

    @function(results=1)
    def cuModuleGetFunction(self, hmod: Any, name: bytes) -> Any:
        module = self.find(hmod, Module)
        if name.decode() not in module.kernels:
            raise RefusedError(NOT_FOUND)
        return self.new(real.CUfunction, Function(module.kernels[name.decode()], module), self.current)

    @function()
    def cuModuleUnload(self, hmod: Any) -> None:
        module = self.drop(hmod, Module)
        module.loaded = False
        for number in [number for number, (found, _) in self._objects.items() if getattr(found, "module", 0) is module]:
            del self._objects[number]

    @function()
    def cuLaunchKernel(
        self, f: Any, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int, blockDimZ: int,
        sharedMemBytes: int, hStream: Any, kernelParams: int, extra: int,
    ) -> None:  # fmt: skip
        assert (gridDimY, gridDimZ, blockDimY, blockDimZ, sharedMemBytes, extra) == (1, 1, 1, 1, 0, 0)
        stream, one = self.stream_of(hStream), self._launch(f, kernelParams, gridDimX, blockDimX)
        stream.queue(partial(self._run, stream.context, one))

    def _launch(self, f: Any, kernel_params: int, grid: int, block: int) -> Launch:
        """A launch whose arguments are read now."""
        found = self.find(f, Function)
        dtypes, numbers = found.kernel.dtypes, list(map(simulator.element_type, found.kernel.values))
        places = (ctypes.c_uint64 * (len(dtypes) + len(numbers))).from_address(kernel_params)
        addresses = tuple(ctypes.c_uint64.from_address(place).value for place in places[: len(dtypes)])
        values = [
            np.frombuffer(ctypes.string_at(place, dtype.itemsize), dtype)[0]
            for place, dtype in zip(places[len(dtypes) :], numbers, strict=True)
        ]
        return Launch(found, addresses, grid, block, tuple(values))

    def _run(self, context: Context, one: Launch) -> None:
        if not one.function.module.loaded:
            self.faults.append("a kernel runs whose module was unloaded")
        context.launch(one)

    # ------------------------------------------------------------ graphs

    @function(results=1)
    def cuGraphCreate(self, flags: int) -> Any:
        return self.new(real.CUgraph, NodeGraph(), self.current)

    @function(results=1)
    def cuGraphAddKernelNode(self, hGraph: Any, dependencies: list[Any], numDependencies: int, nodeParams: Any) -> Any:
        assert len(dependencies) == numDependencies
        node = Node(self._launch_of(nodeParams), [self.find(one, Node) for one in dependencies])
        handle = self.new(real.CUgraphNode, node, self.current)
        self.find(hGraph, NodeGraph).nodes.append((int(handle), node))
        return handle

    def _launch_of(self, parameters: Any) -> Launch:
        """What a node does, with its arguments as they are now."""
        shape = [parameters.gridDimY, parameters.gridDimZ, parameters.blockDimY, parameters.blockDimZ]
        assert [*shape, parameters.sharedMemBytes, parameters.extra] == [1, 1, 1, 1, 0, 0]
        return self._launch(parameters.func, parameters.kernelParams, parameters.gridDimX, parameters.blockDimX)

    @function(results=1)
    def cuGraphInstantiate(self, hGraph: Any, flags: int) -> Any:
        nodes = [node for _, node in self.find(hGraph, NodeGraph).nodes]
        order = in_some_order(nodes, lambda node: node.after)
        return self.new(real.CUgraphExec, Executable(order, {node: node.launch for node in nodes}), self.current)

    @function()
    def cuGraphExecKernelNodeSetParams(self, hGraphExec: Any, hNode: Any, nodeParams: Any) -> None:
        executable, node = self.find(hGraphExec, Executable), self.find(hNode, Node, INVALID_VALUE)
        assert node in executable.launches
        executable.launches[node] = self._launch_of(nodeParams)

    @function()
    def cuGraphLaunch(self, hGraphExec: Any, hStream: Any) -> None:
        executable, stream = self.find(hGraphExec, Executable), self.stream_of(hStream)
        stream.wait(executable.last)  # one run at a time
        for one in [executable.launches[node] for node in executable.order]:
            stream.queue(partial(self._run, stream.context, one))
        stream.record(executable.last)

    @function()
    def cuGraphExecDestroy(self, hGraphExec: Any) -> None:
        self.drop(hGraphExec, Executable)

    @function()
    def cuGraphDestroy(self, hGraph: Any) -> None:
        for number, _ in self.drop(hGraph, NodeGraph).nodes:
            del self._objects[number]


def _put(stream: Stream, address: int, data: bytes) -> None:
    stream.context.bytes_at(address, len(data))[:] = np.frombuffer(data, np.uint8)
