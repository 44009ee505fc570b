"""A GPU through NVIDIA's driver: its memory, its streams, its kernels, and sequences of launches as CUDA graphs."""
# mypy: disable-error-code="no-untyped-call, attr-defined"

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.graph.errors import DeviceError
from staticgrad.kernels.cpu.host import source_digest
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.cuda.hardware import Bound, Hardware, LaunchSequence, out_of_memory
from staticgrad.kernels.cuda.library import BoundProduct
from staticgrad.kernels.cuda.product_nodes import ProductNodes
from staticgrad.kernels.cuda.staging import Staging
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.timing import seconds_of
from staticgrad.kernels.kernel import Kernel

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.array import Buffer
    from staticgrad.kernels.cuda.cublas import Cublas

Array = np.ndarray[Any, Any]
FATAL = frozenset({700, 702, 704, 709, 710, 714, 715, 716, 717, 718, 719})  # after these the context is gone
_DIRECT = 1 << 16  # bytes up to which the driver itself copies an array aside before it returns


class Stream:
    """Work that a GPU does in order; work of different streams may overlap. Make one with `GPU.new_stream`."""

    def __init__(self, gpu: GPU, handle: Any) -> None:
        self.gpu = gpu
        self.handle = handle
        self.workspace: Buffer | None = None  # that a library's products on this stream work in

    def synchronize(self) -> None:
        """Wait until all work queued on this stream is done."""
        self.gpu.call("cuStreamSynchronize", self.handle)


