"""The one point where an op meets its operands: run now, or appended to the graph under capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad._context import Observer, context
from staticgrad.autograd.tape import record
from staticgrad.forward import push_forward
from staticgrad.graph.errors import StaticgradError
from staticgrad.graph.location import user_location
from staticgrad.graph.node import DType, Node, Spec
from staticgrad.graph.op import Op
from staticgrad.kernels.device import common_device
from staticgrad.operands import operands_of
from staticgrad.tensor import INFERENCE_VERSION, Array, Tensor, escaped_error

_KEPT_TYPES = 4096
_types: dict[tuple[Any, ...], DType] = {}  # dtypes of results by op, operands and attributes: a type rule runs once


def bind(op: Op, operands: Sequence[Any], attributes: dict[str, Any]) -> Tensor:
    """Apply `op`: run it now or append it to the graph under capture; record it where derivatives are wanted."""
    tensors = operands_of(op, operands)
    plain = context.plain
    try:
        if plain and not attributes and len(tensors) == 2 and op.kind == "elementwise":
            out = Tensor(_run_pair(op, tensors))
        elif plain or (capture := context.capture) is None:
            out = Tensor(_run(op, tensors, attributes, None if plain else context.observer))
        else:
            spec = op.infer([t.spec for t in tensors], attributes)
            out = Tensor(capture.append(op, tensors, attributes, spec))
    except StaticgradError as error:
        raise located(error) from error.__cause__
    if op.kind == "view":
        out._version = tensors[0]._version
    elif not plain and context.inference:
        out._version = INFERENCE_VERSION
    for t in tensors:
        if t._requires_grad or t._tangents is not None or t._weak:
            if t._weak and op.promotes and all(t._weak for t in tensors):
                out._weak = True
            _follow(op, tensors, attributes, out)
            break
    return out


def _follow(op: Op, tensors: Sequence[Tensor], attributes: dict[str, Any], out: Tensor) -> None:
    """Give `out` its place on the tape and its tangents."""
    if out._value.dtype.kind != "f":
        return
    if context.grad_enabled:
        record(op, tensors, attributes, out)
    for t in tensors:
        if t._tangents is not None:
            push_forward(op, tensors, attributes, out)
            break


def _run_pair(op: Op, tensors: Sequence[Tensor]) -> Array:
    """The commonest case: an elementwise op of two tensors. Shapes are left to NumPy, which broadcasts by our rule."""
    x: Any = tensors[0]._value
    y: Any = tensors[1]._value
    dtype = _types.get((op, x.dtype, y.dtype))
    if dtype is None:
        dtype = _known_type((op, x.dtype, y.dtype), op, (x, y), {})
    if type(x) is not np.ndarray or type(y) is not np.ndarray:
        return _run_on_device(op, (x, y), {}, dtype, None)
    try:
        result = context.quietly(op.reference, x, y)
    except (ValueError, RuntimeError):
        result = _again(op, (x, y), {})
    if type(result) is np.ndarray and result.dtype is dtype:
        return result
    return np.asarray(result, dtype)


def _run(op: Op, tensors: Sequence[Tensor], attributes: dict[str, Any], observer: Observer | None) -> Array:
    x: Any = tensors[0]._value if tensors else None
    if len(tensors) == 1:
        y = x
        values: tuple[Any, ...] = (x,)
        key: tuple[Any, ...] = (op, x.dtype, x.shape, *attributes.items())
    elif len(tensors) == 2:
        y = tensors[1]._value
        values = (x, y)
        key = (op, x.dtype, x.shape, y.dtype, y.shape, *attributes.items())
    else:
        y = None
        values = tuple([t._value for t in tensors])
        key = (op, *[(value.dtype, value.shape) for value in values], *attributes.items())
    try:
        dtype = _types.get(key)
    except TypeError:  # an attribute that cannot be hashed
        dtype = None
    if dtype is None:
        dtype = _known_type(key, op, values, attributes)
    away = type(x) is not np.ndarray or type(y) is not np.ndarray
    if (away or len(values) > 2) and any(type(value) is not np.ndarray for value in values):
        return _run_on_device(op, values, attributes, dtype, observer)
    if observer is not None:
        observer.before()
    result: Array
    try:
        if attributes:
            result = context.quietly(op.reference, *values, **attributes)
        else:
            result = context.quietly(op.reference, *values)
    except (ValueError, RuntimeError):
        result = _again(op, values, attributes)
    if type(result) is not np.ndarray or result.dtype is not dtype:
        result = np.asarray(result, dtype)
    if observer is not None:
        observer.after(list(values), result)
    return result


def _run_on_device(
    op: Op, values: Sequence[Any], attributes: dict[str, Any], dtype: DType, observer: Observer | None
) -> Array:
    """Where an operand is no plain array of NumPy's: the device that it lives on runs the op."""
    if Node in map(type, values):
        raise escaped_error(next(value for value in values if type(value) is Node))
    device = common_device(op.name, values)
    if observer is not None:
        observer.before()
    result: Array = device.run(op, values, attributes, dtype)
    if observer is not None:
        observer.after(list(values), result)
    return result


def _known_type(key: tuple[Any, ...], op: Op, values: Sequence[Any], attributes: dict[str, Any]) -> DType:
    """The result's dtype after the op's type rule, which raises for what the op does not take."""
    for value in values:
        if type(value) is Node:
            raise escaped_error(value)
    dtype = op.infer([Spec(value.shape, value.dtype) for value in values], attributes).dtype
    try:
        if len(_types) >= _KEPT_TYPES:
            _types.clear()
        _types[key] = dtype
    except TypeError:  # an attribute that cannot be hashed
        return dtype
    return dtype


def _again(op: Op, values: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Say what does not fit; else run the op inside another op's reference, as when a finalizer computes."""
    op.infer([Spec(value.shape, value.dtype) for value in values], attributes)
    with np.errstate(all="ignore"):
        return op.reference(*values, **attributes)


def located(error: StaticgradError) -> StaticgradError:
    """The same error with the user's line at the end of its message."""
    text = str(error)
    if " at " in text.rsplit(". ", 1)[-1] and (".py:" in text or "<" in text):
        return error
    verb = "Called" if context.capture is None else "Captured"
    return type(error)(f"{text}. {verb} at {user_location()}")


Tensor.__bind__ = staticmethod(bind)
