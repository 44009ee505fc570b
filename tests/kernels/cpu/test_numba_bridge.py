"""The bridge to Numba: what a Python kernel becomes as LLVM IR."""

import ctypes
import math
import re
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba.core.errors import NumbaError
from numba.extending import register_jitable

from staticgrad.kernels.addresses import Arena, Argument
from staticgrad.kernels.cache import DiskCache, content_key
from staticgrad.kernels.cpu import native
from staticgrad.kernels.cpu.gemm.product import host
from staticgrad.kernels.cpu.host import toolchain_key
from staticgrad.kernels.cpu.llvm import with_lanes
from staticgrad.kernels.cpu.numba_bridge import compile_count, kernel_ir
from staticgrad.kernels.cpu.steps import KernelCall
from staticgrad.kernels.vector_math import exp, sin

N = 37  # no multiple of any vector width


def run(function, *arrays):
    """Compile a kernel for the dtypes of the arrays and run it on them; its IR."""
    text = kernel_ir(function, [array.dtype for array in arrays], "kernel")
    addresses = tuple(Argument(index) for index in range(len(arrays)))
    step = native.load(native.build({"kernel": text}, [KernelCall("kernel", addresses)]))
    table = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    step(0, ctypes.addressof(table))
    return text


def defined(text):
    return re.findall(r"^define [^@]*@\"?([\w.$]+)", text, re.MULTILINE)


def external(text):
    return [name for name in re.findall(r"^declare [^@]*@\"?([\w.$]+)", text, re.MULTILINE) if "llvm." not in name]


def add_twelve(p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11):
    for i in range(N):
        p10[i] = p0[i] + p1[i] + p2[i] + p3[i] + p4[i]
        p11[i] = p5[i] * p6[i] * p7[i] * p8[i] * p9[i]


def test_twelve_pointers_are_known_not_to_overlap():
    """LLVM gives up vectorising at more than eight checks at run time; with `noalias` there are none."""
    arrays = [np.full(N, i + 1, np.float32) for i in range(12)]
    text = run(add_twelve, *arrays)
    np.testing.assert_array_equal(arrays[10], 15)
    np.testing.assert_array_equal(arrays[11], 6 * 7 * 8 * 9 * 10)
    assert re.search(r"<\d+ x float>", text)
    assert "vector.memcheck" not in text
    assert text.count("noalias") >= 12


def test_only_the_kernel_is_left():
    text = kernel_ir(add_twelve, [np.dtype(np.float32)] * 12, "name_of_mine")
    assert defined(text) == ["name_of_mine"]
    assert external(text) == []
    assert "numba" not in text.lower()
    assert "_ZN" not in text


def test_the_text_depends_on_the_function_alone():
    types = [np.dtype(np.float32)] * 12
    assert kernel_ir(add_twelve, types, "k") == kernel_ir(add_twelve, types, "k")


def affine(p0, p1, p2):
    for i in range(N):
        p2[i] = p0[i] * p1[i] + p0[i]


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]
)
def test_numbers_of_every_type(dtype):
    a, b, out = np.arange(N, dtype=dtype), np.full(N, 3, dtype), np.zeros(N, dtype)
    run(affine, a, b, out)
    np.testing.assert_array_equal(out, a * b + a)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers(dtype):
    a, b, out = np.arange(N) * (1 + 2j), np.full(N, 3 - 1j), np.zeros(N)
    a, b, out = (array.astype(dtype) for array in (a, b, out))
    run(affine, a, b, out)
    np.testing.assert_allclose(out, a * b + a, rtol=1e-6)


def masks(p0, p1, p2, p3):
    for i in range(N):
        p2[i] = p0[i] < p1[i]
        p3[i] = p0[i] if p2[i] != 0 else p1[i]


def test_bool_is_stored_as_numpy_has_it():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, N)).astype(np.float32)
    mask, smaller = np.full(N, True), np.zeros(N, np.float32)
    text = run(masks, a, b, mask, smaller)
    assert mask.view(np.uint8).max() == 1
    np.testing.assert_array_equal(mask, a < b)
    np.testing.assert_array_equal(smaller, np.minimum(a, b))
    assert re.search(r"<\d+ x float>", text)


def not_a_number(p0, p1, p2):
    for i in range(N):
        p1[i] = p0[i] != p0[i]
        p2[i] = math.isinf(p0[i])


def test_nan_and_infinity_are_not_assumed_away():
    values = np.ones(N, np.float32)
    values[[0, 5]], values[3], values[4] = np.nan, np.inf, -np.inf
    nan, infinite = np.zeros(N, bool), np.zeros(N, bool)
    text = run(not_a_number, values, nan, infinite)
    np.testing.assert_array_equal(nan, np.isnan(values))
    np.testing.assert_array_equal(infinite, np.isinf(values))
    assert not re.search(r"\b(nnan|ninf|nsz|arcp|afn|reassoc|fast)\b", text)


def divide(p0, p1, p2):
    for i in range(N):
        p2[i] = p0[i] / p1[i]


def test_division_by_zero_is_infinity():
    a, b, out = np.linspace(-1, 1, N), np.zeros(N), np.zeros(N)
    run(divide, a, b, out)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_array_equal(out, a / b)


def reciprocals(p0, p1, p2):
    shared = p0[9]
    for i in range(N):
        p1[i] = np.float32(1) / math.sqrt(p0[i])
        p2[i] = p0[i] / shared


