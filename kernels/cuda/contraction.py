"""Matrix products on the GPU, with what follows them done on the way to memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import aligned
from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.graph.structure import Structure, analyse
from staticgrad.kernels.cuda.fused import generate, read_late
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.product_join import joined_product
from staticgrad.kernels.cuda.product_kernel import tiled_product
from staticgrad.kernels.cuda.product_text import NOTHING, Outcome
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.tiles import divide
from staticgrad.kernels.cuda.vector_product import product_by_columns, product_by_teams
from staticgrad.kernels.kernel import Operand
from staticgrad.kernels.products import MatrixProduct, products


def product_launches(
    node: Node, group: Group, members: Members, target: Target, *, guarded: bool = False
) -> tuple[list[Launch], int]:
    """The launches that compute a group around a matrix product, and the bytes of working memory that they share.

    What follows the product is computed from registers. Sums of its columns are added up by kernels of their own, from
    what is stored; a product that only they read is kept in working memory.

    Args:
        node: the product.
        guarded: do nothing where an earlier kernel has reported an error.
    """
    structure = group.structure or NOTHING
    stored = [written for written in group.writes if written.size == node.size]
    kept: dict[Node, int] = {}
    if node not in stored and node in read_late(structure, group.writes):
        stored.append(node)
        kept[node] = 0
    start = sum(aligned(one.nbytes) for one in kept)
    outcome = Outcome(node, structure, tuple(stored), kept)
    launches: list[Launch] = []
    needed = 0
    for product in products(node, members):
        found, parts_bytes = _computed(product, outcome, start, target, guarded)
        launches += found
        needed = max(needed, parts_bytes)
    found, sums_bytes = _summed(structure, group.writes, kept, start, target, guarded)
    return [*launches, *found], start + max(needed, sums_bytes)


def _computed(
    product: MatrixProduct, outcome: Outcome, start: int, target: Target, guarded: bool
) -> tuple[list[Launch], int]:
    """The launches of one product, and the bytes from `start` on that hold its parts."""
    if product.k == 0:
        return [joined_product(product, outcome, 0, start, target, guarded=guarded)], 0
    division = divide(product, target)
    compute = tiled_product if division.tile else product_by_columns if division.by_columns else product_by_teams
    if division.parts == 1:
        return [compute(product, outcome, division, target, guarded=guarded)], 0
    nbytes = division.parts * product.batch * product.m * product.n * product.dtype.itemsize
    return [
        compute(product, outcome, division, target, partial=start, guarded=guarded),
        joined_product(product, outcome, division.parts, start, target, guarded=guarded),
    ], aligned(nbytes)


# ---------------------------------------------------------------- sums of columns


def _summed(
    structure: Structure, writes: Sequence[Node], kept: dict[Node, int], start: int, target: Target, guarded: bool
) -> tuple[list[Launch], int]:
    """The launches of the sums in a structure, and the bytes from `start` on that they work in."""
    sums = [member.node for member in structure.members if member.kind == "reduce"]
    if not sums:
        return [], 0
    nest = _nest_of(sums, structure, writes)
    launches, nbytes = generate(nest, sums, {}, target, guarded=guarded)
    return [
        replace(launch, operands=tuple(_placed(operand, kept, start) for operand in launch.operands))
        for launch in launches
    ], nbytes


def _nest_of(sums: Sequence[Node], structure: Structure, writes: Sequence[Node]) -> Structure:
    """The nest that computes sums from what is in memory."""
    members = {member.node: member for member in structure.members}
    wanted: set[Node] = set()
    pending = list(sums)
    while pending:
        node = pending.pop()
        if node in members and node not in wanted and (node in sums or node not in writes):
            wanted.add(node)
            pending += [access.owner for access in members[node].accesses]
    nest = analyse([member for member in structure.members if member.node in wanted])
    if nest is None:
        raise ValueError(f"matmul: no nest of loops computes {list(sums)}")
    return nest


def _placed(operand: Operand, kept: dict[Node, int], start: int) -> Operand:
    """An operand of the sums' kernels where it lies in the memory of the whole group."""
    if operand.kind == "own":
        return replace(operand, offset=operand.offset + start)
    if operand.kind == "storage" and operand.node in kept:
        return Operand("own", operand.node, kept[operand.node] + operand.offset)
    return operand
