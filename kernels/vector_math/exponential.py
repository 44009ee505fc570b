"""Powers of e and of two: exp, exp2, expm1, sigmoid, and the hyperbolic functions made from them.

The argument is written x = n ln 2 + r with n integral and |r| <= ln(2)/2 (W. Cody and W. Waite, "Software Manual for
the Elementary Functions", 1980): ln 2 is split into a part that n multiplies exactly and a small rest. A minimax
polynomial gives e^r; its coefficients come from `benchmarks/minimax.py`. The scaling by 2^n is done in two steps, so
that results below the normal range are rounded once and not flushed. A GPU has an instruction for 2^r of float32, with
an error below 2^-22 of the result, which takes the polynomial's place there.
"""

from __future__ import annotations

from staticgrad.kernels.vector_math.primitives import (
    EXPONENT_BIAS,
    MANTISSA_BITS,
    Scalar,
    Value,
    bits,
    constant,
    copysign,
    fabs,
    from_bits,
    has_exp2,
    like,
    multiply_add,
    polynomial,
    power_of_two,
    rounded,
    rounding_origin,
    scalar,
    select,
    small_exp2,
)

_LOG2_E = constant(1.4426950408889634)
_LOG2_E_LOW = constant(1.9259629911266175e-08)  # what float32 leaves of it
_LN2_HIGH = constant(0.693145751953125, 0.6931471803691238)  # 16 and 32 bits
_LN2_LOW = constant(1.42860682030941723212e-6, 1.90821492927058770002e-10)
_EXP_LOWER = constant(-105.0, -747.0)  # e^x rounds to zero below
_EXP_UPPER = constant(90.0, 711.0)  # e^x is above the largest float
_EXP2_LOWER = constant(-151.0, -1076.0)
_EXP2_UPPER = constant(129.0, 1025.0)
_HALF_EXP_UPPER = constant(89.5, 710.6)  # e^x / 2 is above the largest float, 2^(n - 2) is not
_TANH_UPPER = constant(10.0, 20.0)  # tanh(x) rounds to 1 above
_EXPM1_LOWER = constant(-18.0, -38.0)  # expm1(x) rounds to -1 below
_EXPM1_UPPER = constant(89.0, 710.0)  # keeps 2^(n - 1) finite; already above the largest float

_EXP = polynomial(  # (e^r - 1 - r) / r^2
    (0.49999994, 0.16666521, 0.04166839, 0.008368711, 0.00138146),
    (
        0.5,
        0.16666666666666682,
        0.041666666666666095,
        0.008333333333317044,
        0.0013888888889115564,
        0.0001984126989635843,
        2.4801586926674934e-05,
        2.7557234888488378e-06,
        2.7557581869406987e-07,
        2.511202723116137e-08,
        2.0826605341814534e-09,
    ),
)
_EXP2 = polynomial(  # (2^r - 1) / r
    (0.69314724, 0.24022652, 0.055503104, 0.009617693, 0.0013406643, 0.0001559473),
    (
        0.6931471805599453,
        0.24022650695910072,
        0.055504108664821736,
        0.009618129107628562,
        0.0013333558146381738,
        0.0001540353039317173,
        1.525273386484442e-05,
        1.3215487003466781e-06,
        1.0178047531561238e-07,
        7.054814821676121e-09,
        4.4572392449073224e-10,
        2.5855252761644438e-11,
    ),
)
_TANH = polynomial(  # (tanh(x) - x) / x^3 in x^2, |x| <= 5/8
    (-0.3333333, 0.1333321, -0.053947207, 0.021702971, -0.008182682, 0.0021475442),
    (
        -0.33333333333333315,
        0.13333333333329891,
        -0.05396825396613504,
        0.0218694884706708,
        -0.008863234341763436,
        0.003592114273825339,
        -0.0014557276328908033,
        0.0005894586905172342,
        -0.00023703031122565598,
        9.159013644999969e-05,
        -3.021830377087201e-05,
        6.055781882896195e-06,
    ),
)
_SINH = polynomial(  # (sinh(x) - x) / x^3 in x^2, |x| <= 1
    (0.16666667, 0.0083333505, 0.00019836066, 2.8174388e-06),
    (
        0.16666666666666669,
        0.008333333333333139,
        0.0001984126984143768,
        2.7557319155337e-06,
        2.505212339855279e-08,
        1.6057240340884456e-10,
        7.759312217547371e-13,
    ),
)


