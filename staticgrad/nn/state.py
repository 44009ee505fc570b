"""Taking the state of a module and putting it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import staticgrad as sg
from staticgrad.tensor import Tensor

if TYPE_CHECKING:
    from staticgrad.nn.module import Module


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found on one side only."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def collect_state(module: Module, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and persistent buffers of `module` under dotted names, detached; shared ones under each name."""
    return {name: tensor.detach() for name, tensor in _entries(module, prefix).items()}


def load_state(module: Module, state: Mapping[str, Any], strict: bool) -> IncompatibleKeys:
    """Copy `state` into `module`; check all of it first, so that a failure changes nothing."""
    if not isinstance(state, Mapping):
        raise TypeError(f"load_state_dict: state_dict must be a mapping of names; got {type(state).__name__}")
    own = _entries(module, "")
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    values = {name: _value(state[name]) for name in own if name in state}
    faults = _faults(own, values)
    if strict and unexpected:
        faults.insert(0, f"Unexpected key(s) in state_dict: {_quoted(unexpected)}.")
    if strict and missing:
        faults.insert(0, f"Missing key(s) in state_dict: {_quoted(missing)}.")
    if faults:
        listed = "".join(f"\n\t{fault}" for fault in faults)
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:{listed}")
    with sg.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return IncompatibleKeys(missing, unexpected)


def _entries(module: Module, prefix: str) -> dict[str, Tensor]:
    """Every name that a parameter or persistent buffer has, also where one is shared by several modules."""
    found: dict[str, Tensor] = {}
    pending = [(prefix, module)]
    while pending:
        path, current = pending.pop()
        registry = current._known()
        for entries in (registry.parameters, registry.buffers):
            for name, tensor in entries.items():
                if tensor is not None and name not in registry.transient:
                    found[path + name] = tensor
        below = [(f"{path}{name}.", child) for name, child in registry.modules.items() if child is not None]
        pending.extend(reversed(below))
    return found


def _value(given: Any) -> Tensor:
    return given if isinstance(given, Tensor) else sg.asarray(given)


def _faults(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[str]:
    faults = []
    for name, value in values.items():
        if value.shape != own[name].shape:
            faults.append(
                f"size mismatch for {name}: copying a param with shape {value.shape} from checkpoint, "
                f"the shape in current model is {own[name].shape}."
            )
        elif value.dtype.kind != own[name].dtype.kind:
            faults.append(f"dtype mismatch for {name}: {value.dtype} does not convert to {own[name].dtype}.")
    return faults


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
