"""The error function and its complement.

Near zero erf(x) = x + x P(x^2). Elsewhere erfc(x) = e^(-x^2) G(t) / (1 + 2x) with t = (x - 4) / (x + 4), the form of
M. Shepherd and J. Laframboise ("Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", Mathematics of Computation 36,
1981), whose G is so smooth that one polynomial serves all x >= 0. Both come from `benchmarks/minimax.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from staticgrad.kernels.cpu.vector_math.exponential import exp_of_sum, normal_exp_of_sum
from staticgrad.kernels.cpu.vector_math.primitives import (
    Scalar,
    constant,
    copysign,
    fabs,
    leading_half,
    multiply_add,
    polynomial,
    scalar,
    select,
)

_ERF = polynomial(  # erf(x) / x - 1 in x^2, |x| <= 1
    (0.12837917, -0.37612626, 0.112836, -0.026854444, 0.0051895357, -0.0008020844, 7.889132e-05),
    (
        0.12837916709551256,
        -0.3761263890318355,
        0.11283791670945251,
        -0.026866170643276,
        0.005223977607422121,
        -0.0008548325989646998,
        0.00012055295319351913,
        -1.4924744646838985e-05,
        1.6447517530877445e-06,
        -1.620917515547855e-07,
        1.3722974371390673e-08,
        -7.801187568010668e-10,
    ),
)
_ERFC = polynomial(  # erfc(x) e^(x^2) (1 + 2x) in t
    (
        1.2329952,
        -0.13962112,
        0.015379632,
        0.06809782,
        -0.101037845,
        0.09372142,
        -0.06635439,
        0.037221514,
        -0.016025271,
        0.005043752,
        -0.0011351573,
        -0.00064129045,
    ),
    (
        1.2329951186255526,
        -0.13962111684056253,
        0.015379652102620083,
        0.06809705425469292,
        -0.10103906603632785,
        0.09373283499833793,
        -0.06633036581158341,
        0.037167515537791226,
        -0.016197734066582266,
        0.005031969973166718,
        -0.0007577732178357967,
        -0.0001992566490965284,
        0.00015062132425790938,
        -2.4399479496028615e-05,
        -1.1220931165972023e-05,
        5.7106990996897335e-06,
        2.916815352968934e-07,
        -8.276377951519586e-07,
        7.701992480212646e-08,
        1.1315368299702434e-07,
        -1.9126391028783117e-08,
        -1.6537415072242617e-08,
        1.7122295766048773e-09,
        2.0872371170388616e-09,
        2.8340944636432256e-10,
    ),
)
_ERF_UPPER = constant(4.0, 6.0)  # erf(x) rounds to 1 above
_ERFC_UPPER = constant(10.1, 27.3)  # erfc(x) rounds to zero above


def _erfc_of_positive(a: Scalar, exp_of_sum: Callable[[Scalar, Scalar], Scalar]) -> Scalar:
    """erfc(a) for a >= 0, no larger than where it rounds to zero."""
    t = (a - 4.0) / (a + 4.0)
    high = leading_half(a)  # a^2 = high^2 + (a - high)(a + high), the first product exact
    decay = exp_of_sum(-high * high, -(a - high) * (a + high))
    return decay * (_ERFC(t) / multiply_add(2.0, a, 1.0))


@scalar
def erf(x: Scalar) -> Scalar:
    """2/sqrt(pi) times the integral of e^(-t^2) from 0 to x."""
    a = fabs(x)
    small = multiply_add(x, _ERF(x * x), x)
    near = select(a > _ERF_UPPER(x), _ERF_UPPER(x), a)
    large = copysign(1.0 - _erfc_of_positive(near, normal_exp_of_sum), x)
    return select(a < 1.0, small, large)


@scalar
def erfc(x: Scalar) -> Scalar:
    """1 - erf(x), without cancellation for large x."""
    a = fabs(x)
    tail = _erfc_of_positive(select(a > _ERFC_UPPER(x), _ERFC_UPPER(x), a), exp_of_sum)
    value = select(x < 0.0, 2.0 - tail, tail)
    near = 1.0 - multiply_add(x, _ERF(x * x), x)
    return select(fabs(x) < 0.25, near, value)
