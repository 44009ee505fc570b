"""Generated matrix products: against NumPy in float64, at odd shapes, and nothing touched outside the arrays."""

import ctypes
import itertools
import mmap
import sys
from dataclasses import replace
from math import erf

import llvmlite.binding as llvm
import numpy as np
import pytest

from staticgrad.kernels import vector_math as vm
from staticgrad.kernels.addresses import Argument
from staticgrad.kernels.cpu import native
from staticgrad.kernels.cpu.gemm import Product, Side, emit, extent, gemm_ir, grain, scratch_bytes
from staticgrad.kernels.cpu.gemm.product import Host, tiling
from staticgrad.kernels.cpu.steps import KernelCall
from staticgrad.kernels.vector_math.primitives import select

EXTENTS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 70)
GUARD = 97  # elements before and after each array
TOLERANCE = {"float32": 2e-5, "float64": 4e-14}
TRANSPOSES = list(itertools.product((False, True), repeat=2))


def product(m, n, k, ta=False, tb=False, dtype="float32", pad=0, **options):
    """A product whose rows lie `pad` elements further apart than they must."""
    return Product(dtype, m, n, k, ta, tb, (m if ta else k) + pad, (k if tb else n) + pad, n + pad, **options)


class Guarded:
    """A matrix whose rows have a distance, with NaN between and around them."""

    def __init__(self, values, leading):
        rows, columns = values.shape[-2:]
        self.flat = np.full(values[..., :1, 0].size * rows * leading + 2 * GUARD, np.nan, values.dtype)
        self.inside = self.flat[GUARD:-GUARD].reshape(*values.shape[:-1], leading)
        self.values = self.inside[..., :columns]
        self.values[...] = values
        self.address = self.inside.ctypes.data

    def untouched(self):
        gaps = self.inside[..., self.values.shape[-1] :]
        return all(np.isnan(part).all() for part in (self.flat[:GUARD], self.flat[-GUARD:], gaps))


def compiled(spec, epilogue=None):
    """A function of addresses and a range, which calls the kernel once."""
    text = gemm_ir(spec, "product", epilogue)
    addresses = 2 + len(spec.operands) + spec.results + bool(scratch_bytes(spec))
    call = KernelCall("product", tuple(map(Argument, range(addresses))), extent(spec), grain(spec))
    calls = {}

    def run(pointers, begin=0, end=None):
        ranged = begin, extent(spec) if end is None else end
        if ranged not in calls:
            whole = KernelCall(call.symbol, call.addresses, numbers=ranged)
            calls[ranged] = native.load(native.build({"product": text}, [whole]))
        table = (ctypes.c_void_p * len(pointers))(*pointers)
        calls[ranged](0, ctypes.addressof(table))

    return run


def matrices(spec, seed=0):
    """Guarded A, B and C, and the result expected, in float64."""
    draw = np.random.default_rng(seed)
    batch = (spec.batch,) if spec.batch > 1 else ()
    a = draw.standard_normal((*batch, *((spec.k, spec.m) if spec.transpose_a else (spec.m, spec.k))))
    b = draw.standard_normal((*batch, *((spec.n, spec.k) if spec.transpose_b else (spec.k, spec.n))))
    c = np.full((*batch, spec.m, spec.n), np.nan)  # what was there does not matter
    a, b, c = (values.astype(spec.dtype) for values in (a, b, c))
    left, right = (values.astype(np.float64) for values in (a, b))
    left = left.swapaxes(-1, -2) if spec.transpose_a else left
    right = right.swapaxes(-1, -2) if spec.transpose_b else right
    return Guarded(a, spec.lda), Guarded(b, spec.ldb), Guarded(c, spec.ldc), left @ right


def check(spec):
    """The whole product is right, and nothing beside C is written."""
    a, b, c, expected = matrices(spec)
    scratch = np.zeros(scratch_bytes(spec) + 64, np.uint8)
    pointers = [a.address, b.address, c.address]
    if scratch_bytes(spec):
        pointers.append(scratch.ctypes.data + -scratch.ctypes.data % 64)
    compiled(spec)(pointers)
    np.testing.assert_allclose(c.values, expected, rtol=0, atol=TOLERANCE[spec.dtype] * np.sqrt(spec.k) * 4)
    assert all(matrix.untouched() for matrix in (a, b, c))


