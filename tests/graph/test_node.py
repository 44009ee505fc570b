"""Nodes: fixed once made, compared by identity, numbered in the order in which they were made."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from staticgrad.graph.location import UNKNOWN
from staticgrad.graph.node import Node
from staticgrad.graph.op import registry


def made() -> Node:
    return Node(registry["exp"], (), {}, (2, 3), np.dtype(np.float32))


def test_a_node_cannot_be_changed() -> None:
    node = made()
    with pytest.raises(AttributeError, match="cannot be changed"):
        node.shape = (3,)
    with pytest.raises(AttributeError, match="cannot be changed"):
        del node.shape
    assert node.shape == (2, 3)
    assert type(node) is Node


def test_identity_order_and_defaults() -> None:
    first, second = made(), made()
    assert first != second
    assert first.serial < second.serial
    assert (first.scope, first.location) == ("", UNKNOWN)
    assert weakref.ref(first)() is first
