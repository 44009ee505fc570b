"""Kernels that join and pad."""

from __future__ import annotations

from staticgrad.graph.node import Node
from staticgrad.graph.views import around, contiguous_strides
from staticgrad.kernels.cpu.structural import lowering, nest
from staticgrad.kernels.expressions import literal


@lowering("concat")
def concat(node: Node) -> list[str]:
    """Operand after operand along one axis: for each index before the axis one run of each operand."""
    axis = node.attributes["axis"]
    before, inner = around(node.shape, axis)
    total = node.shape[axis] * inner
    body: list[str] = []
    start = 0
    for position, operand in enumerate(node.operands):
        run = operand.shape[axis] * inner
        if operand.size:
            body += [
                f"for i1 in range({run}):",
                f"    out[i0 * {total} + {start} + i1] = x{position}[i0 * {run} + i1]",
            ]
        start += run
    return nest((before,), body) if body else ["pass"]


@lowering("embed")
def embed(node: Node) -> list[str]:
    """Zeros, with x placed at start, start + step, … along each axis."""
    (x,) = node.operands
    clear = [f"for i in range({node.size}):", f"    out[i] = {literal(0, node.dtype)}"]
    if x.size == 0:
        return clear
    strides = contiguous_strides(node.shape)
    start = sum(low * stride for low, stride in zip(node.attributes["start"], strides, strict=True))
    steps = [step * stride for step, stride in zip(node.attributes["step"], strides, strict=True)]
    target = " + ".join([str(start), *(f"i{axis} * ({step})" for axis, step in enumerate(steps))])
    source = " + ".join(f"i{axis} * {stride}" for axis, stride in enumerate(contiguous_strides(x.shape))) or "0"
    return [*clear, *nest(x.shape, [f"out[{target}] = x0[{source}]"])]