def test_division_and_root_are_exact_and_right_at_the_ends():
    values = np.random.default_rng(2).random(N).astype(np.float32)
    values[:10] = [0, -0.0, np.inf, np.nan, 1e-42, 3e38, -1, 1, 1e-30, 1e-40]
    roots, quotients = np.zeros((2, N), np.float32)
    run(reciprocals, values, roots, quotients)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(roots, np.float32(1) / np.sqrt(values))
        np.testing.assert_array_equal(quotients, values / values[9])


def signs_of_zero(p0, p1, p2):
    for i in range(N):
        p1[i] = p0[i] + np.float32(0)
        p2[i] = np.float32(0) - p0[i]


def test_zero_keeps_its_sign():
    zeros, sums, differences = np.full(N, -0.0, np.float32), np.ones(N, np.float32), np.ones(N, np.float32)
    run(signs_of_zero, zeros, sums, differences)
    assert not np.signbit(sums).any()
    run(signs_of_zero, sums, zeros, differences)
    assert not np.signbit(differences).any()


def total(p0, p1):
    result = np.float32(0.0)
    for i in range(N):
        result += p0[i]
    p1[0] = result


def test_sums_keep_their_order():
    values, out = np.float32(10.0) ** np.random.default_rng(1).integers(-6, 6, N).astype(np.float32), np.zeros(1, "f4")
    run(total, values, out)
    expected = np.float32(0.0)
    for value in values:
        expected = np.float32(expected + value)
    assert out[0] == expected


@numba.njit(forceinline=True, error_model="numpy")
def square(x):
    return x * x


@register_jitable(forceinline=True, error_model="numpy")
def cube(x):
    return square(x) * x


def powers(p0, p1):
    for i in range(N):
        p1[i] = square(p0[i]) + cube(p0[i])


def test_called_functions_are_inlined():
    a, out = np.arange(N, dtype=np.float32), np.zeros(N, np.float32)
    text = run(powers, a, out)
    np.testing.assert_array_equal(out, a * a + a * a * a)
    assert defined(text) == ["kernel"]
    assert re.search(r"<\d+ x float>", text)


def log_gamma(p0, p1):
    for i in range(N):
        p1[i] = math.lgamma(p0[i])


def test_the_c_library_is_all_that_may_be_left():
    a, out = np.arange(1, N + 1, dtype=np.float64), np.zeros(N)
    assert external(run(log_gamma, a, out)) == ["lgamma"]
    np.testing.assert_allclose(out, [math.lgamma(x) for x in a], rtol=1e-14)


def nested(p0, p1):
    for i in range(5):
        for j in range(7):
            p1[j * 5 + i] = p0[i * 7 + j]
    k = 35
    while k < N:
        p1[k] = -p0[k]
        k += 1


def test_nested_and_while_loops():
    a, out = np.arange(N, dtype=np.int32), np.zeros(N, np.int32)
    run(nested, a, out)
    np.testing.assert_array_equal(out[:35].reshape(7, 5), a[:35].reshape(5, 7).T)
    assert out[35:].tolist() == [-35, -36]


def wrong(p0):
    p0[0] = "text"


def test_a_kernel_that_does_not_compile_raises_and_leaves_the_bridge_working():
    with pytest.raises(NumbaError):
        kernel_ir(wrong, [np.dtype(np.float32)], "kernel")
    test_called_functions_are_inlined()


def test_compilations_are_counted():
    before = compile_count()
    kernel_ir(affine, [np.dtype(np.float32)] * 3, "kernel")
    assert compile_count() == before + 1


def test_a_second_process_builds_from_the_cache_without_numba(tmp_path):
    cache = DiskCache(tmp_path / "cache")
    key = content_key("affine", toolchain_key())
    assert cache.put("kernel", key, kernel_ir(affine, [np.dtype(np.float32)] * 3, "affine").encode())
    step = KernelCall("affine", (Arena(0), Arena(256), Arena(512)))
    code = f"""
import ctypes, sys
from pathlib import Path
from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cpu import native
from staticgrad.kernels.cpu.gemm.product import host
from staticgrad.kernels.addresses import Arena
from staticgrad.kernels.cpu.steps import KernelCall
text = DiskCache(Path({str(cache.directory)!r})).get("kernel", {key!r})
step = native.load(native.build({{"affine": text.decode()}}, [{step!r}]))
arena = (ctypes.c_float * 256)(*[2.0] * 128)
step(ctypes.addressof(arena), 0)
assert list(arena[128:165]) == [6.0] * 37 and arena[165] == 0
assert native.compile_count() == 0 and "numba" not in sys.modules
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "ok", done.stderr


def sines(p0, p1):
    for i in range(N):
        p1[i] = sin(p0[i]) + exp(p0[i])


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("float64", 64)])
def test_functions_that_compute_in_float64_do_not_halve_the_lanes(dtype, bits):
    given, found = np.linspace(-3, 3, N).astype(dtype), np.zeros(N, dtype)
    text = run(sines, given, found)
    np.testing.assert_allclose(found, np.sin(given) + np.exp(given), rtol=1e-5)
    lanes = re.findall(rf"llvm\.fmuladd\.v(\d+)f{bits}", text)
    assert max(map(int, lanes)) == host().vector_bytes * 8 // bits


def test_loops_are_told_how_many_lanes_to_take():
    text = "\n".join(["define void @f() {", "entry:", "  br label %B1", "B1:  ; preds", "  br label %B1", "}"])
    changed = with_lanes(text, 16).splitlines()
    assert changed[:4] == text.splitlines()[:4]
    assert changed[4] == "  br label %B1, !llvm.loop !1000001"
    assert changed[6:] == [
        '!1000000 = !{!"llvm.loop.vectorize.width", i32 16}',
        "!1000001 = distinct !{!1000001, !1000000}",
    ]