class GPU(Hardware):
    """One GPU of this machine.

    Raises:
        DeviceError: there is no driver or no such device, it is too old, or the packages do not fit the driver.
    """

    def __init__(self, ordinal: int = 0, driver: Any = None) -> None:
        self._driver = toolkit.driver() if driver is None else driver
        self.name = f"cuda:{ordinal}"
        self._failure = ""
        self._thread = threading.local()
        count = self.call("cuDeviceGetCount")
        if ordinal >= count:
            there = "is 1 GPU" if count == 1 else f"are {count} GPUs"
            raise DeviceError(f"device: {self.name} was asked for and there {there}; use another one, or device='cpu'")
        self._device = self.call("cuDeviceGet", ordinal)
        self.capability = (self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR"))
        if self.capability < toolkit.OLDEST:
            raise DeviceError(
                f"device: {self.name} has compute capability {_dotted(self.capability)}; staticgrad's kernels need "
                f"{_dotted(toolkit.OLDEST)} or newer (Ampere, 2020); use device='cpu'"
            )
        self.target = Target(processors=self._attribute("MULTIPROCESSOR_COUNT"))
        self.identity = f"sm_{_dotted(self.capability)}/{self.target}/{toolkit.versions()}/{source_digest('cuda')}"
        self.title = self.call("cuDeviceGetName", 256, self._device).rstrip(b"\0").decode()
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        self._enter()
        self._pool = self.call("cuDeviceGetDefaultMemPool", self._device)
        self._pool_attribute("RELEASE_THRESHOLD", 2**63 - 1)  # keep what is freed for the next allocation
        self._default = Stream(self, self.call("cuStreamCreate", 1))  # 1: does not wait for the legacy stream
        self._several = False
        self._staging = Staging(self)

    # ------------------------------------------------------------ calls

    @property
    def driver(self) -> Any:
        """NVIDIA's functions and types; `call` is the way to call them where an error is nothing to go on with."""
        return self._driver

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver and give its results back; what it reports as an error is raised."""
        if self._failure:
            raise DeviceError(self._failure)
        code, *results = getattr(self._driver, name)(*arguments)
        if int(code):
            raise self._error(name, int(code))
        return results[0] if len(results) == 1 else results or None

    def _error(self, name: str, code: int) -> DeviceError:
        _, what = self._driver.cuGetErrorName(self._driver.CUresult(code))
        _, text = self._driver.cuGetErrorString(self._driver.CUresult(code))
        said = f"{what.decode()} ({text.decode()})"
        if code in FATAL:
            self._failure = (
                f"cuda: {self.name} has failed with {said} in {name}, and what was in its memory is lost; the CPU "
                "still works; sg.cuda.reset() makes the GPU usable again"
            )
            return DeviceError(self._failure)
        if name == "cuModuleLoadData":
            version = self._driver.cuDriverGetVersion()[1]
            return DeviceError(
                f"cuda: the driver (of CUDA {version // 1000}.{version % 1000 // 10}) does not load this code: {said}; "
                f"it was made by {toolkit.versions()}: update the driver, or install packages of its CUDA version"
            )
        return DeviceError(f"cuda: {name} failed on {self.name}: {said}")

    def _attribute(self, name: str) -> int:
        which = getattr(self._driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.call("cuDeviceGetAttribute", which, self._device))

    def _pool_attribute(self, name: str, value: int | None = None) -> int:
        which = getattr(self._driver.CUmemPool_attribute, f"CU_MEMPOOL_ATTR_{name}")
        if value is None:
            return int(self.call("cuMemPoolGetAttribute", self._pool, which))
        self.call("cuMemPoolSetAttribute", self._pool, which, self._driver.cuuint64_t(value))
        return value

    def _enter(self) -> None:
        """Make the device's context that of this Python thread."""
        if getattr(self._thread, "entered", None) is not self._context:
            self.call("cuCtxSetCurrent", self._context)
            self._thread.entered = self._context

    # ------------------------------------------------------------ streams

    @property
    def stream(self) -> Stream:
        """The stream that this Python thread queues its work on."""
        self._enter()
        found: Stream = getattr(self._thread, "stream", self._default)
        return found

    def new_stream(self) -> Stream:
        self._enter()
        self._several = True
        return Stream(self, self.call("cuStreamCreate", 1))

    @contextmanager
    def on(self, stream: Stream) -> Iterator[Stream]:
        before = self.stream
        self._thread.stream = stream
        try:
            yield stream
        finally:
            self._thread.stream = before

    def use(self, buffers: Iterable[Buffer]) -> None:
        if not self._several:
            return
        current = self.stream
        for buffer in buffers:
            last: Stream | None = buffer.stream
            if last is not None and last is not current:
                event = self.call("cuEventCreate", 2)  # 2: without a time
                self.call("cuEventRecord", event, last.handle)
                self.call("cuStreamWaitEvent", current.handle, event, 0)
                self.call("cuEventDestroy", event)
            buffer.stream = current

    # ------------------------------------------------------------ memory

    def allocate(self, nbytes: int) -> int:
        stream = self.stream
        for attempt in range(2):
            code, address = self._driver.cuMemAllocAsync(nbytes, stream.handle)
            if not int(code):
                return int(address)
            if int(code) != 2:
                raise self._error("cuMemAllocAsync", int(code))
            if not attempt:  # cycles of Python objects may hold memory, and the pool what has been freed
                gc.collect()
                self.synchronize()
                self.call("cuMemPoolTrimTo", self._pool, 0)
        raise out_of_memory(self, nbytes)

    def free(self, address: int, stream: Any = None) -> None:
        if self._failure:
            return
        try:
            self._enter()
            self._driver.cuMemFreeAsync(address, (stream or self._default).handle)
        except Exception:  # also while Python shuts down, when the driver may be gone
            return

    def memory_info(self) -> tuple[int, int]:
        self._enter()
        free, total = self.call("cuMemGetInfo")
        unused = self._pool_attribute("RESERVED_MEM_CURRENT") - self._pool_attribute("USED_MEM_CURRENT")
        return int(free) + unused, int(total)

    def memory_used(self) -> tuple[int, int]:
        return self._pool_attribute("USED_MEM_CURRENT"), self._pool_attribute("USED_MEM_HIGH")

    def forget_peak(self) -> None:
        self._pool_attribute("USED_MEM_HIGH", 0)

    # ------------------------------------------------------------ transfers

    def write(self, address: int, values: Array) -> None:
        stream = self.stream
        if 0 < values.nbytes <= _DIRECT:
            self.call("cuMemcpyHtoDAsync", address, values.ctypes.data, values.nbytes, stream.handle)
        elif values.nbytes:
            self._staging.write(address, values, stream)

    def read(self, values: Array, address: int) -> None:
        stream = self.stream
        if values.nbytes:
            self.call("cuMemcpyDtoHAsync", values.ctypes.data, address, values.nbytes, stream.handle)
        stream.synchronize()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        if nbytes:
            self.call("cuMemcpyDtoDAsync", target, source, nbytes, self.stream.handle)

    def synchronize(self) -> None:
        self._enter()
        self.call("cuCtxSynchronize")

    # ------------------------------------------------------------ kernels

    def compile(self, kernels: Sequence[Kernel]) -> bytes:
        if not kernels:
            return b""
        return toolkit.linked([toolkit.ptx_of(kernel, self.capability) for kernel in kernels], self.capability)[0]

    def load(self, code: bytes, kernels: Mapping[str, Kernel]) -> dict[str, Any]:
        if not kernels:
            return {}
        self._enter()
        module = self.call("cuModuleLoadData", code)
        return {symbol: self.call("cuModuleGetFunction", module, symbol.encode()) for symbol in kernels}

    def sequence(self, launches: Sequence[Bound]) -> LaunchSequence:
        return _Graph(list(launches), gpu=self, driver=self._driver)

    def seconds(self, launches: Sequence[Bound]) -> float:
        return seconds_of(self, launches)

    @property
    def library(self) -> Cublas | None:
        return self._cublas[0]

    @property
    def library_trouble(self) -> str:
        return self._cublas[1]

    @cached_property
    def _cublas(self) -> tuple[Cublas | None, str]:
        """cuBLAS, or why it cannot be used."""
        from staticgrad.kernels.cuda.cublas import Cublas

        try:
            self._enter()
            return Cublas(self), ""
        except DeviceError as error:
            return None, str(error)

    def close(self) -> None:
        self._failure = f"cuda: {self.name} was reset; make the tensors and compile the functions again"
        self._driver.cuDevicePrimaryCtxReset(self._device)


@dataclass
class _Graph(LaunchSequence):
    """Launches with packed arguments, that are started one by one at first and as one CUDA graph from then on.

    The first run loads the kernels and shows what fails. Later an address that differs from the last run's, such as
    that of a result which belongs to the caller, is changed in the graph; nothing is captured again.
    """

    gpu: GPU = field(kw_only=True)
    driver: Any = field(kw_only=True)

    def __post_init__(self) -> None:
        counts = [len(one.addresses) for one in self.launches]
        self._values = (ctypes.c_uint64 * max(1, sum(counts)))()
        start = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_uint64 * len(self._values))(*range(start, start + 8 * len(self._values), 8))
        self._first = [sum(counts[:number]) for number in range(len(counts))]
        self._runs = 0
        self._nodes: list[Any] = []
        self._parameters: list[Any] = []
        self._executable: Any = None
        self._products = ProductNodes(self.gpu, self.launches)
        self.changed = set(range(len(self.launches)))

    def run(self) -> None:
        stream = self.gpu.stream
        self.changed |= self._products.elsewhere(stream)
        for number in self.changed:
            first = self._first[number]
            for position, address in enumerate(self.launches[number].addresses):
                self._values[first + position] = address
        if self._executable is None:
            wanted = self._runs > 0 and len(self.launches) > 1
        else:
            wanted = not all(map(self._update, self.changed))
        if wanted:
            self._capture()
        self.changed.clear()
        if self._executable is not None:
            self.gpu.call("cuGraphLaunch", self._executable, stream.handle)
        else:
            self.run_plainly()
        self._runs += 1

    def run_plainly(self) -> None:
        """Start every launch by itself."""
        stream = self.gpu.stream
        for number, one in enumerate(self.launches):
            if isinstance(one, BoundProduct):
                self._products.run(one)
                continue
            arguments = (one.grid, 1, 1, one.block, 1, 1, 0, stream.handle, self._argument(number), 0)
            self.gpu.call("cuLaunchKernel", one.function, *arguments)

    def _argument(self, number: int) -> int:
        return ctypes.addressof(self._pointers) + 8 * self._first[number]

    def _update(self, number: int) -> bool:
        """Change the addresses of a launch in the graph; False where only another graph can have them."""
        node, one = self._nodes[number], self.launches[number]
        if isinstance(one, BoundProduct):
            return self._products.update(self._executable, node, one)
        self.gpu.call("cuGraphExecKernelNodeSetParams", self._executable, node, self._parameters[number])
        return True

    def _capture(self) -> None:
        """Make the graph: each launch after the one before it."""
        if self._executable is not None:
            self.gpu.call("cuGraphExecDestroy", self._executable)  # frees it when its last run is over
            self._executable = None
        self._nodes, self._parameters = [], []
        graph = self.gpu.call("cuGraphCreate", 0)
        last: list[Any] = []
        for number, one in enumerate(self.launches):
            if isinstance(one, BoundProduct):
                last = [self._products.add(graph, last, one)]
                self._nodes += last
                self._parameters.append(None)
                continue
            parameters = self.driver.CUDA_KERNEL_NODE_PARAMS()
            parameters.func = one.function
            parameters.gridDimX, parameters.gridDimY, parameters.gridDimZ = one.grid, 1, 1
            parameters.blockDimX, parameters.blockDimY, parameters.blockDimZ = one.block, 1, 1
            parameters.sharedMemBytes = 0
            parameters.kernelParams = self._argument(number)
            node = self.gpu.call("cuGraphAddKernelNode", graph, last, len(last), parameters)
            self._nodes.append(node)
            self._parameters.append(parameters)
            last = [node]
        self._executable = self.gpu.call("cuGraphInstantiate", graph, 0)
        self.gpu.call("cuGraphDestroy", graph)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
