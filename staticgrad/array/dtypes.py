"""Dtypes and constants under the names of the Python array API standard. A dtype is a `numpy.dtype`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from staticgrad.graph.errors import DTypeError
from staticgrad.graph.node import DType
from staticgrad.operands import as_operand, check_dtype, common_dtype
from staticgrad.tensor import DEFAULT_FLOAT, DEFAULT_INT, Tensor

bool = np.dtype(np.bool_)
int8 = np.dtype(np.int8)
int16 = np.dtype(np.int16)
int32 = np.dtype(np.int32)
int64 = np.dtype(np.int64)
uint8 = np.dtype(np.uint8)
uint16 = np.dtype(np.uint16)
uint32 = np.dtype(np.uint32)
uint64 = np.dtype(np.uint64)
float32 = np.dtype(np.float32)
float64 = np.dtype(np.float64)

e = math.e
inf = math.inf
nan = math.nan
newaxis = None
pi = math.pi

_KINDS = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "complex floating": "",
    "numeric": "iuf",
}


def _dtype_of(x: Any) -> DType:
    return x.dtype if isinstance(x, Tensor | np.ndarray) else check_dtype("dtype", x)


def finfo(dtype: Any, /) -> np.finfo[Any]:
    """Limits of a floating dtype (or of a tensor's): bits, eps, max, min, smallest_normal."""
    return np.finfo(_dtype_of(dtype))


def iinfo(dtype: Any, /) -> np.iinfo[Any]:
    """Limits of an integer dtype (or of a tensor's): bits, max, min."""
    return np.iinfo(_dtype_of(dtype))


def isdtype(dtype: Any, kind: Any) -> Any:
    """Whether `dtype` is `kind`: a dtype, a kind named by the standard such as "integral", or a tuple of these."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, one) for one in kind)
    if isinstance(kind, str) and kind in _KINDS:
        return np.dtype(dtype).kind in _KINDS[kind]
    return np.dtype(dtype) == check_dtype("isdtype", kind)


def result_type(*arrays_and_dtypes: Any) -> DType:
    """The dtype that operands of these tensors, dtypes and numbers are brought to."""
    operands: list[Any] = []
    for x in arrays_and_dtypes:
        is_dtype = isinstance(x, np.dtype | type | str)
        operands.append(
            Tensor(np.empty((), check_dtype("result_type", x))) if is_dtype else as_operand("result_type", x)
        )
    if not operands:
        raise DTypeError("result_type: needs at least one tensor, dtype or number; got none")
    found, weak = common_dtype("result_type", operands)
    return {"f": DEFAULT_FLOAT, "i": DEFAULT_INT}.get(found.kind, found) if weak else found


def can_cast(from_: Any, to: Any, /) -> Any:
    """Whether promotion can lead from one dtype to the other."""
    source, target = _dtype_of(from_), _dtype_of(to)
    try:
        return result_type(source, target) == target
    except DTypeError:
        return False
