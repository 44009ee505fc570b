"""Activations as functions: PyTorch's names, defaults, and one-sided derivatives at the kinks.

Where a formula has two branches, the branch that is not taken is fed a harmless value, so that neither its result
nor its derivative can overflow. `inplace` is accepted for PyTorch's sake and changes nothing: the input is never
overwritten, and in a compiled step the planner reuses its buffer whenever nobody reads it again.
"""

from __future__ import annotations

import math

import staticgrad as sg
from staticgrad.binding import bind
from staticgrad.capture_state import composite
from staticgrad.graph.errors import ShapeError
from staticgrad.graph.ops import transcendental
from staticgrad.nn.arguments import floating_tensor
from staticgrad.tensor import Tensor

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
EXACT_SOFTPLUS = 40.0  # log(1 + exp(z)) rounds to z from here on, in float64 too


@composite("relu")
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(0, x); the derivative at 0 is 0."""
    input = floating_tensor("relu", "input", input)
    return sg.where(input <= 0, 0.0, input)


@composite("relu6")
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(0, x), 6); the derivative at 0 and at 6 is 0."""
    return _between(floating_tensor("relu6", "input", input), 0.0, 6.0)


@composite("hardtanh")
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """min(max(min_val, x), max_val); the derivative at both bounds is 0."""
    if not min_val < max_val:
        raise ValueError(f"hardtanh: min_val must be below max_val; got {min_val} and {max_val}")
    return _between(floating_tensor("hardtanh", "input", input), min_val, max_val)


def _between(input: Tensor, low: float, high: float) -> Tensor:
    return sg.where(input <= low, low, sg.where(input >= high, high, input))


@composite("leaky_relu")
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    input = floating_tensor("leaky_relu", "input", input)
    return sg.where(input > 0, input, negative_slope * input)


@composite("prelu")
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight * x, with one learnable weight, or one for each channel (axis 1).

    Args:
        input: any shape, floating.
        weight: shape (1,), (), or (channels,) where channels is `input.shape[1]`.
    """
    input = floating_tensor("prelu", "input", input)
    weight = floating_tensor("prelu", "weight", weight)
    if weight.size != 1:
        channels = input.shape[1] if input.ndim > 1 else 1
        if weight.shape != (channels,):
            raise ShapeError(
                f"prelu: weight must have shape (1,) or (channels,), here ({channels},); "
                f"got weight {weight.shape} for input {input.shape}"
            )
        weight = sg.reshape(weight, (channels,) + (1,) * (input.ndim - 2))
    elif input.ndim == 0:
        weight = sg.reshape(weight, ())
    return sg.where(input > 0, input, weight * input)


@composite("elu")
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    return _scaled_elu(floating_tensor("elu", "input", input), alpha, 1.0, 1.0)


@composite("selu")
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """scale * elu(x, alpha), with the constants of Klambauer et al. 2017 that keep activations normalised."""
    return _scaled_elu(floating_tensor("selu", "input", input), SELU_ALPHA, SELU_SCALE, 1.0)


@composite("celu")
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha * (exp(x / alpha) - 1): continuously differentiable for every alpha but 0."""
    if alpha == 0:
        raise ValueError("celu: alpha must not be 0, it divides; got 0")
    return _scaled_elu(floating_tensor("celu", "input", input), alpha, 1.0, 1.0 / alpha)


def _scaled_elu(input: Tensor, alpha: float, scale: float, inner: float) -> Tensor:
    positive = input > 0
    negative_part = sg.where(positive, 0.0, input)
    if inner != 1.0:
        negative_part = negative_part * inner
    linear = input if scale == 1.0 else scale * input
    return sg.where(positive, linear, (alpha * scale) * sg.expm1(negative_part))


