"""Hoisting: a number that all rows of a kernel give is made ahead of them, where it does not need what they compute.

The mean of a loss divides by the number of labels that count. That number is whole only after the loop over all rows,
so the gradient, which is scaled by it, would be a second kernel, and what both share (the exponentials of a softmax)
would go through memory. Counted in a small kernel before, it lets loss and gradient be one.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from staticgrad.graph.members import Member
from staticgrad.graph.node import Node


def ahead(members: Sequence[Member], wanted: Container[Node], size: int) -> set[Node]:
    """The members that make the `wanted` numbers of a kernel over `size` points; none if that takes all points.

    They must be sums over fewer points, such as one value for each row: a kernel of their own is then small.
    """
    by_node = {member.node: member for member in members}
    pending = [member.node for member in members if member.node.size == 1 and member.node in wanted]
    found: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in found:
            continue
        if by_node[node].reach == size:
            return set()
        found.add(node)
        pending += [access.owner for access in by_node[node].accesses if access.owner in by_node]
    return found if any(by_node[node].kind == "reduce" for node in found) else set()
