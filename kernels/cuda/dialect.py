"""The vector maths and a few functions of its own for Numba's CUDA compiler.

`libNVVM` reads the LLVM of 2018: it has no `fneg`, and some intrinsics are functions of its own library. `Dialect` is
an LLVM builder that says the same in its words, so that the code which writes instructions need not know of it.
"""
# mypy: disable-error-code="no-untyped-call, attr-defined, misc"

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic, lower_builtin, type_callable
from numba.np.numpy_support import from_dtype

from staticgrad.graph.node import DType
from staticgrad.kernels import vector_math
from staticgrad.kernels.cuda.target import VECTOR_BYTES
from staticgrad.kernels.intrinsic import Entered, entered, jitted
from staticgrad.kernels.source_names import names_with

GLOBAL, SHARED = 1, 3  # the address spaces of device memory and of a block's shared memory
_LIBRARY = {"llvm.fabs": "__nv_fabs", "llvm.rint": "__nv_rint"}  # what libNVVM has as a function only
_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_EVERYONE = _WORD(0xFFFFFFFF)


class Dialect:
    """A builder of LLVM instructions that libNVVM understands, around one that writes any."""

    constants_space = GLOBAL

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    @property
    def module(self) -> _Module:
        return _Module(self._builder.module)

    def fneg(self, value: Any) -> Any:
        """-value, as a subtraction."""
        return self._builder.fsub(ir.Constant(value.type, -0.0), value)

    def exp2(self, x: Any) -> Any:
        """2^x of a float32, by one instruction; its relative error is below 2^-22 (PTX ISA, ex2)."""
        return self._instruction("ex2.approx.ftz.f32", x)

    def extreme(self, operator: str, x: Any, y: Any) -> Any:
        """The larger (">") or smaller ("<") one of two float32, by one instruction; NaN where either is."""
        return self._instruction(f"{'max' if operator == '>' else 'min'}.NaN.f32", x, y)

    def _instruction(self, name: str, *operands: Any) -> Any:
        """One instruction of PTX on float32."""
        kind, count = operands[0].type, len(operands)
        places = ", ".join(f"${position}" for position in range(count + 1))
        text = ir.InlineAsm(ir.FunctionType(kind, [kind] * count), f"{name} {places};", "=f" + ",f" * count)
        return self._builder.call(text, operands)

    def frem(self, x: Any, y: Any) -> Any:
        """x fmod y, by a function of the library."""
        return self._builder.call(_library_function(self._builder.module, "__nv_fmod", x.type, 2), [x, y])


class _Module:
    """A module in which some intrinsics are functions of the library."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def declare_intrinsic(self, name: str, kinds: Any, function_type: Any) -> Any:
        if name in _LIBRARY:
            return _library_function(self._module, _LIBRARY[name], kinds[0], len(function_type.args))
        return self._module.declare_intrinsic(name, kinds, function_type)


def _library_function(module: Any, name: str, kind: Any, count: int) -> Any:
    name += "f" if kind == ir.FloatType() else ""
    found = module.globals.get(name)
    return ir.Function(module, ir.FunctionType(kind, [kind] * count), name) if found is None else found


def element_type(dtype: DType) -> Any:
    """What a pointer to values of `dtype` points to; booleans are bytes."""
    return types.uint8 if dtype == np.bool_ else from_dtype(dtype)


@cache
def names() -> dict[str, Any]:
    """What a kernel's source may use beside `cuda` itself."""
    found = names_with(types) | {"larger": vector_math.maximum, "smaller": vector_math.minimum}
    own = ("quotient", "rest", "shuffle_xor", "shuffle_up", "shared_memory", "load2", "load4", "store2", "store4")
    for function in entered:
        _enter(function)
    for text in jitted:
        _enter_text(text)
    return found | {name: globals()[name] for name in own}


def _enter_text(function: Callable[..., Any]) -> None:
    """Have a function of one float compiled from its text where it is called."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.compile_internal(builder, function, signature, arguments)

    type_callable(function)(lambda context: lambda x: x if isinstance(x, types.Float) else None)
    lower_builtin(function, types.Float)(lower)


def _enter(function: Entered) -> None:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return function.lower(context, Dialect(builder), signature, arguments)

    type_callable(function.called)(function.typer)
    for kinds in function.lowerings:
        lower_builtin(function.called, *kinds)(lower)


# ---------------------------------------------------------------- indices


def _unsigned(name: str) -> Any:
    @intrinsic
    def function(typingctx: Any, number: Any, divisor: Any) -> Any:
        """The quotient or the rest of two int64 that are not negative and below 2^31."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            narrow = [builder.trunc(value, _WORD) for value in arguments]
            return builder.zext(getattr(builder, name)(*narrow), _LONG)

        return types.int64(types.int64, types.int64), codegen

    return function


