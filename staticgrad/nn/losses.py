"""Losses as modules; `nn.functional` has the formulas."""

from __future__ import annotations

from staticgrad.nn import loss_functions as functions
from staticgrad.nn.arguments import REDUCTIONS, require_reduction
from staticgrad.nn.module import Module
from staticgrad.tensor import Tensor


class Loss(Module):
    """A module of two arguments, input and target, with a reduction."""

    reductions: tuple[str, ...] = REDUCTIONS

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        require_reduction(type(self).__name__, reduction, self.reductions)
        self.reduction = reduction


class WeightedLoss(Loss):
    """A loss with a buffer `weight`, or None."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)


class CrossEntropyLoss(WeightedLoss):
    """-log softmax(x)[target], from unnormalised scores and labels or probabilities."""

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` (N, C, ...) against `target`."""
        return functions.cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )


class NLLLoss(WeightedLoss):
    """-x[target], from log-probabilities and labels."""

    def __init__(self, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(weight, reduction)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` (N, C, ...) against `target`."""
        return functions.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


class MSELoss(Loss):
    """(x - y)^2."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` against `target` of the same shape."""
        return functions.mse_loss(input, target, self.reduction)


class L1Loss(Loss):
    """abs(x - y)."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` against `target` of the same shape."""
        return functions.l1_loss(input, target, self.reduction)


class SmoothL1Loss(Loss):
    """d^2 / (2 beta) where d = abs(x - y) < beta, else d - beta / 2."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` against `target` of the same shape."""
        return functions.smooth_l1_loss(input, target, self.reduction, self.beta)


class HuberLoss(Loss):
    """d^2 / 2 where d = abs(x - y) <= delta, else delta (d - delta / 2)."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` against `target` of the same shape."""
        return functions.huber_loss(input, target, self.reduction, self.delta)


class BCELoss(WeightedLoss):
    """-(y log x + (1 - y) log(1 - x)), from probabilities."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` against `target` of the same shape."""
        return functions.binary_cross_entropy(input, target, self.weight, self.reduction)


class BCEWithLogitsLoss(WeightedLoss):
    """-(p y log sigmoid(x) + (1 - y) log(1 - sigmoid(x))), from unnormalised scores."""

    pos_weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean", pos_weight: Tensor | None = None) -> None:
        super().__init__(weight, reduction)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` against `target` of the same shape."""
        return functions.binary_cross_entropy_with_logits(input, target, self.weight, self.reduction, self.pos_weight)


class KLDivLoss(Loss):
    """y (log y - x), from log-probabilities x and probabilities (or their logarithms) y."""

    reductions = (*REDUCTIONS, "batchmean")

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` against `target` of the same shape."""
        return functions.kl_div(input, target, self.reduction, self.log_target)
