"""The IR: immutable typed nodes that point at their operands, and the graph they form."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from staticgrad.graph.location import UNKNOWN, Location

if TYPE_CHECKING:
    from staticgrad.graph.op import Op

ALIGNMENT = 64
"""Bytes: slots of the arena start at multiples of it; a cache line, and the widest vector register."""

Shape = tuple[int, ...]
DType = np.dtype[Any]

_next_serial = itertools.count().__next__


class Spec(NamedTuple):
    """The type of a value: its shape and dtype."""

    shape: Shape
    dtype: DType

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class _OpenNode:
    """A node while it is made: its attributes can be set."""

    __slots__ = ("__weakref__", "attributes", "dtype", "location", "op", "operands", "scope", "serial", "shape")

    op: Op
    operands: tuple[Node, ...]
    attributes: Mapping[str, Any]
    shape: Shape
    dtype: DType
    scope: str
    location: Location
    serial: int


class Node(_OpenNode):
    """One value of a graph: the op that makes it, from which operands, and of what type.

    Nodes compare by identity. `serial` grows in the order of creation, so operands always come before the node that
    reads them and sorting by `serial` is a topological order.
    """

    __slots__ = ()

    def __new__(
        cls,
        op: Op,
        operands: tuple[Node, ...],
        attributes: Mapping[str, Any],
        shape: Shape,
        dtype: DType,
        scope: str = "",
        location: Location = UNKNOWN,
    ) -> Node:
        """The node, which nobody can change from then on. A frozen dataclass takes three times as long to make."""
        made: Any = _OpenNode()
        made.op = op
        made.operands = operands
        made.attributes = attributes
        made.shape = shape
        made.dtype = dtype
        made.scope = scope
        made.location = location
        made.serial = _next_serial()
        made.__class__ = cls
        node: Node = made
        return node

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Node: a node cannot be changed; make a new one with another {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Node: a node cannot be changed; it keeps its {name}")

    @property
    def spec(self) -> Spec:
        return Spec(self.shape, self.dtype)

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        return f"<{self.op.name} {self.spec} at {self.location}>"


@dataclass(frozen=True)
class Graph:
    """A captured computation.

    `inputs` are the leaves in binding order (arguments, state, host scalars; see `graph.ops.leaf`), `outputs` what
    the caller gets, `updates` pairs of a state leaf and the value that replaces its content when the step is done.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    updates: tuple[tuple[Node, Node], ...] = ()

    @property
    def results(self) -> tuple[Node, ...]:
        """Everything that must be computed: outputs, then new values of state."""
        return self.outputs + tuple(value for _, value in self.updates)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that a result depends on, operands first, in the order of creation."""
        return reachable(self.results)

    @cached_property
    def users(self) -> Mapping[Node, tuple[Node, ...]]:
        """For each node the nodes that read it, in order (once for each operand position)."""
        readers: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for operand in node.operands:
                readers[operand].append(node)
        return {node: tuple(found) for node, found in readers.items()}

    def __repr__(self) -> str:
        return f"<graph of {len(self.nodes)} nodes, {len(self.inputs)} inputs, {len(self.outputs)} outputs>"

    def __str__(self) -> str:
        from staticgrad.graph.printer import format_graph

        return format_graph(self)


def reachable(results: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes that `results` depend on, themselves included, sorted by creation; iterative, linear in edges."""
    seen: set[Node] = set()
    pending = list(results)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(node.operands)
    return tuple(sorted(seen, key=_by_serial))


def _by_serial(node: Node) -> int:
    return node.serial
