"""Logarithms: log, log2, log10, log1p, and the inverse hyperbolic functions made from them.

x = m 2^e with m in [sqrt(1/2), sqrt(2)), f = m - 1, s = f / (2 + f), and log(m) = f - f^2/2 + s (f^2/2 + R(s^2)),
the series of 2 artanh(s) with its leading terms replaced by exact ones (the method of fdlibm's `e_log.c`, Sun
Microsystems, 1993). R comes from `benchmarks/minimax.py`.
"""

from __future__ import annotations

from math import inf, nan

from staticgrad.kernels.vector_math.primitives import (
    Scalar,
    constant,
    copysign,
    fabs,
    leading_half,
    polynomial,
    scalar,
    select,
    split_exponent,
    sqrt,
)

_LN2_HIGH = constant(0.693145751953125, 0.6931471803691238)  # 16 and 32 bits: e times it is exact
_LN2_LOW = constant(1.42860682030941723212e-6, 1.90821492927058770002e-10)
_LN2 = constant(0.6931471805599453)
_LOG2_E_HIGH = constant(1.4423828125, 1.4426950216293335)
_LOG2_E_LOW = constant(0.00031222838896340733, 1.9259629911266175e-08)
_LOG10_E_HIGH = constant(0.4342041015625, 0.4342944771051407)
_LOG10_E_LOW = constant(9.038034075182765e-05, 4.798111141615973e-09)
_LOG10_2_HIGH = constant(0.301025390625, 0.3010299950838089)
_LOG10_2_LOW = constant(4.605038981195214e-06, 5.801722962879576e-10)
_SMALLEST_NORMAL = constant(2.0**-126, 2.0**-1022)
_LIFT = constant(2.0**25, 2.0**54)  # takes every subnormal into the normal range
_LIFT_EXPONENT = constant(25.0, 54.0)
_SQUARES_OVERFLOW = constant(2.0**60, 2.0**500)

_LOG = polynomial(  # (2 artanh(s) - 2 s) / s^3 in s^2
    (0.6666666, 0.40000334, 0.28537306, 0.2358218),
    (
        0.6666666666666734,
        0.3999999999941462,
        0.28571428742403465,
        0.2222219857128555,
        0.18183564436888133,
        0.15314047448793527,
        0.14795983151280143,
    ),
)


def split(x: Scalar) -> Scalar:
    """(m, e) with x = m 2^e, for any positive finite x."""
    small = x < _SMALLEST_NORMAL(x)
    m, e = split_exponent(select(small, x * _LIFT(x), x))
    return m, select(small, e - _LIFT_EXPONENT(x), e)


def _with_special_values(x: Scalar, value: Scalar) -> Scalar:
    """`value` but at zero (-inf), below zero and at NaN (NaN), and at infinity (infinity)."""
    value = select(x > 0.0, value, nan)
    value = select(x == 0.0, -inf, value)
    return select(x == inf, x, value)


def log_of_parts(f: Scalar, e: Scalar, c: Scalar) -> Scalar:
    """log(1 + f) + e ln 2 + c, for 1 + f in [sqrt(1/2), sqrt(2)) and a correction c."""
    half_square = 0.5 * f * f
    s = f / (2.0 + f)
    z = s * s
    rest = s * (half_square + z * _LOG(z)) + (e * _LN2_LOW(f) + c)
    return e * _LN2_HIGH(f) - ((half_square - rest) - f)


@scalar
def log(x: Scalar) -> Scalar:
    """The natural logarithm; NaN below zero, -inf at zero."""
    m, e = split(x)
    return _with_special_values(x, log_of_parts(m - 1.0, e, 0.0))


def _log_in_two_parts(m: Scalar) -> Scalar:
    """(high, low) with log(m) = high + low, where high has half the significant bits."""
    f = m - 1.0
    half_square = 0.5 * f * f
    s = f / (2.0 + f)
    z = s * s
    high = leading_half(f - half_square)
    return high, ((f - high) - half_square) + s * (half_square + z * _LOG(z))


@scalar
def log2(x: Scalar) -> Scalar:
    """The logarithm to base two; exact at powers of two."""
    m, e = split(x)
    high, low = _log_in_two_parts(m)
    leading = high * _LOG2_E_HIGH(x)
    rest = (low + high) * _LOG2_E_LOW(x) + low * _LOG2_E_HIGH(x)
    total = e + leading
    return _with_special_values(x, total + (((e - total) + leading) + rest))


@scalar
def log10(x: Scalar) -> Scalar:
    """The logarithm to base ten."""
    m, e = split(x)
    high, low = _log_in_two_parts(m)
    leading = high * _LOG10_E_HIGH(x)
    rest = e * _LOG10_2_LOW(x) + ((low + high) * _LOG10_E_LOW(x) + low * _LOG10_E_HIGH(x))
    exponent = e * _LOG10_2_HIGH(x)
    total = exponent + leading
    return _with_special_values(x, total + (((exponent - total) + leading) + rest))


def _finite_log1p(x: Scalar) -> Scalar:
    """log(1 + x) for finite x > -1."""
    u = 1.0 + x
    m, e = split_exponent(u)
    lost = select(e > 1.0, 1.0 - (u - x), x - (u - 1.0))  # what rounding took from 1 + x
    near = e == 0.0
    f = select(near, x, m - 1.0)
    c = select(near, 0.0, lost / u)
    return log_of_parts(f, e, c)


@scalar
def log1p(x: Scalar) -> Scalar:
    """log(1 + x), without cancellation near zero; NaN below -1, -inf at -1."""
    return copysign(_with_special_values(1.0 + x, _finite_log1p(x)), x)


@scalar
def asinh(x: Scalar) -> Scalar:
    """log(x + sqrt(x^2 + 1)), as an odd function."""
    a = fabs(x)
    huge = a > _SQUARES_OVERFLOW(x)
    square = a * a
    moderate = a + square / (1.0 + sqrt(square + 1.0))
    value = _finite_log1p(select(huge, a, moderate)) + select(huge, _LN2(x), 0.0)
    return copysign(select(a < inf, value, a), x)


@scalar
def acosh(x: Scalar) -> Scalar:
    """log(x + sqrt(x^2 - 1)); NaN below one."""
    huge = x > _SQUARES_OVERFLOW(x)
    t = x - 1.0
    moderate = t + sqrt(t * (t + 2.0))
    value = log1p(select(huge, x, moderate)) + select(huge, _LN2(x), 0.0)
    return select(x >= 1.0, value, nan)


@scalar
def atanh(x: Scalar) -> Scalar:
    """log((1 + x) / (1 - x)) / 2; infinite at +-1, NaN beyond."""
    a = fabs(x)
    return copysign(0.5 * log1p(2.0 * a / (1.0 - a)), x)
