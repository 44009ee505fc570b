"""Kernels that select by integer arrays, and the scatters that transpose them. Indices out of range are reported."""

from __future__ import annotations

from staticgrad.graph.node import Node
from staticgrad.graph.views import around
from staticgrad.kernels.cpu.structural import lowering, nest
from staticgrad.kernels.expressions import literal
from staticgrad.kernels.group_text import check_of


def _cleared(node: Node) -> list[str]:
    return [f"for i in range({node.size}):", f"    out[i] = {literal(0, node.dtype)}"]


def _all_wrong(count: int) -> list[str]:
    """There is nothing to select from: any index is out of range."""
    report = [
        "if status[0] == 0:",
        "    status[0] = code[0]",
        "    status[1] = int64(x1[0])",
        "    status[2] = int64(0)",
    ]
    return report if count else ["pass"]


def _rows_taken(node: Node) -> int:
    """The number of indices, where each selects one run of elements."""
    x, indices = node.operands
    before, _ = around(x.shape, node.attributes["axis"])
    return indices.size if before == 1 and node.size and x.shape[node.attributes["axis"]] else 0


@lowering("take", checks_index=True, turns=_rows_taken)
def take(node: Node) -> list[str]:
    """out[a, i, b] = x[a, indices[i], b]."""
    x, indices = node.operands
    before, after = around(x.shape, node.attributes["axis"])
    extent = x.shape[node.attributes["axis"]]
    if extent == 0:
        return [*_cleared(node), *_all_wrong(node.size)]
    if node.size == 0:
        return ["pass"]
    if before == 1:
        row = [
            f"place = {check_of(node)}(x1[i0], {extent}, status, code) * {after}",
            f"start = i0 * {after}",
            f"for i1 in range({after}):",
            "    out[start + i1] = x0[place + i1]",
        ]
        return nest(("begin, end",), row)
    row = [
        f"place = (i0 * {extent} + {check_of(node)}(x1[i1], {extent}, status, code)) * {after}",
        f"start = (i0 * {indices.size} + i1) * {after}",
        f"for i2 in range({after}):",
        "    out[start + i2] = x0[place + i2]",
    ]
    return nest((before, indices.size), row)


def _rows_added_to(node: Node) -> int:
    """The number of runs that are added to: every thread looks at all indices and adds to its own runs, in order."""
    x, _ = node.operands
    before, after = around(node.shape, node.attributes["axis"])
    return node.size // after if before == 1 and x.size and node.size else 0


@lowering("scatter_add", checks_index=True, turns=_rows_added_to)
def scatter_add(node: Node) -> list[str]:
    """out[a, indices[i], b] += x[a, i, b], from zeros, in the order of the indices."""
    x, indices = node.operands
    before, after = around(node.shape, node.attributes["axis"])
    extent = node.shape[node.attributes["axis"]]
    if extent == 0:
        return _all_wrong(x.size) if indices.size else ["pass"]
    if x.size == 0:
        return _cleared(node)
    add = [f"for i2 in range({after}):", "    out[place + i2] = out[place + i2] + x0[start + i2]"]
    if before == 1:
        row = [
            f"run = {check_of(node)}(x1[i0], {extent}, status, code)",
            "if (run >= begin) & (run < end):",
            f"    place = run * {after}",
            f"    start = i0 * {after}",
            *(f"    {line}" for line in add),
        ]
        clear = [f"for i in range(begin * {after}, end * {after}):", f"    out[i] = {literal(0, node.dtype)}"]
        return [*clear, *nest((indices.size,), row)]
    row = [
        f"place = (i0 * {extent} + {check_of(node)}(x1[i1], {extent}, status, code)) * {after}",
        f"start = (i0 * {indices.size} + i1) * {after}",
        *add,
    ]
    return [*_cleared(node), *nest((before, indices.size), row)]


@lowering("take_along_axis", checks_index=True)
def take_along_axis(node: Node) -> list[str]:
    """out[a, i, b] = x[a, indices[a, i, b], b]."""
    x, _ = node.operands
    axis = node.attributes["axis"]
    before, after = around(x.shape, axis)
    extent, count = x.shape[axis], node.shape[axis]
    if node.size == 0:
        return ["pass"]
    if extent == 0:
        return [*_cleared(node), *_all_wrong(node.size)]
    element = [
        f"at = (i0 * {count} + i1) * {after} + i2",
        f"out[at] = x0[(i0 * {extent} + {check_of(node)}(x1[at], {extent}, status, code)) * {after} + i2]",
    ]
    return nest((before, count, after), element)


@lowering("scatter_add_along_axis", checks_index=True)
def scatter_add_along_axis(node: Node) -> list[str]:
    """out[a, indices[a, i, b], b] += x[a, i, b], from zeros."""
    x, _ = node.operands
    axis = node.attributes["axis"]
    before, after = around(node.shape, axis)
    extent, count = node.shape[axis], x.shape[axis]
    if x.size == 0:
        return _cleared(node)
    if extent == 0:
        return _all_wrong(x.size)
    element = [
        f"at = (i0 * {count} + i1) * {after} + i2",
        f"place = (i0 * {extent} + {check_of(node)}(x1[at], {extent}, status, code)) * {after} + i2",
        "out[place] = out[place] + x0[at]",
    ]
    return [*_cleared(node), *nest((before, count, after), element)]
