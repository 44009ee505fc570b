"""Losses as functions: PyTorch's names, defaults and reductions, in forms that neither overflow nor cancel.

Every loss takes `reduction`: "none" gives one value for each element (for each label, where there are labels),
"sum" adds them, "mean" divides by their number or, where there are class weights, by the sum of the weights.
"""

from __future__ import annotations

import numpy as np

import staticgrad as sg
from staticgrad.capture_state import composite
from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.ops import indexing
from staticgrad.nn.arguments import (
    REDUCTIONS,
    as_tensor,
    floating_tensor,
    reduce_loss,
    require_elements,
    require_reduction,
    require_shape,
)
from staticgrad.tensor import Tensor

# ---------------------------------------------------------------- classes


@composite("cross_entropy")
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(x)[target], from unnormalised scores.

    Args:
        input: shape (C,), (N, C) or (N, C, d1, ...), floating.
        target: labels in [0, C), integer, of input's shape without C; or probabilities, floating, of input's shape.
        weight: one factor for each class, shape (C,).
        ignore_index: a label that counts for nothing (labels only).
        reduction: "none", "mean" or "sum". The mean over labels that are all ignored is NaN.
        label_smoothing: in [0, 1], the part of the target that is spread evenly over the classes.

    Raises:
        DTypeError, ShapeError: for dtypes and shapes other than these. IndexRangeError: for labels out of range.

    >>> import staticgrad as sg
    >>> scores = sg.asarray([[2.0, 0.0], [0.0, 0.0]])
    >>> loss = sg.nn.functional.cross_entropy(scores, sg.asarray([0, 1]), reduction="none")
    >>> [round(value, 4) for value in loss.tolist()]
    [0.1269, 0.6931]
    """
    require_reduction("cross_entropy", reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing must lie in [0, 1]; got {label_smoothing}")
    input = floating_tensor("cross_entropy", "input", input)
    axis = _class_axis("cross_entropy", input)
    target = as_tensor(target)
    weight = _class_weight("cross_entropy", weight, input.shape[axis])
    if target.dtype.kind == "f" and target.shape == input.shape:
        require_elements("cross_entropy", input.shape, reduction)
        return _soft_cross_entropy(sg.log_softmax(input, axis=axis), axis, target, weight, reduction, label_smoothing)
    _require_labels("cross_entropy", input, axis, target, "; probabilities must have the shape of input")
    require_elements("cross_entropy", input.shape, reduction)
    scores = input - sg.max(input.detach(), axis=axis, keepdims=True)
    log_total = sg.log(sg.sum(sg.exp(scores), axis=axis, keepdims=True))
    return _picked_loss(
        "cross_entropy", scores, log_total, axis, target, weight, ignore_index, reduction, label_smoothing
    )


@composite("nll_loss")
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-x[target], from log-probabilities; arguments as for `cross_entropy`, with labels only."""
    require_reduction("nll_loss", reduction)
    input = floating_tensor("nll_loss", "input", input)
    axis = _class_axis("nll_loss", input)
    target = as_tensor(target)
    _require_labels("nll_loss", input, axis, target, "")
    require_elements("nll_loss", input.shape, reduction)
    weight = _class_weight("nll_loss", weight, input.shape[axis])
    return _picked_loss("nll_loss", input, None, axis, target, weight, ignore_index, reduction, 0.0)


def _class_axis(function: str, input: Tensor) -> int:
    if input.ndim == 0:
        raise ShapeError(f"{function}: input must have an axis of classes: (C,), (N, C) or (N, C, d1, ...); got ()")
    return 0 if input.ndim == 1 else 1


def _class_weight(function: str, weight: Tensor | None, classes: int) -> Tensor | None:
    if weight is None:
        return None
    weight = floating_tensor(function, "weight", weight)
    require_shape(function, "weight", weight, (classes,), "one factor for each class")
    return weight


def _require_labels(function: str, input: Tensor, axis: int, target: Tensor, otherwise: str) -> None:
    expected = input.shape[:axis] + input.shape[axis + 1 :]
    if target.dtype.kind not in "iu":
        raise DTypeError(
            f"{function}: labels must be integers of shape {expected}{otherwise}; "
            f"got {target.dtype} of shape {target.shape} for input {input.shape}; convert labels with sg.astype"
        )
    if target.shape != expected:
        raise ShapeError(
            f"{function}: labels must have shape {expected}, that of input {input.shape} without its classes"
            f"{otherwise}; got {target.shape}"
        )


