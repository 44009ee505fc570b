"""Whether a generated product or BLAS is faster for one shape on this machine: measured once, then remembered."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from staticgrad.kernels.cache import DiskCache, content_key
from staticgrad.kernels.cpu import native
from staticgrad.kernels.cpu.gemm import Product, extent, gemm_ir, grain, scratch_bytes
from staticgrad.kernels.cpu.steps import Argument, Gemm, KernelCall, Step

Choice = Literal["own", "blas"]
ADVANTAGE = 0.95  # of BLAS's time: what ours may take at most to be chosen
LARGEST = 2**28  # multiplications, beyond which BLAS's blocking for caches is taken for granted
_SECONDS = 0.0005
_ROUNDS = 5
_VERSION = 1  # of the generated code: another one is measured anew
_known: dict[str, Choice] = {}


def faster(product: Product, cache: DiskCache) -> Choice:
    """ "own" where the generated kernel takes at most 95 % of the time of BLAS, on one thread; else "blas".

    An epilogue is left out of the measurement. The answer is kept in this process and in `cache`.
    """
    product = replace(product, operands=(), outputs=())
    if product.batch * product.m * product.n * product.k > LARGEST:
        return "blas"
    key = content_key(native.host_key(), repr(product), str(_VERSION))
    if key not in _known:
        stored = cache.get("choice", key)
        if stored in (b"own", b"blas"):
            _known[key] = "own" if stored == b"own" else "blas"
        else:
            _known[key] = _measured(product)
            cache.put("choice", key, _known[key].encode())
    return _known[key]


def _measured(product: Product) -> Choice:
    own, blas = _times(product)
    return "own" if own <= ADVANTAGE * blas else "blas"


def _times(product: Product) -> tuple[float, float]:
    """The least seconds of ours and of BLAS, in turns."""
    arrays = [np.ones(count, product.dtype) for count in _elements(product)]
    arrays.append(np.empty(scratch_bytes(product) + 64, np.uint8))
    pointers = [array.ctypes.data for array in arrays]
    pointers[3] += -pointers[3] % 64
    table = (ctypes.c_void_p * 4)(*pointers)
    multiplications = product.batch * product.m * product.n * product.k
    repeats = max(1, 2**19 // multiplications)  # so that the call itself does not count
    steps = _steps(product, repeats)
    programs = [
        native.load(native.build({"own": gemm_ir(product, "own")}, steps[0])),
        native.load(native.build({}, steps[1])),
    ]
    address = ctypes.addressof(table)
    best = [float("inf")] * 2
    deadline = time.perf_counter() + _SECONDS
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() < deadline:
        best = [min(least, _seconds(program, address)) for least, program in zip(best, programs, strict=True)]
        rounds += 1
    return best[0], best[1]


def _seconds(program: Callable[[int, int], None], table: int) -> float:
    start = time.perf_counter()
    program(0, table)
    return time.perf_counter() - start


def _steps(product: Product, repeats: int) -> tuple[list[Step], list[Step]]:
    addresses = tuple(map(Argument, range(4 if scratch_bytes(product) else 3)))
    own = KernelCall("own", addresses, extent(product), grain(product))
    a, b, c = map(Argument, range(3))
    blas = Gemm(
        product.dtype,
        product.m,
        product.n,
        product.k,
        product.transpose_a,
        product.transpose_b,
        a,
        b,
        c,
        product.lda,
        product.ldb,
        product.ldc,
        product.alpha,
        product.beta,
        product.batch,
        product.stride_a,
        product.stride_b,
        product.stride_c,
    )
    return [own] * repeats, [blas] * repeats


def _elements(product: Product) -> tuple[int, int, int]:
    """How many elements A, B and C reach over."""
    last = product.batch - 1
    return (
        last * product.stride_a + (product.k if product.transpose_a else product.m) * product.lda,
        last * product.stride_b + (product.n if product.transpose_b else product.k) * product.ldb,
        last * product.stride_c + product.m * product.ldc,
    )
