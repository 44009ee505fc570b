"""Running totals along an axis."""

from __future__ import annotations

from staticgrad.graph.node import Node
from staticgrad.graph.views import around
from staticgrad.kernels.cpu.structural import lowering, nest


@lowering("cumulative_sum")
def cumulative_sum(node: Node) -> list[str]:
    """out[a, i, b] = x[a, i, b] + out[a, i - 1, b]; from the other end where `reverse` is set."""
    axis = node.attributes["axis"]
    before, after = around(node.shape, axis)
    extent = node.shape[axis]
    if node.size == 0:
        return ["pass"]
    first, step = (extent - 1, -1) if node.attributes.get("reverse") else (0, 1)
    if after == 1:
        row = [
            f"at = i0 * {extent} + {first}",
            "total = x0[at]",
            "out[at] = total",
            f"for i1 in range(1, {extent}):",
            f"    at = i0 * {extent} + {first} + i1 * ({step})",
            f"    total = {node.dtype.name}(total + x0[at])",
            "    out[at] = total",
        ]
        return nest((before,), row)
    row = [
        f"start = (i0 * {extent} + {first}) * {after}",
        f"for i1 in range({after}):",
        "    out[start + i1] = x0[start + i1]",
        f"for i1 in range(1, {extent}):",
        f"    start = (i0 * {extent} + {first} + i1 * ({step})) * {after}",
        f"    last = start - ({step * after})",
        f"    for i2 in range({after}):",
        "        out[start + i2] = out[last + i2] + x0[start + i2]",
    ]
    return nest((before,), row)
