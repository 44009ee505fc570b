"""What a function can change, kept and put back bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from staticgrad import random
from staticgrad.graph.node import Node
from staticgrad.kernels.device import device_of
from staticgrad.side_effects import _CONTAINERS, _content, _is_object, _restore, variables
from staticgrad.tensor import Array, Tensor


@dataclass
class _Held:
    """A tensor as it was: its storage and what that held, its gradient, its place on the tape."""

    tensor: Tensor
    storage: Array
    content: Array
    grad: Tensor | None
    version: int
    requires_grad: bool
    edge: Any

    def restore(self, everything: bool) -> None:
        tensor = self.tensor
        changed = tensor._version[0] != self.version or tensor._value is not self.storage
        if everything or changed:
            with contextlib.suppress(ValueError):  # what cannot be written has not changed
                device_of(self.storage).assign(self.storage, self.content)
        tensor._value = self.storage
        tensor._version[0] = self.version
        tensor._grad, tensor._requires_grad, tensor._edge = self.grad, self.requires_grad, self.edge


class Snapshot:
    """All state that `function` reaches, by closure, global name, attribute or container, and through `arguments`.

    Tensors are kept with their content, gradient and version, containers and attributes with what they hold, the
    default generator with its state. `restore` puts all of it back.
    """

    def __init__(self, function: Any, arguments: Sequence[Any]) -> None:
        self._tensors: dict[int, _Held] = {}
        self._arrays: list[tuple[Array, Array]] = []
        self._containers: list[tuple[Any, list[Any]]] = []
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._seen: set[int] = set()
        self._keep: list[Any] = []  # what `_seen` knows by id must stay alive
        found = [(variable, variable.read()) for variable in variables(function)]
        self._variables = found
        self._walk([*(value for _, value in found), getattr(function, "__self__", None), function])
        self._walk(arguments)
        for array in arguments:
            if isinstance(array, np.ndarray) and array.flags.writeable:
                self._arrays.append((array, array.copy()))
        self.include([random.default_generator.state])

    def include(self, tensors: Iterable[Tensor]) -> None:
        """Keep these tensors too, as they are now."""
        self._walk(list(tensors))

    def _walk(self, values: Sequence[Any]) -> None:
        pending = list(values)
        while pending:
            value = pending.pop()
            if id(value) in self._seen:
                continue
            if isinstance(value, Tensor):
                self._hold(value)
                pending.append(value._grad)
            elif isinstance(value, _CONTAINERS):
                self._containers.append((value, _content(value)))
                pending += [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
            elif isinstance(value, tuple):
                pending += value
            elif _is_object(value) and not hasattr(value, "__staticgrad_compiled__"):
                attributes = dict(vars(value))
                self._attributes.append((value, attributes))
                pending += attributes.values()
            else:
                continue
            self._seen.add(id(value))
            self._keep.append(value)

    def _hold(self, tensor: Tensor) -> None:
        value = tensor._value
        if not isinstance(value, Node):
            self._tensors[id(tensor)] = _Held(
                tensor, value, value.copy(), tensor._grad, tensor._version[0], tensor._requires_grad, tensor._edge
            )

    def restore(self, everything: bool = True) -> None:
        """Put all back. Without `everything`, only tensors whose version tells of a write get their content back."""
        for variable, value in self._variables:
            if variable.read() is not value:
                variable.write(value)
        for owner, attributes in self._attributes:
            _restore_attributes(owner, attributes)
        for container, content in self._containers:
            if not _identical(_content(container), content):
                _restore(container, content)
        for held in self._tensors.values():
            held.restore(everything)
        for array, before in self._arrays:
            np.copyto(array, before)


def _restore_attributes(owner: Any, attributes: dict[str, Any]) -> None:
    now = vars(owner)
    for key in [key for key in now if key not in attributes]:
        del now[key]
    for key, value in attributes.items():
        if now.get(key, _restore_attributes) is not value:
            now[key] = value


def _identical(now: list[Any], before: list[Any]) -> bool:
    """Whether two contents hold the same objects; the items of a dict are pairs made anew at each look."""
    if len(now) != len(before):
        return False
    for a, b in zip(now, before, strict=True):
        if a is not b and not (
            isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and all(map(_is, a, b))
        ):
            return False
    return True


def _is(a: Any, b: Any) -> bool:
    return a is b
