"""One pass over a graph, operands first: every node is brought to its normal form and shared with its equals.

A rule is a function `(node, rewriter) -> Node | None`. It looks at a node whose operands are already in normal form
and answers with a node that computes the same, made by the rewriter's methods, or with None. Rules look down only, so
that after one pass no rule applies any more, except those that ask who else reads an operand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.graph.node import DType, Graph, Node, Shape
from staticgrad.graph.op import Op
from staticgrad.graph.ops.leaf import Value, constant, graph_input
from staticgrad.graph.ops.shape import broadcast_to, reshape

Rule = Callable[[Node, "Rewriter"], Node | None]
Key = tuple[Any, ...]

# Sorting the operands of these would be exact but for the sign of a zero, and that is not exact enough.
_SIGN_OF_ZERO = frozenset(("maximum", "minimum"))


class Rewriter:
    """The state of one pass.

    Attributes:
        changed: the pass has replaced something. From then on every node is made anew, so that the nodes' serial
            numbers keep the order of the program.
        declined: a rule did not apply only because another node reads an operand; a second pass may find it gone.
    """

    def __init__(self, graph: Graph, rules: Mapping[str, Sequence[Rule]], rules_of_kind: Mapping[str, Sequence[Rule]]):
        self.changed = False
        self.declined = False
        self._graph = graph
        self._rules = rules
        self._rules_of_kind = rules_of_kind
        self._known: dict[Key, Node] = {}
        self._replacement: dict[Node, Node] = {}
        self._reads: dict[Node, int] = {}
        self._origin: Node

    def run(self) -> Graph:
        """The rewritten graph: the same object when nothing changed."""
        counts = _reads(self._graph)
        for leaf in self._graph.inputs:
            self._replacement[leaf] = leaf
        for node in self._graph.nodes:
            found = self._visit(node)
            self._replacement[node] = found
            self._reads[found] = self._reads.get(found, 0) + counts[node]
        if not self.changed:
            return self._graph
        return Graph(
            self._graph.inputs,
            tuple(self._replacement[node] for node in self._graph.outputs),
            tuple((leaf, self._replacement[value]) for leaf, value in self._graph.updates),
        )

    def _visit(self, node: Node) -> Node:
        if node.op is graph_input:
            return node
        self._origin = node
        replacement = self._replacement
        operands = tuple([replacement[operand] for operand in node.operands])
        candidate = node
        if self.changed or operands != node.operands:
            candidate = Node(node.op, operands, node.attributes, node.shape, node.dtype, node.scope, node.location)
        found = self._normal(candidate)
        if found is not node:
            self.changed = True
        return found

    def _normal(self, node: Node) -> Node:
        """The normal form of a node whose operands are in normal form."""
        key = _key(node)
        found = self._known.get(key)
        if found is None:
            found = self._simplified(node)
            self._known[key] = found
        return found

    def _simplified(self, node: Node) -> Node:
        for rule in self._rules_of_kind.get(node.op.kind, ()):
            found = rule(node, self)
            if found is not None:
                return found
        for rule in self._rules.get(node.op.name, ()):
            found = rule(node, self)
            if found is not None:
                return found
        return node

    # ------------------------------------------------------------ what rules ask and make

    def make(self, op: Op, *operands: Node, **attributes: Any) -> Node:
        """A node in normal form, with the scope and location of the node that is being replaced."""
        spec = op.infer([operand.spec for operand in operands], attributes)
        origin = self._origin
        return self._normal(Node(op, operands, attributes, spec.shape, spec.dtype, origin.scope, origin.location))

    def constant(self, array: Any) -> Node:
        """A constant of the array's shape and dtype."""
        return self.make(constant, value=Value.of(np.asarray(array)))

    def full(self, value: Any, like: Node) -> Node:
        """`value` in the shape and dtype of `like`, stored as one element."""
        return self.stretched(self.constant(np.asarray(value, like.dtype)), like.shape)

    def stretched(self, node: Node, shape: Shape) -> Node:
        """`node` broadcast to `shape`."""
        return node if node.shape == shape else self.make(broadcast_to, node, shape=shape)

    def reshaped(self, node: Node, shape: Shape) -> Node:
        """`node` with its elements in `shape`."""
        return node if node.shape == shape else self.make(reshape, node, shape=shape)

    def only_reader(self, operand: Node) -> bool:
        """Whether the node being replaced is the only one that reads `operand`, which is then not needed any more."""
        alone = self._reads.get(operand, 1) == 1
        self.declined |= not alone
        return alone


def _reads(graph: Graph) -> dict[Node, int]:
    """How often each node is read, by nodes and as a result."""
    counts = dict.fromkeys(graph.nodes, 0)
    for node in graph.nodes:
        for operand in node.operands:
            counts[operand] += 1
    for node in graph.results:
        counts[node] += 1
    return counts


def _key(node: Node) -> Key:
    """Equal for nodes that compute the same value."""
    op, operands = node.op, node.operands
    if op.commutative and len(operands) == 2 and operands[0].serial > operands[1].serial and _sortable(node):
        operands = (operands[1], operands[0])
    if not node.attributes:
        return (op, operands)
    return (op, operands, attribute_key(node.attributes))


def _sortable(node: Node) -> bool:
    return node.op.name not in _SIGN_OF_ZERO or node.operands[0].dtype.kind != "f"


def attribute_key(attributes: Mapping[str, Any]) -> Key:
    """Attributes as a hashable value, the same in any order of names; floats by their bits, so that -0.0 is not 0.0."""
    return tuple(sorted([(name, _bits(value)) for name, value in attributes.items()], key=_by_name))


def _by_name(item: tuple[str, Any]) -> str:
    return item[0]


def _bits(value: Any) -> Any:
    return (float, value.hex()) if isinstance(value, float) else value


# ---------------------------------------------------------------- what many rules look at


def uniform(node: Node) -> Any:
    """The one value of every element, as a NumPy scalar, if `node` is a constant of one element stretched; or None."""
    while node.op is broadcast_to or node.op is reshape:
        node = node.operands[0]
    if node.op is constant and node.size == 1:
        return node.attributes["value"].array().reshape(())[()]
    return None


def is_floating(dtype: DType) -> bool:
    """Whether `dtype` is a real floating dtype."""
    return dtype.kind == "f"
