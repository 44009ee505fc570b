"""Layers with parameters, and those that only reshape or drop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import staticgrad as sg
from staticgrad.capture_state import watch
from staticgrad.graph.errors import ShapeError
from staticgrad.nn import init
from staticgrad.nn import layer_functions as functions
from staticgrad.nn.module import Module
from staticgrad.nn.parameter import Parameter
from staticgrad.tensor import DEFAULT_FLOAT, Tensor


class Identity(Module):
    """The input itself; any arguments are taken and ignored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        """Return `input`."""
        return input


class Linear(Module):
    """x W^T + b.

    Args:
        in_features: the size of the input's last axis.
        out_features: the size of the output's last axis.
        bias: whether to add b.
        device: "cpu".
        dtype: of the parameters, float32 unless given.

    Attributes:
        weight: shape (out_features, in_features), drawn from U(-r, r) with r = 1 / sqrt(in_features).
        bias: shape (out_features,), drawn likewise, or None.

    >>> import staticgrad as sg
    >>> layer = sg.nn.Linear(3, 2)
    >>> layer
    Linear(in_features=3, out_features=2, bias=True)
    >>> layer(sg.ones((5, 3))).shape
    (5, 2)
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_features = _size("Linear", "in_features", in_features)
        self.out_features = _size("Linear", "out_features", out_features)
        self.weight = Parameter(sg.zeros((out_features, in_features), dtype=dtype or DEFAULT_FLOAT, device=device))
        self.register_parameter(
            "bias", Parameter(sg.zeros(out_features, dtype=dtype or DEFAULT_FLOAT, device=device)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        bound = 1.0 / math.sqrt(self.in_features) if self.in_features else 0.0
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """Map `input` (..., in_features) to (..., out_features)."""
        return functions.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes, and whether there is a bias."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Embedding(Module):
    """A table of vectors, looked up by index.

    Args:
        num_embeddings: the number of rows.
        embedding_dim: the size of each.
        padding_idx: a row that starts at zero and receives no gradient; negative counts from the end.
        device: "cpu".
        dtype: of the table, float32 unless given.

    Attributes:
        weight: shape (num_embeddings, embedding_dim), drawn from N(0, 1).
    """

    weight: Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = _size("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = _size("Embedding", "embedding_dim", embedding_dim)
        if padding_idx is not None:
            padding_idx = functions.checked_padding("Embedding", padding_idx, num_embeddings)
        self.padding_idx = padding_idx
        self.weight = Parameter(sg.zeros((num_embeddings, embedding_dim), dtype=dtype or DEFAULT_FLOAT, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            rows = sg.arange(self.num_embeddings, device=self.weight.device)
            with sg.no_grad():
                self.weight.copy_(sg.where(sg.expand_dims(rows == self.padding_idx, axis=-1), 0.0, self.weight))

    def forward(self, input: Tensor) -> Tensor:
        """Look up `input`, integers of any shape; the result has one more axis, of embedding_dim."""
        return functions.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        """The sizes, and the padding row if there is one."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes.

    Args:
        normalized_shape: the sizes of those axes; an int for the last one alone.
        eps: added to the variance.
        elementwise_affine: whether there are weight (ones at first) and bias (zeros), of normalized_shape.
        bias: whether there is a bias too.
        device: "cpu".
        dtype: of the parameters, float32 unless given.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not shape:
            raise ShapeError("LayerNorm: normalized_shape must name one axis or more; got ()")
        self.normalized_shape = tuple(_size("LayerNorm", "normalized_shape", size) for size in shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        kind = dtype or DEFAULT_FLOAT
        self.register_parameter(
            "weight", Parameter(sg.ones(shape, dtype=kind, device=device)) if elementwise_affine else None
        )
        self.register_parameter(
            "bias", Parameter(sg.zeros(shape, dtype=kind, device=device)) if elementwise_affine and bias else None
        )

    def reset_parameters(self) -> None:
        """Set weight to ones and bias to zeros."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (..., *normalized_shape)."""
        return functions.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The shape and options."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class Dropout(Module):
    """x / (1 - p) with probability 1 - p, else 0, while training; x itself in evaluation (Srivastava et al. 2014)."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        functions.require_probability("Dropout", p)
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of `input`, if training."""
        return functions.dropout(input, watch(self, "p"), watch(self, "training"))

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}, inplace={self.inplace}"


class Flatten(Module):
    """Make one axis of the axes `start_dim` to `end_dim`, both included."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        """Reshape `input`."""
        shape = input.shape or (1,)
        start, end = (_axis("Flatten", axis, len(shape)) for axis in (self.start_dim, self.end_dim))
        if start > end:
            raise ShapeError(
                f"Flatten: start_dim must not lie behind end_dim; got {self.start_dim} and {self.end_dim} "
                f"for input {input.shape}"
            )
        return sg.reshape(input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))

    def extra_repr(self) -> str:
        """The axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Make several axes of the axis `dim`, of the sizes `unflattened_size`, one of which may be -1."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, input: Tensor) -> Tensor:
        """Reshape `input`."""
        axis = _axis("Unflatten", self.dim, input.ndim)
        size, sizes = input.shape[axis], list(self.unflattened_size)
        known = math.prod(part for part in sizes if part != -1)
        if sizes.count(-1) == 1 and known and size % known == 0:
            sizes[sizes.index(-1)] = size // known
        if math.prod(sizes) != size or -1 in sizes:
            raise ShapeError(
                f"Unflatten: {self.unflattened_size} must multiply to the size of axis {self.dim}; got {input.shape}"
            )
        return sg.reshape(input, (*input.shape[:axis], *sizes, *input.shape[axis + 1 :]))

    def extra_repr(self) -> str:
        """The axis and the sizes."""
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


def _size(layer: str, name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{layer}: {name} must be an int of at least 0; got {value!r}")
    return value


def _axis(layer: str, axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{layer}: axes must lie in [{-ndim}, {ndim}); got {axis}")
    return axis % ndim
