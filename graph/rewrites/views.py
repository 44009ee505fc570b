"""Views that cancel, join or need not be there, and slices that find their piece in what was put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from staticgrad.graph.node import Node, Shape
from staticgrad.graph.ops.leaf import constant
from staticgrad.graph.ops.shape import broadcast_to, concat, embed, permute_dims, reshape, slice_
from staticgrad.graph.rewrites.rewriter import Rewriter

# ---------------------------------------------------------------- any view


def no_change(node: Node, rewriter: Rewriter) -> Node | None:
    """A reshape or broadcast to the operand's own shape, a permute in order and a slice of everything -> x."""
    (x,) = node.operands
    if x.shape != node.shape:
        return None
    if node.op is permute_dims:
        return x if list(node.attributes["axes"]) == list(range(x.ndim)) else None
    if node.op is slice_:
        return x if all(step == 1 for step in node.attributes["step"]) else None
    return x


def of_one_element(node: Node, rewriter: Rewriter) -> Node | None:
    """A view of a stretched single element -> that element stretched to the view's shape."""
    (x,) = node.operands
    if x.op is not broadcast_to or x.operands[0].size != 1 or node.size == 0:
        return None
    return rewriter.stretched(rewriter.reshaped(x.operands[0], ()), node.shape)


def undone_above(node: Node, rewriter: Rewriter) -> Node | None:
    """view(f(g(view'(x)))) -> f(g(x)), where view undoes view' and f, g work on one operand and scalars, element by
    element, for nobody else. Every node is walked over by one view at most, so that all walks together are linear."""
    chain: list[tuple[Node, int]] = []  # the elementwise nodes from above, and which operand leads down
    below = node.operands[0]
    while below.op is not node.op:
        position = _single_operand(below)
        if position is None or not rewriter.only_reader(below):
            return None
        chain.append((below, position))
        below = below.operands[position]
    if not chain or not _undoes(node, below):
        return None
    found = below.operands[0]
    for above, position in reversed(chain):
        operands = [found if i == position else operand for i, operand in enumerate(above.operands)]
        found = rewriter.make(above.op, *operands, **above.attributes)
    return found


def _single_operand(node: Node) -> int | None:
    """The position of the one operand with axes, which has the node's own shape, of an elementwise op; or None."""
    if node.op.kind != "elementwise":
        return None
    shaped = [i for i, operand in enumerate(node.operands) if operand.ndim]
    return shaped[0] if len(shaped) == 1 and node.operands[shaped[0]].shape == node.shape else None


def _undoes(last: Node, first: Node) -> bool:
    """Whether the view `last`, applied right after the view `first` of the same op, gives `first`'s operand back."""
    if last.op is permute_dims:
        return [first.attributes["axes"][axis] for axis in last.attributes["axes"]] == list(range(last.ndim))
    return last.shape == first.operands[0].shape


# ---------------------------------------------------------------- reshape


def reshape_of_reshape(node: Node, rewriter: Rewriter) -> Node | None:
    """reshape(reshape(x)) -> reshape(x)."""
    (x,) = node.operands
    return rewriter.reshaped(x.operands[0], node.shape) if x.op is reshape else None


# ---------------------------------------------------------------- permute_dims


def permute_of_permute(node: Node, rewriter: Rewriter) -> Node | None:
    """permute(permute(x)) -> permute(x)."""
    (x,) = node.operands
    if x.op is not permute_dims:
        return None
    first = x.attributes["axes"]
    return rewriter.make(permute_dims, x.operands[0], axes=tuple(first[axis] for axis in node.attributes["axes"]))


def permute_of_ones(node: Node, rewriter: Rewriter) -> Node | None:
    """permute(x) -> reshape(x) where only axes of extent 1 change places."""
    (x,) = node.operands
    moved = [axis for axis in node.attributes["axes"] if x.shape[axis] != 1]
    return rewriter.reshaped(x, node.shape) if moved == sorted(moved) else None


# ---------------------------------------------------------------- broadcast_to


def broadcast_of_broadcast(node: Node, rewriter: Rewriter) -> Node | None:
    """broadcast(broadcast(x)) -> broadcast(x)."""
    (x,) = node.operands
    return rewriter.stretched(x.operands[0], node.shape) if x.op is broadcast_to else None


def broadcast_of_constant(node: Node, rewriter: Rewriter) -> Node | None:
    """A stretched constant of one element -> the same constant without axes, stretched."""
    (x,) = node.operands
    if x.op is not constant or x.size != 1 or x.ndim == 0:
        return None
    return rewriter.stretched(rewriter.reshaped(x, ()), node.shape)


def broadcast_of_padded(node: Node, rewriter: Rewriter) -> Node | None:
    """broadcast(reshape(x)) -> broadcast(x) where the reshape only adds axes of 1 in front."""
    (x,) = node.operands
    bare = without_leading_ones(x)
    return rewriter.stretched(bare, node.shape) if bare is not x else None


def broadcast_without_stretch(node: Node, rewriter: Rewriter) -> Node | None:
    """broadcast(x) -> reshape(x) where it only adds axes of 1."""
    (x,) = node.operands
    return rewriter.reshaped(x, node.shape) if x.size == node.size else None


def without_leading_ones(node: Node) -> Node:
    """x for reshape(x) that only adds axes of 1 in front, else the node itself."""
    if node.op is not reshape:
        return node
    x = node.operands[0]
    added = node.ndim - x.ndim
    return x if added > 0 and node.shape == (1,) * added + x.shape else node


