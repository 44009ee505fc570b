"""Stochastic gradient descent (Robbins and Monro 1951), with momentum (Polyak 1964, Nesterov 1983)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import staticgrad as sg
from staticgrad.capture_state import hyperparameter, watch_item
from staticgrad.optim.optimizer import Group, Optimizer, require_flags, require_range
from staticgrad.optim.packing import elementwise
from staticgrad.tensor import Tensor


class SGD(Optimizer):
    """p <- p - lr g, or with momentum b <- momentum b + (1 - dampening) g, p <- p - lr b (b starts as g).

    Args:
        params: parameters, or dicts of groups.
        lr: the learning rate, at least 0.
        momentum: how much of the last direction is kept, at least 0.
        dampening: how much of the gradient is left out of the momentum.
        weight_decay: the factor of the L2 penalty: g <- g + weight_decay p.
        nesterov: step along g + momentum b; needs momentum and no dampening.
        maximize: step up the gradient.
    """

    counted = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Raise ValueError for hyperparameters that make no sense."""
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            require_range(self, group, name)
        require_flags(self, group, "nesterov", "maximize")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "SGD: nesterov needs a momentum above 0 and a dampening of 0; "
                f"got momentum={group['momentum']} and dampening={group['dampening']}"
            )

    def state_names(self, group: Group) -> tuple[str, ...]:
        """The momentum's buffer, if there is momentum."""
        return ("momentum_buffer",) if group["momentum"] else ()

    @elementwise
    def update(self, group: Group, step: Tensor, parameters: Sequence[Any]) -> None:
        """One step of `parameters`."""
        momentum = watch_item(group, "momentum")
        weight_decay = watch_item(group, "weight_decay")
        nesterov = watch_item(group, "nesterov")
        maximize = watch_item(group, "maximize")
        share = self._share(group, step) if momentum else 1.0
        for parameter in parameters:
            direction = -parameter.grad if maximize else parameter.grad
            if weight_decay:
                direction = direction + weight_decay * parameter
            if momentum:
                buffer = self.state[parameter]["momentum_buffer"]
                gained = direction if isinstance(share, float) else direction * sg.astype(share, parameter.dtype)
                velocity = momentum * buffer + gained
                buffer.copy_(velocity)
                direction = direction + momentum * velocity if nesterov else velocity
            parameter.copy_(parameter - hyperparameter(group, "lr", parameter.dtype) * direction)

    def _share(self, group: Group, step: Tensor) -> float | Tensor:
        """How much of the gradient enters the momentum: all of it in the first step, which starts the buffer."""
        dampening = watch_item(group, "dampening")
        if not dampening:
            return 1.0
        share = sg.where(step == 0, 1.0, sg.full((), 1.0 - dampening, dtype=step.dtype))
        step.copy_(step + 1.0)
        return share
