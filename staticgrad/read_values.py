"""Which plain Python values a function reads: a program holds them as constants, so a change must compile again.

Found by name: the variables of the function and of the Python functions it names, the attributes that their code
mentions of the objects behind those variables, and the items of the containers among them. What belongs to the library
itself (modules, optimizers) says by itself what it reads; see `capture_state`.
"""

from __future__ import annotations

import functools
import reprlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from staticgrad.capture import Elements
from staticgrad.guards import attribute_or
from staticgrad.side_effects import _CONTAINERS, _NUMBERS, _content, _is_object, _same, code_of, names_in
from staticgrad.tensor import Tensor

Reading = tuple[str, Callable[[], Any], Any, str]  # what, how to read it, its owner, its name there
CONTENT = "content"  # the name in the reading of an array's elements: to be watched where NumPy computes with them
_MISSING = object()


class _Held:
    """A value that counts as unchanged while it is the same object, or an equal number or text."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and _same([self.value], [other.value])

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "missing" if self.value is _MISSING else reprlib.repr(self.value)


class _Items:
    """The items of a container at one moment."""

    def __init__(self, container: Any) -> None:
        self.items = _content(container)
        self.kind = type(container).__name__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Items) and _same(self.items, other.items)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.kind} of {reprlib.repr(self.items)}"


def values_read(function: Any, reached: Iterable[tuple[str, Any]]) -> list[Reading]:
    """What to watch of the values that `reached` names: their attributes by name and their items.

    Args:
        function: the captured function; its code and that of the functions it names say which attributes are read.
        reached: names and values of its variables and of the arguments that are no arrays.
    """
    named = [("the function", function), *reached]
    names = _Names([value for _, value in named])
    while True:
        known = len(names.found)
        readings = list(_walk(named, names))
        if len(names.found) == known:
            return readings


def _walk(named: Sequence[tuple[str, Any]], names: _Names) -> Iterator[Reading]:
    seen: set[int] = set()
    pending = list(named)[::-1]
    while pending:
        name, value = pending.pop()
        if id(value) in seen or isinstance(value, Tensor):
            continue
        seen.add(id(value))
        if isinstance(value, np.ndarray):
            yield f"the content of the array {name!r}", functools.partial(Elements, value), value, CONTENT
        elif isinstance(value, _CONTAINERS):
            yield f"the {type(value).__name__} {name!r}", functools.partial(_Items, value), value, "items"
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{name}[{key!r}]", item) for key, item in items if not isinstance(item, _NUMBERS)]
        elif isinstance(value, tuple):
            pending += [(f"{name}[{i}]", item) for i, item in enumerate(value)]
        elif isinstance(value, functools.partial):
            pending += [(name, value.func), (f"{name}.args", value.args), (f"{name}.keywords", value.keywords)]
        else:
            pending += _modules(name, value)
            if _has_attributes(value):
                names.add_class(value)
                for key in sorted(names.found & _keys(value)):
                    if not _watches_itself(value):
                        yield f"{name}.{key}", attribute_or(value, key, _MISSING).seen_through(held), value, key
                    pending.append((f"{name}.{key}", getattr(value, key, _MISSING)))


def held(value: Any) -> Any:
    """`value` in a form whose `==` never looks into tensors or objects."""
    return value if isinstance(value, _NUMBERS) else _Held(value)


def unheld(value: Any) -> Any:
    """The value that `held` was given."""
    return value.value if isinstance(value, _Held) else value


def _modules(name: str, value: Any) -> list[tuple[str, Any]]:
    """The children of a model, which says itself which attributes it reads, but not what these hold."""
    children = getattr(value, "named_children", None)
    return [(f"{name}.{key}", child) for key, child in children()] if _watches_itself(value) and children else []


def _watches_itself(value: Any) -> bool:
    return hasattr(type(value), "_guard")


def _has_attributes(value: Any) -> bool:
    """Whether a value is a user's object, class or module; those of libraries do not change."""
    if isinstance(value, types.ModuleType):
        file = getattr(value, "__file__", None) or ""
        root = value.__name__.partition(".")[0]
        return bool(file) and "site-packages" not in file and not _is_known(root)
    kind = value if isinstance(value, type) else type(value)
    return (isinstance(value, type) or _is_object(value)) and not _is_known(kind.__module__.partition(".")[0])


def _is_known(package: str) -> bool:
    return package in ("staticgrad", "numpy") or package in sys.stdlib_module_names - {"__main__"}


def _keys(value: Any) -> set[str]:
    """The names of attributes that hold data: functions and descriptors apart."""
    keys = set(vars(value)) if hasattr(value, "__dict__") else set()
    kind = value if isinstance(value, type) else type(value)
    for base in () if isinstance(value, types.ModuleType) else kind.__mro__:
        if not _is_known(base.__module__.partition(".")[0]):
            keys |= {key for key, item in vars(base).items() if isinstance(item, (*_NUMBERS, *_CONTAINERS, tuple))}
    if isinstance(value, types.ModuleType):
        keys = {key for key in keys if isinstance(vars(value)[key], _NUMBERS)}
    return {key for key in keys if not key.startswith("__")}


class _Names:
    """The names that code mentions; grows with the methods that are mentioned of the classes met."""

    def __init__(self, functions: Iterable[Any]) -> None:
        self.found: set[str] = set()
        for function in functions:
            self._add(function)

    def _add(self, function: Any) -> None:
        code = code_of(function)
        if code is not None:
            self.found |= names_in(code)[1]

    def add_class(self, value: Any) -> None:
        """Take in the code of the methods and properties of a value's class that are mentioned so far."""
        kind = value if isinstance(value, type) else type(value)
        entries = [(key, item) for base in kind.__mro__ for key, item in vars(base).items()]
        before = -1
        while before != len(self.found):
            before = len(self.found)
            for key, item in entries:
                if key in self.found or (key.startswith("__") and key != "__init__") or key == "forward":
                    self._add(item.fget if isinstance(item, property) else item)