def bare_operands(node: Node, rewriter: Rewriter) -> Node | None:
    """Drop the broadcasts in front of an elementwise op that broadcasts by itself."""
    if len(node.operands) < 2:
        return None
    operands = list(node.operands)
    for position, operand in enumerate(operands):
        if operand.op is broadcast_to or operand.op is reshape or (operand.op is constant and operand.ndim):
            bare = _bare(operand, rewriter)
            if bare is not operand and _reaches(node.shape, operands, position, bare.shape):
                operands[position] = bare
    if all(a is b for a, b in zip(operands, node.operands, strict=True)):
        return None
    return rewriter.make(node.op, *operands, **node.attributes)


def _bare(operand: Node, rewriter: Rewriter) -> Node:
    if operand.op is broadcast_to:
        return operand.operands[0]
    if operand.op is constant:
        return rewriter.reshaped(operand, ()) if operand.size == 1 else operand
    return without_leading_ones(operand)


def _reaches(shape: Shape, operands: Sequence[Node], position: int, bare: Shape) -> bool:
    """Whether the operands still broadcast to `shape` with that at `position` of shape `bare`."""
    shapes = [bare if i == position else operand.shape for i, operand in enumerate(operands)]
    return np.broadcast_shapes(*shapes) == shape


# ---------------------------------------------------------------- slice, embed, concat


def slice_of_slice(node: Node, rewriter: Rewriter) -> Node | None:
    """slice(slice(x)) -> slice(x)."""
    (x,) = node.operands
    if x.op is not slice_:
        return None
    inner, outer = x.attributes, node.attributes
    bounds = [
        _joined(low, stride, start, step, count)
        for low, stride, start, step, count in zip(
            inner["start"], inner["step"], outer["start"], outer["step"], node.shape, strict=True
        )
    ]
    start, stop, step = (tuple(part) for part in zip(*bounds, strict=True))
    return rewriter.make(slice_, x.operands[0], start=start, stop=stop, step=step)


def _joined(low: int, stride: int, start: int, step: int, count: int) -> tuple[int, int, int]:
    """Bounds of every `step`-th from `start` of every `stride`-th from `low`, `count` elements."""
    if count == 0:
        return 0, 0, 1
    first, joined = low + stride * start, stride * step
    last = first + joined * (count - 1)
    return (first, last + 1, joined) if joined > 0 else (first, last - 1, joined)


def slice_of_concat(node: Node, rewriter: Rewriter) -> Node | None:
    """A slice that lies within one operand of a concat -> a slice of that operand."""
    (x,) = node.operands
    if x.op is not concat or node.size == 0:
        return None
    axis, (start, stop, step) = x.attributes["axis"], _bounds(node)
    if step[axis] < 0:
        return None
    before = 0
    for piece in x.operands:
        after = before + piece.shape[axis]
        if before <= start[axis] and stop[axis] <= after:
            inside = (_replaced(bounds, axis, bounds[axis] - before) for bounds in (start, stop))
            low, high = inside
            return rewriter.make(slice_, piece, start=low, stop=high, step=step)
        before = after
    return None


def slice_of_embed(node: Node, rewriter: Rewriter) -> Node | None:
    """slice(embed(x)) -> x where the slice takes out exactly what was put in."""
    (x,) = node.operands
    if x.op is not embed or x.operands[0].shape != node.shape or node.size == 0:
        return None
    placed, taken = x.attributes, node.attributes
    pairs = zip(node.shape, placed["start"], placed["step"], taken["start"], taken["step"], strict=True)
    same = all(low == first and (count == 1 or stride == step) for count, low, stride, first, step in pairs)
    return x.operands[0] if same else None


def _bounds(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return tuple(node.attributes["start"]), tuple(node.attributes["stop"]), tuple(node.attributes["step"])


def _replaced(bounds: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*bounds[:axis], value, *bounds[axis + 1 :])


def embed_everything(node: Node, rewriter: Rewriter) -> Node | None:
    """embed(x) -> x where nothing is added."""
    (x,) = node.operands
    whole = x.shape == node.shape and all(
        step == 1 or x.shape[i] == 1 for i, step in enumerate(node.attributes["step"])
    )
    return x if whole and node.size else None


def concat_one(node: Node, rewriter: Rewriter) -> Node | None:
    """concat(x) -> x, and operands without elements are left out."""
    kept = [operand for operand in node.operands if operand.size]
    if len(kept) == 1:
        return kept[0]
    if not kept or len(kept) == len(node.operands):
        return None
    return rewriter.make(concat, *kept, **node.attributes)


def is_dense(node: Node) -> bool:
    """Whether the node's elements lie in row-major order somewhere, so that a reshape of it costs nothing."""
    while node.op is reshape:
        node = node.operands[0]
    return node.op.kind != "view"


def flattened(shape: Shape, count: int) -> Shape:
    """`shape` with its first `count` axes made one."""
    return (math.prod(shape[:count]), *shape[count:])


RULES = {
    "reshape": (no_change, of_one_element, reshape_of_reshape, undone_above),
    "permute_dims": (no_change, of_one_element, permute_of_permute, permute_of_ones, undone_above),
    "broadcast_to": (
        no_change,
        broadcast_of_broadcast,
        broadcast_of_constant,
        broadcast_of_padded,
        broadcast_without_stretch,
    ),
    "slice": (no_change, of_one_element, slice_of_slice, slice_of_concat, slice_of_embed),
    "embed": (embed_everything,),
    "concat": (concat_one,),
}