@composite("gelu")
def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x * Phi(x), with Phi the normal distribution function, or its tanh approximation (Hendrycks and Gimpel 2016).

    Args:
        input: any shape, floating.
        approximate: "none" or "tanh".
    """
    input = floating_tensor("gelu", "input", input)
    if approximate == "none":
        return bind(transcendental.gelu, (input,), {})
    if approximate == "tanh":
        inner = math.sqrt(2.0 / math.pi) * (input + 0.044715 * (input * input * input))
        return 0.5 * input * (1.0 + sg.tanh(inner))
    raise ValueError(f"gelu: approximate must be 'none' or 'tanh'; got {approximate!r}")


@composite("silu")
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(x)."""
    input = floating_tensor("silu", "input", input)
    return input * sg.sigmoid(input)


@composite("mish")
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x))."""
    input = floating_tensor("mish", "input", input)
    return input * sg.tanh(softplus(input))


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return sg.sigmoid(floating_tensor("sigmoid", "input", input))


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return sg.tanh(floating_tensor("tanh", "input", input))


@composite("softplus")
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta, and x itself where beta x > threshold."""
    if beta == 0:
        raise ValueError("softplus: beta must not be 0, it divides; got 0")
    input = floating_tensor("softplus", "input", input)
    scaled = input if beta == 1.0 else beta * input
    linear = scaled > min(threshold, EXACT_SOFTPLUS)
    curve = sg.log1p(sg.exp(sg.where(linear, 0.0, scaled)))
    return sg.where(linear, input, curve if beta == 1.0 else curve / beta)


@composite("softsign")
def softsign(input: Tensor) -> Tensor:
    """x / (1 + abs(x))."""
    input = floating_tensor("softsign", "input", input)
    return input / (1.0 + sg.abs(input))


@composite("hardsigmoid")
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6."""
    return _between(floating_tensor("hardsigmoid", "input", input) + 3.0, 0.0, 6.0) * (1.0 / 6.0)


@composite("hardswish")
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * relu6(x + 3) / 6."""
    input = floating_tensor("hardswish", "input", input)
    return input * _between(input + 3.0, 0.0, 6.0) * (1.0 / 6.0)


@composite("logsigmoid")
def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)) = min(x, 0) - log(1 + exp(-abs(x))), without overflow."""
    input = floating_tensor("logsigmoid", "input", input)
    positive = input > 0
    return sg.where(positive, 0.0, input) - sg.log1p(sg.exp(sg.where(positive, -input, input)))


def softmax(input: Tensor, dim: int | None = None) -> Tensor:
    """exp(x) / sum(exp(x)) along the axis `dim`, the largest value subtracted first."""
    input = floating_tensor("softmax", "input", input)
    return sg.softmax(input, axis=_chosen("softmax", dim))


@composite("softmin")
def softmin(input: Tensor, dim: int | None = None) -> Tensor:
    """softmax(-x) along the axis `dim`."""
    return sg.softmax(-floating_tensor("softmin", "input", input), axis=_chosen("softmin", dim))


def log_softmax(input: Tensor, dim: int | None = None) -> Tensor:
    """log(softmax(x)) along the axis `dim`, computed as x - logsumexp(x)."""
    input = floating_tensor("log_softmax", "input", input)
    return sg.log_softmax(input, axis=_chosen("log_softmax", dim))


def _chosen(function: str, dim: int | None) -> int:
    if dim is None:
        raise ValueError(f"{function}: dim must say which axis sums to one; got None; pass dim=-1 for the last")
    return dim


@composite("glu")
def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a * sigmoid(b), with a and b the two halves of x along the axis `dim` (Dauphin et al. 2017)."""
    input = floating_tensor("glu", "input", input)
    if not -input.ndim <= dim < input.ndim:
        raise ShapeError(f"glu: dim must lie in [{-input.ndim}, {input.ndim}); got {dim} for input {input.shape}")
    axis = dim % input.ndim
    half, odd = divmod(input.shape[axis], 2)
    if odd:
        raise ShapeError(f"glu: axis {dim} must have an even size to be halved; got input {input.shape}")
    before = (slice(None),) * axis
    return input[(*before, slice(0, half))] * sg.sigmoid(input[(*before, slice(half, 2 * half))])
