"""Checkpoints: all that a training run needs to go on, in one safetensors file.

Tensors are stored as tensors, under `model.<key>`, `optimizer.<number>`, `extra.<number>` and `random.state`. What is
not a tensor (hyperparameters, step, the structure that holds the tensors) is JSON in the file's metadata; nothing in
the file is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from staticgrad.data.convert import to_array, to_tensor
from staticgrad.saving import read_arrays, write_arrays

if TYPE_CHECKING:
    from staticgrad.tensor import Tensor

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

Array = npt.NDArray[Any]

_HEADER = "staticgrad.checkpoint"
_VERSION = 1
_RANDOM = "random.state"


class Stateful(Protocol):
    """What can be saved: a model or an optimizer."""

    def state_dict(self) -> Mapping[str, Any]:
        """All its state, by name."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take over a state that `state_dict` gave."""


class Checkpoint(NamedTuple):
    """What `load_checkpoint` gives back besides what it restores: the step, and the caller's own values."""

    step: int
    extra: Any


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Stateful | None = None,
    optimizer: Stateful | None = None,
    random: bool = True,
    step: int = 0,
    extra: Any = None,
) -> None:
    """Write the state of a training run to one file, in one step: a reader finds the old file or the new one.

    Args:
        path: the file to write or replace.
        model: whose `state_dict()`, tensors by name, is kept.
        optimizer: whose `state_dict()` is kept.
        random: keep the state of `staticgrad.random`.
        step: the number of the step, from 0 up.
        extra: further values, such as the state of a scheduler: numbers, text, None, Tensors and arrays, in dicts,
            lists and tuples.

    Raises:
        TypeError: a value that is none of these.
        OSError: the file cannot be written; the old one is intact.
    """
    tensors: dict[str, Array] = {}
    header: dict[str, Any] = {"version": _VERSION, "step": int(step)}
    if model is not None:
        state = {name: to_array(value) for name, value in model.state_dict().items()}
        tensors |= {f"model.{name}": array for name, array in state.items()}
        header["model"] = list(state)
    if optimizer is not None:
        header["optimizer"] = _pack(optimizer.state_dict(), "optimizer", tensors)
    if random:
        tensors[_RANDOM] = _random_state()
    header["extra"] = _pack(extra, "extra", tensors)
    write_arrays(tensors, path, {_HEADER: json.dumps(header)}, caller="save_checkpoint")


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Stateful | None = None,
    optimizer: Stateful | None = None,
    random: bool = True,
) -> Checkpoint:
    """Bring a training run back to where `save_checkpoint` kept it.

    The file is compared with the model and the optimizer as a whole before either is changed, and should loading fail
    all the same, both get back what they held: it restores everything or changes nothing.

    Args:
        path: a file of `save_checkpoint`.
        model: what takes the model's state; its keys, shapes and dtypes must be those of the file.
        optimizer: what takes the optimizer's state; it must have as many groups and parameters as the saved one.
        random: restore the state of `staticgrad.random`.

    Returns:
        `(step, extra)` as they were saved.

    Raises:
        OSError: the file is missing, is a directory or may not be read.
        ValueError: it is no checkpoint or a damaged one, lacks a part that is asked for, or holds a state that does
            not fit the model or the optimizer: the message lists what is missing, unexpected or of another shape.
    """
    path = os.fspath(path)
    arrays, metadata = read_arrays(path, caller="load_checkpoint")
    try:
        header = json.loads(metadata[_HEADER])
        version = header["version"]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"load_checkpoint: {path} is no checkpoint; load_file reads plain tensors") from error
    if version != _VERSION:
        raise ValueError(f"load_checkpoint: reads version {_VERSION}; {path} has version {version!r}")
    try:
        restored = Checkpoint(int(header["step"]), _unpack(header["extra"], arrays))
        model_state = {name: arrays[f"model.{name}"] for name in header["model"]} if "model" in header else None
        optimizer_state = _unpack(header["optimizer"], arrays) if "optimizer" in header else None
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"load_checkpoint: {path} is damaged: its header does not fit its tensors: {error}") from error
    random_state = arrays.get(_RANDOM)

    for wanted, saved, name in (
        (model is not None, model_state, "model"),
        (optimizer is not None, optimizer_state, "optimizer"),
        (random, random_state, "random"),
    ):
        if wanted and saved is None:
            raise ValueError(f"load_checkpoint: {path} was saved without its {name} state; leave out {name}=")
    if model is not None and model_state is not None:
        _compare_models(model_state, model.state_dict(), path)
    if optimizer is not None:
        _compare_optimizers(optimizer_state, optimizer, path)
    if random and random_state is not None:
        _compare_random(random_state, path)

    with _all_or_nothing(model, optimizer, random):
        if model is not None and model_state is not None:
            model.load_state_dict({name: to_tensor(array) for name, array in model_state.items()})
        if optimizer is not None:
            optimizer.load_state_dict(optimizer_state)
        if random and random_state is not None:
            _set_random_state(random_state)
    return restored


@contextmanager
def _all_or_nothing(model: Stateful | None, optimizer: Stateful | None, random: bool) -> Iterator[None]:
    """Give model, optimizer and random state back what they held should the block fail."""
    before_model = _copied(model.state_dict()) if model is not None else None
    before_optimizer = _copied(optimizer.state_dict()) if optimizer is not None else None
    before_random = _random_state() if random else None
    try:
        yield
    except BaseException:  # Ctrl-C too
        if model is not None:
            model.load_state_dict(before_model)
        if optimizer is not None:
            optimizer.load_state_dict(before_optimizer)
        if before_random is not None:
            _set_random_state(before_random)
        raise


