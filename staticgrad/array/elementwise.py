"""Functions of elements, after the Python array API standard.

Operands broadcast; dtypes are brought to the wider one, and numbers adapt to the tensors. A dtype that a function does
not take raises DTypeError, shapes that do not broadcast raise ShapeError.
"""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np

from staticgrad.array.powers import power
from staticgrad.binding import bind
from staticgrad.graph.errors import DTypeError
from staticgrad.graph.ops import arithmetic, rounding, transcendental
from staticgrad.operands import as_operand
from staticgrad.tensor import Tensor


def exp(x: Any, /) -> Tensor:
    """eˣ. Floating dtypes."""
    return bind(transcendental.exp, (x,), {})


def exp2(x: Any, /) -> Tensor:
    """2ˣ. Floating dtypes."""
    return bind(transcendental.exp2, (x,), {})


def expm1(x: Any, /) -> Tensor:
    """eˣ - 1, exact near 0. Floating dtypes."""
    return bind(transcendental.expm1, (x,), {})


def log(x: Any, /) -> Tensor:
    """Natural logarithm; NaN below 0. Floating dtypes."""
    return bind(transcendental.log, (x,), {})


def log2(x: Any, /) -> Tensor:
    """Logarithm to base 2. Floating dtypes."""
    return bind(transcendental.log2, (x,), {})


def log10(x: Any, /) -> Tensor:
    """Logarithm to base 10. Floating dtypes."""
    return bind(transcendental.log10, (x,), {})


def log1p(x: Any, /) -> Tensor:
    """log(1 + x), exact near 0. Floating dtypes."""
    return bind(transcendental.log1p, (x,), {})


def sqrt(x: Any, /) -> Tensor:
    """Square root; NaN below 0. Floating dtypes."""
    return bind(transcendental.sqrt, (x,), {})


def rsqrt(x: Any, /) -> Tensor:
    """1 / √x. Floating dtypes."""
    return bind(transcendental.rsqrt, (x,), {})


def reciprocal(x: Any, /) -> Tensor:
    """1 / x. Floating dtypes."""
    return bind(transcendental.reciprocal, (x,), {})


def sin(x: Any, /) -> Tensor:
    """Sine of x in radians. Floating dtypes."""
    return bind(transcendental.sin, (x,), {})


def cos(x: Any, /) -> Tensor:
    """Cosine of x in radians. Floating dtypes."""
    return bind(transcendental.cos, (x,), {})


def tan(x: Any, /) -> Tensor:
    """Tangent of x in radians. Floating dtypes."""
    return bind(transcendental.tan, (x,), {})


def asin(x: Any, /) -> Tensor:
    """Inverse sine, in [-π/2, π/2]. Floating dtypes."""
    return bind(transcendental.asin, (x,), {})


def acos(x: Any, /) -> Tensor:
    """Inverse cosine, in [0, π]. Floating dtypes."""
    return bind(transcendental.acos, (x,), {})


def atan(x: Any, /) -> Tensor:
    """Inverse tangent, in [-π/2, π/2]. Floating dtypes."""
    return bind(transcendental.atan, (x,), {})


def sinh(x: Any, /) -> Tensor:
    """Hyperbolic sine. Floating dtypes."""
    return bind(transcendental.sinh, (x,), {})


def cosh(x: Any, /) -> Tensor:
    """Hyperbolic cosine. Floating dtypes."""
    return bind(transcendental.cosh, (x,), {})


def tanh(x: Any, /) -> Tensor:
    """Hyperbolic tangent. Floating dtypes."""
    return bind(transcendental.tanh, (x,), {})


def asinh(x: Any, /) -> Tensor:
    """Inverse hyperbolic sine. Floating dtypes."""
    return bind(transcendental.asinh, (x,), {})


def acosh(x: Any, /) -> Tensor:
    """Inverse hyperbolic cosine; NaN below 1. Floating dtypes."""
    return bind(transcendental.acosh, (x,), {})


