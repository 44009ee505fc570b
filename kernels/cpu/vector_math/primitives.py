"""What the vector maths is written in: constants, polynomials and bit operations of the argument's own type.

Numba promotes a Python constant to float64 and an int32 sum to int64, either of which would halve the vector width.
So constants come from `constant`, `polynomial` and `like`, which take the type of their argument, and work on bits
is done by small intrinsics. None of them branches, so that LLVM vectorises a loop around them on any CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

Scalar = Any
Function = TypeVar("Function", bound=Callable[..., Any])

MANTISSA_BITS = {types.float32: 23, types.float64: 52}
EXPONENT_BIAS = {types.float32: 127, types.float64: 1023}


def scalar(function: Function) -> Function:
    """Make a function callable from compiled code, compiled apart for each type and always inlined."""
    compiled: Function = register_jitable(error_model="numpy", forceinline=True)(function)
    return compiled


def literal(kind: Any, value: float) -> ir.Constant:
    """The LLVM constant `value`, rounded to the Numba type `kind`."""
    if kind == types.float32:
        return ir.Constant(ir.FloatType(), float(np.float32(value)))
    return ir.Constant(ir.DoubleType(), float(value))


def constant(single: float, double: float | None = None) -> Any:
    """A function of x that answers with a constant of x's type: `single` for float32, `double` for float64."""
    other = single if double is None else double

    @intrinsic
    def value(typingctx: Any, x: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return literal(x, single if x == types.float32 else other)

        return x(x), codegen

    return value


def polynomial(single: tuple[float, ...], double: tuple[float, ...]) -> Any:
    """A function p(x) = sum c_k x^k by Horner's rule, with one table of coefficients for each precision."""

    @intrinsic
    def evaluate(typingctx: Any, x: Any) -> Any:
        table = single if x == types.float32 else double

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (value,) = arguments
            total = literal(x, table[-1])
            for coefficient in reversed(table[:-1]):
                total = call_llvm(builder, "llvm.fmuladd", total, value, literal(x, coefficient))
            return total

        return x(x), codegen

    return evaluate


def call_llvm(builder: Any, name: str, *arguments: Any) -> Any:
    """Call the LLVM intrinsic `name`, whose arguments and result share one type."""
    kind = arguments[0].type
    function_type = ir.FunctionType(kind, [kind] * len(arguments))
    return builder.call(builder.module.declare_intrinsic(name, [kind], function_type), arguments)


def floating(name: str, operands: int) -> Any:
    """The LLVM intrinsic `name` as a function of one to three floats of one type."""

    def typed(*kinds: Any) -> Any:
        if not all(isinstance(kind, types.Float) and kind == kinds[0] for kind in kinds):
            return None

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return call_llvm(builder, name, *arguments)

        return kinds[0](*kinds), codegen

    def unary(typingctx: Any, x: Any) -> Any:
        return typed(x)

    def binary(typingctx: Any, x: Any, y: Any) -> Any:
        return typed(x, y)

    def ternary(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
        return typed(x, y, z)

    return intrinsic((unary, binary, ternary)[operands - 1])


multiply_add = floating("llvm.fmuladd", 3)  # fused where the CPU does that fast, else rounded twice
fused_multiply_add = floating("llvm.fma", 3)  # always rounded once; a slow call on a CPU without the instruction
fabs = floating("llvm.fabs", 1)
copysign = floating("llvm.copysign", 2)
square_root = floating("llvm.sqrt", 1)
nearest = floating("llvm.rint", 1)


@intrinsic
def like(typingctx: Any, value: Any, x: Any) -> Any:
    """`value` cast to the type of `x`; a constant stays a constant."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], value, x)

    return x(value, x), codegen


@intrinsic
def select(typingctx: Any, condition: Any, x: Any, y: Any) -> Any:
    """`x` where `condition` (a bool) holds, else `y`; both are evaluated, nothing branches."""
    if condition != types.boolean or x != y:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return x(condition, x, y), codegen


@intrinsic
def power_of_two(typingctx: Any, n: Any) -> Any:
    """2^n for an integral float n with 2^n normal; any other n gives some float, never a trap."""
    bits, bias = MANTISSA_BITS[n], EXPONENT_BIAS[n]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(n.bitwidth)
        # 1.5 * 2^bits has a unit of one in its last place: the low bits of the sum are n, in two's complement.
        shifted = builder.bitcast(builder.fadd(arguments[0], literal(n, 1.5 * 2.0**bits)), integer)
        exponent = builder.add(shifted, integer(bias))
        return builder.bitcast(builder.shl(exponent, integer(bits)), arguments[0].type)

    return n(n), codegen


@intrinsic
def split_exponent(typingctx: Any, x: Any) -> Any:
    """(m, e) with x = m 2^e and m in [sqrt(1/2), sqrt(2)), e an integral float; x positive, finite and normal."""
    bits = MANTISSA_BITS[x]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(x.bitwidth)
        half = builder.bitcast(literal(x, 0.5**0.5), integer)
        offset = builder.sub(builder.bitcast(arguments[0], integer), half)
        mantissa = builder.add(builder.and_(offset, integer((1 << bits) - 1)), half)
        # The arithmetic shift leaves e as a small integer; adding it to the bits of 1.5 * 2^bits makes it a float
        # without a conversion from a 64-bit integer, which few CPUs have as a vector instruction.
        origin = literal(x, 1.5 * 2.0**bits)
        exponent = builder.add(builder.ashr(offset, integer(bits)), builder.bitcast(origin, integer))
        exponent = builder.fsub(builder.bitcast(exponent, arguments[0].type), origin)
        return context.make_tuple(
            builder, signature.return_type, (builder.bitcast(mantissa, arguments[0].type), exponent)
        )

    return types.UniTuple(x, 2)(x), codegen


@intrinsic
def leading_half(typingctx: Any, x: Any) -> Any:
    """x with the lower half of its significand cleared, so that a product of two such values is exact."""
    cleared = {types.float32: 12, types.float64: 27}[x]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(x.bitwidth)
        kept = builder.and_(builder.bitcast(arguments[0], integer), integer(-(1 << cleared)))
        return builder.bitcast(kept, arguments[0].type)

    return x(x), codegen


@intrinsic
def widened(typingctx: Any, x: Any) -> Any:
    """A float32 as a float64."""
    if x != types.float32:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(arguments[0], ir.DoubleType())

    return types.float64(x), codegen


@intrinsic
def narrowed(typingctx: Any, x: Any) -> Any:
    """A float64 rounded to a float32."""
    if x != types.float64:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fptrunc(arguments[0], ir.FloatType())

    return types.float32(x), codegen
