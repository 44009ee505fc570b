"""A group around a matrix product that a library computes: what follows the product is done from memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from staticgrad.graph.epilogue import stand_in
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import aligned
from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.graph.structure import Structure
from staticgrad.kernels.cuda.fused import generate, read_late
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.library import LibraryLaunch, ProductCall, asks
from staticgrad.kernels.cuda.product_text import NOTHING
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Operand
from staticgrad.kernels.products import Matrix, MatrixProduct, products

AnyLaunch = Launch | LibraryLaunch


def library_launches(
    node: Node, group: Group, members: Members, target: Target, precision: str, *, guarded: bool = False
) -> tuple[list[AnyLaunch], int] | None:
    """The launches with which a library computes a product, and kernels what follows it; the working memory they share.

    None where that cannot be, or is not worth a try. A product that is not stored for itself is put where one of the
    values that follow it will lie, or in working memory.

    Args:
        node: the product.
        guarded: do nothing where an earlier kernel has reported an error: the library cannot do nothing.
    """
    found = products(node, members)
    if not found or not all(asks(product, target) for product in found) or (guarded and node in group.writes):
        return None
    structure, written = group.structure or NOTHING, [other for other in group.writes if other is not node]
    place = _place(node, structure, group.writes, guarded)
    calls: list[AnyLaunch] = [_call(product, place, precision) for product in found]
    start = aligned(node.nbytes) if place.kind == "own" else 0
    if not written:
        return calls, start
    lent = place.node
    aliases = {lent: node} if lent is not None and lent is not node else {}
    launches, nbytes = generate(structure, written, aliases, target, guarded=guarded)
    return [*calls, *(_placed(launch, node, place, start) for launch in launches)], start + nbytes


def _place(node: Node, structure: Structure, writes: Sequence[Node], guarded: bool) -> Operand:
    """Where the library puts the product."""
    if node in writes:
        return Operand("storage", node)
    lent = stand_in(node, writes)
    if lent is None or guarded or node in read_late(structure, writes):
        return Operand("own")
    return Operand("storage", lent)


def _call(product: MatrixProduct, place: Operand, precision: str) -> LibraryLaunch:
    def begin(matrix: Matrix, operand: Operand) -> Operand:
        return replace(operand, offset=matrix.offset * product.dtype.itemsize)

    a, b = (begin(matrix, Operand("storage", matrix.owner)) for matrix in (product.a, product.b))
    return LibraryLaunch(ProductCall.of(product, precision), (a, b, begin(product.c, place)))


def _placed(launch: Launch, node: Node, place: Operand, start: int) -> Launch:
    """A kernel's launch with the product where it lies, and its own working memory from `start` on."""

    def placed(operand: Operand) -> Operand:
        if operand.kind == "own":
            return replace(operand, offset=operand.offset + start)
        if operand.kind == "storage" and operand.node is node:
            return replace(place, offset=operand.offset)
        return operand

    return replace(launch, operands=tuple(map(placed, launch.operands)))


__all__ = ["AnyLaunch", "library_launches"]
