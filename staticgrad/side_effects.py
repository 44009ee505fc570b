"""What a function could change besides its results: found before a capture, compared after it.

A captured function runs once; a list it appends to or a counter it moves would not change again in later calls. So the
containers and numbers that the function (and the Python functions it names) can reach by closure, by global name, as
default or as attribute of a reached object are noted, and a change is an error, after what was there is put back.
"""

from __future__ import annotations

import dis
import functools
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from staticgrad.graph.errors import CaptureError
from staticgrad.graph.node import Node
from staticgrad.guards import attribute, item_or_none
from staticgrad.tensor import Tensor

_CONTAINERS = (list, dict, set, deque)
_NUMBERS = (bool, int, float, str, type(None))
_DEPTH = 4
_MOST = 20_000  # objects that are looked at: beyond that, a change goes unseen until the value is used


class Variable:
    """One closure cell or global name of a function."""

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.name = name
        self.read = read
        self.write = write


def variables(function: Any, depth: int = _DEPTH, seen: set[int] | None = None) -> Iterator[Variable]:
    """The closure cells and global names that `function` reads, and those of the functions among them."""
    seen = set() if seen is None else seen
    function = _unwrapped(function)
    if isinstance(function, types.MethodType):
        owner = function.__self__
        yield Variable("self", lambda: owner, lambda _: None)
        function = function.__func__
    elif not hasattr(function, "__code__") and _is_object(function):  # an instance that is called, such as a model
        instance = function
        yield Variable(type(instance).__name__, lambda: instance, lambda _: None)
        function = getattr(type(instance), "forward", type(instance).__call__)
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen or depth == 0 or _is_library(function):
        return
    seen.add(id(code))
    found = list(_cells(function)) + list(_globals(function))
    yield from found
    for variable in found:
        value = variable.read()
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial) or _is_compiled(value):
            yield from variables(value, depth - 1, seen)


def _unwrapped(function: Any) -> Any:
    """The function below decorators and bound arguments."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


def _is_compiled(value: Any) -> bool:
    return hasattr(type(value), "__staticgrad_compiled__")


def code_of(function: Any) -> types.CodeType | None:
    """The code of a Python function, method or partial; None for everything else."""
    function = _unwrapped(function)
    return getattr(getattr(function, "__func__", function), "__code__", None)


@functools.lru_cache(maxsize=1024)
def names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The global names that code mentions, functions inside it included, and the names of attributes."""
    found: set[str] = set()
    attributes: set[str] = set()
    pending = [code]
    while pending:
        current = pending.pop()
        pending += [constant for constant in current.co_consts if isinstance(constant, types.CodeType)]
        for instruction in dis.get_instructions(current):
            if instruction.opname.endswith(("_GLOBAL", "_NAME")):
                found.add(str(instruction.argval))
            elif "_ATTR" in instruction.opname or "METHOD" in instruction.opname:
                attributes.add(str(instruction.argval))
    return frozenset(found), frozenset(attributes)


def _is_library(function: Any) -> bool:
    module = str(getattr(function, "__module__", ""))
    return module.split(".")[0] in ("staticgrad", "numpy") and not module.startswith("staticgrad.cli")


def _cells(function: Any) -> Iterator[Variable]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cell.cell_contents  # noqa: B018  (an empty cell raises)
        except ValueError:
            continue

        def write(value: Any, cell: Any = cell) -> None:
            cell.cell_contents = value

        yield Variable(name, attribute(cell, "cell_contents"), write)


def _globals(function: Any) -> Iterator[Variable]:
    space = function.__globals__
    for name in sorted(names_in(function.__code__)[0]):
        if name in space and not isinstance(space[name], types.ModuleType | type):

            def write(value: Any, name: str = name) -> None:
                space[name] = value

            yield Variable(name, item_or_none(space, name), write)


