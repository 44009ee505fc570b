"""Sine, cosine, tangent and their inverses.

An angle is taken to quarter turns, x (2/pi) = n + f with |f| <= 1/2, and f to radians; `angle_reduction.py` does that
for every size of x. The inverse tangent is reduced to [-tan(pi/8), tan(pi/8)] and the inverse sine to [0, 1/2] by the
half-angle formula, as in Cephes (S. Moshier, 1989). The polynomials come from `benchmarks/minimax.py`.
"""

from __future__ import annotations

from math import pi

from staticgrad.kernels.vector_math.angle_reduction import is_odd, negated_by, quarter_turns
from staticgrad.kernels.vector_math.primitives import (
    Scalar,
    constant,
    copysign,
    fabs,
    like,
    multiply_add,
    polynomial,
    scalar,
    select,
    sqrt,
)

_SIN = polynomial(  # (sin(r) - r) / r^3 in r^2
    (-0.16666655, 0.008332178, -0.00019517295),
    (
        -0.16666666666666632,
        0.008333333333322424,
        -0.00019841269829816503,
        2.7557313695052356e-06,
        -2.505075862361143e-08,
        1.589682608723069e-10,
    ),
)
_COS = polynomial(  # (cos(r) - 1 + r^2/2) / r^4 in r^2
    (0.041666646, -0.0013887368, 2.4438446e-05),
    (
        0.0416666666666666,
        -0.0013888888888874138,
        2.480158728949137e-05,
        -2.75573143550997e-07,
        2.087572366372409e-09,
        -1.1359668722974548e-11,
    ),
)
_ASIN = polynomial(  # (asin(x) - x) / x^3 in x^2, |x| <= 1/2
    (0.1666666, 0.07500511, 0.04451572, 0.03181759, 0.014402688, 0.037565082),
    (
        0.16666666666666763,
        0.07499999999970257,
        0.04464285717512476,
        0.030381942683478717,
        0.02237221566323634,
        0.017351600050942887,
        0.013980961844210714,
        0.011397773330962207,
        0.0107865417335837,
        0.003683000082545164,
        0.021763590397409344,
        -0.021077409994950294,
        0.032676957930028096,
    ),
)
_ATAN = polynomial(  # (atan(x) - x) / x^3 in x^2, |x| <= tan(pi/8)
    (-0.33333316, 0.1999849, -0.14243846, 0.105959736, -0.060833782),
    (
        -0.333333333333332,
        0.19999999999954068,
        -0.14285714280246878,
        0.11111110786049147,
        -0.09090897833744682,
        0.07692061586806934,
        -0.0666311979085686,
        0.05848004466700617,
        -0.05039824921289181,
        0.03807778533250274,
        -0.017921680129066885,
    ),
)
_QUARTER_LOW = constant(-4.3711390001862426e-08, 6.123233995736766e-17)  # pi/2 minus its nearest float
_LINEAR = constant(2.0**-13, 2.0**-27)  # sin(x) and tan(x) round to x below
_LARGE = constant(2.0**124, 2.0**1020)
_TAN_EIGHTH = constant(0.41421356237309503)  # tan(pi/8)
_TAN_THREE_EIGHTHS = constant(2.414213562373095)  # tan(3 pi/8)


def _sin_and_cos(r: Scalar, tail: Scalar) -> Scalar:
    """sin and cos of r + tail, for |r| <= pi/4."""
    z = r * r
    sine = r + multiply_add(z * r, _SIN(z), tail * (1.0 - 0.5 * z))
    half_square = 0.5 * z
    leading = 1.0 - half_square
    cosine = leading + (((1.0 - leading) - half_square) + (z * z * _COS(z) - r * tail))
    return sine, cosine


@scalar
def sin(x: Scalar) -> Scalar:
    """The sine of x radians; NaN at infinity."""
    n, r, tail = quarter_turns(x)
    sine, cosine = _sin_and_cos(r, tail)
    value = negated_by(select(is_odd(n), cosine, sine), n, 0)
    return select(fabs(x) < _LINEAR(x), x, value)


