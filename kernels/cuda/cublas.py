"""NVIDIA's cuBLAS: the one file that knows how it is found and called.

Its functions come from nvmath-python, NVIDIA's own binding, or where that is not installed from the library itself by
`ctypes`, under the same names; cuda-pathfinder finds the library in NVIDIA's wheels, in Conda or in a CUDA toolkit.
CuPy's binding will not do: it has no `cublasSetWorkspace`, and refuses every call while a stream is captured.
"""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from staticgrad.graph.errors import DeviceError
from staticgrad.kernels.cuda.array import Buffer
from staticgrad.kernels.cuda.library import BoundProduct, Library, ProductCall

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.gpu import GPU
    from staticgrad.kernels.cuda.stream import Stream

INSTALL = "install it with: pip install 'staticgrad[cublas]'"
STATUS = {
    1: "CUBLAS_STATUS_NOT_INITIALIZED", 3: "CUBLAS_STATUS_ALLOC_FAILED", 7: "CUBLAS_STATUS_INVALID_VALUE",
    8: "CUBLAS_STATUS_ARCH_MISMATCH", 11: "CUBLAS_STATUS_MAPPING_ERROR", 13: "CUBLAS_STATUS_EXECUTION_FAILED",
    14: "CUBLAS_STATUS_INTERNAL_ERROR", 15: "CUBLAS_STATUS_NOT_SUPPORTED", 16: "CUBLAS_STATUS_LICENSE_ERROR",
}  # fmt: skip
_TYPES = {"float32": 0, "float64": 1}  # CUDA_R_32F, CUDA_R_64F
_COMPUTE = {"float32": 68, "float64": 70, "tf32": 77, "bfloat16": 75}  # CUBLAS_COMPUTE_32F, …_64F, …_FAST_TF32, …
_PLAIN, _TRANSPOSED, _BEST = 0, 1, -1  # CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_INVALIDATED = 901  # CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
_ATTEMPTS = 5


class Cublas(Library):
    """cuBLAS on one GPU.

    It needs memory to work in, which must be given to it where a product becomes part of a CUDA graph, and must not be
    shared by products that may run at the same time: each stream has its own.

    Raises:
        DeviceError: the library is missing, or cannot be used; says why.
    """

    name = "cublas"

    def __init__(self, gpu: GPU, functions: Any = None) -> None:
        self._gpu = gpu
        self._functions = functions if functions is not None else _found()
        self._lock = threading.RLock()  # a handle has one stream at a time
        self._workspace_bytes = (32 if gpu.capability >= (9, 0) else 4) << 20  # what NVIDIA recommends
        self._own_stream: Any = None
        self._scalars = {
            dtype: (number(1), number(0))
            for dtype, number in (("float32", ctypes.c_float), ("float64", ctypes.c_double))
        }
        self._handle = self._call("create")
        self.version = str(self._call("get_version", self._handle))

    def run(self, product: BoundProduct) -> None:
        stream = self._gpu.stream
        with self._lock:
            self._queue(product, stream.handle, self.workspace(stream))

    def captured(self, product: BoundProduct) -> Any:
        """A CUDA graph of one product, with the current stream's memory to work in; the caller destroys it.

        A stream of its own is captured, so that what other threads queue meanwhile is not: that they, or the library
        when it loads a kernel, allocate memory does no harm then.
        """
        workspace = self.workspace(self._gpu.stream)
        with self._lock:
            for _ in range(_ATTEMPTS):  # to wait for the whole GPU, as other libraries may, ends all captures
                code, graph, trouble = self._capture(product, workspace)
                if code != _INVALIDATED:
                    break
        if trouble is None and not code:
            return graph
        if not code:
            self._gpu.give_back(("cuGraphDestroy", graph))
        raise trouble or self._gpu.call.error("cuStreamEndCapture", code)

    def _capture(self, product: BoundProduct, workspace: int) -> tuple[Any, Any, BaseException | None]:
        """How the capture of a product ended, its graph, and what the library has raised."""
        call, driver = self._gpu.call, self._gpu.driver
        if self._own_stream is None:
            self._own_stream = call("cuStreamCreate", 1)
        call("cuStreamBeginCapture", self._own_stream, driver.CUstreamCaptureMode(_RELAXED))
        trouble = None
        try:
            self._queue(product, self._own_stream, workspace)
        except BaseException as error:
            trouble = error
        return *driver.cuStreamEndCapture(self._own_stream), trouble

    def workspace(self, stream: Stream) -> int:
        """The address of the memory to work in, of a stream."""
        if stream.workspace is None:
            stream.workspace = Buffer(self._gpu, self._workspace_bytes)
            stream.workspace.stream = SimpleNamespace(handle=stream.handle)  # freed in its order, after the Stream
        return stream.workspace.address

    def _queue(self, product: BoundProduct, stream: Any, workspace: int) -> None:
        call, (a, b, c) = product.call, product.addresses
        self._call("set_stream", self._handle, int(stream))
        self._call("set_workspace", self._handle, workspace, self._workspace_bytes)  # a new stream has none
        one, zero = (ctypes.addressof(number) for number in self._scalars[call.dtype])
        name, arguments = gemm(call, one, zero, a, b, c)
        self._call(name, self._handle, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._functions, name)(*arguments)
        except Exception as error:  # each binding has errors of its own
            status = getattr(error, "status", None)
            what = STATUS.get(int(status), f"status {status}") if status is not None else str(error)
            raise DeviceError(
                f"cuda: cuBLAS has failed with {what} in {name} on {self._gpu.name}; the library has to be of the "
                "driver's CUDA version, and some of the GPU's memory free"
            ) from error