quotient = _unsigned("udiv")
rest = _unsigned("urem")


# ---------------------------------------------------------------- threads that exchange values


def _shuffle(kind: str, last: int, name: str) -> Any:
    """A function that gives the value of another thread of this warp; `last` as the instruction wants it."""

    @intrinsic
    def function(typingctx: Any, value: Any, distance: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            number, lane = arguments[0], builder.trunc(arguments[1], _WORD)
            size = int(number.type.width) if isinstance(number.type, ir.IntType) else 32 * (1 + _is_double(number))
            whole = _LONG if size == 64 else _WORD
            bits = builder.zext(number, whole) if size < 32 else builder.bitcast(number, whole)
            if size == 64:
                parts = [builder.trunc(bits, _WORD), builder.trunc(builder.lshr(bits, _LONG(32)), _WORD)]
                low, high = (builder.zext(_exchanged(builder, kind, part, lane, last), _LONG) for part in parts)
                bits = builder.or_(low, builder.shl(high, _LONG(32)))
            else:
                bits = _exchanged(builder, kind, bits, lane, last)
            return builder.trunc(bits, number.type) if size < 32 else builder.bitcast(bits, number.type)

        return value(value, types.int64), codegen

    function.__name__ = name
    return function


def _is_double(value: Any) -> bool:
    return bool(value.type == ir.DoubleType())


def _exchanged(builder: Any, kind: str, word: Any, lane: Any, last: int) -> Any:
    signature = ir.FunctionType(_WORD, [_WORD, _WORD, _WORD, _WORD])
    name = f"llvm.nvvm.shfl.sync.{kind}.i32"
    function = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    return builder.call(function, [_EVERYONE, word, lane, _WORD(last)])


shuffle_xor = _shuffle("bfly", 0x1F, "shuffle_xor")  # of the thread whose lane differs in the bit `distance`
shuffle_up = _shuffle("up", 0, "shuffle_up")  # of the thread `distance` lanes below, or its own where there is none


# ---------------------------------------------------------------- shared memory


@intrinsic
def shared_memory(typingctx: Any, count: Any, dtype: Any) -> Any:
    """A pointer to `count` elements (a number in the text) that the threads of a block share, aligned for vectors."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_data_type(dtype.instance_type)
        memory = ir.ArrayType(kind, count.literal_value)
        found = ir.GlobalVariable(builder.module, memory, builder.module.get_unique_name("shared"), SHARED)
        found.linkage = "internal"  # a name that nobody else sees may have any characters
        found.align = VECTOR_BYTES
        found.initializer = ir.Constant(memory, ir.Undefined)
        return builder.bitcast(builder.addrspacecast(found, memory.as_pointer()), kind.as_pointer())

    return types.CPointer(dtype.instance_type)(count, dtype), codegen


# ---------------------------------------------------------------- several elements in one access


def _loader(count: int) -> Any:
    @intrinsic
    def function(typingctx: Any, pointer: Any, index: Any) -> Any:
        """The elements from `index` on as a tuple; they are aligned to their common size."""
        result = types.UniTuple(pointer.dtype, count)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _vector_place(builder, arguments[0], arguments[1], count)
            loaded = builder.load(place, align=_vector_bytes(place))
            values = [builder.extract_element(loaded, _WORD(k)) for k in range(count)]
            return context.make_tuple(builder, result, values)

        return result(pointer, types.int64), codegen

    return function


def _storer(count: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _vector_place(builder, arguments[0], arguments[1], count)
        vector = ir.Constant(place.type.pointee, ir.Undefined)
        for k, value in enumerate(arguments[2:]):
            vector = builder.insert_element(vector, value, _WORD(k))
        builder.store(vector, place, align=_vector_bytes(place))
        return context.get_dummy_value()

    return codegen


def _vector_place(builder: Any, pointer: Any, index: Any, count: int) -> Any:
    element = builder.gep(pointer, [index])
    return builder.bitcast(element, ir.VectorType(pointer.type.pointee, count).as_pointer())


def _vector_bytes(place: Any) -> int:
    vector = place.type.pointee
    kind = vector.element
    return int(
        vector.count * (kind.width // 8 if isinstance(kind, ir.IntType) else 4 * (1 + (kind == ir.DoubleType())))
    )


load2, load4 = _loader(2), _loader(4)


@intrinsic
def store2(typingctx: Any, pointer: Any, index: Any, a: Any, b: Any) -> Any:
    """Store two elements from `index` on, aligned to their common size."""
    kind = pointer.dtype
    return types.void(pointer, types.int64, kind, kind), _storer(2)


@intrinsic
def store4(typingctx: Any, pointer: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Store four elements from `index` on, aligned to their common size."""
    kind = pointer.dtype
    return types.void(pointer, types.int64, kind, kind, kind, kind), _storer(4)


__all__ = ["Dialect", "element_type", "names"]
