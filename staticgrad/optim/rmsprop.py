"""RMSprop (Tieleman and Hinton 2012), centred as in Graves 2013."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import staticgrad as sg
from staticgrad.capture_state import hyperparameter, watch_item
from staticgrad.optim.optimizer import Group, Optimizer, require_flags, require_range
from staticgrad.optim.packing import elementwise
from staticgrad.tensor import Tensor


class RMSprop(Optimizer):
    """p <- p - lr g / (sqrt(v) + eps), with v the moving average of g^2.

    Args:
        params: parameters, or dicts of groups.
        lr: the learning rate, at least 0.
        alpha: how much of the average a step keeps, in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: the factor of the L2 penalty: g <- g + weight_decay p.
        momentum: how much of the last direction is kept, at least 0.
        centered: subtract the square of the average gradient from v.
        maximize: step up the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Raise ValueError for hyperparameters that make no sense."""
        for name in ("lr", "eps", "weight_decay", "momentum"):
            require_range(self, group, name)
        require_range(self, group, "alpha", 1.0)
        require_flags(self, group, "centered", "maximize")

    def state_names(self, group: Group) -> tuple[str, ...]:
        """The average square, and what momentum and centring need."""
        names = ["square_avg"]
        if group["momentum"]:
            names.append("momentum_buffer")
        if group["centered"]:
            names.append("grad_avg")
        return tuple(names)

    @elementwise
    def update(self, group: Group, step: Tensor, parameters: Sequence[Any]) -> None:
        """One step of `parameters`."""
        alpha = watch_item(group, "alpha")
        eps = watch_item(group, "eps")
        weight_decay = watch_item(group, "weight_decay")
        momentum = watch_item(group, "momentum")
        centered = watch_item(group, "centered")
        maximize = watch_item(group, "maximize")
        step.copy_(step + 1.0)
        for parameter in parameters:
            state = self.state[parameter]
            grad = -parameter.grad if maximize else parameter.grad
            if weight_decay:
                grad = grad + weight_decay * parameter
            square = alpha * state["square_avg"] + (1.0 - alpha) * (grad * grad)
            state["square_avg"].copy_(square)
            if centered:
                mean = state["grad_avg"] + (grad - state["grad_avg"]) * (1.0 - alpha)
                state["grad_avg"].copy_(mean)
                square = square - mean * mean
            direction = grad / (sg.sqrt(square) + eps)
            if momentum:
                direction = momentum * state["momentum_buffer"] + direction
                state["momentum_buffer"].copy_(direction)
            parameter.copy_(parameter - hyperparameter(group, "lr", parameter.dtype) * direction)
