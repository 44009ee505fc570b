"""Functions on all parameters of a model at once: clipping gradients, and one long vector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import staticgrad as sg
from staticgrad.capture_state import composite
from staticgrad.graph.errors import NumericError, ShapeError
from staticgrad.tensor import DEFAULT_FLOAT, Tensor

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "parameters_to_vector",
    "vector_to_parameters",
]


@composite("clip_grad_norm_")
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)), with the norm of all of them as one vector.

    Args:
        parameters: one parameter or several; those without a gradient are passed over.
        max_norm: the largest norm allowed.
        norm_type: the p of the p-norm, above 0; `math.inf` for the largest absolute value.
        error_if_nonfinite: raise NumericError for a norm of NaN or infinity. This reads the value, so that it
            works in the dynamic mode only.

    Returns:
        the norm before clipping, a 0-d Tensor.

    >>> import staticgrad as sg
    >>> weight = sg.nn.Parameter(sg.zeros(2))
    >>> weight.grad = sg.asarray([3.0, 4.0])
    >>> sg.nn.utils.clip_grad_norm_([weight], max_norm=1.0).item()
    5.0
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm must be at least 0; got {max_norm}")
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type must be above 0; got {norm_type}")
    with sg.no_grad():
        found = _with_grads(parameters)
        total = _norm([parameter.grad for parameter in found], norm_type)
        if error_if_nonfinite and not bool(sg.isfinite(total)):
            raise NumericError(
                f"clip_grad_norm_: the norm of the gradients must be finite; got {total.item()}; "
                "find the first NaN with sg.compile(step, check=True), or pass error_if_nonfinite=False"
            )
        factor = sg.minimum(max_norm / (total + 1e-6), 1.0)
        for parameter in found:
            parameter.grad = parameter.grad * sg.astype(factor, parameter.grad.dtype)
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clip every element of every gradient to [-clip_value, clip_value]."""
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_: clip_value must be at least 0; got {clip_value}")
    with sg.no_grad():
        for parameter in _with_grads(parameters):
            parameter.grad = sg.clip(parameter.grad, -clip_value, clip_value)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters, flattened and joined in order, as one Tensor of one axis; differentiable."""
    return sg.concat([sg.reshape(parameter, (-1,)) for parameter in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copy the parts of `vec`, as `parameters_to_vector` joins them, into the parameters."""
    kept = list(parameters)
    needed = sum(parameter.size for parameter in kept)
    if vec.shape != (needed,):
        raise ShapeError(
            f"vector_to_parameters: vec must have shape ({needed},), the size of all parameters; got {vec.shape}"
        )
    start = 0
    with sg.no_grad():
        for parameter in kept:
            part = vec[start : start + parameter.size]
            parameter.copy_(sg.astype(sg.reshape(part, parameter.shape), parameter.dtype))
            start += parameter.size


def _with_grads(parameters: Tensor | Iterable[Tensor]) -> list[Any]:
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [parameter for parameter in given if parameter.grad is not None]


def _norm(grads: list[Tensor], order: float) -> Tensor:
    if not grads:
        return sg.zeros((), dtype=DEFAULT_FLOAT)
    if order == math.inf:
        largest = [sg.max(sg.abs(grad)) for grad in grads]
        return sg.max(sg.stack(largest)) if len(largest) > 1 else largest[0]
    if order == 2.0:
        total = sum((sg.sum(grad * grad) for grad in grads[1:]), start=sg.sum(grads[0] * grads[0]))
        return sg.sqrt(total)
    powers = [sg.sum(sg.abs(grad) ** order) for grad in grads]
    return sum(powers[1:], start=powers[0]) ** (1.0 / order)
