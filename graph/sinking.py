"""Sinking: a value that only one later kernel reads is made there, if what it is made from is stored anyway.

Fusion puts a node with its producers, because they come first. The slope of an activation, 1 - tanh(x)**2, then lands
in the forward kernel and is kept for the backward one, although the tanh that it is made from is kept as well. Moved
to its reader it never goes through memory, and the arena of a training step is smaller by all the slopes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence, Set

from staticgrad.graph.node import Node


def cone(
    node: Node,
    kernel: Mapping[Node, bool],
    readers: Mapping[Node, Sequence[Node]],
    reads: Callable[[Node], Sequence[Node]],
    is_stored: Callable[[Node], bool],
    updated: Set[Node],
) -> set[Node] | None:
    """The nodes of a kernel that serve only `node`, itself included; None if moving them would not save memory.

    It saves if all of them are made point by point from stored values that together are no larger than `node`, since
    those then live on until the reader runs. State that is updated must not be read later than it is now.

    Args:
        kernel: its nodes, and of each whether it is made point by point.
        readers, reads: what reads a stored value, and the stored values that a node reads; the nodes of a kernel count.
        is_stored: whether a node of the kernel is written to memory.
        updated: the inputs that the step overwrites.
    """
    moved: set[Node] = set()
    kept: set[Node] = set()  # stored values that the moved nodes read
    pending = [(-node.serial, node)]
    while pending:  # the youngest first, so that all that may read a node has been decided on before it
        _, member = heapq.heappop(pending)
        if member in moved or member in kept:
            continue
        if member is not node and not moved.issuperset(readers[member]):
            if not is_stored(member):
                return None
            kept.add(member)
            continue
        if not kernel[member]:
            return None
        moved.add(member)
        for owner in reads(member):
            if owner in kernel:
                heapq.heappush(pending, (-owner.serial, owner))
            elif owner in updated:
                return None
            elif owner.op.kind != "leaf":
                kept.add(owner)
    return moved if sum(owner.nbytes for owner in kept) <= node.nbytes else None
