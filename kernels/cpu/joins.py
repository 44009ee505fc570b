"""The kernel that brings together what threads have added up, each in memory of its own."""

from __future__ import annotations

from staticgrad.graph.node import Node
from staticgrad.kernels.kernel import Call, Kernel, Operand
from staticgrad.kernels.reduction_steps import accumulator_dtype, narrowed, step, stored_value


def sum_of_parts(node: Node, offset: int, distance: int, *, wide: bool) -> Call:
    """The call that reduces the threads' parts of `node` to its value.

    The kernel serves every reduction of this kind, whatever its size. The parts begin `offset` bytes into the first
    thread's memory and lie `distance` bytes apart; those of `wide` sums are float64.
    """
    wide = wide or node.size == 1
    dtype = accumulator_dtype(node, wide)
    part = stored_value("p0[t * distance + i]", node)
    lines = [
        "def kernel(p0, p1, begin, end, size, distance):",
        f'    """{node.op.name} of the parts that threads begin, begin + 1, … have left, `distance` apart.',
        "",
        f"    p0: {dtype}, the parts",
        f"    p1: {node.dtype}, written",
        '    """',
        "    for t in range(begin + 1, end):",
        "        for i in range(size):",
        f"            p0[i] = {step(node, stored_value('p0[i]', node), part, wide=wide)}",
        "    for i in range(size):",
        f"        p1[i] = {narrowed(node, 'p0[i]') if wide else 'p0[i]'}",
    ]
    kernel = Kernel("\n".join(lines) + "\n", (dtype, node.dtype), 4)
    operands = (Operand("joint", node, offset), Operand("storage", node))
    return Call(kernel, operands, numbers=(node.size, distance // dtype.itemsize))
