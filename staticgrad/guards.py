"""Guards: Python state that a captured function looked at, and where that state stands."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NO_GRADIENT = "({}._grad is None)"


@dataclass(frozen=True)
class Place:
    """Where a value stands: `form` with the names of `objects` in its gaps is the expression that `read` evaluates.

    What `read` returns may be the value of the expression in another form: equal wherever the expression gives the
    same object.
    """

    read: Callable[[], Any]
    form: str
    objects: tuple[Any, ...]

    def __call__(self) -> Any:
        """The value that stands there now."""
        return self.read()

    def seen_through(self, function: Callable[[Any], Any]) -> Place:
        """The same place, its value in the form that `function` gives it."""
        return Place(lambda: function(self.read()), self.form, self.objects)


def attribute(owner: Any, name: str) -> Place:
    """The place of `owner.name`."""
    if name.isidentifier() and not keyword.iskeyword(name):
        return Place(lambda: getattr(owner, name), f"{{}}.{name}", (owner,))
    return Place(lambda: getattr(owner, name), "getattr({}, {})", (owner, name))


def attribute_or(owner: Any, name: str, default: Any) -> Place:
    """The place of `getattr(owner, name, default)`."""
    form, objects = attribute(owner, name).form, attribute(owner, name).objects
    return Place(lambda: getattr(owner, name, default), form, objects)


def item(mapping: Any, key: Any) -> Place:
    """The place of `mapping[key]`."""
    return Place(lambda: mapping[key], "{}[{}]", (mapping, key))


def item_or_none(mapping: Any, key: Any) -> Place:
    """The place of `mapping.get(key)`."""
    return Place(lambda: mapping.get(key), "{}.get({})", (mapping, key))


def has_no_gradient(tensor: Any) -> Place:
    """Whether a tensor's gradient is None."""
    return Place(lambda: tensor._grad is None, _NO_GRADIENT, (tensor,))


@dataclass(frozen=True)
class Guard:
    """Python state that the captured function looked at: the capture holds while `read()` gives `value`."""

    what: str
    read: Callable[[], Any]  # a Place where an expression can say it
    value: Any

    def holds(self) -> bool:
        """Whether the state is still what the captured function saw."""
        now = self.read()
        return now is self.value or (type(now) is type(self.value) and bool(now == self.value))

    def without_gradient(self) -> Any:
        """The tensor that this guard says to have no gradient, if that is what it says."""
        says = isinstance(self.read, Place) and self.read.form == _NO_GRADIENT and self.value is True
        return self.read.objects[0] if says and isinstance(self.read, Place) else None