def shapes():
    """Shapes in which each extent comes up with many others."""
    draw = np.random.default_rng(5)
    return [tuple(map(int, draw.choice(EXTENTS, 3))) for _ in range(6)]


@pytest.mark.parametrize(("ta", "tb"), TRANSPOSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (32, 10, 64), (5, 67, 3), (70, 33, 70), *shapes()])
def test_odd_shapes(shape, dtype, ta, tb):
    check(product(*shape, ta, tb, dtype, pad=sum(shape) % 4))


@pytest.mark.parametrize(("ta", "tb"), TRANSPOSES)
def test_batch(ta, tb):
    m, n, k = 9, 18, 5
    spec = product(m, n, k, ta, tb, batch=3, stride_a=m * k, stride_b=k * n, stride_c=m * n)
    assert (extent(spec), grain(spec)) == (3, 1)
    check(spec)


def test_a_long_panel_takes_scratch_memory():
    spec = product(8, 64, 600, tb=True)
    assert scratch_bytes(spec) > 0
    check(spec)


@pytest.mark.parametrize(("ta", "tb"), TRANSPOSES)
def test_ranges_of_rows(ta, tb):
    spec = product(67, 19, 23, ta, tb)
    a, b, c, expected = matrices(spec)
    run = compiled(spec)
    cut = grain(spec) * 2
    pointers = [a.address, b.address, c.address]
    run(pointers, 0, cut)
    assert np.isnan(c.values[cut:]).all()
    run(pointers, cut, cut)
    assert np.isnan(c.values[cut:]).all()
    run(pointers, cut, 67)
    np.testing.assert_allclose(c.values, expected, rtol=0, atol=1e-4)
    c.values[...] = np.nan
    run(pointers, 67, 67)
    assert np.isnan(c.values).all()


def test_threads_share_the_rows():
    spec = product(70, 33, 12, tb=True)
    a, b, c, expected = matrices(spec)
    call = KernelCall("product", tuple(map(Argument, range(3))), extent(spec), grain(spec))
    program = native.load(native.build({"product": gemm_ir(spec, "product")}, [call], parallel=True))
    table = (ctypes.c_void_p * 3)(a.address, b.address, c.address)
    program(0, ctypes.addressof(table))
    np.testing.assert_allclose(c.values, expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize(("ta", "tb"), TRANSPOSES)
@pytest.mark.parametrize("at_end", [True, False])
def test_arrays_beside_pages_that_must_not_be_touched(at_end, ta, tb):
    spec = product(5, 19, 21, ta, tb)
    a, b, c, expected = matrices(spec)
    pages = [guarded_page(one.values, at_end) for one in (a, b, c)]
    compiled(spec)([address for _, address in pages])
    found = np.frombuffer((ctypes.c_char * c.values.nbytes).from_address(pages[2][1]), spec.dtype)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=1e-4)


