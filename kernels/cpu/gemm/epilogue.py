"""Runs functions of scalars, those of the vector maths among them, on whole vectors.

Such a function sees a `Value` whose type is float or double, and so takes its constants and branches for that type.
What it does with the builder of that value is written down for all lanes at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.kernels.cpu.gemm.product import Product
from staticgrad.kernels.cpu.gemm.writer import Text

Epilogue = Callable[..., Any]
_ORDERED = {"<": "olt", "<=": "ole", ">": "ogt", ">=": "oge", "==": "oeq", "!=": "one"}
_UNORDERED = {"<": "ult", "<=": "ule", ">": "ugt", ">=": "uge", "==": "ueq", "!=": "une", "uno": "uno"}
_BINARY = {
    "fadd": "fadd contract",
    "fsub": "fsub contract",
    "fmul": "fmul contract",
    "fdiv": "fdiv",
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "and_": "and",
    "or_": "or",
    "xor": "xor",
    "shl": "shl",
    "ashr": "ashr",
    "lshr": "lshr",
}


def apply(text: Text, epilogue: Epilogue, value: str, operands: Sequence[str], product: Product) -> list[str]:
    """Write the epilogue for one vector; the names of its results. `operands` name those of the product."""
    from llvmlite import ir

    from staticgrad.kernels.vector_math.primitives import Value

    builder = _Lanes(text)
    kind = builder.kind
    kinds = [kind, *(ir.IntType(1) if side.boolean else kind for side in product.operands)]
    given = [_Lane(name, kind) for name, kind in zip((value, *operands), kinds, strict=True)]
    answer = epilogue(*(Value(builder, lane) for lane in given))
    answers = answer if isinstance(answer, tuple) else (answer,)
    if len(answers) != product.results:
        raise ValueError(
            f"gemm: an epilogue answers with one value for each output; got {len(answers)} for {product.results}"
        )
    return [builder.code(one.code if isinstance(one, Value) else ir.Constant(kind, one)) for one in answers]


def emit(function: Callable[..., Any], *operands: Any) -> Any:
    """Call a function of the vector maths in an epilogue, also one that is entered by `intrinsic`, such as `maximum`.

    Args: `operands` are `Value`s and numbers, a `Value` among them.
    """
    from llvmlite import ir
    from numba import types

    from staticgrad.kernels.vector_math.primitives import Value, literal

    if "typingctx" not in inspect.signature(type_of := inspect.unwrap(function)).parameters:
        return function(*operands)
    builder = next(operand.builder for operand in operands if isinstance(operand, Value))
    known = {ir.FloatType(): types.float32, ir.DoubleType(): types.float64, ir.IntType(1): types.boolean}
    values = [
        operand if isinstance(operand, Value) else Value(builder, literal(builder.kind, operand))
        for operand in operands
    ]
    found = type_of(None, *(known[value.kind] for value in values))
    if found is None:
        raise NotImplementedError(
            f"gemm: {function} does not take these operands in an epilogue; compute it in a kernel"
        )
    signature, codegen = found
    return Value(builder, codegen(_Context(), builder, signature, [value.code for value in values]))


def number(value: Any) -> Any:
    """A truth value of an epilogue as 0 or 1; anything else as it is."""
    from llvmlite import ir

    from staticgrad.kernels.vector_math.primitives import Value

    if not isinstance(value, Value) or value.kind != ir.IntType(1):
        return value
    builder = value.builder
    return Value(builder, builder.select(value.code, ir.Constant(builder.kind, 1.0), ir.Constant(builder.kind, 0.0)))


class _Context:
    """What stands for Numba's context: asked for conversions only, and all operands are of one type."""

    def cast(self, builder: Any, value: Any, source: Any, target: Any) -> Any:
        if source != target:
            raise NotImplementedError(f"gemm: an epilogue cannot convert {source} to {target}; compute it in a kernel")
        return value


class _Lane:
    """What stands for an LLVM value: the name of a vector, and the type of one lane."""

    __slots__ = ("name", "type")

    def __init__(self, name: str, type: Any) -> None:
        self.name = name
        self.type = type


class _Lanes:
    """Takes the calls that an `llvmlite.ir.IRBuilder` takes, and writes vector instructions."""

    def __init__(self, text: Text) -> None:
        from llvmlite import ir

        self.text = text
        self.kind = ir.FloatType() if text.dtype == "float32" else ir.DoubleType()
        self.module = self  # asked for intrinsics only

    def __getattr__(self, name: str) -> Callable[[Any, Any], _Lane]:
        instruction = _BINARY.get(name)
        if instruction is None:
            raise NotImplementedError(f"gemm: an epilogue cannot use the instruction {name!r}; compute it in a kernel")

        def write(left: Any, right: Any) -> _Lane:
            return self._new(f"{instruction} {self._kind(left.type)} {self.code(left)}, {self.code(right)}", left.type)

        return write

    def code(self, value: Any) -> str:
        """A value as an operand."""
        if isinstance(value, _Lane):
            return value.name
        return self.text.splat(str(value.type), value.get_reference())

    def fneg(self, value: Any) -> _Lane:
        return self._new(f"fneg {self._kind(value.type)} {self.code(value)}", value.type)

    def not_(self, value: Any) -> _Lane:
        ones = self.text.splat(str(value.type), "-1")
        return self._new(f"xor {self._kind(value.type)} {self.code(value)}, {ones}", value.type)

    def fcmp_ordered(self, operator: str, left: Any, right: Any) -> _Lane:
        return self._compare(_ORDERED[operator], left, right)

    def fcmp_unordered(self, operator: str, left: Any, right: Any) -> _Lane:
        return self._compare(_UNORDERED[operator], left, right)

    def select(self, condition: Any, left: Any, right: Any) -> _Lane:
        kind = self._kind(left.type)
        chosen = f"{self._kind(condition.type)} {self.code(condition)}"
        return self._new(f"select {chosen}, {kind} {self.code(left)}, {kind} {self.code(right)}", left.type)

    def bitcast(self, value: Any, kind: Any) -> _Lane:
        return self._new(f"bitcast {self._kind(value.type)} {self.code(value)} to {self._kind(kind)}", kind)

    def declare_intrinsic(self, name: str, kinds: Any, function_type: Any) -> str:
        """The name of the intrinsic; it is declared when it is called."""
        return name

    def call(self, name: str, arguments: Sequence[Any]) -> _Lane:
        return _Lane(self.text.intrinsic(name, *map(self.code, arguments)), arguments[0].type)

    def _compare(self, predicate: str, left: Any, right: Any) -> _Lane:
        from llvmlite import ir

        compared = f"fcmp {predicate} {self._kind(left.type)} {self.code(left)}, {self.code(right)}"
        return self._new(compared, ir.IntType(1))

    def _kind(self, kind: Any) -> str:
        return f"<{self.text.lanes} x {kind}>"

    def _new(self, expression: str, kind: Any) -> _Lane:
        return _Lane(self.text.value(expression), kind)