def clamp(x: Scalar, lower: Scalar, upper: Scalar) -> Scalar:
    """x moved into [lower, upper]; NaN stays NaN."""
    x = select(x < lower, lower, x)
    return select(x > upper, upper, x)


def _scaled(p: Scalar, n: Scalar) -> Scalar:
    """p 2^n, rounded once, for |n| up to somewhat more than the exponent range.

    The exponent fields of two powers of two, whose sum is n plus two biases, are halves of that sum.
    """
    builder, bias = n.builder, EXPONENT_BIAS[n.kind]
    pattern = bits(n + (rounding_origin(n.kind) + 2 * bias))
    both = builder.and_(pattern, pattern.type(4 * bias + 3))
    first = builder.lshr(both, pattern.type(1))
    size = pattern.type(MANTISSA_BITS[n.kind])
    powers = [from_bits(n, builder.shl(field, size)) for field in (first, builder.sub(both, first))]
    return p * powers[0] * powers[1]


def _reduced(x: Scalar, rest: Scalar) -> Scalar:
    """(n, r, c) with x + rest = n ln 2 + r + c, where c is the rounding error of r and `rest` is small."""
    n = rounded(x * _LOG2_E(x))
    high = x - n * _LN2_HIGH(x)
    low = n * _LN2_LOW(x) - rest
    r = high - low
    return n, r, (high - r) - low


def _split_exp(x: Scalar, rest: Scalar = None) -> tuple[Scalar, Scalar]:
    """(p, n) with e^(x + rest) = p 2^n, p next to 1 and n an integral float; `rest` is small."""
    n = rounded(x * _LOG2_E(x))
    if has_exp2(x):
        return _exp2_of_rest(x, n, rest), n
    r = multiply_add(n, -_LN2_LOW(x), x - n * _LN2_HIGH(x))
    r = r if rest is None else r + rest
    return 1.0 + multiply_add(r * r, _EXP(r), r), n


# ---------------------------------------------------------------- by a device's instruction for 2^r


def _exp_by_instruction(x: Value, rest: Scalar = None) -> Value:
    """e^(x + rest). Outside the normal range n stays at its end and r grows instead: 2^r then leaves the range."""
    n, power = _normal_power(multiply_add(x, _LOG2_E(x), rounding_origin(x.kind)))
    return _exp2_of_rest(x, n, rest) * power


def _normal_power(shifted: Value) -> tuple[Value, Value]:
    """(n, 2^n) from n plus the origin of rounding; n is moved to where 2^n is normal."""
    builder, kind = shifted.builder, shifted.kind
    origin, bias = rounding_origin(kind), EXPONENT_BIAS[kind]
    shifted = clamp(shifted, like(origin - bias + 1, shifted), like(origin + bias, shifted))
    pattern = bits(shifted)
    size = MANTISSA_BITS[kind]
    exponent = builder.add(builder.shl(pattern, pattern.type(size)), pattern.type(bias << size))
    return shifted - origin, from_bits(shifted, exponent)


def _exp2_of_rest(x: Value, n: Value, rest: Scalar) -> Value:
    """e^(x + rest) / 2^n."""
    r = multiply_add(x, _LOG2_E_LOW(x), multiply_add(x, _LOG2_E(x), -n))
    return small_exp2(r if rest is None else multiply_add(rest, _LOG2_E(x), r))


# ---------------------------------------------------------------- the functions


@scalar
def exp(x: Scalar) -> Scalar:
    """e^x."""
    if has_exp2(x):
        return _exp_by_instruction(x)
    return _scaled(*_split_exp(clamp(x, _EXP_LOWER(x), _EXP_UPPER(x))))


