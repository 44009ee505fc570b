"""The vector maths of compiled kernels: scalar functions that LLVM inlines and vectorises, on any CPU.

Every name stands in `staticgrad.graph.ops.numpy_math` too, with the same meaning on arrays. The functions here take
float32 or float64 scalars (the integer ones any integer), answer in the same type, and are callable from compiled
code only. They are straight-line code without a branch or a call (but `fmod`, `remainder` and `floor_divide` of
floats, `lgamma` and `digamma`), so a loop `for i in range(n): out[i] = f(x[i])` becomes vector instructions. Their
errors in units in the last place are listed in `docs/vector_math.md`.

`EXACT` names the functions that give the same bits as NumPy's.
"""

from staticgrad.kernels.vector_math.arithmetic import (
    abs,
    bitwise_and,
    bitwise_or,
    bitwise_xor,
    floor_divide,
    fmod,
    invert,
    isfinite,
    isinf,
    isnan,
    left_shift,
    maximum,
    minimum,
    remainder,
    right_shift,
    rsqrt,
    select,
    sign,
    truediv,
)
from staticgrad.kernels.vector_math.error_function import erf, erfc
from staticgrad.kernels.vector_math.exponential import cosh, exp, exp2, expm1, sigmoid, sinh, tanh
from staticgrad.kernels.vector_math.gamma import digamma, lgamma
from staticgrad.kernels.vector_math.logarithm import acosh, asinh, atanh, log, log1p, log2, log10
from staticgrad.kernels.vector_math.power import cbrt, pow
from staticgrad.kernels.vector_math.primitives import ceil, copysign, floor, round, sqrt, trunc
from staticgrad.kernels.vector_math.threefry import threefry2x32
from staticgrad.kernels.vector_math.trigonometric import acos, asin, atan, atan2, cos, sin, tan

EXACT = frozenset(
    {
        "abs",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "ceil",
        "copysign",
        "floor",
        "floor_divide",
        "fmod",
        "invert",
        "isfinite",
        "isinf",
        "isnan",
        "left_shift",
        "maximum",
        "minimum",
        "remainder",
        "right_shift",
        "round",
        "rsqrt",
        "select",
        "sign",
        "sqrt",
        "threefry2x32",
        "truediv",
        "trunc",
    }
)

__all__ = [
    "EXACT",
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "cbrt",
    "ceil",
    "copysign",
    "cos",
    "cosh",
    "digamma",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "floor_divide",
    "fmod",
    "invert",
    "isfinite",
    "isinf",
    "isnan",
    "left_shift",
    "lgamma",
    "log",
    "log1p",
    "log2",
    "log10",
    "maximum",
    "minimum",
    "pow",
    "remainder",
    "right_shift",
    "round",
    "rsqrt",
    "select",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "threefry2x32",
    "truediv",
    "trunc",
]
