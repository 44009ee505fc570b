"""Layers as functions: their parameters are arguments."""

from __future__ import annotations

from collections.abc import Sequence

import staticgrad as sg
from staticgrad.capture_state import composite
from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.ops import contraction, indexing
from staticgrad.nn.arguments import as_tensor, floating_tensor, require_shape
from staticgrad.tensor import Tensor


@composite("linear")
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b over the last axis.

    Args:
        input: shape (..., in_features).
        weight: shape (out_features, in_features).
        bias: shape (out_features,).

    Returns:
        shape (..., out_features).
    """
    input = floating_tensor("linear", "input", input)
    if weight.ndim != 2:
        raise ShapeError(f"linear: weight must have shape (out_features, in_features); got {weight.shape}")
    outputs, inputs = weight.shape
    shape = input.shape
    if not shape or shape[-1] != inputs:
        raise ShapeError(
            f"linear: the last axis of input must have in_features={inputs} elements; got input of shape {shape}"
        )
    if input.dtype != weight.dtype:
        raise DTypeError(
            f"linear: input and weight must have one dtype; got {input.dtype} and {weight.dtype}; "
            "convert the input with sg.astype, or the model with .to(dtype)"
        )
    rows = input if len(shape) == 2 else sg.reshape(input, (-1, inputs) if input.size else (0, inputs))
    out: Tensor = contraction.matmul(rows, weight, transpose_x=False, transpose_y=True)
    if bias is not None:
        require_shape("linear", "bias", bias, (outputs,), "one for each of out_features")
        out = out + bias
    return out if len(shape) == 2 else sg.reshape(out, (*shape[:-1], outputs))


@composite("embedding")
def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` that `input` names.

    Args:
        input: indices in [0, num_embeddings), integer, any shape.
        weight: shape (num_embeddings, embedding_dim).
        padding_idx: a row that receives no gradient; negative counts from the end.

    Returns:
        shape (*input.shape, embedding_dim).

    Raises:
        DTypeError: if the indices are not integers. IndexRangeError: if one is out of range.
    """
    input = as_tensor(input)
    if input.dtype.kind not in "iu":
        raise DTypeError(f"embedding: input must hold integer indices; got {input.dtype}; convert it with sg.astype")
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight must have shape (num_embeddings, embedding_dim); got {weight.shape}")
    rows = indexing.take(weight, sg.reshape(input, (input.size,)), axis=0, what="embedding: an index")
    out = sg.reshape(rows, (*input.shape, weight.shape[1]))
    if padding_idx is None:
        return out
    padding = checked_padding("embedding", padding_idx, weight.shape[0])
    return sg.where(sg.expand_dims(input == padding, axis=-1), out.detach(), out)


def checked_padding(function: str, padding_idx: int, rows: int) -> int:
    """`padding_idx` counted from the front, or ValueError."""
    if not -rows <= padding_idx < rows:
        raise ValueError(f"{function}: padding_idx must lie in [{-rows}, {rows}); got {padding_idx}")
    return padding_idx % rows


@composite("layer_norm")
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes (Ba et al. 2016).

    Args:
        input: shape (..., *normalized_shape); the variance divides by the number of elements.
        normalized_shape: the axes to normalise over.
        weight, bias: shape normalized_shape.
    """
    input = floating_tensor("layer_norm", "input", input)
    shape = tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ShapeError(
            f"layer_norm: input must end in normalized_shape={shape}, of one axis or more; got input {input.shape}"
        )
    axes = tuple(range(-len(shape), 0))
    centred = input - sg.mean(input, axis=axes, keepdims=True)
    variance = sg.mean(centred * centred, axis=axes, keepdims=True)
    out = centred * sg.rsqrt(variance + eps)
    if weight is not None:
        require_shape("layer_norm", "weight", weight, shape, "normalized_shape")
        out = out * weight
    if bias is not None:
        require_shape("layer_norm", "bias", bias, shape, "normalized_shape")
        out = out + bias
    return out


@composite("dropout")
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """x / (1 - p) with probability 1 - p, else 0, drawn anew at each call; x itself unless `training`.

    Args:
        input: any shape, floating.
        p: the probability of zero, in [0, 1].
        training: whether to drop at all.
        inplace: accepted for PyTorch's sake; the input is never overwritten.
    """
    require_probability("dropout", p)
    input = floating_tensor("dropout", "input", input)
    if not training or p == 0:
        return input
    if p == 1:
        return input * 0.0
    keep = sg.random.bernoulli(1.0 - p, input.shape).to(input.device)
    return input * sg.where(keep, sg.full((), 1.0 / (1.0 - p), dtype=input.dtype), 0.0)


def require_probability(function: str, p: float) -> None:
    """ValueError unless p lies in [0, 1]."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{function}: p must be a probability in [0, 1]; got {p}")
