"""The driver: every kind of step does what it says, at any length."""

import ctypes
import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest

from staticgrad.kernels.addresses import Arena, Argument
from staticgrad.kernels.cpu import blas, native
from staticgrad.kernels.cpu.blas_calls import GET_THREADS, SET_THREADS
from staticgrad.kernels.cpu.driver import STEPS_PER_FUNCTION, driver_ir
from staticgrad.kernels.cpu.steps import Copy, Fill, Gemm, KernelCall
from staticgrad.kernels.products import StoredProduct

COUNT_IR = """
define void @count(ptr %p) {
  %x = load i64, ptr %p
  %y = add i64 %x, 1
  store i64 %y, ptr %p
  ret void
}"""


def run(steps, arena, *arrays, kernels=None, parallel=False):
    table = (ctypes.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))
    step = native.load(native.build(kernels or {}, steps, parallel=parallel))
    step(arena.ctypes.data, ctypes.addressof(table))


def test_fill_and_copy():
    arena, table = np.arange(64, dtype=np.uint8), np.zeros(16, np.uint8)
    run([Copy(Arena(8), Argument(0, 4), 8), Fill(Arena(0), 4, 0xFF), Fill(Argument(0), 2, 9)], arena, table)
    assert arena[:8].tolist() == [255, 255, 255, 255, 4, 5, 6, 7]
    assert table.tolist() == [9, 9, 0, 0, 8, 9, 10, 11, 12, 13, 14, 15, 0, 0, 0, 0]


def test_poison_is_nan():
    arena = np.zeros(4, np.float32)
    run([Fill(Arena(0), 16, 0xFF)], arena)
    assert np.isnan(arena).all()


@pytest.mark.parametrize("length", [1, STEPS_PER_FUNCTION, STEPS_PER_FUNCTION + 1, 3000])
def test_long_programs_run_every_step(length):
    arena = np.zeros(2, np.int64)
    run([KernelCall("count", (Arena(8),))] * length, arena, kernels={"count": COUNT_IR})
    assert arena.tolist() == [0, length]


def test_steps_run_in_order():
    arena = np.zeros(3, np.int64)
    steps = [Fill(Arena(0), 8, 1), Copy(Arena(0), Arena(8), 8), Fill(Arena(0), 8, 2), Copy(Arena(0), Arena(16), 8)]
    run(steps, arena)
    assert arena.view(np.uint8)[::8].tolist() == [2, 1, 2]


def test_offsets_beyond_four_gigabytes():
    assert f"i64 {5 * 2**30}" in driver_ir([Fill(Arena(5 * 2**30), 4)])


def gemm_reference(product, a, b, c):
    """What a Gemm must do, with NumPy on the same buffers."""

    def matrix(buffer, rows, columns, leading, start):
        return np.lib.stride_tricks.as_strided(
            buffer[start:], (rows, columns), (leading * buffer.itemsize, buffer.itemsize)
        )

    m, n, k = product.m, product.n, product.k
    expected = c.copy()
    for i in range(product.batch):
        left = matrix(a, *((k, m) if product.transpose_a else (m, k)), product.lda, i * product.stride_a)
        right = matrix(b, *((n, k) if product.transpose_b else (k, n)), product.ldb, i * product.stride_b)
        left, right = left.T if product.transpose_a else left, right.T if product.transpose_b else right
        matrix(expected, m, n, product.ldc, i * product.stride_c)[...] = left @ right
    return expected


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k", "batch", "pad"),
    [
        (3, 4, 5, 1, 0),
        (3, 4, 5, 1, 2),
        (3, 4, 5, 4, 1),
        (7, 1, 5, 1, 0),
        (7, 1, 5, 2, 3),
        (1, 7, 5, 1, 0),
        (1, 1, 6, 1, 1),
        (3, 4, 0, 1, 0),
        (3, 4, 0, 3, 0),
        (0, 4, 5, 2, 0),
        (3, 0, 5, 2, 0),
        (3, 4, 5, 0, 0),
        (33, 65, 47, 2, 5),
        (150, 65, 9, 1, 5),
        (65, 150, 9, 1, 5),
        (300, 1, 900, 1, 0),
        (300, 1, 900, 1, 3),
        (1, 300, 900, 1, 0),
        (1, 300, 900, 1, 3),
    ],
)
def test_gemm_is_the_row_major_product(dtype, transpose_a, transpose_b, m, n, k, batch, pad, parallel):
    rows_a, lda = (k, m + pad) if transpose_a else (m, k + pad)
    rows_b, ldb = (n, k + pad) if transpose_b else (k, n + pad)
    ldc = n + pad
    random = np.random.default_rng(m * 100 + n * 10 + k)
    a, b, c = (
        random.standard_normal(max(1, batch) * rows * leading + 8).astype(dtype)
        for rows, leading in ((rows_a, lda), (rows_b, ldb), (m, ldc))
    )
    strides = {"stride_a": rows_a * lda, "stride_b": rows_b * ldb, "stride_c": m * ldc}
    product = StoredProduct(dtype, m, n, k, transpose_a, transpose_b, lda, ldb, ldc, batch, **strides)
    step = Gemm(product, Argument(0), Argument(1), Arena(0))
    expected = gemm_reference(product, a, b, c)
    run([step], c, a, b, parallel=parallel)
    tolerance = 2e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(c, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "shape", [(4, 3, 2), (4, 1, 3), (1, 3, 2), (4, 3, 0), (64, 64, 64), (1, 600, 600), (600, 1, 600)]
)
def test_gemm_does_not_read_what_it_overwrites(shape):
    m, n, k = shape
    a, b, c = np.ones(max(1, m * k), np.float32), np.ones(max(1, k * n), np.float32), np.full(m * n, np.nan, np.float32)
    run([Gemm(StoredProduct("float32", m, n, k, False, False, k, n, n), Argument(0), Argument(1), Arena(0))], c, a, b)
    np.testing.assert_array_equal(c, k)


