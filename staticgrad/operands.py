"""What an op may be given: tensors, arrays and numbers, brought to one dtype where the op wants one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.graph.errors import DTypeError
from staticgrad.graph.node import DType
from staticgrad.graph.op import Op
from staticgrad.graph.ops import arithmetic
from staticgrad.tensor import DEFAULT_FLOAT, DEFAULT_INT, Array, Tensor

Scalar = bool | int | float
SUPPORTED_KINDS = "biuf"
_SUPPORTED: dict[Any, DType] = {
    np.dtype(name): np.dtype(name)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
}


def supports(dtype: DType) -> bool:
    """Whether tensors may have this dtype."""
    return dtype.kind in SUPPORTED_KINDS and dtype.itemsize <= 8 and dtype != np.float16


def check_dtype(name: str, dtype: Any) -> DType:
    """`dtype` as a NumPy dtype, or DTypeError if staticgrad has no such dtype."""
    known = _SUPPORTED.get(dtype) if isinstance(dtype, np.dtype) else None
    if known is not None:
        return known
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise DTypeError(f"{name}: no such dtype: {dtype!r}") from None
    if not supports(found):
        raise DTypeError(f"{name}: dtypes are bool, int8 to int64, uint8 to uint64, float32 and float64; got {found}")
    native: DType = np.dtype(found.type)  # in native byte order, and the one object that NumPy has for it
    return native


def as_operand(name: str, value: Any) -> Tensor | Scalar:
    """A Tensor as it is, a NumPy array as a Tensor that shares its storage, a number as a weak scalar."""
    if isinstance(value, Tensor | bool | int | float):
        return value
    if isinstance(value, np.generic):
        number = value.item()
        if isinstance(number, bool | int | float):
            return number
    if isinstance(value, np.ndarray):
        check_dtype(name, value.dtype)
        return wrapped(value)
    raise TypeError(f"{name}: operands are Tensors, NumPy arrays or numbers; got {type(value).__name__}")


def wrapped(array: Array) -> Tensor:
    """A Tensor that shares the storage of `array`; a capture takes note of it."""
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return Tensor(array) if context.capture is None else context.capture.wrap(array)


def common_dtype(name: str, operands: Sequence[Tensor | Scalar]) -> tuple[DType, bool]:
    """The dtype that operands are brought to, and whether it is weak (only numbers took part).

    Floating beats integer beats boolean; within a kind the wider wins; numbers adapt to the tensors.
    """
    strong = [x.dtype for x in operands if isinstance(x, Tensor) and not x._weak]
    weak = [_weak_kind(x) for x in operands if not isinstance(x, Tensor) or x._weak]
    if not strong:
        kind = "f" if "f" in weak else "i" if "i" in weak else "b"
        return np.dtype({"f": np.float64, "i": np.int64, "b": np.bool_}[kind]), True
    common = strong[0]
    for dtype in strong[1:]:
        if dtype != common:
            common = _wider(name, common, dtype)
    if common.kind != "f" and "f" in weak:
        common = DEFAULT_FLOAT
    elif common.kind == "b" and "i" in weak:
        common = DEFAULT_INT
    return common, False


def _weak_kind(x: Tensor | Scalar) -> str:
    if isinstance(x, Tensor):
        return x.dtype.kind
    return "b" if isinstance(x, bool) else "i" if isinstance(x, int) else "f"


def _wider(name: str, first: DType, second: DType) -> DType:
    rank = {"b": 0, "u": 1, "i": 1, "f": 2}
    if rank[first.kind] != rank[second.kind]:
        return first if rank[first.kind] > rank[second.kind] else second
    common: DType = np.promote_types(first, second)
    if common.kind == "f" and first.kind != "f":
        raise DTypeError(f"{name}: {first} and {second} have no common integer dtype; convert one with astype")
    return common


def _scalar_tensor(name: str, value: Scalar, dtype: DType) -> Tensor:
    try:
        array = np.array(value, dtype)
    except OverflowError:
        raise DTypeError(f"{name}: {value} does not fit {dtype}") from None
    capture = context.capture
    return Tensor(array if capture is None else capture.constant(array))


def operands_of(op: Op, given: Sequence[Any]) -> Sequence[Tensor]:
    """The operands as Tensors of one dtype where the op wants one."""
    count = len(given)
    if count == 1:  # the common cases at once
        if isinstance(given[0], Tensor) and not given[0]._weak:
            return given
    elif count == 2:
        x, y = given
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            if not (x._weak or y._weak) and (not op.promotes or x._value.dtype == y._value.dtype):
                return given
        elif op.promotes:
            pair = _with_number(op.name, x, y)
            if pair is not None:
                return pair
    elif op.free == (0,) and count == 3 and isinstance(given[0], Tensor) and not given[0]._weak:
        pair = _with_number(op.name, given[1], given[2])
        if pair is not None:
            return [given[0], *pair]
    operands = [x if type(x) is Tensor else as_operand(op.name, x) for x in given]
    if not op.promotes:
        return [x if isinstance(x, Tensor) and not x._weak else _settled(op.name, x) for x in operands]
    typed = [x for i, x in enumerate(operands) if i not in op.free] if op.free else operands
    first = typed[0]
    if all(isinstance(x, Tensor) and not x._weak and x._value.dtype == first._value.dtype for x in typed):  # type: ignore[union-attr]
        if not op.free:
            return operands  # type: ignore[return-value]
        dtype, weak = first.dtype, False  # type: ignore[union-attr]
    else:
        dtype, weak = common_dtype(op.name, typed)
        if weak and op.free:  # the condition of a select is no number: the result is a tensor like any other
            dtype, weak = _default_dtype(dtype.kind), False
    return [
        _settled(op.name, x) if i in op.free else _converted(op.name, x, dtype, weak) for i, x in enumerate(operands)
    ]


def _with_number(name: str, x: Any, y: Any) -> list[Tensor] | None:
    """A tensor and a Python number that adapts to it: a floating tensor and any number, or two integers."""
    if (type(y) is float or type(y) is int) and isinstance(x, Tensor) and not x._weak:
        dtype = x._value.dtype
        if dtype.kind == "f" or (type(y) is int and dtype.kind in "iu"):
            return [x, _scalar_tensor(name, y, dtype)]
    elif (type(x) is float or type(x) is int) and isinstance(y, Tensor) and not y._weak:
        dtype = y._value.dtype
        if dtype.kind == "f" or (type(x) is int and dtype.kind in "iu"):
            return [_scalar_tensor(name, x, dtype), y]
    return None


def _settled(name: str, x: Tensor | Scalar) -> Tensor:
    """A number or weak tensor in the default dtype of its kind."""
    if isinstance(x, Tensor) and not x._weak:
        return x
    return _converted(name, x, _default_dtype(_weak_kind(x)), False)


def _default_dtype(kind: str) -> DType:
    return {"b": np.dtype(np.bool_), "i": DEFAULT_INT, "f": DEFAULT_FLOAT}[kind]


def _converted(name: str, x: Tensor | Scalar, dtype: DType, weak: bool) -> Tensor:
    if not isinstance(x, Tensor):
        out = _scalar_tensor(name, x, dtype)
    elif x.dtype == dtype and x._weak == weak:
        return x
    elif x.dtype == dtype:
        out = x.detach()
    else:
        out = Tensor.__bind__(arithmetic.cast, (_strong(x),), {"dtype": dtype})
    out._weak = weak
    return out


def _strong(x: Tensor) -> Tensor:
    if not x._weak:
        return x
    out = x.detach()
    out._weak = False
    return out
