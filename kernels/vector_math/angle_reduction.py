"""Angles to quarter turns, for every size of angle and without a branch.

x (2/pi) = n + f is found as M. Payne and R. Hanek do ("Radian reduction for trigonometric functions", SIGNUM
Newsletter 18, 1983): the digits of 2/pi that only add whole turns to the product are left out, by a table that holds
the useful digits for each exponent of x. What is kept is cut into pieces whose products with x are exact, or are made
exact by a fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import pi
from typing import Any

from llvmlite import ir

from staticgrad.kernels.vector_math.primitives import (
    BOOLEAN,
    DOUBLE,
    EXPONENT_BIAS,
    MANTISSA_BITS,
    SINGLE,
    WIDTH,
    Scalar,
    Value,
    bits,
    constant,
    constant_table,
    from_bits,
    fused_multiply_add,
    narrowed,
    round,
    rounded,
    rounding_origin,
    widened,
)

_PI_BITS = 1280  # more than the largest exponent of float64 and the digits below it ask for


def _inverse_cotangent(n: int, unit: int) -> int:
    """unit * arccot(n) by its series, in integers."""
    term = total = unit // n
    k = 1
    while term:
        term //= -n * n
        k += 2
        total += term // k
    return total


@cache
def _two_over_pi(bits: int) -> Fraction:
    """2/pi to `bits` binary digits, by J. Machin's formula of 1706."""
    unit = 1 << (bits + 32)
    pi_units = 4 * (4 * _inverse_cotangent(5, unit) - _inverse_cotangent(239, unit))
    return Fraction(2 * unit, pi_units)


_HALF_PI_LOW = constant(6.123233995736766e-17)
_WIDE_STEP = 32  # exponents of float64 that share a row


def _digits(scale: int, upper: int, lower: int) -> float:
    """The binary digits of 2^scale (2/pi) from 2^lower up to, but not including, 2^upper."""
    units = int(_two_over_pi(_PI_BITS) * Fraction(2) ** (scale - lower))
    return float(Fraction(units % 2 ** (upper - lower)) * Fraction(2) ** lower)


def _column(name: str, values_of: Callable[[], list[float]]) -> Any:
    """A function of a row number that answers with that row of a constant table, which is made when first needed."""
    made = cache(values_of)

    def lookup(row: Value) -> Value:
        table = constant_table(row.builder, name, made)
        place = row.builder.gep(table, [row.kind(0), row.code], inbounds=True)
        return Value(row.builder, row.builder.load(place))

    return lookup


def _narrow_column(name: str, upper: int, lower: int) -> Any:
    """The digits of 2/pi that matter to a float32, for each of its 256 biased exponents."""
    bias = EXPONENT_BIAS[SINGLE]
    steps = [max(0, biased - bias) for biased in range(256)]
    return _column(name, lambda: [_digits(step, upper, lower) * 2.0**-step for step in steps])


def _wide_column(name: str, upper: int, lower: int) -> Any:
    """The digits of 2/pi that matter to a float64 divided by 2^(32 row)."""
    return _column(name, lambda: [_digits(step, upper, lower) for step in range(0, 1025, _WIDE_STEP)])


_NARROW_HIGH = _narrow_column("two_over_pi_narrow_high", 25, -4)
_NARROW_LOW = _narrow_column("two_over_pi_narrow_low", -4, -57)
_WIDE_FIRST = _wide_column("two_over_pi_wide_first", 54, 1)
_WIDE_SECOND = _wide_column("two_over_pi_wide_second", 1, -52)
_WIDE_THIRD = _wide_column("two_over_pi_wide_third", -52, -105)
_WIDE_FOURTH = _wide_column("two_over_pi_wide_fourth", -105, -158)


def _biased_exponent(x: Value) -> Value:
    """The exponent field, as an integer."""
    pattern = bits(x)
    field = x.builder.lshr(pattern, pattern.type(MANTISSA_BITS[x.kind]))
    return Value(x.builder, x.builder.and_(field, pattern.type(2 * EXPONENT_BIAS[x.kind] + 1)))