def guarded_page(values, at_end):
    """Memory that holds the values right before (or behind) a page that cannot be read, and their address."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (start, start + 2 * page):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), page, 0) == 0
    offset = 2 * page - values.nbytes if at_end else page
    memory[offset : offset + values.nbytes] = values.tobytes()
    return memory, start + offset


def test_nan_reaches_its_row_and_column_only():
    spec = product(20, 37, 11, tb=True)
    a, b, c, _ = matrices(spec)
    a.values[3, 2] = np.nan
    b.values[35, 4] = np.inf
    compiled(spec)([a.address, b.address, c.address])
    np.testing.assert_array_equal(np.isnan(c.values[3]), True)
    others = np.delete(c.values, 3, axis=0)
    assert np.isinf(others[:, 35]).all()
    assert np.isfinite(np.delete(others, 35, axis=1)).all()


def finished(spec, epilogue, *operands):
    """The results of a product with an epilogue: C and the further outputs; and the product before it."""
    a, b, c, expected = matrices(spec)
    further = [
        Guarded(np.zeros((spec.m, spec.n), spec.dtype), leading) for leading in (side.down for side in spec.outputs)
    ]
    pointers = [a, b, c, *operands, *further]
    compiled(spec, epilogue)([one.address if isinstance(one, Guarded) else one.ctypes.data for one in pointers])
    assert all(one.untouched() for one in (c, *further))
    return [c.values, *(one.values for one in further)], expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n", "k"), [(32, 64, 64), (7, 19, 5), (1, 1, 2)])
def test_bias_and_relu(m, n, k, dtype):
    bias = np.random.default_rng(1).standard_normal((1, n)).astype(dtype)
    spec = product(m, n, k, tb=True, dtype=dtype, operands=(Side(0, 1),))

    def epilogue(total, row):
        total = total + row
        return select(total > 0.0, total, 0.0)

    (found,), before = finished(spec, epilogue, Guarded(bias, n))
    np.testing.assert_allclose(found, np.maximum(before + bias, 0), rtol=0, atol=1e-4 if dtype == "float32" else 1e-12)


def test_operands_of_every_kind():
    m, n = 11, 35
    draw = np.random.default_rng(2)
    factor, column, number = (draw.standard_normal(shape).astype(np.float32) for shape in ((m, n), (m, 1), (1, 1)))
    spec = product(m, n, 6, operands=(Side(n + 2, 1), Side(1, 0), Side(0, 0)))
    (found,), before = finished(
        spec, lambda total, x, y, z: (total * x - y) * z, Guarded(factor, n + 2), Guarded(column, 1), Guarded(number, 1)
    )
    np.testing.assert_allclose(found, (before * factor - column) * number, rtol=0, atol=1e-4)


def test_an_operand_in_the_place_of_the_result():
    spec = product(12, 20, 7, operands=(Side(20, 1),))
    a, b, c, expected = matrices(spec)
    before = np.random.default_rng(3).standard_normal((12, 20)).astype(np.float32)
    c.values[...] = before
    compiled(spec, lambda total, old: total + 2.0 * old)([a.address, b.address, c.address, c.address])
    np.testing.assert_allclose(c.values, expected + 2 * before, rtol=0, atol=1e-4)


def test_two_outputs():
    spec = product(10, 18, 4, outputs=(Side(21, 1),))
    (first, second), before = finished(spec, lambda total: (vm.tanh(total), total))
    np.testing.assert_allclose(second, before, rtol=0, atol=1e-5)
    np.testing.assert_allclose(first, np.tanh(before), rtol=0, atol=1e-5)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(("m", "n"), [(10, 18), (64, 70), (2, 3)])
def test_truth_values_are_read_and_written_as_bytes(m, n, long):
    draw = np.random.default_rng(4)
    mask, row = (draw.integers(0, 2, shape).astype(np.uint8) for shape in ((m, n), (1, n)))
    number = np.ones((1, 1), np.uint8)
    sides = Side(n, 1, True), Side(0, 1, True), Side(0, 0, True)
    spec = product(m, n, 4, operands=sides, outputs=(Side(n + 3, 1, True),))
    a, b, c, expected = matrices(spec)
    written = np.full((m, n + 3), 7, np.uint8)

    def epilogue(total, x, y, z):
        chosen = select((x & y) & z, total, 0.0)
        return vm.tanh(chosen) if long else chosen, total > 0.0

    pointers = [a.address, b.address, c.address, *(one.ctypes.data for one in (mask, row, number, written))]
    compiled(spec, epilogue)(pointers)
    chosen = np.where(mask & row, expected, 0)
    np.testing.assert_allclose(c.values, np.tanh(chosen) if long else chosen, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(written[:, :n], expected > 0)
    assert (written[:, n:] == 7).all()
    assert c.untouched()


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n", "batch"), [(67, 50, 1), (5, 3, 1), (9, 20, 4)])
def test_sums_over_the_rows_of_a_range(m, n, batch, dtype, long):
    spec = product(m, n, 6, tb=True, dtype=dtype, sums=2)
    if batch > 1:
        spec = replace(spec, batch=batch, stride_a=m * 6, stride_b=n * 6, stride_c=m * n)
    a, b, c, expected = matrices(spec)
    sums = [Guarded(np.full((1, n), np.nan, dtype), n) for _ in range(2)]

    def epilogue(total):
        value = vm.tanh(total) if long else total + 1.0
        return value, value, total * total

    pointers = [a.address, b.address, c.address, *(one.address for one in sums)]
    finish = np.tanh if long else lambda total: total + 1.0
    cut = 2 * grain(spec) if extent(spec) > 2 * grain(spec) else 0
    for begin, end in ((0, extent(spec)), (cut, extent(spec)), (cut, cut)):
        compiled(spec, epilogue)(pointers, begin, end)
        part = expected[begin:end].reshape(-1, n)
        for one, wanted in zip(sums, (finish(part), part * part), strict=True):
            np.testing.assert_allclose(one.values[0], wanted.sum(0), rtol=TOLERANCE[dtype], atol=1e-3)
            assert one.untouched()


@pytest.mark.parametrize("name", ["tanh", "exp", "sigmoid", "erf", "log1p", "expm1", "maximum", "sign"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vector_maths_answers_like_a_loop_of_it(name, dtype):
    spec = product(6, 11, 3, dtype=dtype)
    zero = [0.0] if name == "maximum" else []
    (found,), before = finished(spec, lambda total: emit(getattr(vm, name), total * 0.1, *zero))
    with np.errstate(invalid="ignore"):
        reference = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "erf": np.vectorize(erf)}.get(name) or getattr(np, name)
        expected = reference(0.1 * before, *zero)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)


def test_an_epilogue_that_cannot_be_written_is_named():
    with pytest.raises(NotImplementedError, match="cannot use the instruction 'fpext'"):
        gemm_ir(product(3, 3, 4), "product", vm.sin)


@pytest.mark.parametrize(
    ("triple", "cpu", "host"),
    [
        ("x86_64-unknown-linux-gnu", "x86-64", Host(16, 16)),
        ("x86_64-unknown-linux-gnu", "haswell", Host(32, 16)),
        ("x86_64-unknown-linux-gnu", "skylake-avx512", Host(64, 32)),
        ("aarch64-unknown-linux-gnu", "neoverse-n1", Host(16, 32)),
    ],
)
@pytest.mark.parametrize("tb", [False, True])
def test_other_machines_keep_the_tile_in_registers(triple, cpu, host, tb):
    spec = product(24, 96, 50, tb=tb)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    text = machine.emit_assembly(llvm.parse_assembly(gemm_ir(spec, "product", tile=tiling(spec, host))))
    assert "product" in text
    multiplied = [line for line in text.splitlines() if "fmadd" in line or "fmla" in line or "mulps" in line]
    assert len(multiplied) >= tiling(spec, host).rows * tiling(spec, host).vectors


def test_a_narrow_host_computes_the_same():
    spec = product(23, 29, 17, tb=True)
    a, b, c, expected = matrices(spec)
    for host in (Host(16, 16), Host(32, 16), Host(16, 32)):
        text = gemm_ir(spec, "product", tile=tiling(spec, host))
        call = KernelCall("product", tuple(map(Argument, range(3))), numbers=(0, spec.m))
        table = (ctypes.c_void_p * 3)(a.address, b.address, c.address)
        c.values[...] = np.nan
        native.load(native.build({"product": text}, [call]))(0, ctypes.addressof(table))
        np.testing.assert_allclose(c.values, expected, rtol=0, atol=1e-4)
        assert all(matrix.untouched() for matrix in (a, b, c))


def test_what_cannot_be_generated_is_named():
    with pytest.raises(ValueError, match="sizes from 1 on"):
        gemm_ir(product(3, 0, 4), "product")
    with pytest.raises(ValueError, match="float32 or float64; got int32"):
        gemm_ir(product(3, 3, 4, dtype="int32"), "product")
    with pytest.raises(ValueError, match="belong to an epilogue"):
        gemm_ir(product(3, 3, 4, operands=(Side(0, 1),)), "product")
    with pytest.raises(ValueError, match="one value for each output; got 1 for 2"):
        gemm_ir(product(3, 3, 4, outputs=(Side(3, 1),)), "product", lambda total: total)
    with pytest.raises(ValueError, match="ldc must reach over a row"):
        gemm_ir(Product("float32", 3, 4, 5, False, False, 5, 4, 3), "product")
