"""`Optimizer`: groups of parameters, the state that goes with them, and the frame of a step.

A subclass says which tensors of state a parameter has and how one step changes them; the same lines run at once in
the dynamic mode and become part of the program in a compiled step. What they read from a group goes through
`hyperparameter` (the learning rate: re-read at every call) or `watch_item` (all else: a change recompiles).

Parameters that have always been stepped together share one counter, so that a step computes its bias corrections
once. When one of them is passed over, having no gradient, the counters part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import staticgrad as sg
from staticgrad._context import context
from staticgrad.capture import suspended
from staticgrad.capture_state import scope, watch
from staticgrad.graph.errors import DTypeError
from staticgrad.kernels.device import find_device
from staticgrad.nn.module import clear_grads
from staticgrad.optim.packing import update_packed
from staticgrad.optim.saving import load_state, pack_state
from staticgrad.tensor import Tensor

Group = dict[str, Any]


@dataclass(eq=False)
class Cohort:
    """Parameters of one group that have been stepped equally often."""

    step: Tensor  # 0-d float64
    members: list[Tensor]
    started: bool = False


class Optimizer:
    """Base of all optimizers.

    Args:
        params: parameters, or dicts of groups: {"params": [...], "lr": ..., ...}.
        defaults: the hyperparameters that a group does not give itself.

    Attributes:
        param_groups: one dict for each group: its parameters under "params", and its hyperparameters.
        state: for each parameter its tensors by name. All are made here, before the first step.
    """

    counted: ClassVar[bool] = True  # whether a parameter's state has a counter, "step"
    # A captured step may change these: it watches `layout`, so that it is compiled again.
    capture_exempt: ClassVar[tuple[str, ...]] = ("state", "cohorts", "layout")

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        self.defaults = dict(defaults)
        self.param_groups: list[Group] = []
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.cohorts: list[list[Cohort]] = []
        self.layout = 0  # changes whenever groups or cohorts do: a compiled step that has seen another one recompiles
        for group in self._as_groups(params):
            self.add_param_group(group)

    def _as_groups(self, params: Iterable[Any]) -> list[Mapping[str, Any]]:
        name = type(self).__name__
        if isinstance(params, Tensor | Mapping) or not isinstance(params, Iterable):
            raise TypeError(
                f"{name}: params must be an iterable of parameters or of groups; got {type(params).__name__}; "
                "pass model.parameters(), or a list"
            )
        given = list(params)
        if not given:
            raise ValueError(f"{name}: there must be parameters to optimize; got none; pass model.parameters()")
        groups = [isinstance(entry, Mapping) for entry in given]
        if any(groups) and not all(groups):
            raise TypeError(f"{name}: params must be all parameters or all groups; got a mixture")
        return given if groups[0] else [{"params": given}]

    # ---------------------------------------------------------------- groups

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters with hyperparameters of their own, and make their state.

        Args:
            param_group: parameters under "params", and the hyperparameters that differ from the defaults.
        """
        name = type(self).__name__
        if "params" not in param_group:
            raise ValueError(f"{name}: a group must have its parameters under 'params'; got {sorted(param_group)}")
        unknown = sorted(set(param_group) - set(self.defaults) - {"params", "name", "initial_lr"})
        if unknown:
            raise ValueError(f"{name}: a group takes the hyperparameters {sorted(self.defaults)}; got also {unknown}")
        given = param_group["params"]
        parameters = [given] if isinstance(given, Tensor) else list(given)
        self._check_parameters(parameters)
        group = {"params": parameters, **self.defaults, **{k: v for k, v in param_group.items() if k != "params"}}
        self.check(group)
        self.param_groups.append(group)
        self.cohorts.append([])
        index = len(self.cohorts) - 1
        self.new_cohort(index).members = list(parameters)
        for parameter in parameters:
            self.state[parameter] = {}
        self.complete_state(index)
        self.layout += 1

    def _check_parameters(self, parameters: Sequence[Any]) -> None:
        name = type(self).__name__
        seen = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        for position, parameter in enumerate(parameters):
            if not isinstance(parameter, Tensor):
                raise TypeError(
                    f"{name}: only Tensors can be optimized; got {type(parameter).__name__} at position {position}"
                )
            if not parameter.is_leaf:
                raise ValueError(
                    f"{name}: a parameter must be a leaf, not the result of an op; position {position} of shape "
                    f"{parameter.shape} is a result; optimize what it was computed from, or detach it"
                )
            if parameter.dtype.kind != "f":
                raise DTypeError(f"{name}: a parameter must be floating; got {parameter.dtype} at position {position}")
            if id(parameter) in seen:
                raise ValueError(
                    f"{name}: a parameter can be given once only; position {position} of shape {parameter.shape} "
                    "was given before; remove it from one of the groups"
                )
            seen.add(id(parameter))

    def complete_state(self, index: int) -> None:
        """Make the tensors of state that the parameters of a group lack, and bring those that are there to them.

        A parameter may have moved to another device since; a program brings its state to where it runs by itself. A
        counter is a number, which goes with parameters of any device from the CPU.
        """
        group = self.param_groups[index]
        names = self.state_names(group)
        for cohort in self.cohorts[index]:
            if context.capture is None:
                bring(cohort.step, find_device(None).name)
            for parameter in cohort.members:
                entries = self.state[parameter]
                if self.counted:
                    entries["step"] = cohort.step
                for name in names:
                    if name not in entries:
                        entries[name] = concrete_full(parameter, self.initial(group, name))
                    elif context.capture is None:
                        bring(entries[name], parameter.device)

    # ---------------------------------------------------------------- what a subclass defines

    def check(self, group: Group) -> None:
        """Raise ValueError for hyperparameters that make no sense."""
        raise NotImplementedError(f"{type(self).__name__}: an optimizer must define check(group)")

    def state_names(self, group: Group) -> tuple[str, ...]:
        """The names of the tensors that each parameter of `group` has, all of the parameter's shape."""
        raise NotImplementedError(f"{type(self).__name__}: an optimizer must define state_names(group)")

    def initial(self, group: Group, name: str) -> float:
        """What the tensor `name` holds before the first step."""
        return 0.0

    def update(self, group: Group, step: Tensor, parameters: Sequence[Any]) -> None:
        """One step of `parameters`, which all have gradients and share the counter `step`."""
        raise NotImplementedError(f"{type(self).__name__}: an optimizer must define update(group, step, parameters)")

    # ---------------------------------------------------------------- steps

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss anew, with gradients, before the update; most optimizers need none.

        Returns:
            what `closure` returns, else None.
        """
        loss = None
        if closure is not None:
            with sg.enable_grad():
                loss = closure()
        with sg.no_grad(), scope(type(self).__name__):
            watch(self, "layout")
            for index, group in enumerate(self.param_groups):
                self.complete_state(index)
                for cohort in list(self.cohorts[index]):
                    active = [parameter for parameter in cohort.members if parameter.grad is not None]
                    if not active:
                        continue
                    if len(active) < len(cohort.members):
                        self._part(index, cohort, active)
                    cohort.started = True
                    if context.capture is None:
                        update_packed(self, group, cohort.step, active)
                    else:
                        self.update(group, cohort.step, active)
        return loss

    def _part(self, index: int, cohort: Cohort, active: list[Any]) -> None:
        """Give the members that are passed over a counter of their own."""
        kept = {id(parameter) for parameter in active}
        with suspended():  # the number is copied, not part of the program
            steps = cohort.step.item()
        idle = self.new_cohort(index, steps)  # right also should the capture fail after this line
        idle.members = [parameter for parameter in cohort.members if id(parameter) not in kept]
        idle.started = cohort.started
        cohort.members = active
        if cohort.started:  # in a compiled step this copy is part of the program, which the new layout makes run once
            idle.step.copy_(cohort.step)
            self.layout += 1
        self.complete_state(index)

    def new_cohort(self, index: int, count: float = 0.0) -> Cohort:
        """Add an empty cohort, stepped `count` times, to the group at `index`."""
        cohort = Cohort(Tensor(np.full((), count, np.float64)), [])
        self.cohorts[index].append(cohort)
        return cohort

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradient of every parameter, or fill it with zeros."""
        for group in self.param_groups:
            clear_grads(group["params"], set_to_none)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on, in PyTorch's layout.

        Returns:
            {"state": {number: {name: Tensor}}, "param_groups": [{..., "params": [numbers]}]}, with the parameters
            numbered in order. Those that were never stepped have no state. "step" is a float32 copy, the other
            tensors are the optimizer's own.
        """
        return pack_state(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over hyperparameters and state from `state_dict`.

        Raises:
            ValueError: groups or shapes do not fit; nothing is changed then.
        """
        load_state(self, state_dict)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])


