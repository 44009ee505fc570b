"""What the vector maths is written in: scalar values whose arithmetic becomes LLVM instructions of their own type.

A function marked `@scalar` is called by compiled code like any other. Numba does not compile its body: the body runs
once, on `Value`s, and what it computes with them is written down as LLVM instructions, straight into the loop that
calls it. That costs a millisecond or two where a compiled function costs thirty for itself and for each function it
uses; and a constant takes the type of the value it meets, where Numba would promote float32 to float64 and an int32
sum to int64, either of which would halve the vector width. Nothing here branches, so LLVM vectorises the loop on any
CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import types

from staticgrad.kernels.intrinsic import Entered, enter

Function = TypeVar("Function", bound=Callable[..., Any])

BOOLEAN, SINGLE, DOUBLE = ir.IntType(1), ir.FloatType(), ir.DoubleType()
WIDTH = {SINGLE: 32, DOUBLE: 64}
MANTISSA_BITS = {SINGLE: 23, DOUBLE: 52}
EXPONENT_BIAS = {SINGLE: 127, DOUBLE: 1023}
_LEADING_CLEARED = {SINGLE: 12, DOUBLE: 27}


class Value:
    """A float32, float64, integer or bool in the function that is being compiled."""

    __slots__ = ("builder", "code")

    def __init__(self, builder: Any, code: Any) -> None:
        self.builder = builder
        self.code = code

    @property
    def kind(self) -> Any:
        """The LLVM type."""
        return self.code.type

    def same_kind(self, other: Value | float) -> Any:
        """The LLVM code of `other`; a Python number becomes a constant of this value's type."""
        return other.code if isinstance(other, Value) else literal(self.kind, other)

    def _arithmetic(self, instruction: str, left: Value | float, right: Value | float) -> Value:
        emit = getattr(self.builder, instruction)
        return Value(self.builder, emit(self.same_kind(left), self.same_kind(right)))

    def _compare(self, operator: str, other: Value | float) -> Value:
        compare = self.builder.fcmp_unordered if operator == "!=" else self.builder.fcmp_ordered
        return Value(self.builder, compare(operator, self.code, self.same_kind(other)))

    def __add__(self, other: Scalar) -> Value:
        return self._arithmetic("fadd", self, other)

    def __radd__(self, other: Scalar) -> Value:
        return self._arithmetic("fadd", other, self)

    def __sub__(self, other: Scalar) -> Value:
        return self._arithmetic("fsub", self, other)

    def __rsub__(self, other: Scalar) -> Value:
        return self._arithmetic("fsub", other, self)

    def __mul__(self, other: Scalar) -> Value:
        return self._arithmetic("fmul", self, other)

    def __rmul__(self, other: Scalar) -> Value:
        return self._arithmetic("fmul", other, self)

    def __truediv__(self, other: Scalar) -> Value:
        return self._arithmetic("fdiv", self, other)

    def __rtruediv__(self, other: Scalar) -> Value:
        return self._arithmetic("fdiv", other, self)

    def __neg__(self) -> Value:
        return Value(self.builder, self.builder.fneg(self.code))

    def __lt__(self, other: Scalar) -> Value:
        return self._compare("<", other)

    def __le__(self, other: Scalar) -> Value:
        return self._compare("<=", other)

    def __gt__(self, other: Scalar) -> Value:
        return self._compare(">", other)

    def __ge__(self, other: Scalar) -> Value:
        return self._compare(">=", other)

    def __eq__(self, other: Scalar) -> Value:  # type: ignore[override]
        return self._compare("==", other)

    def __ne__(self, other: Scalar) -> Value:  # type: ignore[override]
        return self._compare("!=", other)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Value) -> Value:
        return Value(self.builder, self.builder.and_(self.code, other.code))

    def __or__(self, other: Value) -> Value:
        return Value(self.builder, self.builder.or_(self.code, other.code))

    def __xor__(self, other: Value) -> Value:
        return Value(self.builder, self.builder.xor(self.code, other.code))

    def __invert__(self) -> Value:
        return Value(self.builder, self.builder.not_(self.code))

    def __bool__(self) -> bool:
        raise TypeError("vector_math: a scalar function cannot branch on a value; use select(condition, x, y)")


