"""One group for each node, and a slow, plain executor of plans on NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.graph.group import Group
from staticgrad.graph.interpret import evaluate
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import Place, Plan
from staticgrad.graph.views import is_copy, resolve

Array = np.ndarray[Any, Any]


def is_stored(node: Node, graph: Graph) -> bool:
    """Whether a node that is not a leaf gets a group of its own: not so for a view that needs no copy."""
    if node.op.kind == "leaf":
        return False
    return node.op.kind != "view" or is_copy(node) or node in graph.results


def single(node: Node, scratch_bytes: int = 0) -> Group:
    """A group of one node; an elementwise result may take the place of an operand that is read in no other way."""
    owners = [resolve(operand).owner for operand in node.operands]
    reads = tuple(dict.fromkeys(owner for owner in owners if owner.op.name != "constant" or owner.size > 1))
    viewed = {owner for owner, operand in zip(owners, node.operands, strict=True) if owner is not operand}
    in_place = ()
    if node.op.kind == "elementwise":
        in_place = tuple((node, read) for read in reads if read not in viewed and read.nbytes == node.nbytes)
    return Group("fused", (node,), reads, (node,), in_place, scratch_bytes)


def singles(graph: Graph, scratch_bytes: int = 0) -> list[Group]:
    """One group for each node that is stored, in the order of creation."""
    return [single(node, scratch_bytes) for node in graph.nodes if is_stored(node, graph)]


def execute(graph: Graph, plan: Plan, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
    """Run a plan on real bytes; all of the arena is NaN before a group fills it, and again after it is freed."""
    arena = np.full(plan.peak_bytes, 0xFF, np.uint8)
    constants = [node.attributes["value"].array().copy() for node in plan.constants]
    spaces: dict[str, Sequence[Array]] = {"input": inputs, "output": outputs, "constant": constants}

    def window(place: Place, nbytes: int) -> Array:
        if place.space == "arena":
            return arena[place.offset : place.offset + nbytes]
        whole = spaces[place.space][place.index].reshape(-1).view(np.uint8)
        return whole[place.offset : place.offset + nbytes]

    def load(node: Node, group: Group, known: dict[Node, Array]) -> Array:
        path = [node]
        while path[-1] not in known and path[-1] not in group.reads and path[-1].op.kind == "view":
            path.append(path[-1].operands[0])
        base = path.pop()
        if base in known:
            value = known[base]
        elif base in group.reads:
            value = window(plan.places[base], base.nbytes).copy().view(base.dtype).reshape(base.shape)
        else:
            value = base.op.reference(**base.attributes)  # a constant of one element
        for view in reversed(path):
            value = view.op.reference(value, **view.attributes)
        return value

    for group, frees in zip(plan.groups, plan.frees, strict=True):
        known: dict[Node, Array] = {}
        for node in group.nodes:
            known[node] = evaluate(node, [load(operand, group, known) for operand in node.operands])
        if group in plan.scratch:
            window(plan.scratch[group], group.scratch_bytes)[...] = 0xAA
        for node in group.writes:
            window(plan.places[node], node.nbytes)[...] = np.ascontiguousarray(known[node]).reshape(-1).view(np.uint8)
        for offset, nbytes in frees:
            arena[offset : offset + nbytes] = 0xFF
    for source, target, nbytes in plan.copies:
        window(target, nbytes)[...] = window(source, nbytes)