def _picked_loss(
    function: str,
    scores: Tensor,
    log_total: Tensor | None,
    axis: int,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
) -> Tensor:
    """-(1 - s) w[t] log p[t] - s / C sum_c w[c] log p[c] for each label t, zero where it is ignored.

    log p is `scores` - `log_total`, subtracted from what was picked: the derivative then adds up no row for it.
    """
    counts = _counted(target, ignore_index)
    labels = target if counts is None else sg.where(counts, target, 0)
    what = f"{function}: a label"
    picked = indexing.take_along_axis(scores, sg.expand_dims(labels, axis=axis), axis=axis, what=what)
    loss = sg.reshape(-picked if log_total is None else log_total - picked, target.shape)
    factor = None
    if weight is not None:
        factor = sg.reshape(indexing.take(weight, sg.reshape(labels, (-1,)), axis=0, what=what), target.shape)
    if factor is not None:
        loss = loss * factor
    if smoothing > 0.0:
        classes = scores.shape[axis]
        log_probability = scores if log_total is None else scores - log_total
        spread = log_probability if weight is None else log_probability * _along(weight, axis, log_probability.ndim)
        loss = (1.0 - smoothing) * loss - (smoothing / classes) * sg.sum(spread, axis=axis)
    if counts is not None:
        loss = sg.where(counts, loss, 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sg.sum(loss)
    if factor is not None:
        return sg.sum(loss) / sg.sum(factor if counts is None else sg.where(counts, factor, 0.0))
    if counts is not None:
        return sg.sum(loss) / sg.sum(sg.astype(counts, loss.dtype))
    return sg.mean(loss)


def _counted(target: Tensor, ignore_index: int) -> Tensor | None:
    """Where labels count, or None if the dtype of `target` cannot hold `ignore_index`."""
    limits = np.iinfo(target.dtype)
    if not limits.min <= ignore_index <= limits.max:
        return None
    return target != ignore_index


def _along(weight: Tensor, axis: int, ndim: int) -> Tensor:
    """`weight` (C,) as (C, 1, ..., 1), to be broadcast along `axis` of an array of `ndim` axes."""
    return sg.reshape(weight, weight.shape + (1,) * (ndim - axis - 1))


def _soft_cross_entropy(
    log_probability: Tensor, axis: int, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    """-sum_c w[c] q[c] log p[c], with q the smoothed target; the mean is over samples, weights or not."""
    if smoothing > 0.0:
        target = (1.0 - smoothing) * target + smoothing / log_probability.shape[axis]
    if weight is not None:
        target = target * _along(weight, axis, log_probability.ndim)
    return reduce_loss("cross_entropy", -sg.sum(log_probability * target, axis=axis), reduction)


# ---------------------------------------------------------------- distances


@composite("mse_loss")
def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(x - y)^2."""
    input, target = _pair("mse_loss", input, target, reduction)
    difference = input - target
    return reduce_loss("mse_loss", difference * difference, reduction)


@composite("l1_loss")
def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """abs(x - y); the derivative at 0 is 0."""
    input, target = _pair("l1_loss", input, target, reduction)
    return reduce_loss("l1_loss", sg.abs(input - target), reduction)


@composite("smooth_l1_loss")
def smooth_l1_loss(input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d^2 / (2 beta) where d = abs(x - y) < beta, else d - beta / 2."""
    if not beta >= 0:
        raise ValueError(f"smooth_l1_loss: beta must be at least 0; got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    input, target = _pair("smooth_l1_loss", input, target, reduction)
    distance = sg.abs(input - target)
    loss = sg.where(distance < beta, (0.5 / beta) * (distance * distance), distance - 0.5 * beta)
    return reduce_loss("smooth_l1_loss", loss, reduction)


@composite("huber_loss")
def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d^2 / 2 where d = abs(x - y) <= delta, else delta (d - delta / 2) (Huber 1964)."""
    if not delta > 0:
        raise ValueError(f"huber_loss: delta must be above 0; got {delta}")
    input, target = _pair("huber_loss", input, target, reduction)
    distance = sg.abs(input - target)
    loss = sg.where(distance <= delta, 0.5 * (distance * distance), delta * (distance - 0.5 * delta))
    return reduce_loss("huber_loss", loss, reduction)


def _pair(function: str, input: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    require_reduction(function, reduction, (*REDUCTIONS, "batchmean") if function == "kl_div" else REDUCTIONS)
    input = floating_tensor(function, "input", input)
    target = floating_tensor(function, "target", target)
    require_shape(function, "target", target, input.shape, "that of input")
    return input, target


# ---------------------------------------------------------------- probabilities


@composite("binary_cross_entropy")
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-(y log x + (1 - y) log(1 - x)), for probabilities x and y of one shape.

    As in PyTorch both logarithms are at least -100, and where x (1 - x) < 1e-12 the derivative is (x - y) / 1e-12.
    `binary_cross_entropy_with_logits` is more accurate and cheaper where x is a sigmoid.

    Args:
        input: probabilities in [0, 1], any shape.
        target: probabilities in [0, 1], input's shape.
        weight: a factor for each element, of a shape that broadcasts to input's.
    """
    input, target = _pair("binary_cross_entropy", input, target, reduction)
    inside = input * (1.0 - input) >= 1e-12
    safe = sg.where(inside, input, 0.5)
    fixed = input.detach()
    log_input = sg.where(inside, sg.log(safe), _clamped_log(fixed))
    log_rest = sg.where(inside, sg.log1p(-safe), _clamped_log(1.0 - fixed))
    slope = (fixed - target.detach()) * 1e12
    saturated = sg.where(inside, 0.0, (input - fixed) * slope)  # the value 0, for the sake of its derivative
    loss = saturated - (target * log_input + (1.0 - target) * log_rest)
    return reduce_loss("binary_cross_entropy", _weighted("binary_cross_entropy", loss, weight), reduction)


def _clamped_log(x: Tensor) -> Tensor:
    positive = x > 0
    return sg.where(positive, sg.maximum(sg.log(sg.where(positive, x, 1.0)), -100.0), -100.0)


@composite("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-(p y log sigmoid(x) + (1 - y) log(1 - sigmoid(x))), from unnormalised scores x, without overflow.

    Args:
        input: scores, any shape, floating.
        target: probabilities in [0, 1], input's shape.
        weight: a factor for each element, of a shape that broadcasts to input's.
        pos_weight: the factor p of the positive part, of a shape that broadcasts to input's.
    """
    function = "binary_cross_entropy_with_logits"
    input, target = _pair(function, input, target, reduction)
    positive = input > 0
    tail = sg.log1p(sg.exp(sg.where(positive, -input, input)))  # log(1 + exp(-abs(x)))
    if pos_weight is None:
        loss = sg.where(positive, input, 0.0) - input * target + tail
    else:
        pos_weight = floating_tensor(function, "pos_weight", pos_weight)
        _require_broadcast(function, "pos_weight", pos_weight, input)
        softplus_of_minus = tail - sg.where(positive, 0.0, input)
        loss = (1.0 - target) * input + (1.0 + (pos_weight - 1.0) * target) * softplus_of_minus
    return reduce_loss(function, _weighted(function, loss, weight), reduction)


def _weighted(function: str, loss: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return loss
    weight = floating_tensor(function, "weight", weight)
    _require_broadcast(function, "weight", weight, loss)
    return loss * weight


def _require_broadcast(function: str, name: str, factor: Tensor, input: Tensor) -> None:
    aligned = zip(reversed(factor.shape), reversed(input.shape), strict=False)
    if factor.ndim > input.ndim or any(size not in (1, whole) for size, whole in aligned):
        raise ShapeError(f"{function}: {name} must broadcast to the shape of input, {input.shape}; got {factor.shape}")


@composite("kl_div")
def kl_div(input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """y (log y - x): the divergence of x, log-probabilities, from y, probabilities; y log y is 0 at 0.

    Args:
        input: log-probabilities, any shape.
        target: probabilities of input's shape, or log-probabilities if `log_target`.
        reduction: "none", "mean", "sum", or "batchmean", which divides the sum by the size of axis 0.
    """
    input, target = _pair("kl_div", input, target, reduction)
    if log_target:
        loss = sg.exp(target) * (target - input)
    else:
        loss = target * (sg.log(sg.where(target == 0, 1.0, target)) - input)
    if reduction != "batchmean":
        return reduce_loss("kl_div", loss, reduction)
    require_elements("kl_div", loss.shape, reduction)
    return sg.sum(loss) / (loss.shape[0] if loss.ndim else 1)
