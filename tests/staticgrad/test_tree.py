"""Trees: what counts as structure, and that it comes back."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.tree import tree_flatten, tree_map, tree_unflatten

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Node:
    value: Any
    children: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    value: Any
    doubled: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", self.value * 2)


TREES: list[tuple[Any, list[Any]]] = [
    (1, [1]),
    ((), []),
    ([], []),
    ({}, []),
    (None, []),
    ((1, [2, (3,)], {"a": 4, "b": None}), [1, 2, 3, 4]),
    (Point(1, (2, 3)), [1, 2, 3]),
    (Node(1, [Node(2), Node(3, [4])]), [1, 2, 3, 4]),
    (Frozen(3), [3, 6]),
    (OrderedDict([("b", 1), ("a", 2)]), [1, 2]),
    ("text", ["text"]),
]


@pytest.mark.parametrize(("tree", "leaves"), TREES)
def test_leaves_from_left_to_right_and_back(tree: Any, leaves: list[Any]) -> None:
    found, structure = tree_flatten(tree)
    assert found == leaves
    rebuilt = tree_unflatten(structure, found)
    assert rebuilt == tree
    assert type(rebuilt) is type(tree)


def test_dicts_keep_their_order() -> None:
    found, structure = tree_flatten({"b": 1, "a": 2})
    assert found == [1, 2]
    assert list(tree_unflatten(structure, found)) == ["b", "a"]


def test_structures_compare_and_hash() -> None:
    first, second = tree_flatten((1, {"a": 2}))[1], tree_flatten((5, {"a": "x"}))[1]
    assert first == second
    assert hash(first) == hash(second)
    others = [(1, {"b": 2}), [1, {"a": 2}], (1, {"a": (2,)}), (1, {"a": None}), (1, {"a": 2}, 3)]
    assert all(tree_flatten(other)[1] != first for other in others)
    assert repr(first) == "tuple(*, dict(a=*))"


def test_fields_that_init_does_not_take_are_restored() -> None:
    leaves, structure = tree_flatten(Frozen(3))
    made = tree_unflatten(structure, [10, 99])
    assert (made.value, made.doubled) == (10, 99)
    assert leaves == [3, 6]


def test_wrong_number_of_leaves() -> None:
    structure = tree_flatten((1, 2))[1]
    for leaves in ([], [1], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"tree_unflatten: the structure has 2 leaves; got {len(leaves)}"):
            tree_unflatten(structure, leaves)


def test_map() -> None:
    assert tree_map(lambda x: x + 1, {"a": (1, [2])}) == {"a": (2, [3])}
    assert tree_map(lambda x, y, z: x + y + z, (1, 2), (10, 20), (100, 200)) == (111, 222)
    with pytest.raises(ValueError, match=r"tree_map: all trees must have one structure; got tuple\(\*, \*\) and list"):
        tree_map(lambda x, y: x, (1, 2), [1, 2])


def test_arrays_and_tensors_are_leaves() -> None:
    array, tensor = np.ones(2), sg.ones(3)
    leaves, _ = sg.tree_flatten([array, (tensor,)])
    assert leaves[0] is array
    assert leaves[1] is tensor


def test_default_dict_comes_back_with_its_keys() -> None:
    tree = defaultdict(list, {"a": 1})
    leaves, structure = tree_flatten(tree)
    made = tree_unflatten(structure, leaves)
    assert made == {"a": 1}
    assert made["new"] == []


def test_deep_trees() -> None:
    tree: Any = 1
    for _ in range(300):
        tree = [tree]
    leaves, structure = tree_flatten(tree)
    assert leaves == [1]
    assert tree_unflatten(structure, leaves) == tree
