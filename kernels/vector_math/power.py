"""x to the power y, as 2^(y log2 |x|) with the special values of C and NumPy.

The logarithm must be about eleven bits more accurate than the result, since y log2(x) reaches 1024. A float32 is
computed in float64 throughout; a float64 carries its logarithm as a sum of two floats, the leading terms of the
artanh series included (T. Dekker, "A floating-point technique for extending the available precision", 1971).
"""

from __future__ import annotations

from math import inf, nan

from staticgrad.kernels.vector_math.angle_reduction import exact_product, exact_sum
from staticgrad.kernels.vector_math.exponential import clamp, exp2, exp2_of_sum
from staticgrad.kernels.vector_math.logarithm import log2, split
from staticgrad.kernels.vector_math.primitives import (
    SINGLE,
    Scalar,
    copysign,
    fabs,
    fused_multiply_add,
    like,
    narrowed,
    polynomial,
    power_of_two,
    round,
    rounded,
    scalar,
    select,
    widened,
)

_LOG2_E = 1.4426950408889634
_LOG2_E_LOW = 2.0355273740931033e-17
_NARROW_LOG2 = polynomial(  # log2((1 + s) / (1 - s)) / s in s^2
    (), (2.8853900817901437, 0.9617966732813233, 0.5770835949640435, 0.4116721890673657, 0.34073888749900777)
)
_NARROW_EXP2 = polynomial(  # (2^r - 1) / r
    (),
    (
        0.6931471838168853,
        0.24022650920772565,
        0.05550400375033671,
        0.009618056922133333,
        0.0013341951348107403,
        0.00015461366521880886,
        1.3359726641381487e-05,
    ),
)
_TAIL = polynomial(  # the artanh series beyond 2 s + (2/3) s^3, over s^5, in s^2
    (),
    (
        0.3999999999999998,
        0.285714285714451,
        0.22222222217538623,
        0.18181818870048044,
        0.15384556889245712,
        0.13336316715877508,
        0.11674832791275308,
        0.11988894156225792,
    ),
)


def _narrow_power(x: Scalar, y: Scalar) -> Scalar:
    """|x|^y for float32, rounded once from float64."""
    m, e = split(fabs(widened(x)))
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    exponent = clamp(widened(y) * (e + s * _NARROW_LOG2(z)), -200.0, 200.0)
    n = rounded(exponent)
    r = exponent - n
    return narrowed((1.0 + r * _NARROW_EXP2(r)) * power_of_two(n))


def _log2_in_two_parts(m: Scalar, e: Scalar) -> Scalar:
    """(high, low) with log2(m) + e = high + low to about 2^-66 of itself."""
    numerator, denominator = m - 1.0, m + 1.0
    denominator_low = (1.0 - denominator) + m
    s = numerator / denominator
    s_low = (fused_multiply_add(-s, denominator, numerator) - s * denominator_low) / denominator
    z, z_low = exact_product(s, s)
    z_low = z_low + 2.0 * s * s_low
    # The series: s (2 + z (2/3 + z tail)), the factor in the brackets to two floats.
    tail = z * _TAIL(z)
    c, c_low = exact_sum(2.0 / 3.0, tail + 3.700743415417188e-17)
    g, g_low = exact_product(z, c)
    g_low = g_low + (z * c_low + z_low * c)
    factor, factor_low = exact_sum(2.0, g)
    factor_low = factor_low + g_low
    high, low = exact_product(s, factor)
    low = low + (s * factor_low + s_low * factor)
    # To base two, and the exponent.
    product, product_low = exact_product(high, _LOG2_E)
    product_low = product_low + (high * _LOG2_E_LOW + low * _LOG2_E)
    total, total_low = exact_sum(e, product)
    return total, total_low + product_low


def _wide_power(x: Scalar, y: Scalar) -> Scalar:
    """|x|^y for float64."""
    m, e = split(fabs(x))
    high, low = _log2_in_two_parts(m, e)
    y = select(fabs(y) > 1e30, copysign(1e30, y), y)  # keeps the products below finite
    product, product_low = exact_product(y, high)
    return exp2_of_sum(product, product_low + y * low)


def _magnitude(x: Scalar, y: Scalar) -> Scalar:
    """|x|^y for finite non-zero x and finite y."""
    return _narrow_power(x, y) if x.kind == SINGLE else _wide_power(x, y)


@scalar
def pow(x: Scalar, y: Scalar) -> Scalar:
    """x^y; a negative x needs an integral y, else NaN; x^0 and 1^y are one, for NaN too."""
    zero, one, infinity = like(0.0, x), like(1.0, x), like(inf, x)
    a = fabs(x)
    value = _magnitude(x, y)
    # Zero and infinity are each other's inverse.
    vanishes = (a == zero) ^ (y < zero)
    value = select((a == zero) | (a == infinity), select(vanishes, zero, infinity), value)
    grows = (a > one) ^ (y < zero)
    value = select(fabs(y) == infinity, select(a == one, one, select(grows, infinity, zero)), value)
    half = y * 0.5
    integral = round(y) == y
    odd = integral & (round(half) != half)
    negative = copysign(one, x) < zero
    value = select(negative & odd, -value, value)
    invalid = (x < zero) & (a != infinity) & (fabs(y) != infinity) & ~integral
    value = select(invalid | (x != x) | (y != y), nan, value)
    return select((x == one) | (y == zero), one, value)


@scalar
def cbrt(x: Scalar) -> Scalar:
    """The real cube root, by one step of Newton's method from 2^(log2|x| / 3)."""
    a = fabs(x)
    root = exp2(log2(a) / 3.0)
    root = root - (root - a / (root * root)) / 3.0
    finite = (a > 0.0) & (a < inf)
    return select(finite, copysign(root, x), x)