def atanh(x: Any, /) -> Tensor:
    """Inverse hyperbolic tangent; NaN outside [-1, 1]. Floating dtypes."""
    return bind(transcendental.atanh, (x,), {})


def sigmoid(x: Any, /) -> Tensor:
    """1 / (1 + e⁻ˣ). Floating dtypes."""
    return bind(transcendental.sigmoid, (x,), {})


def erf(x: Any, /) -> Tensor:
    """Error function, 2/√π ∫₀ˣ e^(-t²) dt. Floating dtypes."""
    return bind(transcendental.erf, (x,), {})


def erfc(x: Any, /) -> Tensor:
    """1 - erf(x), exact for large x. Floating dtypes."""
    return bind(transcendental.erfc, (x,), {})


def lgamma(x: Any, /) -> Tensor:
    """log |Γ(x)|. Floating dtypes."""
    return bind(transcendental.lgamma, (x,), {})


def digamma(x: Any, /) -> Tensor:
    """d/dx log Γ(x). Floating dtypes."""
    return bind(transcendental.digamma, (x,), {})


def floor(x: Any, /) -> Tensor:
    """Largest integer not above x. Integers stay as they are."""
    return _of_floating(rounding.floor, x)


def ceil(x: Any, /) -> Tensor:
    """Smallest integer not below x. Integers stay as they are."""
    return _of_floating(rounding.ceil, x)


def trunc(x: Any, /) -> Tensor:
    """x without its fraction. Integers stay as they are."""
    return _of_floating(rounding.trunc, x)


def round(x: Any, /) -> Tensor:
    """Nearest integer, halves to even. Integers stay as they are."""
    return _of_floating(rounding.round_half_even, x)


def isnan(x: Any, /) -> Tensor:
    """Whether x is NaN. Integers are always finite."""
    return _test(rounding.isnan, x)


def isinf(x: Any, /) -> Tensor:
    """Whether x is infinite. Integers are always finite."""
    return _test(rounding.isinf, x)


def isfinite(x: Any, /) -> Tensor:
    """Whether x is neither NaN nor infinite. Integers are always finite."""
    return _test(rounding.isfinite, x)


def negative(x: Any, /) -> Tensor:
    """-x. Numeric dtypes."""
    return bind(arithmetic.neg, (x,), {})


def abs(x: Any, /) -> Tensor:
    """|x|. Numeric dtypes; the derivative at 0 is 0."""
    return bind(arithmetic.absolute, (x,), {})


def sign(x: Any, /) -> Tensor:
    """-1, 0 or 1 by the sign of x; NaN stays NaN."""
    return bind(arithmetic.sign_of, (x,), {})


def square(x: Any, /) -> Tensor:
    """x². Numeric dtypes."""
    return bind(transcendental.square, (x,), {})


def logical_not(x: Any, /) -> Tensor:
    """Not x. Booleans."""
    return bind(arithmetic.logical_not, (x,), {})


def positive(x: Any, /) -> Tensor:
    """x itself."""
    return _tensor("positive", x)


def bitwise_invert(x: Any, /) -> Tensor:
    """Every bit flipped; for booleans, not x."""
    tensor = _tensor("bitwise_invert", x)
    return bind(arithmetic.logical_not if tensor.dtype.kind == "b" else arithmetic.bitwise_invert, (tensor,), {})


def add(x: Any, y: Any, /) -> Tensor:
    """x + y. Numeric dtypes."""
    return bind(arithmetic.add, (x, y), {})


def subtract(x: Any, y: Any, /) -> Tensor:
    """x - y. Numeric dtypes."""
    return bind(arithmetic.sub, (x, y), {})


def multiply(x: Any, y: Any, /) -> Tensor:
    """x · y. Numeric dtypes."""
    return bind(arithmetic.mul, (x, y), {})


def floor_divide(x: Any, y: Any, /) -> Tensor:
    """⌊x / y⌋. Numeric dtypes."""
    return bind(arithmetic.floor_divide, (x, y), {})


