"""Writing into a tensor's storage, in both modes."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.autograd.modes import no_grad
from staticgrad.binding import bind
from staticgrad.graph.errors import DerivativeError, DeviceError, ShapeError
from staticgrad.graph.node import Node
from staticgrad.graph.ops import arithmetic
from staticgrad.graph.ops.shape import broadcast_to
from staticgrad.kernels.device import device_of
from staticgrad.operands import as_operand, check_dtype
from staticgrad.tensor import Tensor, escaped_error


def write(tensor: Tensor, source: Any) -> None:
    """Replace the elements of `tensor` by `source`, cast to its dtype and broadcast to its shape."""
    if tensor._requires_grad and context.grad_enabled:
        raise DerivativeError(
            f"copy_: the tensor ({tensor.spec}) requires grad, and a write into it cannot be recorded; "
            "wrap the write in `with sg.no_grad():`"
        )
    tensor._version[0] += 1
    if context.capture is not None:
        context.capture.write(tensor, _as_node_of(tensor, source))
        return
    value = tensor._value
    if isinstance(value, Node):
        raise escaped_error(value)
    new: Any = source._value if isinstance(source, Tensor) else np.asarray(source)
    if isinstance(new, Node):
        raise escaped_error(new)
    if new.shape != value.shape:
        _check_fits(tensor, new.shape)
    try:
        device_of(value).assign(value, new)
    except DeviceError:  # a ValueError too, but of a GPU that cannot be used
        raise
    except ValueError as error:
        raise ValueError(
            f"copy_: the tensor ({tensor.spec}) is a broadcast view or shares a read-only array (on a GPU any "
            "view is a copy), which cannot be written; work on a copy, made with astype(copy=True)"
        ) from error


def _check_fits(tensor: Tensor, shape: tuple[int, ...]) -> None:
    lead = len(tensor.shape) - len(shape)
    fits = lead >= 0 and all(a in (1, b) for a, b in zip(shape, tensor.shape[lead:], strict=True))
    if not fits:
        raise ShapeError(f"copy_: the source must broadcast to the tensor's shape {tensor.shape}; got {shape}")


def _as_node_of(tensor: Tensor, source: Any) -> Tensor:
    """`source` as a traced tensor of exactly the type of `tensor`."""
    operand = as_operand("copy_", source)
    if not isinstance(operand, Tensor):
        operand = Tensor(context.capture.constant(np.asarray(operand, check_dtype("copy_", tensor.dtype))))  # type: ignore[union-attr]
    _check_fits(tensor, operand.shape)
    with no_grad():
        if operand.dtype != tensor.dtype:
            operand = bind(arithmetic.cast, (operand,), {"dtype": tensor.dtype})
        if operand.shape != tensor.shape:
            operand = broadcast_to(operand, shape=tensor.shape)
    return operand
