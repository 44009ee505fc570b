"""The logarithm of the gamma function and its derivative, computed in float64 for both precisions.

Above ten by Stirling's series, below by the recurrence gamma(x + 1) = x gamma(x), left of zero by reflection (DLMF
5.5 and 5.11). Polynomials from `benchmarks/minimax.py` keep the error relative near the positive zeros. These two
functions branch and loop, so that LLVM does not vectorise them.
"""

from __future__ import annotations

from math import inf, nan, pi
from typing import Any

from staticgrad.kernels.intrinsic import intrinsic, jittable
from staticgrad.kernels.vector_math.arithmetic import abs
from staticgrad.kernels.vector_math.logarithm import log, log1p
from staticgrad.kernels.vector_math.primitives import copysign, polynomial, round, scalar
from staticgrad.kernels.vector_math.trigonometric import sin, tan


def _polynomial(coefficients: tuple[float, ...]) -> Any:
    """A float64 polynomial that compiled code can call."""
    evaluate = polynomial((), coefficients)

    def value(x: Any) -> Any:
        return evaluate(x)

    return scalar(value)


@intrinsic
def cast_like(typingctx: Any, value: Any, x: Any) -> Any:
    """`value` cast to the type of `x`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], value, x)

    return x(value, x), codegen


_LGAMMA = _polynomial(  # lgamma(2 + t) / t, |t| <= 1/2
    (
        0.42278433509846713,
        0.32246703342411326,
        -0.06735230105319817,
        0.020580808427780335,
        -0.007385551028664104,
        0.002890510331036754,
        -0.0011927539121673048,
        0.0005096695153489913,
        -0.00022315474732494378,
        9.945767439225694e-05,
        -4.4926390622454396e-05,
        2.0505584447624507e-05,
        -9.438190497215961e-06,
        4.384731576980301e-06,
        -2.0459811258358216e-06,
        9.199906838078787e-07,
        -4.2809266697645524e-07,
        2.787992556165169e-07,
        -1.361397647167346e-07,
    ),
)
_STIRLING = _polynomial(  # B_2k / (2k (2k - 1)) in 1/x^2
    (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
)
_DIGAMMA = _polynomial(  # B_2k / 2k in 1/x^2
    (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)
)
_DIGAMMA_NEAR_ROOT = _polynomial(  # digamma(1.5 + t) / (1.5 + t - root), |t| <= 1/2
    (
        0.9510558760318328,
        -0.42362742128146047,
        0.24054248424078736,
        -0.1484049230539199,
        0.09498872445282817,
        -0.0619221332714191,
        0.04076083394474172,
        -0.02697579685571606,
        0.017907248192278243,
        -0.011908214867070542,
        0.007927024136972535,
        -0.005280022804152513,
        0.0035180792707948877,
        -0.0023445978924923716,
        0.001563573994747093,
        -0.0010426197819870578,
        0.0006899428507833477,
        -0.00045835961822376757,
        0.0003268931278904352,
        -0.00022237117372327927,
        9.158829007563848e-05,
        -5.394545236138729e-05,
        0.00012241578204975345,
        -8.655875164772951e-05,
    ),
)
_DIGAMMA_ROOT = 1.4616321449683622
_DIGAMMA_ROOT_LOW = 9.549995429965697e-17
_HALF_LOG_TWO_PI_E = 0.4189385332046727  # (log(2 pi) - 1) / 2


@jittable
def _lgamma_of_positive(a: Any) -> Any:
    """lgamma(a) for a > 0."""
    if a >= 10.0:
        return (a - 0.5) * (log(a) - 1.0) + (_HALF_LOG_TWO_PI_E + _STIRLING(1.0 / (a * a)) / a)
    if a < 0.5:
        return a * _LGAMMA(a) - log(a * (1.0 + a))
    if a < 1.5:
        return (a - 1.0) * _LGAMMA(a - 1.0) - log1p(a - 1.0)
    product = 1.0
    while a > 2.5:
        a -= 1.0
        product *= a
    return (a - 2.0) * _LGAMMA(a - 2.0) + log(product)


@jittable
def lgamma(x: Any) -> Any:
    """log |gamma(x)|; infinite at zero and the negative integers."""
    value = cast_like(x, 0.0)
    a = abs(value)
    if a == inf:
        return cast_like(inf, x)
    if a < 1e-20:
        return cast_like(-log(a), x)
    if value > 0.0 or a != a:
        return cast_like(_lgamma_of_positive(a), x)
    sine = abs(sin(pi * (a - round(a))))
    if sine == 0.0:  # not left to the next line: what it subtracts overflows for the largest numbers
        return cast_like(inf, x)
    return cast_like(log(pi / (a * sine)) - _lgamma_of_positive(a), x)


@jittable
def _digamma_of_positive(a: Any) -> Any:
    """digamma(a) for a > 0."""
    if a >= 10.0:
        z = 1.0 / (a * a)
        return log(a) - 0.5 / a - z * _DIGAMMA(z)
    total = 0.0
    if a < 1.0:
        total -= 1.0 / a
        a += 1.0
    while a > 2.0:
        a -= 1.0
        total += 1.0 / a
    return total + ((a - _DIGAMMA_ROOT) - _DIGAMMA_ROOT_LOW) * _DIGAMMA_NEAR_ROOT(a - 1.5)


@jittable
def digamma(x: Any) -> Any:
    """The derivative of log(gamma(x)); NaN at the negative integers, infinite at zero with the sign of -x."""
    value = cast_like(x, 0.0)
    if value > 0.0 or value != value:
        return cast_like(_digamma_of_positive(value), x)
    if value == 0.0:
        return cast_like(copysign(inf, -value), x)
    fraction = value - round(value)
    if fraction == 0.0 or value == -inf:
        return cast_like(nan, x)
    return cast_like(_digamma_of_positive(1.0 - value) - pi / tan(pi * fraction), x)