def remainder(x: Any, y: Any, /) -> Tensor:
    """x - y·⌊x / y⌋: the sign is that of y. Numeric dtypes."""
    return bind(arithmetic.remainder, (x, y), {})


def fmod(x: Any, y: Any, /) -> Tensor:
    """x - y·trunc(x / y): the sign is that of x. Floating dtypes."""
    return bind(arithmetic.fmod, (x, y), {})


def pow(x: Any, y: Any, /) -> Tensor:
    """xʸ. Numeric dtypes; integers wrap, and a negative Python exponent of integers raises DTypeError."""
    operands = [as_operand("pow", value) for value in (x, y)]
    if not builtins.any(isinstance(value, Tensor) for value in operands):
        operands[0] = _tensor("pow", operands[0])
    return power(*operands)


def atan2(y: Any, x: Any, /) -> Tensor:
    """Angle of the point (x, y) from the positive x axis, in (-π, π]; called as atan2(y, x)."""
    return bind(transcendental.atan2, (y, x), {})


def maximum(x: Any, y: Any, /) -> Tensor:
    """The larger of x and y; NaN if either is. At a tie each takes half of the gradient."""
    return bind(arithmetic.maximum, (x, y), {})


def minimum(x: Any, y: Any, /) -> Tensor:
    """The smaller of x and y; NaN if either is. At a tie each takes half of the gradient."""
    return bind(arithmetic.minimum, (x, y), {})


def copysign(x: Any, y: Any, /) -> Tensor:
    """|x| with the sign of y. Floating dtypes."""
    return bind(arithmetic.copysign, (x, y), {})


def equal(x: Any, y: Any, /) -> Tensor:
    """Whether x = y."""
    return bind(arithmetic.equal, (x, y), {})


def not_equal(x: Any, y: Any, /) -> Tensor:
    """Whether x ≠ y."""
    return bind(arithmetic.not_equal, (x, y), {})


def less(x: Any, y: Any, /) -> Tensor:
    """Whether x < y."""
    return bind(arithmetic.less, (x, y), {})


def less_equal(x: Any, y: Any, /) -> Tensor:
    """Whether x ≤ y."""
    return bind(arithmetic.less_equal, (x, y), {})


def greater(x: Any, y: Any, /) -> Tensor:
    """Whether x > y."""
    return bind(arithmetic.greater, (x, y), {})


def greater_equal(x: Any, y: Any, /) -> Tensor:
    """Whether x ≥ y."""
    return bind(arithmetic.greater_equal, (x, y), {})


def logical_and(x: Any, y: Any, /) -> Tensor:
    """x and y. Booleans."""
    _require_boolean("logical_and", x, y)
    return bind(arithmetic.bitwise_and, (x, y), {})


def logical_or(x: Any, y: Any, /) -> Tensor:
    """x or y. Booleans."""
    _require_boolean("logical_or", x, y)
    return bind(arithmetic.bitwise_or, (x, y), {})


def logical_xor(x: Any, y: Any, /) -> Tensor:
    """Either x or y but not both. Booleans."""
    _require_boolean("logical_xor", x, y)
    return bind(arithmetic.bitwise_xor, (x, y), {})


def bitwise_and(x: Any, y: Any, /) -> Tensor:
    """Bits set in both. Integers and booleans."""
    return bind(arithmetic.bitwise_and, (x, y), {})


def bitwise_or(x: Any, y: Any, /) -> Tensor:
    """Bits set in either. Integers and booleans."""
    return bind(arithmetic.bitwise_or, (x, y), {})


def bitwise_xor(x: Any, y: Any, /) -> Tensor:
    """Bits set in exactly one. Integers and booleans."""
    return bind(arithmetic.bitwise_xor, (x, y), {})


def bitwise_left_shift(x: Any, y: Any, /) -> Tensor:
    """x · 2ʸ in bits. Integers."""
    return bind(arithmetic.left_shift, (x, y), {})


