"""The vector maths on NumPy: one function for each name that `staticgrad.kernels.vector_math` has too.

An elementwise op has one scalar function, such as `def _tanh(x): return vm.tanh(x)`. Dynamic mode and the reference
run it with `vm` bound to this module, on arrays or scalars; compiled kernels run it with `vm` bound to the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

THREEFRY_ROUNDS = 20
THREEFRY_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
THREEFRY_PARITY = 0x1BD11BDA

exp = np.exp
exp2 = np.exp2
expm1 = np.expm1
log = np.log
log2 = np.log2
log10 = np.log10
log1p = np.log1p
sqrt = np.sqrt
cbrt = np.cbrt
tanh = np.tanh
sin = np.sin
cos = np.cos
tan = np.tan
sinh = np.sinh
cosh = np.cosh
asin = np.arcsin
acos = np.arccos
atan = np.arctan
atan2 = np.arctan2
asinh = np.arcsinh
acosh = np.arccosh
atanh = np.arctanh
pow = np.power
floor = np.floor
ceil = np.ceil
trunc = np.trunc
round = np.rint  # half to even
abs = np.absolute
sign = np.sign
minimum = np.minimum
maximum = np.maximum
fmod = np.fmod
remainder = np.remainder
floor_divide = np.floor_divide
truediv = np.true_divide
copysign = np.copysign
isnan = np.isnan
isinf = np.isinf
isfinite = np.isfinite
select = np.where
bitwise_and = np.bitwise_and
bitwise_or = np.bitwise_or
bitwise_xor = np.bitwise_xor
invert = np.invert
left_shift = np.left_shift
right_shift = np.right_shift


def rsqrt(x: Array) -> Array:
    """1 / sqrt(x), in x's type."""
    return np.reciprocal(np.sqrt(x))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), in x's type; small results keep their relative accuracy."""
    decay = np.exp(-np.abs(x))
    return np.where(np.less(x, 0), decay, np.ones_like(decay)) / (1 + decay)


def erf(x: Array) -> Array:
    """2/sqrt(pi) times the integral of e^(-t^2) from 0 to x, in x's type."""
    from scipy import special

    return special.erf(x)


def erfc(x: Array) -> Array:
    """1 - erf(x), without cancellation for large x."""
    from scipy import special

    return special.erfc(x)


def lgamma(x: Array) -> Array:
    """log |gamma(x)|; infinite at zero and the negative integers."""
    from scipy import special

    return np.where(np.isinf(x), np.abs(x), special.gammaln(x))  # SciPy has -inf at -inf


def digamma(x: Array) -> Array:
    """The derivative of log(gamma(x))."""
    from scipy import special

    return special.digamma(x)


def threefry2x32(key: Array, counter: Array) -> Array:
    """Threefry-2x32 of 20 rounds: uint64 random bits for uint64 keys and counters, low words first.

    J. Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    low, high = _words(key)
    keys = (low, high, low ^ high ^ np.uint32(THREEFRY_PARITY))
    x, y = _words(counter)
    with np.errstate(over="ignore"):  # scalars warn where arrays wrap
        x, y = np.asarray(x + low), np.asarray(y + high)
        part = np.empty_like(y)
        for number in range(THREEFRY_ROUNDS):
            rotation = THREEFRY_ROTATIONS[number % 8]
            np.add(x, y, out=x)
            np.left_shift(y, np.uint32(rotation), out=part)
            np.right_shift(y, np.uint32(32 - rotation), out=y)
            np.bitwise_or(y, part, out=y)
            np.bitwise_xor(y, x, out=y)
            if number % 4 == 3:
                turn = number // 4 + 1
                np.add(x, keys[turn % 3], out=x)
                np.add(y, keys[(turn + 1) % 3] + np.uint32(turn), out=y)
    words: Array = y.astype(np.uint64)
    np.left_shift(words, np.uint64(32), out=words)
    return np.bitwise_or(words, x, out=words)


def _words(value: Array) -> tuple[Array, Array]:
    """The low and the high 32 bits of uint64 values."""
    wide = np.asarray(value, np.uint64)
    return wide.astype(np.uint32), (wide >> np.uint64(32)).astype(np.uint32)
