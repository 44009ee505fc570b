"""Rough times of tasks, in ns on one thread: enough to tell what is worth sharing between threads."""

from __future__ import annotations

from staticgrad.graph.node import Node
from staticgrad.graph.structure import COSTS, Level, Structure

ADDITION = 0.03  # ns for one of a vectorised loop; other ops in multiples of it, as in COSTS
BYTE = 0.04  # ns to read or write a byte of memory
MULTIPLICATION = 0.01  # ns in a matrix product


def fused_cost(structure: Structure, traffic: int) -> float:
    """Of a generated kernel that moves `traffic` bytes."""
    work = 0
    for member in structure.members:
        turns = len(structure.passes.get(member.node, ())) if structure.level[member.node] == Level.FULL else 1
        work += turns * member.size * COSTS.get(member.node.op.name, 1)
    return ADDITION * work + BYTE * traffic


def call_cost(node: Node) -> float:
    """Of the kernel of a single op, one element after the other."""
    return 0.5 * max([node.size, *(operand.size for operand in node.operands[1:])]) + BYTE * node.nbytes


def product_cost(multiplications: int) -> float:
    """Of a matrix product."""
    return MULTIPLICATION * multiplications