def _copied(state: Mapping[str, Any]) -> Any:
    tensors: dict[str, Array] = {}
    packed = _pack(state, "state", tensors)
    return _unpack(packed, {name: array.copy() for name, array in tensors.items()})


def _random_state() -> Array:
    from staticgrad import random

    return np.array(random.get_state())


def _set_random_state(state: Array) -> None:
    from staticgrad import random

    random.set_state(state)


# The structure around the tensors, as JSON: dicts and tuples are tagged, since JSON has neither keys of integers nor
# tuples; a tensor leaves the name under which it is stored.


def _pack(value: Any, prefix: str, tensors: dict[str, Array]) -> Any:
    """The value as JSON; its tensors go to `tensors`, numbered under `prefix`."""
    from staticgrad.tensor import Tensor

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), prefix, tensors)
    if isinstance(value, Tensor | np.ndarray):
        name = f"{prefix}.{len(tensors)}"
        tensors[name] = to_array(value)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_pack_key(key), _pack(entry, prefix, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        entries = [_pack(entry, prefix, tensors) for entry in value]
        return entries if isinstance(value, list) else {"tuple": entries}
    raise TypeError(
        f"save_checkpoint: {prefix} may hold numbers, text, None, Tensors and arrays, in dicts, lists and tuples; "
        f"got {type(value).__name__}"
    )


def _pack_key(key: Any) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise TypeError(f"save_checkpoint: keys of dicts must be text or integers; got {key!r}")


def _unpack(packed: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(packed, list):
        return [_unpack(entry, arrays) for entry in packed]
    if not isinstance(packed, dict):
        return packed
    ((tag, content),) = packed.items()
    if tag == "tensor":
        return to_tensor(arrays[content])
    if tag == "tuple":
        return tuple(_unpack(entry, arrays) for entry in content)
    if tag == "dict":
        return {key: _unpack(entry, arrays) for key, entry in content}
    raise ValueError(f"unknown tag {tag!r}")


# What is compared before anything changes.


def _compare_models(saved: Mapping[str, Array], current: Mapping[str, Tensor], path: str) -> None:
    faults = _key_faults(saved, current)
    for name in saved.keys() & current.keys():
        faults += _array_faults(name, saved[name], current[name])
    _refuse(faults, "model", path)


def _compare_optimizers(saved: Any, optimizer: Stateful, path: str) -> None:
    current = optimizer.state_dict()
    try:
        groups, state = list(saved["param_groups"]), dict(saved["state"])
        counts = [len(group["params"]) for group in groups]
        indices = [index for group in groups for index in group["params"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"load_checkpoint: the optimizer state in {path} is damaged: {error!r}") from error
    expected = [len(group["params"]) for group in current["param_groups"]]
    if counts != expected:
        _refuse([f"parameters in its groups: {counts} saved, {expected} in the optimizer"], "optimizer", path)
    faults = [f"state of a parameter {index} that is in no group" for index in state if index not in indices]
    for number, (group, present) in enumerate(zip(groups, current["param_groups"], strict=True)):
        faults += _key_faults(group, present, f"group {number}: ")
    parameters = [parameter for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"]]
    for index, parameter in zip(indices, parameters, strict=False):
        present = current["state"].get(index, {})
        faults += _state_faults(f"parameter {index}: ", state.get(index, {}), present, parameter)
    _refuse(faults, "optimizer", path)


def _state_faults(place: str, saved: Mapping[str, Any], present: Mapping[str, Any], parameter: Tensor) -> list[str]:
    """What does not fit in the state of one parameter; before the first step it is compared with the parameter."""
    faults = _key_faults(saved, present, place) if present and saved else []
    for name, value in saved.items():
        if not _is_tensor(value):
            continue
        if _is_tensor(present.get(name)):
            faults += _array_faults(place + name, to_array(value), present[name])
        elif value.shape not in ((), parameter.shape):
            faults.append(f"{place}{name}: shape {value.shape} saved, {parameter.shape} in the parameter")
    return faults


def _compare_random(saved: Array, path: str) -> None:
    current = _random_state()
    if (saved.shape, saved.dtype) != (current.shape, current.dtype):
        raise ValueError(
            f"load_checkpoint: the random state in {path} must be {current.dtype} of shape {current.shape}; "
            f"it is {saved.dtype} of shape {saved.shape}"
        )


def _is_tensor(value: Any) -> bool:
    from staticgrad.tensor import Tensor

    return isinstance(value, Tensor)


def _key_faults(saved: Mapping[Any, Any], current: Mapping[Any, Any], place: str = "") -> list[str]:
    missing = [str(key) for key in current if key not in saved]
    unexpected = [str(key) for key in saved if key not in current]
    faults = [f"{place}missing in the file: {', '.join(missing)}"] if missing else []
    return faults + ([f"{place}unexpected in the file: {', '.join(unexpected)}"] if unexpected else [])


def _array_faults(name: str, saved: Array, current: Tensor) -> list[str]:
    faults = []
    if saved.shape != tuple(current.shape):
        faults.append(f"{name}: shape {saved.shape} saved, {tuple(current.shape)} here")
    if saved.dtype != current.dtype:
        faults.append(f"{name}: dtype {saved.dtype} saved, {current.dtype} here")
    return faults


def _refuse(faults: list[str], part: str, path: str) -> None:
    if faults:
        listed = "\n  ".join(faults)
        raise ValueError(f"load_checkpoint: the {part} state in {path} does not fit; nothing was changed\n  {listed}")
