"""Adagrad (Duchi, Hazan and Singer 2011)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import staticgrad as sg
from staticgrad.capture_state import hyperparameter, watch_item
from staticgrad.optim.optimizer import Group, Optimizer, require_flags, require_range, scalar_of
from staticgrad.optim.packing import elementwise
from staticgrad.tensor import Tensor


class Adagrad(Optimizer):
    """p <- p - lr g / (sqrt(s) + eps), with s the sum of all g^2; lr falls as 1 / (1 + (t - 1) lr_decay).

    Args:
        params: parameters, or dicts of groups.
        lr: the learning rate, at least 0.
        lr_decay: how fast it falls with the step t = 1, 2, ...
        weight_decay: the factor of the L2 penalty: g <- g + weight_decay p.
        initial_accumulator_value: what s starts from, at least 0.
        eps: added to the root, at least 0.
        maximize: step up the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Raise ValueError for hyperparameters that make no sense."""
        for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            require_range(self, group, name)
        require_flags(self, group, "maximize")

    def state_names(self, group: Group) -> tuple[str, ...]:
        """The sum of squares."""
        return ("sum",)

    def initial(self, group: Group, name: str) -> float:
        """What the sum starts from."""
        return float(group["initial_accumulator_value"])

    @elementwise
    def update(self, group: Group, step: Tensor, parameters: Sequence[Any]) -> None:
        """One step of `parameters`."""
        lr_decay = watch_item(group, "lr_decay")
        weight_decay = watch_item(group, "weight_decay")
        eps = watch_item(group, "eps")
        maximize = watch_item(group, "maximize")
        rate = hyperparameter(group, "lr", np.dtype(np.float64))
        if lr_decay:
            rate = rate / (1.0 + lr_decay * step)
        step.copy_(step + 1.0)
        for parameter in parameters:
            total = self.state[parameter]["sum"]
            grad = -parameter.grad if maximize else parameter.grad
            if weight_decay:
                grad = grad + weight_decay * parameter
            squares = total + grad * grad
            total.copy_(squares)
            parameter.copy_(parameter - scalar_of(rate, parameter.dtype) * (grad / (sg.sqrt(squares) + eps)))
