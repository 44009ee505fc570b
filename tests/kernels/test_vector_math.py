"""The vector maths: special values and accuracy against NumPy, integers, random bits, and vector instructions."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from llvmlite import binding
from numba import config, njit, types

from staticgrad.graph.ops import numpy_math
from staticgrad.kernels import vector_math

FLOATS = (np.float32, np.float64)
INTEGERS = tuple(np.dtype(f"{sign}int{width}") for sign in ("", "u") for width in (8, 16, 32, 64))
NUMBA_TYPE = {np.dtype(name): getattr(types, name) for name in (
    "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}  # fmt: skip

# name: (lower, upper) of the sweep, and the bound in units in the last place
UNARY = {
    "exp": (-104, 89, 1.5),
    "exp2": (-149, 128, 1.5),
    "expm1": (-20, 80, 1.5),
    "log": (1e-3, 1e3, 1.5),
    "log2": (1e-3, 1e3, 1.5),
    "log10": (1e-3, 1e3, 1.5),
    "log1p": (-0.999, 100, 1.5),
    "sqrt": (0, 1e3, 0.5),
    "rsqrt": (1e-3, 1e3, 1.5),
    "cbrt": (-1e3, 1e3, 1.5),
    "tanh": (-12, 12, 2.0),
    "sigmoid": (-90, 30, 2.5),
    "erf": (-6, 6, 2.0),
    "erfc": (-4, 9, 4.0),
    "sin": (-1e3, 1e3, 1.5),
    "cos": (-1e3, 1e3, 1.5),
    "tan": (-1e3, 1e3, 2.5),
    "sinh": (-80, 80, 2.5),
    "cosh": (-80, 80, 2.0),
    "asin": (-1, 1, 2.0),
    "acos": (-1, 1, 2.0),
    "atan": (-30, 30, 2.0),
    "asinh": (-1e3, 1e3, 2.5),
    "acosh": (1, 1e3, 2.5),
    "atanh": (-1, 1, 3.0),
}
ROUNDING = ("floor", "ceil", "trunc", "round", "abs", "sign")
PREDICATES = ("isnan", "isinf", "isfinite")
BINARY_EXACT = ("minimum", "maximum", "fmod", "remainder", "floor_divide", "truediv", "copysign")
VECTORISED = ("exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "rsqrt")


def specials(dtype: Any) -> np.ndarray:
    """Zeros, infinities, NaN, the ends of the range, subnormals, and plain numbers of both signs."""
    info = np.finfo(dtype)
    plain = [0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 10, 30, 88, 100, 700, 1e4, 1e10, 1e30]
    edges = [0, np.inf, np.nan, info.max, info.tiny, info.smallest_subnormal, info.tiny / 8, info.eps, 1 - info.epsneg]
    values = np.array(plain + [float(edge) for edge in edges], dtype)
    return np.concatenate([values, -values])


@cache
def unary_kernel(name: str, dtype: Any, result: Any = None) -> Any:
    function = getattr(vector_math, name)

    def loop(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = function(x[i])

    kind = NUMBA_TYPE[np.dtype(dtype)]
    return njit([types.void(kind[::1], (result or kind)[::1])])(loop)


@cache
def binary_kernel(name: str, dtype: Any) -> Any:
    function = getattr(vector_math, name)

    def loop(x: Any, y: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = function(x[i], y[i])

    kind = NUMBA_TYPE[np.dtype(dtype)]
    return njit([types.void(kind[::1], kind[::1], kind[::1])])(loop)


def compiled(name: str, *operands: np.ndarray) -> np.ndarray:
    """The compiled function `name` over arrays of one dtype."""
    out = np.empty_like(operands[0])
    kernel = (unary_kernel if len(operands) == 1 else binary_kernel)(name, operands[0].dtype)
    kernel(*operands, out)
    return out


MPMATH = {"erf": mp.erf, "erfc": mp.erfc, "lgamma": lambda x: mp.re(mp.loggamma(x)), "digamma": mp.digamma}


def reference(name: str, *operands: np.ndarray) -> np.ndarray:
    """The NumPy function `name` in a wider type; from mpmath where NumPy has none."""
    with np.errstate(all="ignore"):
        if name not in MPMATH:
            return getattr(numpy_math, name)(*(operand.astype(np.longdouble) for operand in operands))
        if operands[0].dtype == np.float32:
            return getattr(numpy_math, name)(operands[0].astype(np.float64)).astype(np.longdouble)
    with mp.workdps(30):
        return np.array([np.longdouble(str(MPMATH[name](mp.mpf(float(x))))) for x in operands[0]])


def ulp_error(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in units in the last place of got's type; infinite where one alone is NaN or infinite."""
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)
        unit = np.spacing(np.abs(np.where(np.isfinite(rounded), rounded, 1)))
        error = np.abs((got.astype(np.longdouble) - want) / unit.astype(np.longdouble))
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        finite = np.isfinite(got) & np.isfinite(rounded)
    return np.where(finite, error, np.where(same, 0, np.inf))


