"""The one point where an op meets its operands: run now, or appended to the graph under capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.autograd.tape import record
from staticgrad.forward import push_forward
from staticgrad.graph.errors import StaticgradError
from staticgrad.graph.location import user_location
from staticgrad.graph.node import Node, Spec
from staticgrad.graph.op import Op
from staticgrad.operands import operands_of
from staticgrad.tensor import INFERENCE_VERSION, Array, Tensor, escaped_error


def bind(op: Op, operands: Sequence[Any], attributes: dict[str, Any]) -> Tensor:
    """Apply `op`: run it now or append it to the graph under capture; record it where derivatives are wanted."""
    tensors = operands_of(op, operands)
    try:
        spec = op.infer([Spec(t._value.shape, t._value.dtype) for t in tensors], attributes)
        if context.capture is None:
            out = Tensor(_run(op, tensors, attributes, spec))
        else:
            out = Tensor(context.capture.append(op, tensors, attributes, spec))
    except StaticgradError as error:
        raise located(error) from error.__cause__
    if op.promotes and tensors[0]._weak and all(t._weak for t in tensors):
        out._weak = True
    if op.kind == "view":
        out._version = tensors[0]._version
    elif context.inference:
        out._version = INFERENCE_VERSION
    if spec.dtype.kind == "f":
        for t in tensors:
            if t._requires_grad and context.grad_enabled:
                record(op, tensors, attributes, out)
                break
        for t in tensors:
            if t._tangents is not None:
                push_forward(op, tensors, attributes, out)
                break
    return out


def _run(op: Op, tensors: Sequence[Tensor], attributes: dict[str, Any], spec: Spec) -> Array:
    values = []
    for t in tensors:
        if type(t._value) is Node:
            raise escaped_error(t._value)
        values.append(t._value)
    observer = context.observer
    with np.errstate(all="ignore"):
        if observer is not None:
            observer.before()
        result: Array = op.reference(*values, **attributes)
        if type(result) is not np.ndarray or result.dtype != spec.dtype:
            result = np.asarray(result, spec.dtype)
        if observer is not None:
            observer.after(values, result)
    return result


def located(error: StaticgradError) -> StaticgradError:
    """The same error with the user's line at the end of its message."""
    text = str(error)
    if " at " in text.rsplit(". ", 1)[-1] and (".py:" in text or "<" in text):
        return error
    verb = "Called" if context.capture is None else "Captured"
    return type(error)(f"{text}. {verb} at {user_location()}")


Tensor.__bind__ = staticmethod(bind)