Scalar = Any  # a Value, or a number that becomes a constant


def scalar(function: Function) -> Function:
    """Make a function of one or two values callable from compiled code, for float32 and float64."""
    count = len(inspect.signature(function).parameters)

    @wraps(function)
    def traced(*operands: Scalar) -> Any:
        if not any(isinstance(operand, Value) for operand in operands):
            raise NotImplementedError(
                f"{function.__name__}: callable from compiled code only; the same name on NumPy arrays stands in "
                "staticgrad.graph.ops.numpy_math"
            )
        return function(*operands)

    def result(*kinds: Any) -> Any:
        alike = all(isinstance(kind, types.Float) and kind == kinds[0] for kind in kinds)
        return kinds[0] if alike else None

    def unary(x: Any) -> Any:
        return result(x)

    def binary(x: Any, y: Any) -> Any:
        return result(x, y)

    def typing(context: Any) -> Any:
        return (unary, binary)[count - 1]

    def lowering(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return function(*(Value(builder, code) for code in arguments)).code

    enter(Entered(traced, typing, tuple((kind,) * count for kind in (types.float32, types.float64)), lowering))
    return cast(Function, traced)


def literal(kind: Any, value: float) -> ir.Constant:
    """The LLVM constant `value`, rounded to the LLVM type `kind`."""
    return ir.Constant(kind, float(np.float32(value)) if kind == SINGLE else value)


def constant(single: float, double: float | None = None) -> Any:
    """A function of x that answers with a constant of x's type: `single` for float32, `double` for float64."""

    def value(x: Value) -> Value:
        number = single if double is None or x.kind == SINGLE else double
        return Value(x.builder, literal(x.kind, number))

    return value


def like(value: float, x: Value) -> Value:
    """A number as a constant of x's type, where no other operand says which type is meant."""
    return Value(x.builder, literal(x.kind, value))


def polynomial(single: tuple[float, ...], double: tuple[float, ...]) -> Any:
    """A function p(x) = sum c_k x^k by Horner's rule, with one table of coefficients for each precision."""

    def evaluate(x: Value) -> Value:
        table = single if x.kind == SINGLE else double
        total: Scalar = table[-1]
        for coefficient in reversed(table[:-1]):
            total = multiply_add(x, total, coefficient)
        return total  # type: ignore[no-any-return]

    return evaluate


def call_llvm(builder: Any, name: str, *arguments: Any) -> Any:
    """Call the LLVM intrinsic `name`, whose arguments and result share one type."""
    kind = arguments[0].type
    function_type = ir.FunctionType(kind, [kind] * len(arguments))
    return builder.call(builder.module.declare_intrinsic(name, [kind], function_type), arguments)


def constant_table(builder: Any, name: str, values: Callable[[], list[float]]) -> Any:
    """A float64 array that never changes, as a pointer; `values` is asked for them once in a module."""
    table = builder.module.globals.get(name)
    if table is None:
        numbers = values()
        kind = ir.ArrayType(DOUBLE, len(numbers))
        table = ir.GlobalVariable(builder.module, kind, name, addrspace=getattr(builder, "constants_space", 0))
        table.initializer = ir.Constant(kind, numbers)
        table.global_constant = True
        table.linkage = "internal"
    return table


def _intrinsic(name: str, *operands: Scalar) -> Value:
    first = next(operand for operand in operands if isinstance(operand, Value))
    return Value(first.builder, call_llvm(first.builder, name, *map(first.same_kind, operands)))


def multiply_add(a: Scalar, b: Scalar, c: Scalar) -> Value:
    """a b + c, fused where the CPU does that fast, else rounded twice."""
    return _intrinsic("llvm.fmuladd", a, b, c)


def fused_multiply_add(a: Scalar, b: Scalar, c: Scalar) -> Value:
    """a b + c, rounded once; a slow call on a CPU without the instruction."""
    return _intrinsic("llvm.fma", a, b, c)


def has_exp2(x: Value) -> bool:
    """Whether the device has an instruction for 2^x of this type."""
    return x.kind == SINGLE and hasattr(x.builder, "exp2")


def small_exp2(x: Value) -> Value:
    """2^x by the device's instruction; results below the normal range may be flushed to zero."""
    return Value(x.builder, x.builder.exp2(x.code))


def fabs(x: Scalar) -> Value:
    """The magnitude of x."""
    return _intrinsic("llvm.fabs", x)


@scalar
def copysign(x: Scalar, y: Scalar) -> Value:
    """The magnitude of x with the sign of y."""
    return _intrinsic("llvm.copysign", x, y)


@scalar
def sqrt(x: Scalar) -> Value:
    """The square root; NaN below zero."""
    return _intrinsic("llvm.sqrt", x)


@scalar
def floor(x: Scalar) -> Value:
    """The largest integer not above x."""
    return _intrinsic("llvm.floor", x)


@scalar
def ceil(x: Scalar) -> Value:
    """The smallest integer not below x."""
    return _intrinsic("llvm.ceil", x)


@scalar
def trunc(x: Scalar) -> Value:
    """The integer part of x."""
    return _intrinsic("llvm.trunc", x)


@scalar
def round(x: Scalar) -> Value:
    """The integer nearest to x, half to even."""
    return _intrinsic("llvm.rint", x)


def select(condition: Value, x: Scalar, y: Scalar) -> Value:
    """x where `condition` holds, else y; both are evaluated, nothing branches."""
    one = x if isinstance(x, Value) else y
    return Value(condition.builder, condition.builder.select(condition.code, one.same_kind(x), one.same_kind(y)))


def bits(x: Value) -> Any:
    """The LLVM code of x as an integer of its width."""
    return x.builder.bitcast(x.code, ir.IntType(WIDTH[x.kind]))


def from_bits(x: Value, pattern: Any) -> Value:
    """The float of x's type with the bits `pattern`."""
    return Value(x.builder, x.builder.bitcast(pattern, x.kind))


def rounding_origin(kind: Any) -> float:
    """1.5 2^52, or 2^23 in float32: its unit in the last place is one, so adding it rounds to an integer, which then
    stands in the low bits in two's complement."""
    return float(1.5 * 2.0 ** MANTISSA_BITS[kind])


def rounded(x: Value) -> Value:
    """The nearest integer to x, ties to even, |x| < 2^22 (float64: 2^51); needs no instruction that old CPUs lack."""
    return (x + rounding_origin(x.kind)) - rounding_origin(x.kind)


def power_of_two(n: Value) -> Value:
    """2^n for an integral float n with 2^n normal; any other n gives some float, never a trap."""
    builder, size = n.builder, MANTISSA_BITS[n.kind]
    shifted = bits(n + rounding_origin(n.kind))
    exponent = builder.add(shifted, shifted.type(EXPONENT_BIAS[n.kind]))
    return from_bits(n, builder.shl(exponent, shifted.type(size)))


def split_exponent(x: Value) -> tuple[Value, Value]:
    """(m, e) with x = m 2^e and m in [sqrt(1/2), sqrt(2)), e an integral float; x positive, finite and normal."""
    builder, size = x.builder, MANTISSA_BITS[x.kind]
    half = builder.bitcast(literal(x.kind, 0.5**0.5), ir.IntType(WIDTH[x.kind]))
    offset = builder.sub(bits(x), half)
    mantissa = builder.add(builder.and_(offset, offset.type((1 << size) - 1)), half)
    # The arithmetic shift leaves e as a small integer; adding it to the bits of the rounding origin makes it a float
    # without a conversion from a 64-bit integer, which few CPUs have as a vector instruction.
    origin = builder.bitcast(literal(x.kind, rounding_origin(x.kind)), offset.type)
    exponent = from_bits(x, builder.add(builder.ashr(offset, offset.type(size)), origin))
    return from_bits(x, mantissa), exponent - rounding_origin(x.kind)


def leading_half(x: Value) -> Value:
    """x with the lower half of its significand cleared, so that a product of two such values is exact."""
    pattern = bits(x)
    return from_bits(x, x.builder.and_(pattern, pattern.type(-(1 << _LEADING_CLEARED[x.kind]))))


def widened(x: Value) -> Value:
    """A float32 as a float64."""
    return Value(x.builder, x.builder.fpext(x.code, DOUBLE))


def narrowed(x: Value) -> Value:
    """A float64 rounded to a float32."""
    return Value(x.builder, x.builder.fptrunc(x.code, SINGLE))
