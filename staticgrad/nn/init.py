"""Starting values: each function fills a Tensor in place, outside any derivative, and returns it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import staticgrad as sg
from staticgrad.graph.errors import ShapeError
from staticgrad.tensor import Tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Draw from U(a, b)."""
    if not a <= b:
        raise ValueError(f"uniform_: a must be at most b; got {a} and {b}")
    return _filled(tensor, sg.random.uniform(tensor.shape, dtype=tensor.dtype, low=a, high=b))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Draw from N(mean, std^2)."""
    _require_spread("normal_", std)
    return _filled(tensor, sg.random.normal(tensor.shape, mean=mean, std=std, dtype=tensor.dtype))


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Draw from N(mean, std^2) within [a, b], by inverting the distribution function.

    Args:
        tensor: any shape, floating.
        mean, std: of the distribution before it is cut.
        a, b: the bounds of the values themselves, not in units of std.
    """
    from scipy.special import erfinv

    _require_spread("trunc_normal_", std)
    if not a < b:
        raise ValueError(f"trunc_normal_: a must be below b; got {a} and {b}")
    if std == 0:
        return constant_(tensor, min(max(mean, a), b))
    low, high = (math.erf((bound - mean) / (std * math.sqrt(2.0))) for bound in (a, b))
    draws = sg.random.uniform(tensor.shape, dtype=np.float64, low=low, high=high).numpy()
    values = np.clip(mean + std * math.sqrt(2.0) * erfinv(draws), a, b)
    return _filled(tensor, sg.asarray(values.astype(tensor.dtype)))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with `val`."""
    return _filled(tensor, sg.full(tensor.shape, val, dtype=tensor.dtype))


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Draw from U(-r, r), r = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6.0 / sum(_fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Draw from N(0, s^2), s = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans("xavier_normal_", tensor))))


def kaiming_uniform_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Draw from U(-r, r), r = gain sqrt(3 / fan) (He et al. 2015).

    Args:
        tensor: shape (out, in, ...), floating.
        a: the negative slope of leaky_relu.
        mode: "fan_in" keeps the variance going forward, "fan_out" going back.
        nonlinearity: what follows the layer; see `calculate_gain`.
    """
    bound = math.sqrt(3.0) * _kaiming_spread("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Draw from N(0, s^2), s = gain / sqrt(fan) (He et al. 2015); arguments as for `kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming_spread("kaiming_normal_", tensor, a, mode, nonlinearity))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with a random matrix of orthonormal rows or columns, times gain (Saxe et al. 2013).

    Args:
        tensor: shape (rows, ...), floating, of two axes or more; those behind the first count as one.
        gain: the factor.
    """
    if tensor.ndim < 2:
        raise ShapeError(f"orthogonal_: tensor must have two axes or more; got shape {tensor.shape}")
    if tensor.size == 0:
        return tensor
    rows, columns = tensor.shape[0], tensor.size // tensor.shape[0]
    draws = sg.random.normal((max(rows, columns), min(rows, columns)), dtype=np.float64).numpy()
    basis, triangle = np.linalg.qr(draws)
    basis = basis * np.sign(np.diagonal(triangle))  # makes the draw uniform over such matrices
    values = gain * (basis if rows >= columns else basis.T)
    return _filled(tensor, sg.asarray(values.reshape(tensor.shape).astype(tensor.dtype)))


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through "linear", "sigmoid", "tanh", "relu", "leaky_relu" or "selu".

    `param` is the negative slope of "leaky_relu", 0.01 unless given.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in GAINS:
        listed = ", ".join(repr(name) for name in (*GAINS, "leaky_relu"))
        raise ValueError(f"calculate_gain: nonlinearity must be one of {listed}; got {nonlinearity!r}")
    return GAINS[nonlinearity]


def _kaiming_spread(function: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{function}: mode must be 'fan_in' or 'fan_out'; got {mode!r}")
    fan = _fans(function, tensor)[("fan_in", "fan_out").index(mode)]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _fans(function: str, tensor: Tensor) -> tuple[int, int]:
    """How many inputs feed one output, and how many outputs one input feeds."""
    if tensor.ndim < 2 or tensor.size == 0:
        raise ShapeError(
            f"{function}: tensor must have two axes or more, (out, in, ...), none of them empty; got {tensor.shape}"
        )
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _require_spread(function: str, std: float) -> None:
    if not std >= 0:
        raise ValueError(f"{function}: std must be at least 0; got {std}")


def _filled(tensor: Tensor, values: Any) -> Tensor:
    with sg.no_grad():
        tensor.copy_(values)
    return tensor