def bitwise_right_shift(x: Any, y: Any, /) -> Tensor:
    """⌊x / 2ʸ⌋ in bits. Integers."""
    return bind(arithmetic.right_shift, (x, y), {})


def where(condition: Any, x: Any, y: Any, /) -> Tensor:
    """x where `condition` (booleans) holds, else y. Derivatives flow only to the chosen side."""
    return bind(arithmetic.select, (condition, x, y), {})


def clip(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """x limited to [min, max]; either bound may be left out. The derivative is 1 within, bounds included, else 0."""
    value = _tensor("clip", x)
    if min is not None:
        value = where(value < min, min, value)
    if max is not None:
        value = where(value > max, max, value)
    return value


def logaddexp(x: Any, y: Any, /) -> Tensor:
    """log(eˣ + eʸ) without overflow, smooth at x = y. Floating dtypes."""
    larger, smaller = _ordered(greater_equal(x, y), x, y)
    gap = where(isinf(larger), 0.0, smaller - larger)
    return larger + log1p(exp(gap))


def hypot(x: Any, y: Any, /) -> Tensor:
    """√(x² + y²) without overflow, smooth but at 0; infinite if x or y is. Floating dtypes."""
    larger, smaller = _ordered(greater_equal(abs(x), abs(y)), x, y)
    known = logical_not(logical_or(equal(larger, 0), isinf(larger)))
    ratio = where(known, smaller, 0.0) / where(known, larger, 1.0)
    length = abs(larger) * sqrt(1 + square(ratio))
    return where(logical_or(isinf(larger), isinf(smaller)), math.inf, length)


def _ordered(first_is_larger: Tensor, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    return where(first_is_larger, x, y), where(first_is_larger, y, x)


def signbit(x: Any, /) -> Tensor:
    """Whether the sign of x is negative, of zeros and NaNs too. Floating dtypes."""
    return less(copysign(1.0, x), 0)


def cbrt(x: Any, /) -> Tensor:
    """Cube root, of negative x too. Floating dtypes."""
    return bind(transcendental.cbrt, (x,), {})


def nan_to_num(x: Any, /, *, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """x with NaN and the infinities replaced, the latter by the largest and smallest finite numbers by default."""
    tensor = _tensor("nan_to_num", x)
    if tensor.dtype.kind != "f":
        return tensor
    limits = np.finfo(tensor.dtype)
    high = float(limits.max) if posinf is None else posinf
    low = float(limits.min) if neginf is None else neginf
    finite = where(isnan(tensor), nan, tensor)
    return where(equal(finite, math.inf), high, where(equal(finite, -math.inf), low, finite))


def isclose(x: Any, y: Any, /, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether |x - y| ≤ atol + rtol·|y|, or x = y."""
    difference = abs(subtract(x, y))
    near = logical_or(logical_and(difference <= atol + rtol * abs(y), isfinite(y)), equal(x, y))
    return logical_or(near, logical_and(isnan(x), isnan(y))) if equal_nan else near


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True) -> Tensor:
    """The elements of x converted to `dtype`."""
    return x.astype(dtype, copy=copy)


def _tensor(name: str, x: Any) -> Tensor:
    from staticgrad.array.creation import asarray

    operand = as_operand(name, x)
    return operand if isinstance(operand, Tensor) else asarray(operand)


def _of_floating(op: Any, x: Any) -> Tensor:
    tensor = _tensor(op.name, x)
    return tensor if tensor.dtype.kind in "iu" else bind(op, (tensor,), {})


def _test(op: Any, x: Any) -> Tensor:
    tensor = _tensor(op.name, x)
    if tensor.dtype.kind != "f":
        tensor = tensor.astype("float32")
    return bind(op, (tensor,), {})


def _require_boolean(name: str, *operands: Any) -> None:
    for operand in operands:
        kind = "b" if isinstance(operand, bool) else getattr(getattr(operand, "dtype", None), "kind", "?")
        if kind != "b":
            raise DTypeError(f"{name}: takes booleans; got {getattr(operand, 'dtype', type(operand).__name__)}")
