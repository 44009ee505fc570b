"""Exponentials, logarithms, trigonometry, error functions and powers, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from staticgrad.graph.op import Interval, NotImplementedRule, Op, elementwise
from staticgrad.graph.ops import numpy_math as vm
from staticgrad.graph.ops.arithmetic import rejects_dtype, rejects_shapes, select

ANY = Interval(-3.0, 3.0)
POSITIVE = Interval(0.2, 3.0)
SPECIAL = (0.0, -0.0, 1.0, -1.0, 30.0, -30.0, 1e30, -1e30, math.inf, -math.inf, math.nan)


def _unary(name: str, scalar: Callable[..., Any], partial: Any, domain: Interval = ANY, **options: Any) -> Op:
    return elementwise(
        name,
        scalar=scalar,
        partials=(partial,),
        domain=(domain,),
        special=SPECIAL,
        errors=(rejects_dtype("int32"), rejects_dtype("bool")),
        **options,
    )


# ---------------------------------------------------------------- exponentials and logarithms


def _exp(x: Any) -> Any:
    return vm.exp(x)


def _d_exp(*, out: Any) -> Any:
    return out


def _exp2(x: Any) -> Any:
    return vm.exp2(x)


def _d_exp2(*, out: Any) -> Any:
    return out * math.log(2)


def _expm1(x: Any) -> Any:
    return vm.expm1(x)


def _d_expm1(*, out: Any) -> Any:
    return out + 1


def _log(x: Any) -> Any:
    return vm.log(x)


def _d_log(change: Any, *, x: Any) -> Any:
    return change / x


def _log2(x: Any) -> Any:
    return vm.log2(x)


def _d_log2(change: Any, *, x: Any) -> Any:
    return change / (x * math.log(2))


def _log10(x: Any) -> Any:
    return vm.log10(x)


def _d_log10(change: Any, *, x: Any) -> Any:
    return change / (x * math.log(10))


def _log1p(x: Any) -> Any:
    return vm.log1p(x)


def _d_log1p(change: Any, *, x: Any) -> Any:
    return change / (x + 1)


exp = _unary("exp", _exp, _d_exp)
exp2 = _unary("exp2", _exp2, _d_exp2)
expm1 = _unary("expm1", _expm1, _d_expm1)
log = _unary("log", _log, _d_log, POSITIVE)
log2 = _unary("log2", _log2, _d_log2, POSITIVE)
log10 = _unary("log10", _log10, _d_log10, POSITIVE)
log1p = _unary("log1p", _log1p, _d_log1p, Interval(-0.5, 3.0))


# ---------------------------------------------------------------- roots and powers


def _sqrt(x: Any) -> Any:
    return vm.sqrt(x)


def _d_sqrt(change: Any, *, out: Any) -> Any:
    return change * 0.5 / out


def _rsqrt(x: Any) -> Any:
    return vm.rsqrt(x)


def _d_rsqrt(*, out: Any) -> Any:
    return out * out * out * -0.5


def _cbrt(x: Any) -> Any:
    return vm.cbrt(x)


def _d_cbrt(change: Any, *, out: Any) -> Any:
    return change / (3 * (out * out))


def _square(x: Any) -> Any:
    return x * x


def _d_square(*, x: Any) -> Any:
    return x * 2


def _reciprocal(x: Any) -> Any:
    return vm.truediv(1.0, x)


def _d_reciprocal(*, out: Any) -> Any:
    return -(out * out)


def _pow(x: Any, y: Any) -> Any:
    return vm.pow(x, y)


def _d_pow_x(change: Any, *, x: Any, y: Any) -> Any:
    return select(y == 0, 0.0, change * (y * power(x, y - 1)))


def _d_pow_y(change: Any, *, x: Any, y: Any, out: Any) -> Any:
    flat = (x == 0) & (y >= 0)  # 0**y stays 0 when y moves
    return select(flat, 0.0, change * (out * log(select(flat, 1.0, x))))


sqrt = _unary("sqrt", _sqrt, _d_sqrt, POSITIVE)
rsqrt = _unary("rsqrt", _rsqrt, _d_rsqrt, POSITIVE)
reciprocal = _unary("reciprocal", _reciprocal, _d_reciprocal, POSITIVE)
cbrt = _unary("cbrt", _cbrt, _d_cbrt, POSITIVE)
square = elementwise(
    "square",
    scalar=_square,
    partials=(_d_square,),
    dtype="numeric",
    domain=(ANY,),
    special=SPECIAL,
    errors=(rejects_dtype("bool"),),
)
power = elementwise(
    "pow",
    scalar=_pow,
    partials=(_d_pow_x, _d_pow_y),
    domain=(POSITIVE, ANY),
    special=SPECIAL,
    errors=(rejects_shapes(), rejects_dtype("bool", 2)),
)


# ---------------------------------------------------------------- trigonometry


def _sin(x: Any) -> Any:
    return vm.sin(x)


def _d_sin(*, x: Any) -> Any:
    return cos(x)


def _cos(x: Any) -> Any:
    return vm.cos(x)


def _d_cos(*, x: Any) -> Any:
    return -sin(x)


def _tan(x: Any) -> Any:
    return vm.tan(x)


def _d_tan(*, out: Any) -> Any:
    return out * out + 1


def _asin(x: Any) -> Any:
    return vm.asin(x)


def _d_asin(*, x: Any) -> Any:
    return rsqrt(1 - x * x)


def _acos(x: Any) -> Any:
    return vm.acos(x)


def _d_acos(*, x: Any) -> Any:
    return -rsqrt(1 - x * x)


def _atan(x: Any) -> Any:
    return vm.atan(x)


def _d_atan(change: Any, *, x: Any) -> Any:
    return change / (x * x + 1)


def _atan2(y: Any, x: Any) -> Any:
    return vm.atan2(y, x)


def _d_atan2_y(change: Any, *, y: Any, x: Any) -> Any:
    return change * (x / (x * x + y * y))


def _d_atan2_x(change: Any, *, y: Any, x: Any) -> Any:
    return change * (-y / (x * x + y * y))


sin = _unary("sin", _sin, _d_sin)
cos = _unary("cos", _cos, _d_cos)
tan = _unary("tan", _tan, _d_tan, Interval(-1.2, 1.2))
asin = _unary("asin", _asin, _d_asin, Interval(-0.8, 0.8))
acos = _unary("acos", _acos, _d_acos, Interval(-0.8, 0.8))
atan = _unary("atan", _atan, _d_atan)
atan2 = elementwise(
    "atan2",
    scalar=_atan2,
    partials=(_d_atan2_y, _d_atan2_x),
    domain=(ANY, POSITIVE),
    special=SPECIAL,
    errors=(rejects_shapes(), rejects_dtype("int32", 2)),
)


# ---------------------------------------------------------------- hyperbolic functions and the logistic


def _sinh(x: Any) -> Any:
    return vm.sinh(x)


def _d_sinh(*, x: Any) -> Any:
    return cosh(x)


def _cosh(x: Any) -> Any:
    return vm.cosh(x)


def _d_cosh(*, x: Any) -> Any:
    return sinh(x)


def _tanh(x: Any) -> Any:
    return vm.tanh(x)


def _d_tanh(*, out: Any) -> Any:
    return 1 - out * out


def _asinh(x: Any) -> Any:
    return vm.asinh(x)


def _d_asinh(*, x: Any) -> Any:
    return rsqrt(x * x + 1)


def _acosh(x: Any) -> Any:
    return vm.acosh(x)


def _d_acosh(*, x: Any) -> Any:
    return rsqrt((x - 1) * (x + 1))


def _atanh(x: Any) -> Any:
    return vm.atanh(x)


def _d_atanh(change: Any, *, x: Any) -> Any:
    return change / (1 - x * x)


def _sigmoid(x: Any) -> Any:
    return vm.sigmoid(x)


def _d_sigmoid(*, out: Any) -> Any:
    return out * (1 - out)


sinh = _unary("sinh", _sinh, _d_sinh)
cosh = _unary("cosh", _cosh, _d_cosh)
tanh = _unary("tanh", _tanh, _d_tanh)
asinh = _unary("asinh", _asinh, _d_asinh)
acosh = _unary("acosh", _acosh, _d_acosh, Interval(1.2, 3.0))
atanh = _unary("atanh", _atanh, _d_atanh, Interval(-0.8, 0.8))
sigmoid = _unary("sigmoid", _sigmoid, _d_sigmoid)


# ---------------------------------------------------------------- error functions and the gamma family


def _erf(x: Any) -> Any:
    return vm.erf(x)


def _d_erf(*, x: Any) -> Any:
    return exp(-(x * x)) * (2 / math.sqrt(math.pi))


def _erfc(x: Any) -> Any:
    return vm.erfc(x)


def _d_erfc(*, x: Any) -> Any:
    return exp(-(x * x)) * (-2 / math.sqrt(math.pi))


def _gelu(x: Any) -> Any:
    return 0.5 * x * (1.0 + vm.erf(x * 0.7071067811865476))


def _d_gelu(*, x: Any) -> Any:
    density = exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1.0 + erf(x * math.sqrt(0.5))) + x * density


def _lgamma(x: Any) -> Any:
    return vm.lgamma(x)


def _d_lgamma(*, x: Any) -> Any:
    return digamma(x)


def _digamma(x: Any) -> Any:
    return vm.digamma(x)


erf = _unary("erf", _erf, _d_erf)
erfc = _unary("erfc", _erfc, _d_erfc)
gelu = _unary("gelu", _gelu, _d_gelu)
_NO_POLYGAMMA = "polygamma functions are not among the ops yet"

lgamma = _unary("lgamma", _lgamma, _d_lgamma, POSITIVE, exempt={"second order": f"digamma: {_NO_POLYGAMMA}"})
digamma = _unary(
    "digamma", _digamma, NotImplementedRule(_NO_POLYGAMMA), POSITIVE, exempt={"derivatives": _NO_POLYGAMMA}
)
