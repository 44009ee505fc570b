"""Matrix products on the GPU, with what follows them done on the way to memory."""

from __future__ import annotations

from math import prod

from staticgrad.graph.group import Group
from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.product_kernel import tiled_product
from staticgrad.kernels.cuda.product_text import Outcome
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.tiles import Division, divide
from staticgrad.kernels.products import products

__all__ = ["divide", "prod", "product_launches"]


def product_launches(
    node: Node, group: Group, members: Members, target: Target, *, guarded: bool = False
) -> tuple[list[Launch], int]:
    """The launches that compute a group around a matrix product, and the bytes of working memory that they share.

    Args:
        node: the product; what follows it in the group is computed from registers, but for sums of columns.
        guarded: do nothing where an earlier kernel has reported an error.
    """
    (tile,) = (divide(product, target).tile for product in products(node, members))
    outcome = Outcome(node, group.structure or Outcome(node).structure, group.writes)
    return [
        tiled_product(product, outcome, Division(tile), target, guarded=guarded) for product in products(node, members)
    ], 0
