"""A group: nodes that run as one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from staticgrad.graph.node import Node
from staticgrad.graph.structure import Structure

GroupKind = Literal["fused", "matmul", "call"]


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that one kernel computes.

    Attributes:
        kind: "fused" for generated loops over elements and rows, "matmul" for a matrix product with what is done to its
            elements (`graph.epilogue`), "call" for an op with a kernel of its own (concat, embed, take, scatter_add,
            cumulative_sum, …).
        nodes: the members, operands first. Views read only inside the group are members too.
        reads: the owners of the storage that the kernel reads from outside, each once.
        writes: the members whose values are stored.
        in_place: pairs (written, read): the written value may take the storage of the read one, because the kernel
            reads each element for the last time before, or at, the moment it writes the element of the same place.
        scratch_bytes: working memory that the kernel needs while it runs. A product that is not stored, and whose place
            no written value can lend, has its own behind it, from `scratch_bytes - product.nbytes` on.
        structure: the nest of loops of a fused group, or of what follows a matrix product.
    """

    kind: GroupKind
    nodes: tuple[Node, ...]
    reads: tuple[Node, ...]
    writes: tuple[Node, ...]
    in_place: tuple[tuple[Node, Node], ...] = ()
    scratch_bytes: int = 0
    structure: Structure | None = None
