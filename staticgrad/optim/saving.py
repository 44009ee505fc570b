"""Taking the state of an optimizer and putting it back, in PyTorch's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import staticgrad as sg
from staticgrad.tensor import Tensor

if TYPE_CHECKING:
    from staticgrad.optim.optimizer import Optimizer

Entries = Mapping[str, Any]


def pack_state(optimizer: Optimizer) -> dict[str, Any]:
    """The state by parameter number, and the groups with numbers in place of parameters."""
    numbers = _numbers(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for cohorts in optimizer.cohorts:
        for cohort in cohorts:
            for parameter in cohort.members if cohort.started else []:
                entries = {name: tensor.detach() for name, tensor in optimizer.state[parameter].items()}
                if "step" in entries:
                    entries["step"] = sg.astype(entries["step"], np.float32)
                if entries:
                    state[numbers[id(parameter)]] = entries
    groups = []
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key != "params"}
        groups.append({**options, "params": [numbers[id(parameter)] for parameter in group["params"]]})
    return {"state": dict(sorted(state.items())), "param_groups": groups}


def _numbers(optimizer: Optimizer) -> dict[int, int]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {id(parameter): number for number, parameter in enumerate(parameters)}


def load_state(optimizer: Optimizer, given: Mapping[str, Any]) -> None:
    """Check all of `given`, then write it into the groups and tensors that are there."""
    name = f"{type(optimizer).__name__}.load_state_dict"
    if not isinstance(given, Mapping) or not {"state", "param_groups"} <= set(given):
        raise ValueError(f"{name}: takes a dict with 'state' and 'param_groups', as state_dict() gives it")
    saved = _by_parameter(name, optimizer, given)
    groups = [
        {**group, **{key: value for key, value in other.items() if key != "params"}}
        for group, other in zip(optimizer.param_groups, given["param_groups"], strict=True)
    ]
    plans = []
    for group in groups:
        optimizer.check(group)
        plans += [_plan(name, optimizer, group, p, saved.get(id(p), {})) for p in group["params"]]

    for group, other in zip(optimizer.param_groups, groups, strict=True):
        group.update(other)
    with sg.no_grad():
        counts = {}
        for index, group in enumerate(optimizer.param_groups):
            optimizer.complete_state(index)
            for parameter in group["params"]:
                count, tensors = plans.pop(0)
                counts[id(parameter)] = count
                for key, value in tensors.items():
                    optimizer.state[parameter][key].copy_(value)
            _regroup(optimizer, index, counts)


def _by_parameter(name: str, optimizer: Optimizer, given: Mapping[str, Any]) -> dict[int, Entries]:
    """The saved entries under the id of the parameter they belong to."""
    groups = given["param_groups"]
    ours = [len(group["params"]) for group in optimizer.param_groups]
    theirs = [len(group["params"]) for group in groups]
    if ours != theirs:
        raise ValueError(
            f"{name}: the groups must have as many parameters as here, {ours}; got {theirs}; "
            "build the optimizer as it was when the state was saved"
        )
    saved = {}
    for group, other in zip(optimizer.param_groups, groups, strict=True):
        for parameter, number in zip(group["params"], other["params"], strict=True):
            if number in given["state"]:
                saved[id(parameter)] = given["state"][number]
    return saved


def _plan(
    name: str, optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, entries: Entries
) -> tuple[float | None, dict[str, Tensor]]:
    """How often the parameter was stepped (None: never) and what its tensors will hold."""
    names = optimizer.state_names(dict(group))
    present = {key: value for key, value in entries.items() if value is not None}
    if not present:
        initial = {key: optimizer.initial(dict(group), key) for key in names}
        return None, {key: sg.full_like(parameter.detach(), value) for key, value in initial.items()}
    missing = [key for key in names if key not in present]
    if missing:
        raise ValueError(f"{name}: the state of a parameter must have {list(names)}; {missing} are missing")
    tensors = {}
    for key in names:
        value = present[key] if isinstance(present[key], Tensor) else sg.asarray(present[key])
        if value.shape != parameter.shape:
            raise ValueError(f"{name}: {key} must have the parameter's shape {parameter.shape}; got {value.shape}")
        tensors[key] = sg.astype(value, parameter.dtype)
    step = present.get("step", 1.0)
    return float(step.item() if isinstance(step, Tensor) else step), tensors


def _regroup(optimizer: Optimizer, index: int, counts: Mapping[int, float | None]) -> None:
    """Set the counters of a group; cohorts whose members now differ in count part."""
    for cohort in list(optimizer.cohorts[index]):
        parts: dict[float | None, list[Tensor]] = {}
        for parameter in cohort.members:
            parts.setdefault(counts[id(parameter)], []).append(parameter)
        for position, (count, members) in enumerate(parts.items()):
            part = cohort if position == 0 else optimizer.new_cohort(index)
            part.members = members
            part.started = count is not None
            part.step.copy_(sg.asarray(np.array(count or 0.0)))
        if len(parts) > 1:
            optimizer.layout += 1
    optimizer.complete_state(index)
