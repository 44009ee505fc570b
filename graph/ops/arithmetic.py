"""Arithmetic, comparison, logic and selection, element by element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.op import ZERO, ErrorSample, Interval, NotDifferentiable, Sample, elementwise
from staticgrad.graph.ops import numpy_math as vm

DISCRETE = NotDifferentiable("the result is an integer or a boolean")
ANY = Interval(-3.0, 3.0)
SPECIAL = (0.0, -0.0, 1.0, -2.5, 1e30, -1e30, math.inf, -math.inf, math.nan)


def rejects_dtype(dtype: str, count: int = 1) -> ErrorSample:
    """Operands of `dtype` must raise DTypeError."""
    return ErrorSample((np.ones(3, dtype),) * count, {}, DTypeError, "dtype")


def rejects_shapes_of(x: np.ndarray[Any, Any]) -> ErrorSample:
    """x and an operand of four elements that does not broadcast with it must raise ShapeError."""
    return ErrorSample((x, np.ones(4, x.dtype)), {}, ShapeError, "broadcast")


def rejects_shapes() -> ErrorSample:
    """Two floating operands that do not broadcast must raise ShapeError."""
    return rejects_shapes_of(np.ones((2, 3)))


# ---------------------------------------------------------------- arithmetic


def _one() -> int:
    return 1


def _minus_one() -> int:
    return -1


def _neg(x: Any) -> Any:
    return -x


def _add(x: Any, y: Any) -> Any:
    return x + y


def _sub(x: Any, y: Any) -> Any:
    return x - y


def _mul(x: Any, y: Any) -> Any:
    return x * y


def _div(x: Any, y: Any) -> Any:
    return vm.truediv(x, y)


def _d_mul_x(*, y: Any) -> Any:
    return y


def _d_mul_y(*, x: Any) -> Any:
    return x


def _d_div_x(change: Any, *, y: Any) -> Any:
    return change / y


def _d_div_y(change: Any, *, y: Any, out: Any) -> Any:
    return -(change * out) / y


neg = elementwise(
    "neg",
    scalar=_neg,
    partials=(_minus_one,),
    dtype="numeric",
    domain=(ANY,),
    special=SPECIAL,
    errors=(rejects_dtype("bool"),),
)
add = elementwise(
    "add",
    scalar=_add,
    partials=(_one, _one),
    dtype="numeric",
    commutative=True,
    domain=(ANY, ANY),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)
sub = elementwise(
    "sub",
    scalar=_sub,
    partials=(_one, _minus_one),
    dtype="numeric",
    domain=(ANY, ANY),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)
mul = elementwise(
    "mul",
    scalar=_mul,
    partials=(_d_mul_x, _d_mul_y),
    dtype="numeric",
    commutative=True,
    domain=(ANY, ANY),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)
div = elementwise(
    "div",
    scalar=_div,
    partials=(_d_div_x, _d_div_y),
    domain=(ANY, Interval(0.5, 3.0)),
    special=SPECIAL,
    errors=(rejects_shapes(), rejects_dtype("int32", 2)),
)


def _floor_divide(x: Any, y: Any) -> Any:
    return vm.floor_divide(x, y)


def _remainder(x: Any, y: Any) -> Any:
    return vm.remainder(x, y)


def _d_remainder_y(*, x: Any, y: Any) -> Any:
    return -floor_divide(x, y)


def _fmod(x: Any, y: Any) -> Any:
    return vm.fmod(x, y)


def _d_fmod_y(*, x: Any, y: Any) -> Any:
    from staticgrad.graph.ops.rounding import trunc

    return -trunc(x / y)


floor_divide = elementwise(
    "floor_divide",
    scalar=_floor_divide,
    partials=(ZERO, ZERO),
    dtype="numeric",
    domain=(ANY, Interval(0.5, 3.0)),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)
remainder = elementwise(
    "remainder",
    scalar=_remainder,
    partials=(_one, _d_remainder_y),
    dtype="numeric",
    domain=(ANY, Interval(0.5, 3.0)),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)
fmod = elementwise(
    "fmod",
    scalar=_fmod,
    partials=(_one, _d_fmod_y),
    domain=(ANY, Interval(0.5, 3.0)),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)


def _maximum(x: Any, y: Any) -> Any:
    return vm.maximum(x, y)


def _minimum(x: Any, y: Any) -> Any:
    return vm.minimum(x, y)


# At a tie each operand takes half of the change, as PyTorch has it.
def _d_maximum_x(change: Any, *, x: Any, y: Any) -> Any:
    return select(x > y, change, select(x < y, 0.0, change * 0.5))


def _d_maximum_y(change: Any, *, x: Any, y: Any) -> Any:
    return select(x < y, change, select(x > y, 0.0, change * 0.5))


maximum = elementwise(
    "maximum",
    scalar=_maximum,
    partials=(_d_maximum_x, _d_maximum_y),
    dtype="numeric",
    commutative=True,
    domain=(ANY, ANY),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)
minimum = elementwise(
    "minimum",
    scalar=_minimum,
    partials=(_d_maximum_y, _d_maximum_x),
    dtype="numeric",
    commutative=True,
    domain=(ANY, ANY),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)


def _copysign(x: Any, y: Any) -> Any:
    return vm.copysign(x, y)


def _d_copysign_x(change: Any, *, x: Any, y: Any) -> Any:
    return change * (sign_of(x) * copysign(1.0, y))


def _abs(x: Any) -> Any:
    return vm.abs(x)


def _sign(x: Any) -> Any:
    return vm.sign(x)


def _d_abs(*, x: Any) -> Any:
    return sign_of(x)


absolute = elementwise(
    "abs",
    scalar=_abs,
    partials=(_d_abs,),
    dtype="numeric",
    domain=(Interval(0.1, 3.0),),
    special=SPECIAL,
    errors=(rejects_dtype("bool"),),
)
sign_of = elementwise(
    "sign",
    scalar=_sign,
    partials=(ZERO,),
    dtype="numeric",
    domain=(Interval(0.1, 3.0),),
    special=SPECIAL,
    errors=(rejects_dtype("bool"),),
)
copysign = elementwise(
    "copysign",
    scalar=_copysign,
    partials=(_d_copysign_x, ZERO),
    domain=(Interval(0.1, 3.0), Interval(0.1, 3.0)),
    special=SPECIAL,
    errors=(rejects_shapes(),),
)


# ---------------------------------------------------------------- comparison


def _equal(x: Any, y: Any) -> Any:
    return x == y


def _not_equal(x: Any, y: Any) -> Any:
    return x != y


def _less(x: Any, y: Any) -> Any:
    return x < y


def _less_equal(x: Any, y: Any) -> Any:
    return x <= y


def _greater(x: Any, y: Any) -> Any:
    return x > y


def _greater_equal(x: Any, y: Any) -> Any:
    return x >= y


def _comparison(name: str, scalar: Any, *, dtype: str = "numeric", commutative: bool = False) -> Any:
    return elementwise(
        name,
        scalar=scalar,
        partials=(DISCRETE, DISCRETE),
        dtype=dtype,
        result="boolean",
        commutative=commutative,
        domain=(ANY, ANY),
        special=SPECIAL,
        errors=(rejects_shapes(),),
    )


equal = _comparison("equal", _equal, dtype="any", commutative=True)
not_equal = _comparison("not_equal", _not_equal, dtype="any", commutative=True)
less = _comparison("less", _less)
less_equal = _comparison("less_equal", _less_equal)
greater = _comparison("greater", _greater)
greater_equal = _comparison("greater_equal", _greater_equal)


# ---------------------------------------------------------------- logic and bits


def _and(x: Any, y: Any) -> Any:
    return x & y


def _or(x: Any, y: Any) -> Any:
    return x | y


def _xor(x: Any, y: Any) -> Any:
    return x ^ y


def _logical_not(x: Any) -> Any:
    return x ^ True


def _bitwise_invert(x: Any) -> Any:
    return ~x


def _left_shift(x: Any, y: Any) -> Any:
    return vm.left_shift(x, y)


def _right_shift(x: Any, y: Any) -> Any:
    return vm.right_shift(x, y)


_BITS = (np.array([[-7, 0, 5], [127, -128, 1]], np.int8), np.array([[0], [3]], np.int8))
_TRUTH = (np.array([True, True, False, False]), np.array([True, False, True, False]))


def _discrete(name: str, scalar: Any, count: int, dtype: str, commutative: bool = False) -> Any:
    def samples() -> list[Sample]:
        truth = [Sample(_TRUTH[:count])] if "boolean" in dtype else []
        if dtype == "boolean":
            return truth
        return truth + [Sample(tuple(x.astype(t) for x in _BITS[:count])) for t in ("int8", "int64", "uint16")]

    return elementwise(
        name,
        scalar=scalar,
        partials=(DISCRETE,) * count,
        dtype=dtype,
        commutative=commutative,
        samples=samples,
        errors=(rejects_dtype("float32", count),) + ((rejects_shapes_of(_BITS[0]),) if count == 2 else ()),
    )


logical_not = _discrete("logical_not", _logical_not, 1, "boolean")
bitwise_and = _discrete("bitwise_and", _and, 2, "integer or boolean", commutative=True)
bitwise_or = _discrete("bitwise_or", _or, 2, "integer or boolean", commutative=True)
bitwise_xor = _discrete("bitwise_xor", _xor, 2, "integer or boolean", commutative=True)
bitwise_invert = _discrete("bitwise_invert", _bitwise_invert, 1, "integer")
left_shift = _discrete("left_shift", _left_shift, 2, "integer")
right_shift = _discrete("right_shift", _right_shift, 2, "integer")


# ---------------------------------------------------------------- selection and conversion


def _select(condition: Any, x: Any, y: Any) -> Any:
    return vm.select(condition, x, y)


def _d_select_x(change: Any, *, condition: Any) -> Any:
    return select(condition, change, 0.0)


def _d_select_y(change: Any, *, condition: Any) -> Any:
    return select(condition, 0.0, change)


select = elementwise(
    "select",
    scalar=_select,
    partials=(DISCRETE, _d_select_x, _d_select_y),
    dtype="any",
    free=(0,),
    domain=(ANY, ANY, ANY),
    special=SPECIAL,
    errors=(
        ErrorSample((np.ones(3, bool), np.ones(3), np.ones(4)), {}, ShapeError, "broadcast"),
        ErrorSample((np.ones(3), np.ones(3), np.ones(3)), {}, DTypeError, "boolean"),
    ),
)


def _cast(x: Any, *, dtype: Any) -> Any:
    return x


def _cast_reference(x: Any, *, dtype: Any) -> Any:
    return np.asarray(x).astype(dtype)


def _d_cast(change: Any, *, x_dtype: Any) -> Any:
    return cast(change, dtype=x_dtype)


def _cast_samples() -> list[Sample]:
    x = np.array([[-2.75, -0.0, 0.5], [1.0, 3.25, 100.0]])
    targets = [Sample((x,), {"dtype": np.dtype(name)}) for name in ("float64", "float32", "int8", "int64", "bool")]
    sources = [Sample((x.astype(name),), {"dtype": np.dtype("float64")}) for name in ("float32", "int16", "bool")]
    return targets + sources


cast = elementwise(
    "cast",
    scalar=_cast,
    reference=_cast_reference,
    partials=(_d_cast,),
    dtype="any",
    result="attribute",
    samples=_cast_samples,
    exempt={"errors": "every dtype converts to every other; the public astype checks the dtype asked for"},
)