def exp_of_sum(high: Scalar, low: Scalar) -> Scalar:
    """e^(high + low), for |low| no larger than |high|."""
    x = high + low
    rest = (high - x) + low
    if has_exp2(x):
        return _exp_by_instruction(x, rest)
    return _scaled(*_split_exp(clamp(x, _EXP_LOWER(x), _EXP_UPPER(x)), rest))


def normal_exp(x: Scalar) -> Scalar:
    """e^x where it is neither subnormal nor near the largest float."""
    p, n = _split_exp(x)
    return p * power_of_two(n)


def _half_exp(x: Scalar) -> Scalar:
    """e^x / 2 for x >= 0."""
    p, n = _split_exp(select(x > _HALF_EXP_UPPER(x), _HALF_EXP_UPPER(x), x))
    return p * power_of_two(n - 2.0) * 2.0  # 2^(n - 1) itself may be above the largest float


def _scaled_exp2(r: Scalar, n: Scalar) -> Scalar:
    """2^(r + n), for |r| <= 1/2."""
    return _scaled(small_exp2(r) if has_exp2(r) else multiply_add(r, _EXP2(r), 1.0), n)


def exp2_of_sum(high: Scalar, low: Scalar) -> Scalar:
    """2^(high + low), for a `low` that is a rounding error of `high`."""
    high = clamp(high, _EXP2_LOWER(high), _EXP2_UPPER(high))
    n = rounded(high)
    r = (high - n) + select(fabs(low) < 1.0, low, 0.0)  # larger only where `high` is clamped
    return _scaled_exp2(r, n)


@scalar
def exp2(x: Scalar) -> Scalar:
    """2^x; exact at integers."""
    if has_exp2(x):
        n, power = _normal_power(x + rounding_origin(x.kind))
        return small_exp2(x - n) * power
    x = clamp(x, _EXP2_LOWER(x), _EXP2_UPPER(x))
    n = rounded(x)
    return _scaled_exp2(x - n, n)


@scalar
def expm1(x: Scalar) -> Scalar:
    """e^x - 1, without cancellation near zero."""
    n, r, c = _reduced(clamp(x, _EXPM1_LOWER(x), _EXPM1_UPPER(x)), 0.0)
    rest = multiply_add(r * r, _EXP(r), c)
    # expm1(x) = 2^n (r + rest) + (2^n - 1), one binary place lower while summing: 2^n itself may be just above the
    # largest float. The rounding error of the first sum is added to the rest, since the sum can be smaller than 2^n r.
    scale = power_of_two(n - 1.0)
    base = scale - 0.5
    leading = base + scale * r
    lost = (base - leading) + scale * r
    summed = 2.0 * (leading + (lost + scale * rest))
    return copysign(select(n == 0.0, r + rest, summed), x)


@scalar
def sigmoid(x: Scalar) -> Scalar:
    """1 / (1 + e^-x); small results keep their relative accuracy."""
    z = exp(-fabs(x))
    return select(x < 0.0, z, 1.0) / (1.0 + z)


@scalar
def tanh(x: Scalar) -> Scalar:
    """(e^x - e^-x) / (e^x + e^-x), as 1 - 2 / (e^2x + 1); a polynomial for |x| <= 5/8."""
    a = fabs(x)
    large = 1.0 - 2.0 / (normal_exp(2.0 * select(a > _TANH_UPPER(x), _TANH_UPPER(x), a)) + 1.0)
    square = a * a
    small = multiply_add(a * square, _TANH(square), a)
    return copysign(select(a <= 0.625, small, large), x)


@scalar
def cosh(x: Scalar) -> Scalar:
    """(e^x + e^-x) / 2."""
    half = _half_exp(fabs(x))
    return half + 0.25 / half


@scalar
def sinh(x: Scalar) -> Scalar:
    """(e^x - e^-x) / 2; a polynomial for |x| <= 1."""
    half = _half_exp(fabs(x))
    large = half - 0.25 / half
    square = x * x
    small = multiply_add(x * square, _SINH(square), x)
    return select(fabs(x) <= 1.0, small, copysign(large, x))
