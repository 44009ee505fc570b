"""The error function and its complement.

Near zero erf(x) = x + x P(x^2). Elsewhere erf(x) = 1 - e^L(x), where L = log(erfc(x)) need not be precise, as little is
taken from one. erfc(x) = e^(-x^2) G(t) / (1 + 2x) with t = (x - 4) / (x + 4) is, relative to itself: the form of
M. Shepherd and J. Laframboise ("Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", Mathematics of Computation 36,
1981), whose G is so smooth that one polynomial serves all x >= 0. All come from `benchmarks/minimax.py`.
"""

from __future__ import annotations

from staticgrad.kernels.vector_math.exponential import exp_of_sum, normal_exp
from staticgrad.kernels.vector_math.primitives import (
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
_LOG_ERFC = polynomial(  # log(erfc(x)), 1 <= x <= _ERF_UPPER
    (-0.00035376483, -1.1270398, -0.638226, -0.10303708, 0.021805177, -0.0029395707, 0.00018557016),
    (
        -5.132952308196164e-07,
        -1.1283739912038466,
        -0.6366440573232115,
        -0.1027022837817202,
        0.018988030780526823,
        0.0004135520170607775,
        -0.0019189617393815168,
        0.0007730561303354494,
        -0.0001365624938920982,
        -1.9519634422638783e-05,
        2.253159942201727e-05,
        -8.578381898370944e-06,
        2.1147021058750813e-06,
        -3.6954718098169706e-07,
        4.5930704938553316e-08,
        -3.889774999317371e-09,
        2.020203195626075e-10,
        -4.864721477358529e-12,
    ),
)
_ERF_UPPER = constant(4.0, 6.0)  # erf(x) rounds to 1 above
_ERFC_UPPER = constant(10.1, 27.3)  # erfc(x) rounds to zero above


@scalar
def erf(x: Scalar) -> Scalar:
    """2/sqrt(pi) times the integral of e^(-t^2) from 0 to x."""
    a = fabs(x)
    small = multiply_add(x, _ERF(x * x), x)
    large = 1.0 - normal_exp(_LOG_ERFC(select(a > _ERF_UPPER(x), _ERF_UPPER(x), a)))
    return select(a < 1.0, small, copysign(large, x))


@scalar
def erfc(x: Scalar) -> Scalar:
    """1 - erf(x), without cancellation for large x."""
    a = fabs(x)
    a = select(a > _ERFC_UPPER(x), _ERFC_UPPER(x), a)
    t = (a - 4.0) / (a + 4.0)
    high = leading_half(a)  # a^2 = high^2 + (a - high)(a + high), the first product exact
    decay = exp_of_sum(-high * high, -(a - high) * (a + high))
    tail = decay * (_ERFC(t) / multiply_add(2.0, a, 1.0))
    value = select(x < 0.0, 2.0 - tail, tail)
    near = 1.0 - multiply_add(x, _ERF(x * x), x)
    return select(fabs(x) < 0.25, near, value)
