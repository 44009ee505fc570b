"""A graph in normal form: constants folded, equal work shared, views cancelled, transposes inside the products.

Nothing here changes what a program means. Every rewrite is exact in IEEE arithmetic unless its docstring says by how
much it may differ; those change the order of a sum, or the error of `pow`. What no result needs is dropped, since a
graph is what its results reach; inputs stay all in place, read or not.
"""

from __future__ import annotations

from collections.abc import Mapping

from staticgrad.graph.node import Graph, Node
from staticgrad.graph.ops import leaf, shape
from staticgrad.graph.rewrites import arithmetic, constants, logic, products, reductions, views
from staticgrad.graph.rewrites.rewriter import Rewriter, Rule


def _table(*families: Mapping[str, tuple[Rule, ...]]) -> dict[str, tuple[Rule, ...]]:
    table: dict[str, tuple[Rule, ...]] = {}
    for family in families:
        for name, rules in family.items():
            table[name] = table.get(name, ()) + rules
    return table


_STRETCHED = frozenset((leaf.constant, shape.broadcast_to, shape.reshape))


def _of_stretched_operands(node: Node, rewriter: Rewriter) -> Node | None:
    """The rules for elementwise ops of constants, broadcasts and reshapes; most nodes have no such operand."""
    for operand in node.operands:
        if operand.op in _STRETCHED:
            break
    else:
        return None
    return (
        constants.fold(node, rewriter) or constants.fold_uniform(node, rewriter) or views.bare_operands(node, rewriter)
    )


# For each op the rules that are tried in order; those of its kind come first.
RULES = _table(arithmetic.RULES, logic.RULES, views.RULES, reductions.RULES, products.RULES)
RULES_OF_KIND: Mapping[str, tuple[Rule, ...]] = {
    "elementwise": (_of_stretched_operands,),
    "view": (constants.fold,),
    "reduction": (constants.fold,),
    "structural": (constants.fold,),
}


def rewrite(graph: Graph) -> Graph:
    """The graph in normal form; the same object when it is in normal form already.

    A pass is linear in nodes and edges and uses no recursion over the graph. A second one follows only when a rewrite
    waited for an operand to lose its other readers.
    """
    while True:
        rewriter = Rewriter(graph, RULES, RULES_OF_KIND)
        rewritten = rewriter.run()
        if not (rewriter.changed and rewriter.declined):
            return rewritten
        graph = rewritten