def test_one_operand_may_be_shared_by_the_batch():
    a, b, c = np.arange(12, dtype=np.float64), np.eye(2).ravel(), np.zeros(12)
    product = StoredProduct("float64", 3, 2, 2, False, False, 2, 2, 2, batch=2, stride_a=6, stride_c=6)
    run([Gemm(product, Argument(0), Argument(1), Arena(0))], c, a, b)
    np.testing.assert_array_equal(c, a)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int32"}, "gemm takes float32 or float64; got int32"),
        ({"m": -1}, "gemm size m must not be negative; got -1"),
        ({"lda": 2}, "lda must reach over a row of 3 elements; got 2"),
        ({"n": 2**31, "ldb": 2**31, "ldc": 2**31}, "BLAS takes sizes below 2"),
        ({"a": Arena(-4)}, "byte offset must not be negative; got -4"),
        ({"b": Argument(-1)}, "table index must not be negative; got -1"),
    ],
)
def test_a_gemm_that_makes_no_sense_is_refused(change, message):
    product = StoredProduct("float32", 2, 2, 3, False, False, 3, 2, 2)
    places = {"a": Arena(0), "b": Arena(64), "c": Arena(128)}
    sizes = {name: value for name, value in change.items() if name not in places}
    step = Gemm(replace(product, **sizes), **{name: change.get(name, place) for name, place in places.items()})
    with pytest.raises(ValueError, match=message):
        driver_ir([step])


def test_steps_are_plain_data():
    steps = (
        KernelCall("k", (Arena(0), Argument(1, 8))),
        Gemm(StoredProduct("float32", 1, 2, 3, False, True, 3, 3, 2), Arena(0), Arena(8), Arena(16)),
        Fill(Arena(0), 8),
        Copy(Arena(0), Argument(0), 8),
    )
    assert pickle.loads(pickle.dumps(steps)) == steps
    assert hash(steps) == hash(pickle.loads(pickle.dumps(steps)))
    assert json.loads(json.dumps([asdict(step) for step in steps]))


def test_the_loader_and_scipy_give_the_same_product():
    """Both ways to BLAS are kept working: the fast look-up and the pointers SciPy publishes."""
    scipy = blas._from_scipy()
    assert scipy.keys() | {GET_THREADS, SET_THREADS} == blas.addresses().keys()
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)
    a = np.arange(4, dtype=np.float64)
    for addresses in (scipy, blas.addresses()):
        out, one, zero, two = np.zeros(4), np.array(1.0), np.array(0.0), np.array(2, np.int32)
        flag = ctypes.create_string_buffer(b"N")
        size = two.ctypes.data
        pointers = (flag, flag, size, size, size, one.ctypes.data, a.ctypes.data, size, a.ctypes.data, size)
        signature(addresses["staticgrad_dgemm"])(
            *(ctypes.addressof(p) if p is flag else p for p in pointers), zero.ctypes.data, out.ctypes.data, size
        )
        np.testing.assert_array_equal(out.reshape(2, 2), a.reshape(2, 2) @ a.reshape(2, 2))


def test_blas_runs_on_one_thread_in_a_step_and_its_setting_comes_back():
    addresses = blas.addresses()
    get = ctypes.CFUNCTYPE(ctypes.c_int)(addresses[GET_THREADS])
    put = ctypes.CFUNCTYPE(None, ctypes.c_int)(addresses[SET_THREADS])
    if "openblas" not in str(scipy_build()):
        pytest.skip("this BLAS does not say how many threads it uses")
    before = get()
    put(2)
    try:
        a, b = np.full((8, 8), 2.0, np.float32), np.eye(8, dtype=np.float32)
        out = np.zeros((8, 8), np.float32)
        table = np.array([a.ctypes.data, b.ctypes.data, out.ctypes.data], np.uint64)
        operands = (Argument(0), Argument(1), Argument(2))
        product = StoredProduct("float32", 8, 8, 8, False, False, 8, 8, 8)
        step = native.load(native.build({}, [Gemm(product, *operands)]))
        step(0, table.ctypes.data)
        np.testing.assert_array_equal(out, a)
        assert get() == 2
    finally:
        put(before)


def scipy_build():
    import scipy

    return scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
