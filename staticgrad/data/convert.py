"""Between Tensors and NumPy arrays, sharing memory both ways; the one place where data meets the Tensor type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from staticgrad.tensor import Tensor


def to_array(value: Tensor | npt.ArrayLike) -> npt.NDArray[Any]:
    """The value as a NumPy array; a Tensor gives its own memory, without its tape."""
    from staticgrad.tensor import Tensor

    if isinstance(value, Tensor):
        return np.asarray(value.detach().to("cpu").numpy())
    return np.asarray(value)


def to_tensor(value: npt.ArrayLike) -> Tensor:
    """The value as a Tensor on the memory of the array; NumPy's scalars become Tensors of no axes."""
    from staticgrad import asarray

    return asarray(np.asarray(value))
