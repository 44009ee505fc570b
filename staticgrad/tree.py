"""Trees: nested lists, tuples, dicts, named tuples and dataclasses whose leaves are everything else."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

_LEAF = "leaf"


class TreeDef:
    """The structure of a tree without its leaves; compares and hashes by structure."""

    __slots__ = ("_hash", "children", "count", "factory", "kind", "meta")

    def __init__(self, kind: Any, meta: Any, children: tuple[TreeDef, ...], factory: Any = None) -> None:
        self.kind = kind
        self.meta = meta
        self.factory = factory  # of a defaultdict
        self.children = children
        self.count: int = 1 if kind is _LEAF else sum(child.count for child in children)
        self._hash = hash((kind, meta, children))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeDef) and (
            self is other or (self.kind, self.meta, self.children) == (other.kind, other.meta, other.children)
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        if self.kind is _LEAF:
            return "*"
        name = getattr(self.kind, "__name__", str(self.kind))
        if not isinstance(self.meta, tuple):
            return f"{name}({', '.join(map(repr, self.children))})"
        return f"{name}({', '.join(f'{key}={child!r}' for key, child in zip(self.meta, self.children, strict=True))})"


LEAF = TreeDef(_LEAF, None, ())
NONE = TreeDef(type(None), None, ())


def tree_flatten(tree: Any) -> tuple[list[Any], TreeDef]:
    """The leaves of `tree` from left to right, and its structure. None is a tree without leaves."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def _flatten(tree: Any, leaves: list[Any]) -> TreeDef:
    kind = type(tree)
    if kind is tuple or kind is list:
        return TreeDef(kind, len(tree), tuple(_flatten(child, leaves) for child in tree))
    if isinstance(tree, dict):
        keys = tuple(tree)
        factory = tree.default_factory if isinstance(tree, defaultdict) else None
        return TreeDef(kind, keys, tuple(_flatten(tree[key], leaves) for key in keys), factory)
    if tree is None:
        return NONE
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return TreeDef(kind, tree._fields, tuple(_flatten(child, leaves) for child in tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = tuple(field.name for field in dataclasses.fields(tree))
        return TreeDef(kind, names, tuple(_flatten(getattr(tree, name), leaves) for name in names))
    leaves.append(tree)
    return LEAF


def tree_unflatten(treedef: TreeDef, leaves: Sequence[Any]) -> Any:
    """The tree of structure `treedef` with the given leaves; ValueError unless their number fits."""
    if len(leaves) != treedef.count:
        raise ValueError(f"tree_unflatten: the structure has {treedef.count} leaves; got {len(leaves)}")
    return _unflatten(treedef, iter(leaves))


def _unflatten(treedef: TreeDef, leaves: Any) -> Any:
    kind = treedef.kind
    if kind is _LEAF:
        return next(leaves)
    if kind is type(None):
        return None
    children = [_unflatten(child, leaves) for child in treedef.children]
    if kind is tuple or kind is list:
        return kind(children)
    if issubclass(kind, dict):
        entries = zip(treedef.meta, children, strict=True)
        return kind(treedef.factory, entries) if issubclass(kind, defaultdict) else kind(entries)
    if issubclass(kind, tuple):
        return kind(*children)
    return _dataclass(kind, dict(zip(treedef.meta, children, strict=True)))


def _dataclass(kind: type, values: dict[str, Any]) -> Any:
    initial = {field.name: values[field.name] for field in dataclasses.fields(kind) if field.init}
    made = kind(**initial)
    for field in dataclasses.fields(kind):
        if not field.init:
            object.__setattr__(made, field.name, values[field.name])
    return made


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`function` applied to the leaves of `tree` and of the trees in `rest`, which must have its structure."""
    leaves, treedef = tree_flatten(tree)
    columns = [leaves]
    for other in rest:
        found, structure = tree_flatten(other)
        if structure != treedef:
            raise ValueError(f"tree_map: all trees must have one structure; got {treedef} and {structure}")
        columns.append(found)
    return tree_unflatten(treedef, [function(*row) for row in zip(*columns, strict=True)])