def same_bits(got: np.ndarray, want: np.ndarray) -> bool:
    both_nan = np.isnan(got) & np.isnan(want)
    return bool(np.all(both_nan | ((got == want) & (np.signbit(got) == np.signbit(want)))))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_accuracy(name: str, dtype: Any) -> None:
    lower, upper, bound = UNARY[name]
    x = np.linspace(lower, upper, 1001 if name in MPMATH else 20001).astype(dtype)
    assert ulp_error(compiled(name, x), reference(name, x)).max() <= bound


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_special_values(name: str, dtype: Any) -> None:
    x = specials(dtype)
    with np.errstate(all="ignore"):
        want = numpy_math.erf(x) if name == "erf" else numpy_math.erfc(x) if name == "erfc" else reference(name, x)
    got = compiled(name, x)
    error = ulp_error(got, want)
    assert error.max() <= 4, (x[error.argmax()], got[error.argmax()], want[error.argmax()])
    zero = (got == 0) & ~np.isnan(got)
    assert np.array_equal(np.signbit(got[zero]), np.signbit(want[zero]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_special_pairs(name: str, dtype: Any) -> None:
    x, y = (grid.ravel().copy() for grid in np.meshgrid(specials(dtype), specials(dtype)))
    got, want = compiled(name, x, y), reference(name, x, y)
    error = ulp_error(got, want)
    worst = error.argmax()
    assert error.max() <= 2, (x[worst], y[worst], got[worst], want[worst])
    assert same_bits(np.copysign(1, got)[~np.isnan(got)], np.copysign(1, want)[~np.isnan(got)].astype(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_pow_accuracy(dtype: Any) -> None:
    random = np.random.default_rng(5)
    x = np.exp(random.uniform(-60, 60, 20000)).astype(dtype)
    limit = np.log(np.finfo(dtype).max.astype(float)) * 1.02
    y = (random.uniform(-limit, limit, x.size) / np.log(x.astype(np.float64))).astype(dtype)
    assert ulp_error(compiled("pow", x, y), reference("pow", x, y)).max() <= 2
    near = (1 + random.uniform(-1e-3, 1e-3, x.size)).astype(dtype)
    large = random.uniform(-6e4, 6e4, x.size).astype(dtype)
    assert ulp_error(compiled("pow", near, large), reference("pow", near, large)).max() <= 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_atan2_accuracy(dtype: Any) -> None:
    random = np.random.default_rng(6)
    x, y = random.normal(size=(2, 20000)).astype(dtype)
    assert ulp_error(compiled("atan2", y, x), reference("atan2", y, x)).max() <= 2


def test_huge_and_awkward_angles() -> None:
    """The float64 nearest to a multiple of pi/2, and others whose reduction cancels most of their digits."""
    x = np.array([6381956970095103 * 2.0**797, 1e300, np.finfo(np.float64).max, 1e22, 2.0**120, np.pi, 355.0])
    sine = [1.0, -0.8178819121159085, 0.004961954789184062, -0.8522008497671888, 0.3778201093607520,
            1.2246467991473532e-16, -3.0144353359488449e-05]  # fmt: skip
    assert ulp_error(compiled("sin", x), np.array(sine, np.longdouble)).max() <= 2
    np.testing.assert_allclose(compiled("cos", x[:1]), [-4.687165924254624e-19], rtol=1e-12)
    narrow = np.array([1e30, 3.4e38, 16367173 * 2.0**72, 1.6e16], np.float32)
    assert ulp_error(compiled("sin", narrow), reference("sin", narrow)).max() <= 1
    assert ulp_error(compiled("cos", narrow), reference("cos", narrow)).max() <= 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["exp", "exp2", "expm1", "log", "log1p", "tanh", "sin", "rsqrt"])
def test_random_bits(name: str, dtype: Any) -> None:
    width = np.dtype(dtype).itemsize * 8
    x = np.random.default_rng(7).integers(0, 2**width, 20000, dtype=f"uint{width}").view(dtype)
    assert ulp_error(compiled(name, x), reference(name, x)).max() <= 2


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_gamma(name: str, dtype: Any) -> None:
    pieces = [(0.01, 0.9), (1.6, 2.6), (2.6, 30), (30, 1e4), (-0.4, -0.1), (-4.4, -4.2)]
    x = np.concatenate([np.linspace(*piece, 100) for piece in pieces]).astype(dtype)
    assert ulp_error(compiled(name, x), reference(name, x)).max() <= 5
    poles = np.array([0.0, np.inf, np.nan, -1, -2, 1e-30, -1e30, np.finfo(dtype).min], dtype)
    with np.errstate(all="ignore"):
        want = getattr(numpy_math, name)(poles.astype(np.float64)).astype(np.longdouble)
    assert ulp_error(compiled(name, poles), want).max() <= 2


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ROUNDING)
def test_rounding(name: str, dtype: Any) -> None:
    x = np.concatenate([specials(dtype), np.linspace(-5, 5, 81).astype(dtype)])
    assert same_bits(compiled(name, x), getattr(numpy_math, name)(x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", PREDICATES)
def test_predicates(name: str, dtype: Any) -> None:
    x = specials(dtype)
    out = np.empty(x.shape, bool)
    unary_kernel(name, dtype, types.boolean)(x, out)
    assert np.array_equal(out, getattr(numpy_math, name)(x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY_EXACT)
def test_exact_pairs(name: str, dtype: Any) -> None:
    x, y = (grid.ravel().copy() for grid in np.meshgrid(specials(dtype), specials(dtype)))
    with np.errstate(all="ignore"):
        want = getattr(numpy_math, name)(x, y)
    got = compiled(name, x, y)
    if name in ("minimum", "maximum"):
        got, want = got + 0, want + 0  # which of 0 and -0 is the lesser is left open
    assert same_bits(got, want)


@cache
def integer_kernel(dtype: Any) -> Any:
    """All operations on integers in one compiled loop."""
    vm = vector_math
    signed = np.dtype(dtype).kind == "i"

    def loop(x: Any, y: Any, out: Any) -> None:
        for i in range(x.size):
            a, b = x[i], y[i]
            out[0, i] = vm.minimum(a, b)
            out[1, i] = vm.maximum(a, b)
            out[2, i] = vm.remainder(a, b)
            out[3, i] = vm.floor_divide(a, b)
            out[4, i] = vm.fmod(a, b)
            out[5, i] = vm.bitwise_and(a, b)
            out[6, i] = vm.bitwise_or(a, b)
            out[7, i] = vm.bitwise_xor(a, b)
            out[8, i] = vm.left_shift(a, b)
            out[9, i] = vm.right_shift(a, b)
            out[10, i] = vm.abs(a)
            out[11, i] = vm.sign(a)
            out[12, i] = vm.invert(a)
            out[13, i] = vm.select(a > b, a, b)

    assert signed or np.dtype(dtype).kind == "u"
    kind = NUMBA_TYPE[np.dtype(dtype)]
    return njit([types.void(kind[::1], kind[::1], kind[:, ::1])])(loop)


INTEGER_BINARY = ("minimum", "maximum", "remainder", "floor_divide", "fmod", "bitwise_and", "bitwise_or",
                  "bitwise_xor", "left_shift", "right_shift")  # fmt: skip
INTEGER_UNARY = ("abs", "sign", "invert")


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers(dtype: np.dtype[Any]) -> None:
    info = np.iinfo(dtype)
    values = [info.min, info.min + 1, info.max, info.max - 1, 0, 1, 2, 3, 5, 7, 8, 31, 63, 64, 100]
    values += [-value for value in values[4:] if info.min < 0]
    x, y = (grid.ravel().copy() for grid in np.meshgrid(np.array(values, dtype), np.array(values, dtype)))
    got = np.empty((14, x.size), dtype)
    integer_kernel(dtype)(x, y, got)
    with np.errstate(all="ignore"):
        for row, name in enumerate(INTEGER_BINARY):
            want = getattr(numpy_math, name)(x, y)
            assert want.dtype == dtype
            assert np.array_equal(got[row], want), name
        for row, name in enumerate(INTEGER_UNARY, len(INTEGER_BINARY)):
            assert np.array_equal(got[row], getattr(numpy_math, name)(x)), name
    assert np.array_equal(got[13], np.maximum(x, y))


# The known-answer vectors that come with Random123: (key, counter, result), each as (low, high) words.
THREEFRY_VECTORS = (
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
)


@cache
def threefry_kernel() -> Any:
    words = types.uint64[::1]

    @njit([types.void(types.uint64, words, words)])
    def loop(key: Any, counter: Any, out: Any) -> None:
        for i in range(counter.size):
            out[i] = vector_math.threefry2x32(key, counter[i])

    return loop


@pytest.mark.parametrize(("key", "counter", "result"), THREEFRY_VECTORS)
def test_threefry_known_answers(key: Any, counter: Any, result: Any) -> None:
    joined = [np.uint64(low | high << 32) for low, high in (key, counter, result)]
    assert numpy_math.threefry2x32(joined[0], joined[1]) == joined[2]
    out = np.empty(1, np.uint64)
    threefry_kernel()(joined[0], np.array([joined[1]]), out)
    assert out[0] == joined[2]


def test_threefry_same_bits_in_both_modules() -> None:
    random = np.random.default_rng(8)
    counter = random.integers(0, 2**64, 1000, dtype=np.uint64)
    key = np.uint64(random.integers(0, 2**64, dtype=np.uint64))
    out = np.empty_like(counter)
    threefry_kernel()(key, counter, out)
    assert np.array_equal(out, numpy_math.threefry2x32(key, counter))


def test_numpy_functions_keep_their_type() -> None:
    for dtype in FLOATS:
        x = np.array([0.3, 0.7], dtype)
        for name in (*UNARY, "lgamma", "digamma"):
            if name != "acosh":
                assert getattr(numpy_math, name)(x).dtype == dtype, name


def test_both_modules_have_the_same_names() -> None:
    for name in vector_math.__all__:
        if name != "EXACT":
            assert hasattr(numpy_math, name), name
    assert set(vector_math.__all__) > vector_math.EXACT


@pytest.mark.parametrize("name", sorted(vector_math.EXACT - {"threefry2x32", "select"}))
def test_exact_functions_give_numpys_bits(name: str) -> None:
    """Those on floats are compared on plain numbers here; integers, bits and special values have their own tests."""
    if name in (*INTEGER_BINARY[5:], "invert", *PREDICATES):
        return
    x, y = np.random.default_rng(9).normal(size=(2, 1000)).astype(np.float32)
    operands = (x, y) if name in BINARY_EXACT else (np.abs(x) if name in ("sqrt", "rsqrt") else x,)
    assert same_bits(compiled(name, *operands), getattr(numpy_math, name)(*operands))


def vector_width() -> int:
    """How many float32 fit a vector register that LLVM uses here."""
    if config.CPU_NAME is not None:  # NUMBA_CPU_NAME=generic runs these tests as on a CPU of 2003
        return 4
    return 8 if binding.get_host_cpu_features().get("avx2") else 4


@pytest.mark.parametrize("name", VECTORISED)
def test_loop_becomes_vector_instructions(name: str) -> None:
    kernel = unary_kernel(name, np.float32)
    code = kernel.inspect_llvm(kernel.signatures[0])
    widths = [width for width in (2, 4, 8, 16) if f"<{width} x float>" in code]
    # Sine and cosine reduce the angle in float64, of which half as many fit.
    assert max(widths, default=1) >= (vector_width() // 2 if name in ("sin", "cos") else vector_width())
    assert not any(f"call float @{function}" in code for function in ("expf", "logf", "sinf", "powf"))


def test_pow_and_threefry_become_vector_instructions() -> None:
    kernel = binary_kernel("pow", np.float32)
    code = kernel.inspect_llvm(kernel.signatures[0])
    assert any(f"<{width} x double>" in code for width in (2, 4, 8))
    code = threefry_kernel().inspect_llvm(threefry_kernel().signatures[0])
    assert any(f"add <{width} x i32>" in code for width in (2, 4, 8, 16))


def test_numpy_module_loads_no_numba() -> None:
    program = "import sys, staticgrad.graph.ops.numpy_math; print('numba' in sys.modules, 'scipy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_calling_from_python_is_refused() -> None:
    with pytest.raises(NotImplementedError):
        vector_math.exp(1.0)