# ---------------------------------------------------------------- hyperparameters


def require_range(optimizer: Optimizer, group: Group, name: str, high: float = math.inf) -> None:
    """ValueError unless the hyperparameter is a finite number, at least 0 and below `high`."""
    value = group[name]
    rule = "at least 0" if high == math.inf else f"in [0, {high:g})"
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value < high:
        raise ValueError(f"{type(optimizer).__name__}: {name} must be a finite number {rule}; got {value!r}")


def require_betas(optimizer: Optimizer, group: Group) -> None:
    """ValueError unless betas are two numbers in [0, 1)."""
    betas = group["betas"]
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"{type(optimizer).__name__}: betas must be two numbers in [0, 1); got {betas!r}")
    for position, value in enumerate(betas):
        require_range(optimizer, {f"betas[{position}]": value}, f"betas[{position}]", 1.0)


def require_flags(optimizer: Optimizer, group: Group, *names: str) -> None:
    """TypeError unless each of the hyperparameters is True or False."""
    for name in names:
        if not isinstance(group[name], bool | np.bool_):
            raise TypeError(f"{type(optimizer).__name__}: {name} must be True or False; got {group[name]!r}")


def scalar_of(value: Any, dtype: np.dtype[Any]) -> Any:
    """A scalar in the dtype of a parameter: a Python number adapts by itself, a 0-d Tensor is cast."""
    return sg.astype(value, dtype) if isinstance(value, Tensor) else value


# ---------------------------------------------------------------- state


def concrete_full(like: Tensor, value: float) -> Tensor:
    """A Tensor like a parameter, filled with `value`, that is state, also while a step is being captured."""
    return Tensor(find_device(like.device).place(np.full(like.shape, value, like.dtype)))


def bring(tensor: Tensor, device: str) -> None:
    """Have a tensor of state live on a device, with the same elements; its storage stays where it is there already."""
    if tensor.device != device:
        tensor._value = find_device(device).place(tensor._value)
