"""Signs, extremes, remainders, predicates and bit operations, on every width of integer and of float.

Each answers in its argument's own type, as NumPy's ufunc of the same name does; Numba's own operators would promote
small integers. Integer division by zero gives zero and never traps, as in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from llvmlite import ir
from numba import types

from staticgrad.kernels.intrinsic import intrinsic
from staticgrad.kernels.vector_math.primitives import Scalar, call_llvm, scalar, sqrt

Emit = Callable[..., Any]


@scalar
def rsqrt(x: Scalar) -> Scalar:
    """1 / sqrt(x)."""
    return 1.0 / sqrt(x)


@intrinsic
def select(typingctx: Any, condition: Any, x: Any, y: Any) -> Any:
    """x where `condition` (a bool) holds, else y; both are evaluated, nothing branches."""
    if condition != types.boolean or x != y:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return x(condition, x, y), codegen


def _is_signed(kind: Any) -> bool:
    return bool(isinstance(kind, types.Integer) and kind.signed)


def _zero(value: Any) -> ir.Constant:
    return ir.Constant(value.type, 0)


def _float(value: Any, number: float) -> ir.Constant:
    return ir.Constant(value.type, number)


def _unary(emit: Emit, result: Any = None) -> Any:
    """A function of one scalar whose LLVM code `emit(builder, kind, x)` writes."""

    @intrinsic
    def function(typingctx: Any, x: Any) -> Any:
        """What NumPy's function of the same name gives, in the scalar's own type."""
        if not isinstance(x, types.Float | types.Integer | types.Boolean):
            return None

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(builder, x, *arguments)

        return (x if result is None else result)(x), codegen

    return function


def _binary(emit: Emit) -> Any:
    """A function of two scalars of one type whose LLVM code `emit(builder, kind, x, y)` writes."""

    @intrinsic
    def function(typingctx: Any, x: Any, y: Any) -> Any:
        """What NumPy's function of the same name gives, in the type of the scalars."""
        if x != y or not isinstance(x, types.Float | types.Integer | types.Boolean):
            return None

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(builder, x, *arguments)

        return x(x, y), codegen

    return function


def _emit_abs(builder: Any, kind: Any, x: Any) -> Any:
    if isinstance(kind, types.Float):
        return call_llvm(builder, "llvm.fabs", x)
    if not _is_signed(kind):
        return x
    return builder.select(builder.icmp_signed("<", x, _zero(x)), builder.neg(x), x)


def _emit_sign(builder: Any, kind: Any, x: Any) -> Any:
    if isinstance(kind, types.Float):
        negative = builder.select(builder.fcmp_ordered("<", x, _float(x, 0.0)), _float(x, -1.0), _float(x, 1.0))
        value = builder.select(builder.fcmp_ordered("==", x, _float(x, 0.0)), _float(x, 0.0), negative)
        return builder.select(builder.fcmp_unordered("uno", x, x), x, value)
    one = ir.Constant(x.type, 1)
    value = builder.select(builder.icmp_signed("==", x, _zero(x)), _zero(x), one)
    if not _is_signed(kind):
        return value
    return builder.select(builder.icmp_signed("<", x, _zero(x)), ir.Constant(x.type, -1), value)


def _emit_extreme(operator: str) -> Emit:
    def emit(builder: Any, kind: Any, x: Any, y: Any) -> Any:
        if kind == types.float32 and hasattr(builder, "extreme"):  # a device with an instruction for it
            return builder.extreme(operator, x, y)
        if isinstance(kind, types.Float):
            # A NaN in x is kept by the second test, a NaN in y by the failure of both.
            keep = builder.or_(builder.fcmp_ordered(operator, x, y), builder.fcmp_unordered("uno", x, x))
        elif _is_signed(kind):
            keep = builder.icmp_signed(operator, x, y)
        else:
            keep = builder.icmp_unsigned(operator, x, y)
        return builder.select(keep, x, y)

    return emit


def _safe_divisor(builder: Any, kind: Any, y: Any) -> Any:
    """The divisor, or one where dividing would trap: at zero, and at -1, which overflows the least integer."""
    trap = builder.icmp_signed("==", y, _zero(y))
    if _is_signed(kind):
        trap = builder.or_(trap, builder.icmp_signed("==", y, ir.Constant(y.type, -1)))
    return builder.select(trap, ir.Constant(y.type, 1), y)


def _emit_fmod(builder: Any, kind: Any, x: Any, y: Any) -> Any:
    if isinstance(kind, types.Float):
        return builder.frem(x, y)
    divisor = _safe_divisor(builder, kind, y)
    return builder.srem(x, divisor) if _is_signed(kind) else builder.urem(x, divisor)


