"""The addresses of SciPy's BLAS, which the driver calls for matrix products.

`scipy.linalg.cython_blas` publishes every BLAS routine as a C function pointer, but importing it runs all of
`scipy.linalg`, over 100 ms. The same routines can be looked up through the dynamic loader in about a millisecond:
opening the extension file maps the BLAS it is linked to. SciPy's own wheels prefix the names with `scipy_`, other
builds do not. Where neither name is found, the published pointers are used.

OpenBLAS also says, and can be told, how many threads it uses; the driver turns them off while a step runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

GEMM_SYMBOL = {"float32": "staticgrad_sgemm", "float64": "staticgrad_dgemm"}
GEMV_SYMBOL = {"float32": "staticgrad_sgemv", "float64": "staticgrad_dgemv"}
GET_THREADS, SET_THREADS = "staticgrad_get_threads", "staticgrad_set_threads"
BLAS_SYMBOLS = frozenset((*GEMM_SYMBOL.values(), *GEMV_SYMBOL.values(), GET_THREADS, SET_THREADS))
_ROUTINES = {f"staticgrad_{name}": name for name in ("sgemm", "dgemm", "sgemv", "dgemv")}
_PATIENCE = "OPENBLAS_THREAD_TIMEOUT"  # OpenBLAS reads it when it is loaded


@cache
def addresses() -> dict[str, int]:
    """The address of each BLAS routine by the symbol that the driver uses for it."""
    return {**(_from_loader() or _from_scipy()), **_threads()}


def _from_loader() -> dict[str, int] | None:
    path = _extension_path()
    if path is None or sys.platform != "linux":
        return None
    try:
        with _idle_threads_asleep():
            library = ctypes.CDLL(str(path))
    except OSError:
        return None
    for pattern in ("scipy_{}_", "{}_"):
        try:
            return {symbol: _address(library[pattern.format(name)]) for symbol, name in _ROUTINES.items()}
        except AttributeError:
            continue
    return None


@contextlib.contextmanager
def _idle_threads_asleep() -> Iterator[None]:
    """Have an OpenBLAS that is loaded inside the block send its threads to sleep after 2**20 ticks of the processor.

    By its own choice they watch for work for 2**28 ticks, a tenth of a second, and the first steps of a program would
    share the cores with them.
    """
    if _PATIENCE in os.environ:
        yield
        return
    os.environ[_PATIENCE] = "20"
    try:
        yield
    finally:
        os.environ.pop(_PATIENCE, None)


def _threads() -> dict[str, int]:
    """The functions that ask for and set BLAS's number of threads; where there are none, ones that answer 0."""
    path = _extension_path()
    try:
        library = ctypes.CDLL(str(path) if path is not None and sys.platform == "linux" else None)
        for prefix in ("scipy_openblas", "openblas"):
            if hasattr(library, f"{prefix}_set_num_threads"):
                get, put = library[f"{prefix}_get_num_threads"], library[f"{prefix}_set_num_threads"]
                return {GET_THREADS: _address(get), SET_THREADS: _address(put)}
    except OSError:
        pass
    harmless = _address(ctypes.CDLL(None).sched_yield)  # takes nothing, answers 0: fewer than two threads to turn off
    return {GET_THREADS: harmless, SET_THREADS: harmless}


def _extension_path() -> Path | None:
    scipy = importlib.util.find_spec("scipy")
    if scipy is None or scipy.origin is None:
        return None
    folder = Path(scipy.origin).parent / "linalg"
    candidates = (folder / f"cython_blas{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    if address is None:
        raise AttributeError("the routine has no address")
    return address


def _from_scipy() -> dict[str, int]:
    from scipy.linalg import cython_blas

    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found = {}
    for symbol, name in _ROUTINES.items():
        capsule = cython_blas.__pyx_capi__[name]
        found[symbol] = int(get_pointer(capsule, get_name(capsule)))
    return found