def _wide_row(x: Value) -> tuple[Value, Value]:
    """(row, 2^(-32 row)) with row = max(0, exponent of x) // 32, for a float64 x."""
    builder, integer = x.builder, ir.IntType(64)
    bias = integer(EXPONENT_BIAS[DOUBLE])
    biased = _biased_exponent(x).code
    exponent = builder.select(builder.icmp_unsigned(">", biased, bias), builder.sub(biased, bias), integer(0))
    row = builder.udiv(exponent, integer(_WIDE_STEP))
    power = builder.sub(bias, builder.mul(row, integer(_WIDE_STEP)))
    scale = from_bits(x, builder.shl(power, integer(MANTISSA_BITS[DOUBLE])))
    return Value(builder, row), scale


def _quadrant(n: Value, x: Value) -> Value:
    """The low bits of an integral float64 n, |n| < 2^50, as an integer as wide as x."""
    pattern = bits(n + rounding_origin(DOUBLE))
    return Value(x.builder, x.builder.trunc(pattern, ir.IntType(32)) if x.kind == SINGLE else pattern)


def is_odd(quadrant: Value) -> Value:
    """Whether the lowest bit of `quadrant` is set: sine and cosine change places there."""
    return Value(quadrant.builder, quadrant.builder.trunc(quadrant.code, BOOLEAN))


def negated_by(x: Value, quadrant: Value, turns: int) -> Value:
    """x with its sign changed where the second bit of quadrant + turns is set."""
    builder, integer = x.builder, quadrant.kind
    second = builder.and_(builder.add(quadrant.code, integer(turns)), integer(2))
    sign = builder.shl(second, integer(WIDTH[x.kind] - 2))
    return from_bits(x, builder.xor(bits(x), sign))


def _modulo_four(x: Scalar) -> Scalar:
    """x without its multiples of four, in [-2, 2]; exact."""
    return x - 4.0 * round(0.25 * x)


def exact_sum(a: Scalar, b: Scalar) -> Scalar:
    """(s, e) with a + b = s + e, exactly (D. Knuth, "The Art of Computer Programming", volume 2, 4.2.2)."""
    s = a + b
    c = s - a
    return s, (a - (s - c)) + (b - c)


def exact_product(a: Scalar, b: Scalar) -> Scalar:
    """(p, e) with a b = p + e, exactly."""
    p = a * b
    return p, fused_multiply_add(a, b, -p)


def _narrow_quarter_turns(x: Scalar) -> Scalar:
    """`quarter_turns` of a float32, by float64 arithmetic."""
    row = _biased_exponent(x)
    wide = widened(x)
    leading = wide * _NARROW_HIGH(row)  # 24 by 29 bits: exact
    whole = rounded(leading)
    f = (leading - whole) + wide * _NARROW_LOW(row)
    carry = rounded(f)
    angle = (f - carry) * (0.5 * pi)
    r = narrowed(angle)
    return _quadrant(whole + carry, x), r, narrowed(angle - widened(r))


def _wide_quarter_turns(x: Scalar) -> Scalar:
    """`quarter_turns` of a float64, by arithmetic on sums of two to four floats."""
    row, scale = _wide_row(x)
    m = x * scale
    p, p_low = exact_product(m, _WIDE_FIRST(row))
    q, q_low = exact_product(m, _WIDE_SECOND(row))
    t, t_low = exact_product(m, _WIDE_THIRD(row))
    turns, turns_low = exact_sum(_modulo_four(p) + _modulo_four(p_low), _modulo_four(q))
    n = round(turns)
    rest, rest_low = exact_sum(q_low, t)
    f, f_low = exact_sum(turns - n, rest)
    f, low = exact_sum(f, turns_low)
    low = low + (f_low + (rest_low + (t_low + m * _WIDE_FOURTH(row))))
    high = f + low
    low = (f - high) + low
    r, r_low = exact_product(high, 0.5 * pi)
    r_low = r_low + (high * _HALF_PI_LOW(x) + low * (0.5 * pi))
    return _quadrant(n, x), r, r_low


def quarter_turns(x: Scalar) -> Scalar:
    """(n, r, tail) with x = n pi/2 + r + tail, |r| <= pi/4, and n an integer whose two low bits count."""
    return _narrow_quarter_turns(x) if x.kind == SINGLE else _wide_quarter_turns(x)