@scalar
def cos(x: Scalar) -> Scalar:
    """The cosine of x radians; NaN at infinity."""
    n, r, tail = quarter_turns(x)
    sine, cosine = _sin_and_cos(r, tail)
    return negated_by(select(is_odd(n), sine, cosine), n, 1)


@scalar
def tan(x: Scalar) -> Scalar:
    """The tangent of x radians; NaN at infinity."""
    n, r, tail = quarter_turns(x)
    sine, cosine = _sin_and_cos(r, tail)
    odd = is_odd(n)
    value = select(odd, -cosine, sine) / select(odd, sine, cosine)
    return select(fabs(x) < _LINEAR(x), x, value)


def _asin_series(x: Scalar) -> Scalar:
    """asin(x) - x for |x| <= 1/2."""
    z = x * x
    return x * z * _ASIN(z)


@scalar
def asin(x: Scalar) -> Scalar:
    """The angle in [-pi/2, pi/2] whose sine is x; NaN for |x| > 1."""
    a = fabs(x)
    outer = a > 0.5
    s = select(outer, sqrt(0.5 * (1.0 - a)), a)
    series = _asin_series(s)
    far = pi / 2 - (2.0 * s + (2.0 * series - _QUARTER_LOW(x)))
    return copysign(select(outer, far, s + series), x)


@scalar
def acos(x: Scalar) -> Scalar:
    """The angle in [0, pi] whose cosine is x; NaN for |x| > 1."""
    a = fabs(x)
    outer = a > 0.5
    s = select(outer, sqrt(0.5 * (1.0 - a)), x)
    series = _asin_series(s)
    doubled = 2.0 * (s + series)
    low = _QUARTER_LOW(x)
    mirrored = pi - (doubled - 2.0 * low)
    middle = pi / 2 - (s + (series - low))
    return select(outer, select(x > 0.0, doubled, mirrored), middle)


def _atan_of_ratio(y: Scalar, x: Scalar) -> Scalar:
    """(base, t, low) with atan(y / x) = base + (t + low), for y and x positive or zero, not both zero or infinite."""
    zero, one = like(0.0, x), like(1.0, x)
    above = y > _TAN_THREE_EIGHTHS(x) * x
    middle = (y > _TAN_EIGHTH(x) * x) & (y <= _TAN_THREE_EIGHTHS(x) * x)
    numerator = select(above, -x, select(middle, y - x, y))
    denominator = select(above, y, select(middle, y + x, x))
    quarter = select(above, one, select(middle, 0.5, zero))
    t = numerator / denominator
    z = t * t
    return quarter * pi / 2, t, multiply_add(t * z, _ATAN(z), quarter * _QUARTER_LOW(x))


@scalar
def atan(x: Scalar) -> Scalar:
    """The angle in [-pi/2, pi/2] whose tangent is x."""
    base, t, low = _atan_of_ratio(fabs(x), like(1.0, x))
    return copysign(base + (t + low), x)


@scalar
def atan2(y: Scalar, x: Scalar) -> Scalar:
    """The angle of the point (x, y), in [-pi, pi], with the sign of y; zeros and infinities as in C."""
    one = like(1.0, x)
    scale = select((fabs(x) > _LARGE(x)) | (fabs(y) > _LARGE(x)), 0.0625, one)  # no sum below overflows
    a, b = fabs(y) * scale, fabs(x) * scale
    infinite = (a == b) & (a > _LARGE(x))
    a = select(infinite, one, a)
    b = select(infinite | ((a == 0.0) & (b == 0.0)), one, b)
    base, t, low = _atan_of_ratio(a, b)
    near = base + (t + low)
    mirrored = pi - base
    lost = (pi - mirrored) - base
    far = mirrored - (t + (low - (lost + 2.0 * _QUARTER_LOW(x))))
    return copysign(select(copysign(one, x) < 0.0, far, near), y)