def _float_remainder(builder: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """(x fmod y, whether its sign must be changed to that of y, whether it is not zero)."""
    zero = _float(x, 0.0)
    rest = builder.frem(x, y)
    nonzero = builder.fcmp_unordered("!=", rest, zero)
    differs = builder.xor(builder.fcmp_ordered("<", y, zero), builder.fcmp_ordered("<", rest, zero))
    return rest, builder.and_(nonzero, differs), nonzero


def _integer_remainder(builder: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """(x rem y for a y that cannot trap, whether its sign must be changed to that of y)."""
    rest = builder.srem(x, y)
    differs = builder.icmp_signed("<", builder.xor(rest, y), _zero(x))
    return rest, builder.and_(builder.icmp_signed("!=", rest, _zero(x)), differs)


def _emit_remainder(builder: Any, kind: Any, x: Any, y: Any) -> Any:
    if isinstance(kind, types.Float):
        rest, change, nonzero = _float_remainder(builder, x, y)
        rest = builder.select(change, builder.fadd(rest, y), rest)
        return builder.select(nonzero, rest, call_llvm(builder, "llvm.copysign", _float(x, 0.0), y))
    divisor = _safe_divisor(builder, kind, y)
    if not _is_signed(kind):
        return builder.urem(x, divisor)
    rest, change = _integer_remainder(builder, x, divisor)
    return builder.select(change, builder.add(rest, divisor), rest)


def _emit_floor_divide(builder: Any, kind: Any, x: Any, y: Any) -> Any:
    if isinstance(kind, types.Float):
        return _emit_float_floor_divide(builder, x, y)
    divisor = _safe_divisor(builder, kind, y)
    zero, one = _zero(x), ir.Constant(x.type, 1)
    if _is_signed(kind):
        _, change = _integer_remainder(builder, x, divisor)
        quotient = builder.sub(builder.sdiv(x, divisor), builder.select(change, one, zero))
        minus_one = builder.icmp_signed("==", y, ir.Constant(y.type, -1))
        quotient = builder.select(minus_one, builder.neg(x), quotient)
    else:
        quotient = builder.udiv(x, divisor)
    return builder.select(builder.icmp_signed("==", y, zero), zero, quotient)


def _emit_float_floor_divide(builder: Any, x: Any, y: Any) -> Any:
    zero = _float(x, 0.0)
    ratio = builder.fdiv(x, y)
    rest, change, _ = _float_remainder(builder, x, y)
    quotient = builder.fdiv(builder.fsub(x, rest), y)
    quotient = builder.select(change, builder.fsub(quotient, _float(x, 1.0)), quotient)
    lower = call_llvm(builder, "llvm.floor", quotient)  # the quotient is an integer but for rounding
    rounded_down = builder.fcmp_ordered(">", builder.fsub(quotient, lower), _float(x, 0.5))
    value = builder.select(rounded_down, builder.fadd(lower, _float(x, 1.0)), lower)
    signed_zero = call_llvm(builder, "llvm.copysign", zero, ratio)
    value = builder.select(builder.fcmp_ordered("==", quotient, zero), signed_zero, value)
    return builder.select(builder.fcmp_ordered("==", y, zero), ratio, value)


@intrinsic
def truediv(typingctx: Any, x: Any, y: Any) -> Any:
    """x / y; integers divide as float64."""
    result = x if isinstance(x, types.Float) else types.float64
    if x != y:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numerator, denominator = (context.cast(builder, value, x, result) for value in arguments)
        return builder.fdiv(numerator, denominator)

    return result(x, y), codegen


def _emit_isnan(builder: Any, kind: Any, x: Any) -> Any:
    return builder.fcmp_unordered("uno", x, x) if isinstance(kind, types.Float) else ir.Constant(ir.IntType(1), 0)


def _emit_isinf(builder: Any, kind: Any, x: Any) -> Any:
    if not isinstance(kind, types.Float):
        return ir.Constant(ir.IntType(1), 0)
    return builder.fcmp_ordered("==", call_llvm(builder, "llvm.fabs", x), _float(x, inf))


def _emit_isfinite(builder: Any, kind: Any, x: Any) -> Any:
    if not isinstance(kind, types.Float):
        return ir.Constant(ir.IntType(1), 1)
    return builder.fcmp_ordered("<", call_llvm(builder, "llvm.fabs", x), _float(x, inf))


def _emit_left_shift(builder: Any, kind: Any, x: Any, y: Any) -> Any:
    outside = builder.icmp_unsigned(">", y, ir.Constant(y.type, kind.bitwidth - 1))
    return builder.select(outside, _zero(x), builder.shl(x, builder.select(outside, _zero(y), y)))


def _emit_right_shift(builder: Any, kind: Any, x: Any, y: Any) -> Any:
    most = ir.Constant(y.type, kind.bitwidth - 1)
    outside = builder.icmp_unsigned(">", y, most)
    amount = builder.select(outside, most, y)
    if _is_signed(kind):
        return builder.ashr(x, amount)
    return builder.select(outside, _zero(x), builder.lshr(x, amount))


abs = _unary(_emit_abs)
sign = _unary(_emit_sign)  # NaN at NaN
minimum = _binary(_emit_extreme("<"))  # NaN where either is NaN
maximum = _binary(_emit_extreme(">"))
fmod = _binary(_emit_fmod)  # the sign of the dividend
remainder = _binary(_emit_remainder)  # the sign of the divisor
floor_divide = _binary(_emit_floor_divide)
isnan = _unary(_emit_isnan, types.boolean)
isinf = _unary(_emit_isinf, types.boolean)
isfinite = _unary(_emit_isfinite, types.boolean)
bitwise_and = _binary(lambda builder, kind, x, y: builder.and_(x, y))
bitwise_or = _binary(lambda builder, kind, x, y: builder.or_(x, y))
bitwise_xor = _binary(lambda builder, kind, x, y: builder.xor(x, y))
invert = _unary(lambda builder, kind, x: builder.not_(x))
left_shift = _binary(_emit_left_shift)  # zero where the amount is outside the width
right_shift = _binary(_emit_right_shift)  # keeps the sign
