"""Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018) and AdamW (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

import staticgrad as sg
from staticgrad.capture_state import hyperparameter, watch_item
from staticgrad.optim.optimizer import Group, Optimizer, require_betas, require_flags, require_range, scalar_of
from staticgrad.optim.packing import elementwise
from staticgrad.tensor import Tensor


class Adam(Optimizer):
    """p <- p - lr m / (sqrt(v) + eps), with m and v the moving averages of g and g^2, corrected for their start.

    Args:
        params: parameters, or dicts of groups.
        lr: the learning rate, at least 0.
        betas: how much of each average a step keeps, in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: the factor of the L2 penalty: g <- g + weight_decay p.
        amsgrad: divide by the largest v so far.
        maximize: step up the gradient.

    >>> import staticgrad as sg
    >>> weight = sg.nn.Parameter(sg.asarray([1.0, -1.0]))
    >>> optimizer = sg.optim.Adam([weight], lr=0.25)
    >>> sg.sum(weight * weight).backward()
    >>> optimizer.step()
    >>> weight.tolist()
    [0.75, -0.75]
    """

    decoupled: ClassVar[bool] = False  # whether weight decay acts on the parameter instead of the gradient

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Raise ValueError for hyperparameters that make no sense."""
        for name in ("lr", "eps", "weight_decay"):
            require_range(self, group, name)
        require_betas(self, group)
        require_flags(self, group, "amsgrad", "maximize")

    def state_names(self, group: Group) -> tuple[str, ...]:
        """The two averages, and the largest second one for AMSGrad."""
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    @elementwise
    def update(self, group: Group, step: Tensor, parameters: Sequence[Any]) -> None:
        """One step of `parameters`. Scalars are computed in float64, and once for each dtype."""
        beta1, beta2 = watch_item(group, "betas")
        eps = watch_item(group, "eps")
        weight_decay = watch_item(group, "weight_decay")
        amsgrad = watch_item(group, "amsgrad")
        maximize = watch_item(group, "maximize")
        lr = hyperparameter(group, "lr", np.dtype(np.float64))
        count = step + 1.0
        step.copy_(count)
        rate = lr / (1.0 - beta1**count)
        root = sg.sqrt(1.0 - beta2**count)
        kept = 1.0 - lr * weight_decay
        scalars: dict[Any, tuple[Any, Any, Any]] = {}
        for parameter in parameters:
            dtype = parameter.dtype
            if dtype not in scalars:
                scalars[dtype] = (scalar_of(rate, dtype), scalar_of(root, dtype), scalar_of(kept, dtype))
            step_size, correction, decay = scalars[dtype]
            state = self.state[parameter]
            grad = -parameter.grad if maximize else parameter.grad
            start: Any = parameter
            if weight_decay and self.decoupled:
                start = parameter * decay
            elif weight_decay:
                grad = grad + weight_decay * parameter
            first = state["exp_avg"] + (grad - state["exp_avg"]) * (1.0 - beta1)
            second = beta2 * state["exp_avg_sq"] + (1.0 - beta2) * (grad * grad)
            state["exp_avg"].copy_(first)
            state["exp_avg_sq"].copy_(second)
            if amsgrad:
                second = sg.maximum(state["max_exp_avg_sq"], second)
                state["max_exp_avg_sq"].copy_(second)
            parameter.copy_(start - step_size * (first / (sg.sqrt(second) / correction + eps)))


class AdamW(Adam):
    """Adam with weight decay decoupled from the gradient: p <- (1 - lr weight_decay) p before the step.

    Arguments are those of `Adam`, with a weight_decay of 0.01 unless given.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
