"""Activations as modules; `nn.functional` has the formulas."""

from __future__ import annotations

from typing import Any, ClassVar

import staticgrad as sg
from staticgrad.nn import activation_functions as functions
from staticgrad.nn.module import Module
from staticgrad.nn.parameter import Parameter
from staticgrad.tensor import DEFAULT_FLOAT, Tensor


class Activation(Module):
    """A module without parameters whose options are plain attributes, shown by `repr`."""

    options: ClassVar[tuple[str, ...]] = ()

    def extra_repr(self) -> str:
        """The options as `name=value`."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.options)


class PlainActivation(Activation):
    """An activation with the one option `inplace`, which changes nothing (see `nn.functional`)."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        """`inplace=True` if it was asked for."""
        return "inplace=True" if self.inplace else ""


class ReLU(PlainActivation):
    """max(0, x)."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.relu(input)


class ReLU6(PlainActivation):
    """min(max(0, x), 6)."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.relu6(input)


class SELU(PlainActivation):
    """The self-normalising exponential linear unit."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.selu(input)


class SiLU(PlainActivation):
    """x * sigmoid(x)."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.silu(input)


class Mish(PlainActivation):
    """x * tanh(softplus(x))."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.mish(input)


class Hardsigmoid(PlainActivation):
    """relu6(x + 3) / 6."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.hardsigmoid(input)


class Hardswish(PlainActivation):
    """x * relu6(x + 3) / 6."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.hardswish(input)


class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.sigmoid(input)


class Tanh(Activation):
    """The hyperbolic tangent."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.tanh(input)


class Softsign(Activation):
    """x / (1 + abs(x))."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.softsign(input)


class LogSigmoid(Activation):
    """log(sigmoid(x))."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.logsigmoid(input)


class LeakyReLU(Activation):
    """x where x > 0, else negative_slope * x."""

    options = ("negative_slope",)

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.leaky_relu(input, self.negative_slope)


class ELU(Activation):
    """x where x > 0, else alpha * (exp(x) - 1)."""

    options = ("alpha",)

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.elu(input, self.alpha)


class CELU(Activation):
    """x where x > 0, else alpha * (exp(x / alpha) - 1)."""

    options = ("alpha",)

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.celu(input, self.alpha)


class GELU(Activation):
    """x * Phi(x), or its approximation with "tanh"."""

    options = ("approximate",)

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.gelu(input, self.approximate)


class Softplus(Activation):
    """log(1 + exp(beta x)) / beta, and x itself where beta x > threshold."""

    options = ("beta", "threshold")

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        self.beta = beta
        self.threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.softplus(input, self.beta, self.threshold)


class Hardtanh(Activation):
    """min(max(min_val, x), max_val)."""

    options = ("min_val", "max_val")

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        if not min_val < max_val:
            raise ValueError(f"Hardtanh: min_val must be below max_val; got {min_val} and {max_val}")
        self.min_val = min_val
        self.max_val = max_val

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.hardtanh(input, self.min_val, self.max_val)


class PReLU(Activation):
    """x where x > 0, else weight * x, with `num_parameters` (1, or the number of channels) learnable weights.

    Weights start at `init`. Those of several channels go with axis 1.
    """

    options = ("num_parameters",)

    def __init__(self, num_parameters: int = 1, init: float = 0.25, dtype: Any = None) -> None:
        super().__init__()
        self.num_parameters = num_parameters
        self.init = init
        self.weight = Parameter(sg.full((num_parameters,), init, dtype=dtype or DEFAULT_FLOAT))

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to each element."""
        return functions.prelu(input, self.weight)


class AxisActivation(Activation):
    """An activation along one axis."""

    options = ("dim",)

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim


class Softmax(AxisActivation):
    """exp(x) / sum(exp(x)) along the axis `dim`, which must be given."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it along the axis."""
        return functions.softmax(input, self.dim)


class LogSoftmax(AxisActivation):
    """log(softmax(x)) along the axis `dim`, which must be given."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it along the axis."""
        return functions.log_softmax(input, self.dim)


class Softmin(AxisActivation):
    """softmax(-x) along the axis `dim`, which must be given."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply it along the axis."""
        return functions.softmin(input, self.dim)


class GLU(Activation):
    """a * sigmoid(b), with a and b the two halves of x along the axis `dim`."""

    options = ("dim",)

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Halve the axis and gate."""
        return functions.glu(input, self.dim)
