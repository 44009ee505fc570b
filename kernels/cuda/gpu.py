"""A GPU through NVIDIA's driver: its memory, its streams, transfers, and kernels."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.graph.errors import DeviceError, OutOfMemoryError
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.cuda.calls import Calls
from staticgrad.kernels.cuda.hardware import Bound, Hardware, LaunchSequence, Start, Words, out_of_memory
from staticgrad.kernels.cuda.launch_graph import LaunchGraph, Module
from staticgrad.kernels.cuda.single_launch import starter
from staticgrad.kernels.cuda.staging import Staging
from staticgrad.kernels.cuda.stream import Stream
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.timing import seconds_of
from staticgrad.kernels.kernel import Kernel
from staticgrad.kernels.source_digest import source_digest
from staticgrad.kernels.table import ERROR_WORDS

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.array import Buffer
    from staticgrad.kernels.cuda.cublas import Cublas

Array = np.ndarray[Any, Any]
Compiler = Callable[[Sequence[Kernel], tuple[int, int]], bytes]
_REPORT_PAGE = 4096  # bytes
_DIRECT = 1 << 16  # bytes up to which an array is handed to the driver, which copies it aside


class _Thread(threading.local):
    """What each Python thread has of its own."""

    stream: Stream | None = None  # that it queues its work on; None until it first uses the GPU


class GPU(Hardware):
    """One GPU of this machine.

    Attributes:
        call: calls a function of the driver.
        driver: the module that has the driver's functions and types.
        streams: the handles of all streams. What waits for everything waits for these, not for the whole context: that
            would end the capture of a stream in another thread.
        idle_streams: handles and events of streams that nobody holds any more.

    Raises:
        DeviceError: there is no driver or no such device, it is too old, or the packages do not fit the driver.
    """

    def __init__(self, ordinal: int = 0, driver: Any = None, compiler: Compiler = toolkit.machine_code) -> None:
        """Other than for tests, `driver` is NVIDIA's and `compiler` makes the code that it loads."""
        super().__init__()
        self.driver = toolkit.driver() if driver is None else driver
        self.blocking = os.environ.get("CUDA_LAUNCH_BLOCKING") == "1"
        self.name = f"cuda:{ordinal}"
        self._pool: Any = None
        self.streams: list[Any] = []
        self.call = Calls(self.driver, self.name, self._reclaim)
        self._compiler = compiler
        self._thread = _Thread()
        count = self.call("cuDeviceGetCount")
        if ordinal >= count:
            there = "is 1 GPU" if count == 1 else f"are {count} GPUs"
            raise DeviceError(f"device: {self.name} was asked for and there {there}; use another one, or device='cpu'")
        self._alone = count == 1  # nobody makes another one the current one
        self._device = self.call("cuDeviceGet", ordinal)
        self._check_what_it_can()
        self.target = Target(processors=self._attribute("MULTIPROCESSOR_COUNT"))
        self.identity = f"sm_{_dotted(self.capability)}/{self.target}/{toolkit.versions()}/{source_digest('cuda')}"
        self.title = self.call("cuDeviceGetName", 256, self._device).partition(b"\0")[0].decode()
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        self.call("cuCtxSetCurrent", self._context)
        self._pool = self.call("cuDeviceGetDefaultMemPool", self._device)
        self._pool_attribute("RELEASE_THRESHOLD", 2**63 - 1)  # keep what is freed for the next allocation
        self.idle_streams: list[tuple[Any, Any]] = []
        self._default = Stream(self)
        self._staging = Staging(self)
        self._lock = threading.Lock()
        self._report_page = self._report_bytes = 0  # where words for reports are taken from, and what is left there
        self._allocate, self._free = self.driver.cuMemAllocAsync, self.driver.cuMemFreeAsync
        self.call.opened = True

    def _check_what_it_can(self) -> None:
        self.capability = (self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR"))
        if self.capability < toolkit.OLDEST:
            raise DeviceError(
                f"device: {self.name} has compute capability {_dotted(self.capability)}; staticgrad's kernels need "
                f"{_dotted(toolkit.OLDEST)} or newer (Ampere, 2020); use device='cpu'"
            )
        if not self._attribute("MEMORY_POOLS_SUPPORTED"):
            raise DeviceError(
                f"device: {self.name} has no memory pools, as some virtual GPUs do not; staticgrad's tensors need "
                "them; use device='cpu'"
            )

    def _attribute(self, name: str) -> int:
        which = getattr(self.driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.call("cuDeviceGetAttribute", which, self._device))

    def _pool_attribute(self, name: str, value: int | None = None) -> int:
        which = getattr(self.driver.CUmemPool_attribute, f"CU_MEMPOOL_ATTR_{name}")
        if value is None:
            return int(self.call("cuMemPoolGetAttribute", self._pool, which))
        self.call("cuMemPoolSetAttribute", self._pool, which, self.driver.cuuint64_t(value))
        return value

    # ------------------------------------------------------------ streams

    @property
    def stream(self) -> Stream:
        """The stream that this Python thread queues its work on; the device's context is the thread's then."""
        if self.call.failure:
            raise DeviceError(self.call.failure)
        found = self._thread.stream
        if found is None or not self._alone:  # with several GPUs, any library may have turned to another one
            self.call("cuCtxSetCurrent", self._context)
            if found is None:
                found = self._thread.stream = self._default
        return found

    def new_stream(self) -> Stream:
        self._enter()
        self.several = True
        return Stream(self)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[Stream]:
        before = self.stream
        self._thread.stream = stream
        try:
            yield stream
        finally:
            self._thread.stream = before

    def use(self, buffers: Iterable[Buffer]) -> None:
        if not self.several:
            return
        current, used = self.stream, list(buffers)
        for other in {buffer.stream for buffer in used} - {current}:
            current.wait_for(other)
        for buffer in used:
            buffer.stream = current

    # ------------------------------------------------------------ memory

    def allocate(self, nbytes: int, stream: Stream | None = None) -> int:
        handle = (stream or self.stream).handle
        code, address = self._allocate(nbytes, handle)
        if code:
            try:
                address = self.call.after(code, "cuMemAllocAsync", nbytes, handle)
            except OutOfMemoryError:
                raise out_of_memory(self, nbytes) from None
        return int(address)

    def free(self, address: int, stream: Any = None) -> None:
        if not self.call.failure:
            try:
                self._free(address, (stream or self._default).handle)
            except Exception:  # also while Python shuts down, when the driver may be gone
                return

    def give_back(self, *calls: tuple[Any, ...]) -> None:
        """Call functions that give something back, from wherever Python finds that nobody holds it; never raises.

        Args:
            calls: for each function its name and its arguments.
        """
        if self.call.failure:
            return
        try:
            self.driver.cuCtxPushCurrent(self._context)  # another GPU's work may have been interrupted
            try:
                for name, *arguments in calls:
                    getattr(self.driver, name)(*arguments)
            finally:
                self.driver.cuCtxPopCurrent()
        except Exception:
            return

    def _reclaim(self) -> None:
        """Give back what nobody uses: cycles of Python objects may hold memory, and the pool what has been freed."""
        gc.collect()
        if self._pool is not None:
            for stream in tuple(self.streams):
                self.driver.cuStreamSynchronize(stream)
            self.driver.cuMemPoolTrimTo(self._pool, 0)

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
        if values.nbytes > _DIRECT:
            self._staging.write(address, values, stream)
        elif values.nbytes:  # as bytes: the driver reads memory that is pinned only later, and the caller's may be
            self.call("cuMemcpyHtoDAsync", address, values.tobytes(), values.nbytes, stream.handle)

    def read(self, values: Array, address: int) -> None:
        stream = self.stream
        if values.nbytes:
            self.call("cuMemcpyDtoHAsync", values.ctypes.data, address, values.nbytes, stream.handle)
        stream.synchronize()

    def report_words(self) -> Words:
        """Pinned memory, never given back: a run may still be on its way when its program is gone."""
        self._enter()
        nbytes = 8 * ERROR_WORDS
        with self._lock:
            if self._report_bytes < nbytes:
                self._report_bytes = _REPORT_PAGE
                self._report_page = int(self.call("cuMemHostAlloc", _REPORT_PAGE, 0))
            self._report_bytes -= nbytes
            address = self._report_page + self._report_bytes
        values = (ctypes.c_int64 * ERROR_WORDS).from_address(address)
        values[:] = [0] * ERROR_WORDS
        return Words(address, values)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        if nbytes:
            self.call("cuMemcpyDtoDAsync", target, source, nbytes, self.stream.handle)

    def finish(self, *, everywhere: bool = True) -> None:
        own = self.stream.handle
        for stream in tuple(self.streams) if everywhere else (own,):
            self.call("cuStreamSynchronize", stream)

    # ------------------------------------------------------------ kernels

    def compile(self, kernels: Sequence[Kernel]) -> bytes:
        return self._compiler(kernels, self.capability) if kernels else b""

    def load(self, code: bytes, kernels: Mapping[str, Kernel]) -> dict[str, Any]:
        if not kernels:
            return {}
        self._enter()
        module = Module(self, code)
        return {symbol: module.function(symbol) for symbol in kernels}

    def starter(self, function: Any, kernel: Kernel, block: int) -> Start:
        return starter(self, function, kernel, block)

    def sequence(self, launches: Sequence[Bound], after: Sequence[Sequence[int]] | None = None) -> LaunchSequence:
        return LaunchGraph(self, launches, after)

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

    def _enter(self) -> None:
        """Make the device's context that of this Python thread."""
        _ = self.stream

    def close(self) -> None:
        self.call.failure = f"cuda: {self.name} was reset; make the tensors and compile the functions again"
        self.driver.cuDevicePrimaryCtxReset(self._device)
        self.driver.cuDevicePrimaryCtxRelease(self._device)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
