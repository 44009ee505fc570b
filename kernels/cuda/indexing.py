"""Kernels that select by integer arrays, and the scatters that transpose them. Indices out of range are reported."""

from __future__ import annotations

from staticgrad.graph.views import around
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.scatter import Scatter
from staticgrad.kernels.cuda.structural import Call, CallText, index, lowering, moved, quotient, rest


@lowering("take")
def take(call: Call) -> list[Launch]:
    """out[a, i, b] = x[a, indices[i], b]."""
    node, (x, indices) = call.node, call.node.operands
    axis = node.attributes["axis"]
    before, after = around(x.shape, axis)
    extent, count = x.shape[axis], indices.size
    if not node.size:
        return []
    if not extent:
        return _cleared(call, all_wrong=True)
    lanes = call.lanes(after, call.offset(0))
    text = call.text(call.threads(node.size // lanes))
    rows = before * count
    chosen = f"{text.operand(1)}[{rest('row', count, rows)}]"
    body = [f"row = {quotient('e', after, node.size)}", f"place = {text.checked(chosen, extent)}"]
    source = index((quotient("row", count, rows), extent * after), ("place", after), (rest("e", after, node.size), 1))
    text.every("e", node.size, [*body, *moved(text.operand(0), source, text.out(), "e", lanes)], lanes)
    return [text.launch()]


@lowering("take_along_axis")
def take_along_axis(call: Call) -> list[Launch]:
    """out[a, i, b] = x[a, indices[a, i, b], b]."""
    node, (x, _) = call.node, call.node.operands
    axis = node.attributes["axis"]
    _, after = around(x.shape, axis)
    extent, count = x.shape[axis], node.shape[axis]
    if not node.size:
        return []
    if not extent:
        return _cleared(call, all_wrong=True)
    text = call.text(call.threads(node.size))
    row = quotient("e", count * after, node.size)
    source = index((row, extent * after), ("place", after), (rest("e", after, node.size), 1))
    body = [
        f"place = {text.checked(f'{text.operand(1)}[e]', extent)}",
        f"{text.out()}[e] = {text.operand(0)}[{source}]",
    ]
    text.every("e", node.size, body)
    return [text.launch()]


@lowering("scatter_add")
def scatter_add(call: Call) -> list[Launch]:
    """out[a, indices[i], b] += x[a, i, b], from zeros, in the order of the indices."""
    node, (x, indices) = call.node, call.node.operands
    axis = node.attributes["axis"]
    before, after = around(node.shape, axis)
    if not node.shape[axis] or not x.size:
        return _cleared(call, all_wrong=x.size > 0)
    return Scatter(call, before, indices.size, node.shape[axis], after, along=False).launches()


@lowering("scatter_add_along_axis")
def scatter_add_along_axis(call: Call) -> list[Launch]:
    """out[a, indices[a, i, b], b] += x[a, i, b], from zeros, in the order of i."""
    node, (x, _) = call.node, call.node.operands
    axis = node.attributes["axis"]
    before, after = around(node.shape, axis)
    if not node.shape[axis] or not x.size:
        return _cleared(call, all_wrong=x.size > 0)
    return Scatter(call, before, x.shape[axis], node.shape[axis], after, along=True).launches()


def _cleared(call: Call, *, all_wrong: bool) -> list[Launch]:
    """Zeros where nothing is selected or added; every index is wrong where there is nothing that it could choose."""
    size = call.node.size
    if not size and not all_wrong:
        return []
    text = call.text(call.threads(size))
    if size:
        text.clear(text.out(), size)
    if all_wrong:
        text.lines += _report_of_first(text)
    return [text.launch()]


def _report_of_first(text: CallText) -> list[str]:
    status, code, indices = text.status(), text.code(), text.operand(1)
    return [
        "if (block == 0) & (thread == 0):",
        f"    if {status}[0] == 0:",
        f"        {status}[0] = {code}[0]",
        f"        {status}[1] = int64({indices}[0])",
        f"        {status}[2] = int64(0)",
    ]
