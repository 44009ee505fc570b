"""Whether a matrix product is left to BLAS or computed by a kernel generated for its shape: the faster one, measured.

The answer is kept for this machine in the disk cache, and for this process in memory, so that a product is timed once
and a program computes it the same way from then on.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from staticgrad.kernels.cache import DiskCache, content_key
from staticgrad.kernels.cpu import blas, machine_code
from staticgrad.kernels.cpu.blas_calls import GEMM_SYMBOL, GET_THREADS, SET_THREADS
from staticgrad.kernels.cpu.gemm import Product, gemm_ir, scratch_bytes
from staticgrad.kernels.cpu.host import host_key, installed_version
from staticgrad.kernels.cpu.symbols import address_of_symbol

MARGIN = 0.95  # of BLAS's time: a generated product must be this much faster
SECONDS = 0.004  # to time both ways of a product, at least two runs of each
LARGEST = 2**31  # multiplications: beyond, blocking for the caches decides, which only BLAS has
_SYMBOL = "product"

_known: dict[Product, bool] = {}
_lock = threading.Lock()


def own_is_faster(product: Product, cache: DiskCache | None = None) -> bool:
    """Whether the generated kernel of a product is faster here than BLAS, both on one thread and without epilogue."""
    one = replace(product, batch=1, stride_a=0, stride_b=0, stride_c=0)  # a batch is its matrices, one after the other
    one = replace(one, operands=(), outputs=(), sums=0)
    with _lock:
        if one not in _known:
            _known[one] = _remembered(one, cache)
        return _known[one]


def _remembered(product: Product, cache: DiskCache | None) -> bool:
    if product.m * product.n * product.k > LARGEST:
        return False
    scipy = f"scipy-{installed_version('scipy')}"
    key = content_key("product", host_key(), scipy, repr(sorted(asdict(product).items())))
    found = cache.get("choice", key) if cache is not None else None
    if found is not None:
        return found == b"own"
    own = _measured(product)
    if cache is not None:
        cache.put("choice", key, b"own" if own else b"blas")
    return own


def _measured(product: Product) -> bool:
    """Time both, in turns; the least time of each counts."""
    arrays = [np.ones(size, product.dtype) for size in _sizes(product)]
    ours, code = _generated(product, arrays)
    theirs = _through_blas(product, arrays)
    known = blas.addresses()
    before = ctypes.CFUNCTYPE(ctypes.c_int)(known[GET_THREADS])()
    put = ctypes.CFUNCTYPE(None, ctypes.c_int)(known[SET_THREADS])
    put(1)
    try:
        best = [_seconds(ours), _seconds(theirs)]  # the first runs bring the data into the caches
        best = [min(first, _seconds(run)) for first, run in zip(best, (ours, theirs), strict=True)]
        repeats = max(1, min(200, int(SECONDS / (sum(best) + 1e-9))))
        for _ in range(repeats):
            best = [min(least, _seconds(run)) for least, run in zip(best, (ours, theirs), strict=True)]
    finally:
        put(before)
        code.free()
    return best[0] < MARGIN * best[1]


def _sizes(product: Product) -> list[int]:
    rows_a, rows_b = product.k if product.transpose_a else product.m, product.n if product.transpose_b else product.k
    scratch = scratch_bytes(product) // np.dtype(product.dtype).itemsize + 16
    return [rows_a * product.lda, rows_b * product.ldb, product.m * product.ldc, scratch]


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _generated(product: Product, arrays: list[Any]) -> tuple[Callable[[], None], machine_code.Code]:
    code = machine_code.load([_object_of(product)], [_SYMBOL], address_of_symbol, [])
    pointers = [array.ctypes.data for array in arrays]
    pointers[3] += -pointers[3] % 64
    if not scratch_bytes(product):
        pointers.pop()
    kinds = [ctypes.c_void_p] * len(pointers) + [ctypes.c_int64] * 2
    function = ctypes.CFUNCTYPE(None, *kinds)(code.address(_SYMBOL))
    return lambda: function(*pointers, 0, product.m), code


def _object_of(product: Product) -> bytes:
    from staticgrad.kernels.cpu.llvm import llvm_lock

    with llvm_lock() as llvm:
        return _emitted(llvm, product)


def _emitted(llvm: Any, product: Product) -> bytes:
    from staticgrad.kernels.cpu.llvm import machine

    emitted: bytes = machine(3).emit_object(llvm.parse_assembly(gemm_ir(product, _SYMBOL)))
    return emitted


def _through_blas(product: Product, arrays: list[Any]) -> Callable[[], None]:
    """The same product as the driver has BLAS compute it: Fortran's view, in which everything is transposed."""
    number = ctypes.c_float if product.dtype == "float32" else ctypes.c_double
    flags = [ctypes.c_char(b"T" if flip else b"N") for flip in (product.transpose_b, product.transpose_a)]
    sizes = [ctypes.c_int(size) for size in (product.n, product.m, product.k)]
    leading = [ctypes.c_int(size) for size in (product.ldb, product.lda, product.ldc)]
    one, zero = number(1.0), number(0.0)
    a, b, c = (array.ctypes.data for array in arrays[:3])
    values = [*flags, *sizes, one, b, leading[0], a, leading[1], zero, c, leading[2]]
    pointers = [value if isinstance(value, int) else ctypes.addressof(value) for value in values]
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(pointers))(blas.addresses()[GEMM_SYMBOL[product.dtype]])

    def run(keep: Any = values) -> None:
        function(*pointers)

    return run
