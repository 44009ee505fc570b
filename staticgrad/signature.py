"""What a specialisation is chosen by, and how two signatures differ, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from staticgrad.graph.errors import DTypeError
from staticgrad.operands import check_dtype
from staticgrad.specialize import is_array, is_static
from staticgrad.tensor import Tensor
from staticgrad.tree import TreeDef


@dataclass(frozen=True)
class Signature:
    """What a specialisation is chosen by; `paths` name the leaves for messages."""

    structure: TreeDef
    leaves: tuple[Any, ...]
    static: tuple[tuple[str, Any], ...]
    grad_enabled: bool


def parameters_of(fn: Callable[..., Any], static: Sequence[str]) -> inspect.Signature:
    """The parameters of a function; `static` names some of them.

    Raises:
        ValueError: it names one that the function does not take.
    """
    try:
        parameters = inspect.signature(fn)
    except (TypeError, ValueError):
        parameters = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])
    for name in static:
        if name not in parameters.parameters:
            raise ValueError(f"compile: static_argnames names {name!r}, but the function takes {parameters}")
    return parameters


def static_value(name: str, value: Any) -> Any:
    """The value of the static argument `name` as a part of a signature.

    Raises:
        TypeError: it is not hashable.
    """
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"compile: the static argument {name!r} must be hashable, since programs are kept by its value; got "
            f"{type(value).__name__}"
        ) from None
    return _Static(value)


@dataclass(frozen=True)
class _Static:
    """A static value that only equals values of its own type (1, 1.0 and True are three)."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and type(self.value) is type(other.value) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __repr__(self) -> str:
        return repr(self.value)


def kind_of(leaf: Any) -> Any:
    """What of a leaf the specialisation depends on."""
    if isinstance(leaf, Tensor):
        return leaf._value.shape, leaf._value.dtype, leaf._requires_grad, leaf._weak
    if isinstance(leaf, np.ndarray):
        return leaf.shape, check_dtype("compile: an argument", leaf.dtype), None
    if is_array(leaf):
        return "integer" if isinstance(leaf, int | np.integer) else "number"
    return _Static(leaf)


def unhashable_error(leaves: Sequence[Any]) -> Exception:
    """The error for leaves whose signature cannot be looked up."""
    for leaf in leaves:
        if is_static(leaf):
            try:
                hash(leaf)
            except TypeError:
                return DTypeError(
                    f"compile: an argument of type {type(leaf).__name__} is neither an array nor hashable; pass "
                    "arrays, numbers, trees of them, or hashable objects"
                )
    return DTypeError("compile: the arguments cannot be told apart by value")


def leaf_paths(named: tuple[TreeDef, TreeDef, Sequence[str]]) -> list[str]:
    """A readable path for every leaf of (args, kwargs), such as `batch['x'][0]`."""
    args, kwargs, names = named
    places = [names[i] if i < len(names) else f"args[{i}]" for i in range(len(args.children))]
    named_children = [
        *zip(places, args.children, strict=True),
        *zip(map(str, kwargs.meta), kwargs.children, strict=True),
    ]
    return [path for place, child in named_children for path in paths_below(child, place)]


def paths_below(structure: TreeDef, path: str) -> Iterator[str]:
    """The path of every leaf of a tree whose own path is given."""
    if not structure.children:
        if structure.count:
            yield path
        return
    for i, child in enumerate(structure.children):
        if isinstance(structure.meta, tuple):
            key = structure.meta[i]
            step = f"[{key!r}]" if issubclass(structure.kind, dict) else f".{key}"
        else:
            step = f"[{i}]"
        yield from paths_below(child, path + step)


def differences(old: Signature, new: Signature, paths: Sequence[str]) -> list[str]:
    """What sets two signatures apart, one text for each difference; `paths` name the leaves."""
    if old.structure != new.structure:
        before, after = (
            ", ".join(map(repr, (*s.children[0].children, s.children[1]))) for s in (old.structure, new.structure)
        )
        return [f"structure of the arguments: {before} became {after}"]
    found = []
    for path, before, after in zip(paths, old.leaves, new.leaves, strict=True):
        if before != after:
            found.append(f"{path}: {_described(before)} became {_described(after)}")
    for (name, before), (_, after) in zip(old.static, new.static, strict=False):
        if before != after:
            found.append(f"{name}: {before!r} became {after!r}")
    if old.grad_enabled != new.grad_enabled:
        found.append(f"grad mode: {'on' if old.grad_enabled else 'off'} became {'on' if new.grad_enabled else 'off'}")
    return found


def _described(kind: Any) -> str:
    if isinstance(kind, tuple):
        shape, dtype = kind[:2]
        return f"{dtype}[{', '.join(map(str, shape))}]" + (" requiring grad" if kind[2] else "")
    return repr(kind) if isinstance(kind, _Static) else f"a Python {kind}"
