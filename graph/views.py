"""Views: which storage a node's elements lie in, and at which strides.

A view op owns no storage where its elements can be reached by strides over the storage of another node, its owner.
A reshape that no strides can express stands for a copy, and is then an owner itself.

A layout is the same thing seen from a loop over all elements in order: pairs (extent, stride), outermost first, with
neighbours merged where one stride serves both. ((6, 1),) reads six elements in a row, ((2, 1), (3, 0)) reads two
elements three times each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from staticgrad.graph.node import Node, Shape

Layout = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Strided:
    """Elements of `owner`'s storage: `storage[offset + sum(strides * index)]`, counted in elements."""

    owner: Node
    offset: int
    strides: tuple[int, ...]
    shape: Shape

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie next to each other in order."""
        return math.prod(self.shape) <= 1 or collapse(self.shape, self.strides) == ((math.prod(self.shape), 1),)


def contiguous_strides(shape: Shape) -> tuple[int, ...]:
    """The strides of an array stored in order, in elements."""
    strides = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def around(shape: Shape, axis: int) -> tuple[int, int]:
    """How many elements lie before and after an axis: an array in order is indexed by (before, axis, after)."""
    return math.prod(shape[:axis]), math.prod(shape[axis + 1 :])


def own_storage(node: Node) -> Strided:
    """All of `node` in its own storage."""
    return Strided(node, 0, contiguous_strides(node.shape), node.shape)


def resolve(node: Node, known: dict[Node, Strided] | None = None) -> Strided:
    """Follow views to the node whose storage they read.

    Args: `known` remembers answers between calls, which keeps long chains of views linear.
    """
    known = {} if known is None else known
    chain = []
    while node not in known and node.op.kind == "view":
        chain.append(node)
        node = node.operands[0]
    found = known.get(node) or own_storage(node)
    for view in reversed(chain):
        found = known[view] = _through(view, found) or own_storage(view)
    return found


def is_copy(node: Node) -> bool:
    """Whether a view cannot be expressed by strides, so that it must be copied."""
    return node.op.kind == "view" and resolve(node).owner is node


def _through(view: Node, base: Strided) -> Strided | None:
    """`view`, which reads all of `base`, over the storage of `base`; None where strides cannot express it."""
    attributes = view.attributes
    offset, strides = base.offset, base.strides
    if view.op.name == "reshape":
        reshaped = _reshaped(base, view.shape)
        return None if reshaped is None else Strided(base.owner, offset, reshaped, view.shape)
    if view.op.name == "permute_dims":
        strides = tuple(strides[axis] for axis in attributes["axes"])
    elif view.op.name == "broadcast_to":
        strides = broadcast_strides(base.shape, strides, view.shape)
    elif view.op.name == "slice":
        if view.size:
            offset += sum(low * stride for low, stride in zip(attributes["start"], strides, strict=True))
        strides = tuple(step * stride for step, stride in zip(attributes["step"], strides, strict=True))
    else:
        return None
    return Strided(base.owner, offset, strides, view.shape)


def broadcast_strides(shape: Shape, strides: Sequence[int], target: Shape) -> tuple[int, ...]:
    """Strides that read an array of `shape` as one of `target`: 0 along stretched axes, aligned from the right."""
    lead = len(target) - len(shape)
    kept = (
        0 if extent == 1 and target[lead + axis] != 1 else stride
        for axis, (extent, stride) in enumerate(zip(shape, strides, strict=True))
    )
    return (0,) * lead + tuple(kept)


def _reshaped(base: Strided, shape: Shape) -> tuple[int, ...] | None:
    """The strides of `base` seen in another shape, or None where there are none."""
    if math.prod(shape) == 0:
        return (0,) * len(shape)
    layout = list(collapse(base.shape, base.strides))
    strides = [0] * len(shape)
    extent, stride = 1, 0  # what is left of the innermost run
    for axis in range(len(shape) - 1, -1, -1):
        if shape[axis] == 1:
            continue
        if extent == 1:
            extent, stride = layout.pop()
        if extent % shape[axis]:
            return None
        strides[axis] = stride
        extent //= shape[axis]
        stride *= shape[axis]
    return tuple(strides)


# ---------------------------------------------------------------- layouts


def collapse(shape: Shape, strides: Sequence[int]) -> Layout:
    """The layout of a strided array: axes of one element dropped, neighbours merged where one stride serves both."""
    runs: list[tuple[int, int]] = []
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if runs and runs[-1][1] == extent * stride:
            runs[-1] = (runs[-1][0] * extent, stride)
        else:
            runs.append((extent, stride))
    return tuple(runs)


def boundaries(layout: Layout) -> set[int]:
    """How many elements lie within each run but the outermost: where a loop over all elements must be cut."""
    found = set()
    inner = 1
    for extent, _ in reversed(layout[1:]):
        inner *= extent
        found.add(inner)
    return found


def nested(cuts: Sequence[int], size: int) -> bool:
    """Whether ascending `cuts` divide one another and `size`, so that they are the axes of one nest of loops."""
    chain = [*cuts, size]
    return all(larger % smaller == 0 for smaller, larger in pairwise(chain))


def split(layout: Layout, extents: Sequence[int]) -> tuple[int, ...]:
    """The stride of `layout` along each axis of a nest of loops whose cuts include its boundaries."""
    strides = [0] * len(extents)
    runs = list(layout)
    extent, stride = 1, 0
    for axis in range(len(extents) - 1, -1, -1):
        if extents[axis] == 1:
            continue
        if extent == 1:
            extent, stride = runs.pop()
        strides[axis] = stride
        extent //= extents[axis]
        stride *= extents[axis]
    return tuple(strides)