def gemm(call: ProductCall, one: int, zero: int, a: int, b: int, c: int) -> tuple[str, list[int]]:
    """The function for a product, and its arguments behind the handle.

    cuBLAS has matrices by columns: it reads a row-major matrix as its transpose, so that it is asked for the transpose
    of c, which is that of b by that of a.

    Args:
        one, zero: addresses of numbers of the dtype.
    """
    kind = _TYPES[call.dtype]
    flips = [_TRANSPOSED if flip else _PLAIN for flip in (call.transpose_b, call.transpose_a)]
    sizes = [call.n, call.m, call.k]
    how = [_COMPUTE[call.precision], _BEST]
    if call.batch == 1:
        first, second, result = [b, kind, call.ldb], [a, kind, call.lda], [c, kind, call.ldc]
        return "gemm_ex_64", [*flips, *sizes, one, *first, *second, zero, *result, *how]
    first, second = [b, kind, call.ldb, call.stride_b], [a, kind, call.lda, call.stride_a]
    result = [c, kind, call.ldc, call.stride_c, call.batch]
    return "gemm_strided_batched_ex_64", [*flips, *sizes, one, *first, *second, zero, *result, *how]


# ---------------------------------------------------------------- bindings


def _found() -> Any:
    try:
        from nvmath.bindings import cublas

        return cublas
    except ImportError:
        return LoadedLibrary.found()


class StatusError(Exception):
    """What a function of the library has answered instead of 0."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


_ADDRESS, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_MATRIX, _STACK = [_ADDRESS, _INT, _LONG], [_ADDRESS, _INT, _LONG, _LONG]
_PRODUCT = [_ADDRESS, _INT, _INT, _LONG, _LONG, _LONG, _ADDRESS]
_FUNCTIONS: dict[str, tuple[str, list[Any]]] = {
    "set_stream": ("cublasSetStream_v2", [_ADDRESS, _ADDRESS]),
    "set_workspace": ("cublasSetWorkspace_v2", [_ADDRESS, _ADDRESS, ctypes.c_size_t]),
    "gemm_ex_64": ("cublasGemmEx_64", [*_PRODUCT, *_MATRIX, *_MATRIX, _ADDRESS, *_MATRIX, _INT, _INT]),
    "gemm_strided_batched_ex_64": (
        "cublasGemmStridedBatchedEx_64",
        [*_PRODUCT, *_STACK, *_STACK, _ADDRESS, *_STACK, _LONG, _INT, _INT],
    ),
}


class LoadedLibrary:
    """The functions of `libcublas` that are needed, under the names that nvmath-python gives them."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, (symbol, kinds) in _FUNCTIONS.items():
            setattr(self, name, _checking(getattr(library, symbol), kinds))

    @classmethod
    def found(cls) -> LoadedLibrary:
        """The library of this machine.

        Raises:
            DeviceError: there is none.
        """
        try:
            from cuda import pathfinder
        except ImportError as missing:
            raise DeviceError(f"cuda: cuBLAS cannot be looked for without cuda-pathfinder; {INSTALL}") from missing
        try:
            return cls(ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path))
        except (OSError, AttributeError) as error:
            raise DeviceError(f"cuda: the cuBLAS that was found cannot be loaded: {error}; {INSTALL}") from error
        except (pathfinder.DynamicLibNotFoundError, RuntimeError) as missing:
            raise DeviceError(f"cuda: cuBLAS is not installed; {INSTALL}") from missing

    def create(self) -> int:
        """A new handle."""
        handle = ctypes.c_void_p()
        _checking(self._library.cublasCreate_v2, [_ADDRESS])(ctypes.addressof(handle))
        return handle.value or 0

    def get_version(self, handle: int) -> int:
        """Such as 130101."""
        version = ctypes.c_int()
        _checking(self._library.cublasGetVersion_v2, [_ADDRESS, _ADDRESS])(handle, ctypes.addressof(version))
        return version.value


def _checking(function: Any, kinds: list[Any]) -> Any:
    """A function of the library that raises where it does not answer 0."""
    function.argtypes, function.restype = kinds, ctypes.c_int

    def checked(*arguments: int) -> None:
        status = function(*arguments)
        if status:
            raise StatusError(status)

    return checked


__all__ = ["Cublas", "LoadedLibrary", "gemm"]
