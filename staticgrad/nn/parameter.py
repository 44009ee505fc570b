"""`Parameter`: a Tensor that a module registers and training updates."""

from __future__ import annotations

from typing import Any

import numpy as np

import staticgrad as sg
from staticgrad.tensor import Tensor


class Parameter(Tensor):
    """A leaf that is trained: assigned to an attribute of a module it is found by `parameters()`.

    Args:
        data: a Tensor or an array; storage is shared where there is an array of the dtype already.
        requires_grad: whether its gradient is recorded; the dtype must be floating then.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        source = data if isinstance(data, Tensor) else sg.asarray(data)
        super().__init__(source.detach().stored("Parameter"))
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"

    def __reduce__(self) -> Any:
        return Parameter, (self.detach().to("cpu").numpy(), self.requires_grad)


def convert_in_place(tensor: Tensor, dtype: np.dtype[Any], device: str | None = None) -> None:
    """Give `tensor` and its gradient another dtype or device; it stays the same object."""
    grad = tensor.grad
    tensor.grad = None
    tensor._value = tensor.detach().to(dtype=dtype, device=device).stored("Module.to")
    tensor._version = [0]
    if grad is not None:
        tensor.grad = grad.detach().to(dtype=dtype, device=device)
