"""How kernels add up: the scalar steps of reductions, written so that LLVM runs many of them side by side.

A sum may be reordered, and only a sum: `reassoc` stands on these additions and nowhere else.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from staticgrad.kernels.intrinsic import intrinsic


@intrinsic
def accumulate_sum(typingctx: Any, total: Any, value: Any) -> Any:
    """total + value for floats of one type, in whatever order is fastest."""
    if total != value or not isinstance(total, types.Float):
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=("reassoc", "nsz", "contract"))

    return total(total, value), codegen


@intrinsic
def accumulate_product(typingctx: Any, total: Any, value: Any) -> Any:
    """total * value for floats of one type, in whatever order is fastest."""
    if total != value or not isinstance(total, types.Float):
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments, flags=("reassoc", "nsz"))

    return total(total, value), codegen


def _extreme(name: str, comparison: str) -> Any:
    @intrinsic
    def step(typingctx: Any, best: Any, value: Any) -> Any:
        """The one of two numbers of a type that is more extreme; a NaN on either side wins."""
        if best != value or not isinstance(best, (types.Float, types.Integer)):
            return None

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if isinstance(best, types.Float):
                kind = arguments[0].type
                function = ir.FunctionType(kind, [kind, kind])
                return builder.call(builder.module.declare_intrinsic(f"llvm.{name}", [kind], function), arguments)
            compare = builder.icmp_signed if best.signed else builder.icmp_unsigned
            return builder.select(compare(comparison, *arguments), *arguments)

        return best(best, value), codegen

    return step


larger = _extreme("maximum", ">")
smaller = _extreme("minimum", "<")
