"""What the functions of `nn` ask of their arguments, and the errors for what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import staticgrad as sg
from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.tensor import Tensor

REDUCTIONS = ("none", "mean", "sum")


def as_tensor(value: Any) -> Tensor:
    """`value` itself if it is a Tensor, else the Tensor that `sg.asarray` makes of it."""
    return value if isinstance(value, Tensor) else sg.asarray(value)


def floating_tensor(function: str, name: str, value: Any) -> Tensor:
    """`value` as a Tensor of a real floating dtype, or DTypeError."""
    tensor = as_tensor(value)
    if tensor.dtype.kind != "f":
        raise DTypeError(f"{function}: {name} must be floating; got {tensor.dtype}; convert it with sg.astype")
    return tensor


def require_shape(function: str, name: str, tensor: Tensor, shape: Sequence[int], why: str) -> None:
    """ShapeError unless `tensor` has exactly `shape`."""
    if tuple(tensor.shape) != tuple(shape):
        raise ShapeError(f"{function}: {name} must have shape {tuple(shape)} ({why}); got {tuple(tensor.shape)}")


def require_reduction(function: str, reduction: str, allowed: Sequence[str] = REDUCTIONS) -> None:
    """ValueError unless `reduction` is one of `allowed`."""
    if reduction not in allowed:
        listed = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{function}: reduction must be one of {listed}; got {reduction!r}")


def require_elements(function: str, shape: Sequence[int], reduction: str) -> None:
    """ShapeError for a mean over no elements, which would be NaN."""
    if reduction in ("mean", "batchmean") and 0 in shape:
        raise ShapeError(
            f"{function}: the mean over no elements is undefined; got input of shape {tuple(shape)}; "
            "skip empty batches, or use reduction='sum'"
        )


def reduce_loss(function: str, loss: Tensor, reduction: str) -> Tensor:
    """The elementwise `loss` itself, its mean or its sum."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sg.sum(loss)
    require_elements(function, loss.shape, reduction)
    return sg.mean(loss)
