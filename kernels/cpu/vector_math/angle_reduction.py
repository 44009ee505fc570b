"""Angles to quarter turns, for every size of angle and without a branch.

x (2/pi) = n + f is found as M. Payne and R. Hanek do ("Radian reduction for trigonometric functions", SIGNUM
Newsletter 18, 1983): the digits of 2/pi that only add whole turns to the product are left out, by a table that holds
the useful digits for each exponent of x. What is kept is cut into pieces whose products with x are exact, or are made
exact by a fused multiply-add.
"""

from __future__ import annotations

from fractions import Fraction
from math import pi
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from staticgrad.kernels.cpu.vector_math.primitives import (
    EXPONENT_BIAS,
    MANTISSA_BITS,
    Scalar,
    call_llvm,
    constant,
    fused_multiply_add,
    like,
    narrowed,
    nearest,
    scalar,
    select,
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


def _two_over_pi(bits: int) -> Fraction:
    """2/pi to `bits` binary digits, by J. Machin's formula of 1706."""
    unit = 1 << (bits + 32)
    pi_units = 4 * (4 * _inverse_cotangent(5, unit) - _inverse_cotangent(239, unit))
    return Fraction(2 * unit, pi_units)


_TWO_OVER_PI = _two_over_pi(_PI_BITS)
_HALF_PI_LOW = constant(6.123233995736766e-17)
_WIDE_STEP = 32  # exponents of float64 that share a row


def _digits(scale: int, upper: int, lower: int) -> float:
    """The binary digits of 2^scale (2/pi) from 2^lower up to, but not including, 2^upper."""
    units = int(_TWO_OVER_PI * Fraction(2) ** (scale - lower))
    return float(Fraction(units % 2 ** (upper - lower)) * Fraction(2) ** lower)


def _column(steps: range, upper: int, lower: int) -> Any:
    """A function of a row number that answers with the digits 2^lower to 2^upper of 2^step (2/pi)."""
    values = [_digits(step, upper, lower) for step in steps]
    kind = ir.ArrayType(ir.DoubleType(), len(values))

    @intrinsic
    def lookup(typingctx: Any, row: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            module = builder.module
            name = f"two_over_pi_{upper - lower}_{abs(lower)}_{len(values)}"
            table = module.globals.get(name)
            if table is None:
                table = ir.GlobalVariable(module, kind, name)
                table.initializer = ir.Constant(kind, values)
                table.global_constant = True
                table.linkage = "internal"
            return builder.load(builder.gep(table, [ir.IntType(32)(0), arguments[0]], inbounds=True))

        return types.float64(row), codegen

    return lookup


_NARROW_HIGH = _column(range(129), 25, -4)
_NARROW_LOW = _column(range(129), -4, -57)
_WIDE_FIRST = _column(range(0, 1025, _WIDE_STEP), 54, 1)
_WIDE_SECOND = _column(range(0, 1025, _WIDE_STEP), 1, -52)
_WIDE_THIRD = _column(range(0, 1025, _WIDE_STEP), -52, -105)
_WIDE_FOURTH = _column(range(0, 1025, _WIDE_STEP), -105, -158)


def _row_of(step: int, last: int) -> Any:
    """A function of a float64 x: (row, 2^(-step row)) with row = max(0, exponent of x) // step, at most `last`."""

    @intrinsic
    def row_of(typingctx: Any, x: Any) -> Any:
        bits, bias = MANTISSA_BITS[x], EXPONENT_BIAS[x]
        result = types.Tuple((types.int64, x))

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            integer = ir.IntType(x.bitwidth)
            pattern = builder.bitcast(arguments[0], integer)
            biased = builder.and_(builder.lshr(pattern, integer(bits)), integer(2 * bias + 1))
            row = builder.udiv(call_llvm(builder, "llvm.usub.sat", biased, integer(bias)), integer(step))
            row = call_llvm(builder, "llvm.umin", row, integer(last))
            power = builder.sub(integer(bias), builder.mul(row, integer(step)))
            scale = builder.bitcast(builder.shl(power, integer(bits)), arguments[0].type)
            return context.make_tuple(builder, result, (row, scale))

        return result(x), codegen

    return row_of


_narrow_row = _row_of(1, 128)
_wide_row = _row_of(_WIDE_STEP, 1024 // _WIDE_STEP)


@scalar
def _modulo_four(x: Scalar) -> Scalar:
    """x without its multiples of four, in [-2, 2]; exact."""
    return x - like(4.0, x) * nearest(like(0.25, x) * x)


@scalar
def _quadrant(n: Scalar) -> Scalar:
    """n modulo four, as one of 0, 1, 2, 3."""
    n = _modulo_four(n)
    return select(n < like(0.0, n), n + like(4.0, n), n)


@scalar
def exact_sum(a: Scalar, b: Scalar) -> Scalar:
    """(s, e) with a + b = s + e, exactly (D. Knuth, "The Art of Computer Programming", volume 2, 4.2.2)."""
    s = a + b
    c = s - a
    return s, (a - (s - c)) + (b - c)


@scalar
def exact_product(a: Scalar, b: Scalar) -> Scalar:
    """(p, e) with a b = p + e, exactly."""
    p = a * b
    return p, fused_multiply_add(a, b, -p)


@scalar
def _narrow_quarter_turns(x: Scalar) -> Scalar:
    """`quarter_turns` of a float32, by float64 arithmetic."""
    wide = widened(x)
    row, scale = _narrow_row(wide)
    m = wide * scale
    leading = m * _NARROW_HIGH(row)  # 24 by 29 bits: exact
    whole = nearest(leading)
    f = (leading - whole) + m * _NARROW_LOW(row)
    carry = nearest(f)
    angle = (f - carry) * (0.5 * pi)
    r = narrowed(angle)
    return narrowed(_quadrant(whole + carry)), r, narrowed(angle - widened(r))


@scalar
def _wide_quarter_turns(x: Scalar) -> Scalar:
    """`quarter_turns` of a float64, by arithmetic on sums of two to four floats."""
    row, scale = _wide_row(x)
    m = x * scale
    p, p_low = exact_product(m, _WIDE_FIRST(row))
    q, q_low = exact_product(m, _WIDE_SECOND(row))
    t, t_low = exact_product(m, _WIDE_THIRD(row))
    turns, turns_low = exact_sum(_modulo_four(p) + _modulo_four(p_low), _modulo_four(q))
    n = nearest(turns)
    rest, rest_low = exact_sum(q_low, t)
    f, f_low = exact_sum(turns - n, rest)
    f, low = exact_sum(f, turns_low)
    low = low + (f_low + (rest_low + (t_low + m * _WIDE_FOURTH(row))))
    high = f + low
    low = (f - high) + low
    r, r_low = exact_product(high, 0.5 * pi)
    r_low = r_low + (high * _HALF_PI_LOW(x) + low * (0.5 * pi))
    return _quadrant(n), r, r_low


def quarter_turns(x: Scalar) -> Scalar:
    """(n, r, tail) with x = (n + 4k) pi/2 + r + tail, n one of 0, 1, 2, 3 and |r| <= pi/4; NaN at infinity."""
    raise NotImplementedError("quarter_turns: callable from compiled code only")


@overload(quarter_turns, jit_options={"error_model": "numpy", "forceinline": True})
def _quarter_turns(x: Scalar) -> Scalar:
    return _narrow_quarter_turns if x == types.float32 else _wide_quarter_turns