class Watch:
    """The state of everything reachable before a capture; `check()` raises on the first change."""

    def __init__(self, function: Any, arguments: list[Any]) -> None:
        self._variables = [(v, v.read()) for v in variables(function)]
        self._containers: list[tuple[str, Any, Any]] = []
        self._attributes: list[tuple[str, Any, dict[str, Any]]] = []
        found = [("random", random), *self.reached()]
        self._imports_generator = not _numpy_draws()
        if not self._imports_generator:
            found.append(("numpy.random", np.random))
        self._generators = [(name, value, _state_of(value)) for name, value in found if _state_of(value) is not None]
        seen: set[int] = set()
        for variable, value in self._variables:
            self._note(variable.name, value, seen)
        for value in arguments:
            self._note(type(value).__name__, value, seen)

    def reached(self) -> list[tuple[str, Any]]:
        """The names and values of the variables."""
        return [(variable.name, value) for variable, value in self._variables]

    def variables(self) -> Iterator[Variable]:
        """The variables, on whose values the captured graph depends."""
        return (variable for variable, _ in self._variables)

    def _note(self, name: str, value: Any, seen: set[int]) -> None:
        pending = [(name, value)]
        while pending:
            name, value = pending.pop()
            if id(value) in seen or len(seen) > _MOST:
                continue
            seen.add(id(value))
            if isinstance(value, _CONTAINERS):
                self._containers.append((name, value, _content(value)))
                items = value.items() if isinstance(value, dict) else ((i, item) for i, item in enumerate(value))
                pending.extend((f"{name}[{key!r}]", item) for key, item in items if _is_object(item))
            elif _is_object(value) and not isinstance(value, Tensor):
                exempt = getattr(type(value), "capture_exempt", ())
                attributes = {key: item for key, item in vars(value).items() if key not in exempt}
                self._attributes.append((name, value, attributes))
                pending.extend((f"{name}.{key}", item) for key, item in attributes.items() if _is_object(item))

    def check(self) -> None:
        """Raise CaptureError, after putting back what was there, if anything has changed."""
        self._check_generators()
        changes = [*self._changed_variables(), *self._changed_containers(), *self._changed_attributes()]
        if changes:
            raise CaptureError(
                f"compile: the function changes {', '.join(changes)}; a compiled function runs without Python, so this "
                "would happen once and never again. Return the value from the function, keep it in a Tensor (copy_), "
                "or move the line out of the compiled function"
            )

    def _check_generators(self) -> None:
        if self._imports_generator and _numpy_draws():
            self._generators.append(("numpy.random", np.random, _state_at_import()))
        drawn = [entry for entry in self._generators if not _same_state(_state_of(entry[1]), entry[2])]
        for _, generator, before in drawn:
            _restore_state(generator, before)
        if drawn:
            raise CaptureError(
                f"compile: the function draws from {', '.join(name for name, *_ in drawn)}; a compiled function runs "
                "without Python, so it would use the same numbers in every call. Draw with sg.random, or pass the "
                "numbers as an argument"
            )

    def _changed_variables(self) -> list[str]:
        changes = []
        for variable, before in self._variables:
            now = variable.read()
            if now is not before and not (isinstance(now, _NUMBERS) and type(now) is type(before) and now == before):
                variable.write(before)
                changes.append(f"the variable {variable.name!r}")
        return changes

    def _changed_containers(self) -> list[str]:
        changes = []
        for name, container, before in self._containers:
            if not _same(_content(container), before):
                _restore(container, before)
                changes.append(f"the {type(container).__name__} {name!r}")
        return changes

    def _changed_attributes(self) -> list[str]:
        changes = []
        for name, owner, before in self._attributes:
            exempt = getattr(type(owner), "capture_exempt", ())
            for key, value in list(vars(owner).items()):
                if key in exempt:
                    continue
                old = before.get(key, _MISSING)
                if value is not old and (_traced(value) or (isinstance(value, _NUMBERS) and not _equal(value, old))):
                    if old is _MISSING:
                        vars(owner).pop(key)
                    else:
                        vars(owner)[key] = old
                    changes.append(f"the attribute {name}.{key}")
        return changes


_MISSING = object()


def _numpy_draws() -> bool:
    """Whether NumPy's random numbers are imported: that takes 5 ms, and `np.random` would do it."""
    return "numpy.random" in sys.modules


def _state_at_import() -> Any:
    """The state that `numpy.random` had when it was imported; another one if it has been seeded since."""
    module: Any = np.random  # whose stub does not know the function
    return np.random.RandomState(np.random.MT19937(module.get_bit_generator().seed_seq)).get_state()


def _state_of(generator: Any) -> Any:
    """The state of a random generator of Python or NumPy, None for everything else."""
    if _numpy_draws():
        if isinstance(generator, np.random.Generator):
            return generator.bit_generator.state
        if generator is np.random or isinstance(generator, np.random.RandomState):
            return generator.get_state()
    return generator.getstate() if generator is random or type(generator) is random.Random else None


def _same_state(now: Any, before: Any) -> bool:
    return pickle.dumps(now) == pickle.dumps(before)


def _restore_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif generator is np.random or isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _equal(value: Any, old: Any) -> bool:
    return type(value) is type(old) and bool(value == old)


def _traced(value: Any) -> bool:
    return isinstance(value, Tensor) and isinstance(value._value, Node)


def _is_object(value: Any) -> bool:
    """A container, or an instance of a user's or a model's class, whose attributes can change."""
    if isinstance(value, _CONTAINERS):
        return True
    if isinstance(value, type | types.ModuleType | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return False
    if _is_compiled(value):
        return False
    module = type(value).__module__.split(".")[0]
    return hasattr(value, "__dict__") and module not in ("builtins", "numpy", "threading", "logging", "io")


def _content(container: Any) -> Any:
    if isinstance(container, dict):
        return list(container.items())
    return list(container)


def _same(now: list[Any], before: list[Any]) -> bool:
    if len(now) != len(before):
        return False
    for a, b in zip(now, before, strict=True):
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) == 2:
            if a[0] is not b[0] or (a[1] is not b[1] and not (isinstance(a[1], _NUMBERS) and _equal(a[1], b[1]))):
                return False
        elif a is not b and not (isinstance(a, _NUMBERS) and _equal(a, b)):
            return False
    return True


def _restore(container: Any, before: list[Any]) -> None:
    container.clear()
    if isinstance(container, dict | set):
        container.update(before)
    else:
        container.extend(before)
