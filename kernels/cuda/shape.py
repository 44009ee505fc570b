"""Kernels that join and pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from staticgrad.graph.views import around
from staticgrad.kernels.cuda.launch import Launch, blocks_for
from staticgrad.kernels.cuda.structural import (
    Call,
    indented,
    index,
    loaded,
    lowering,
    moved,
    quotient,
    rest,
    stored,
    zero,
)

JOINED = 64  # operands of one kernel


@lowering("concat")
def concat(call: Call) -> list[Launch]:
    """Operand after operand along one axis: for each index before the axis one run of each operand."""
    filled = [position for position, operand in enumerate(call.node.operands) if operand.size]
    return [_join(call, filled[first : first + JOINED]) for first in range(0, len(filled), JOINED)]


def _join(call: Call, positions: Sequence[int]) -> Launch:
    """Copy some operands to their places, each by blocks of its own."""
    node, axis = call.node, call.node.attributes["axis"]
    _, inner = around(node.shape, axis)
    text = call.text(call.target.block)
    total, first = node.shape[axis] * inner, 0
    for position in positions:
        operand = node.operands[position]
        run = operand.shape[axis] * inner
        start = sum(other.shape[axis] for other in node.operands[:position]) * inner
        lanes = call.lanes(run, total, start, call.offset(position))
        blocks = blocks_for(operand.size // lanes, text.threads, call.target.blocks)
        place = index((quotient("e", run, operand.size), total), (rest("e", run, operand.size), 1), offset=start)
        text.lines += [
            f"if (block >= {first}) & (block < {first + blocks}):",
            f"    e = ((block - {first}) * {text.threads} + thread) * {lanes}",
            f"    while e < {operand.size}:",
            *indented(indented(moved(text.operand(position), "e", text.out(), place, lanes))),
            f"        e += {blocks * text.threads * lanes}",
        ]
        first += blocks
    text.grid = first
    return text.launch()


@dataclass(frozen=True)
class _Axis:
    """Where elements lie along one axis: `count` of them from `low` on, every `step`th, maybe from the last one on."""

    extent: int
    count: int
    low: int
    step: int
    backwards: bool = False

    @property
    def is_full(self) -> bool:
        return self.extent == self.count and not self.backwards

    def with_inner(self, inner: _Axis) -> _Axis:
        """This axis and a full one behind it as one; elements lie close along this one."""
        size = inner.extent
        return _Axis(self.extent * size, self.count * size, self.low * size, 1)


@lowering("embed")
def embed(call: Call) -> list[Launch]:
    """Zeros, with x placed at start, start + step, … along each axis; each element is written once."""
    node, (x,) = call.node, call.node.operands
    if not node.size:
        return []
    text = call.text(call.threads(node.size))
    if not x.size:
        text.clear(text.out(), node.size)
        return [text.launch()]
    axes = _axes(x.shape, node.shape, node.attributes["start"], node.attributes["step"])
    last = axes[-1] if axes else _Axis(1, 1, 0, 1)
    close = last.step == 1 and not last.backwards
    lanes = call.lanes(last.extent, last.count, last.low, call.offset(0)) if close else 1
    body, inside, source = _read_from(axes, node.size)
    load, values = loaded(text.operand(0), source, lanes, "v")
    put = [*load, *stored(text.out(), "e", values)]
    if inside:
        blank = stored(text.out(), "e", [zero(node.dtype)] * lanes)
        put = [f"if {inside}:", *indented(put), "else:", *indented(blank)]
    text.every("e", node.size, [*body, *put], lanes)
    return [text.launch()]


def _axes(shape: Sequence[int], into: Sequence[int], start: Sequence[int], step: Sequence[int]) -> list[_Axis]:
    """The axes of the result, joined where the elements lie in one run."""
    found: list[_Axis] = []
    for count, extent, first, stride in zip(shape, into, start, step, strict=True):
        low = first + min(0, (count - 1) * stride)
        axis = _Axis(extent, count, low, abs(stride), stride < 0) if count > 1 else _Axis(extent, 1, low, 1)
        if found and axis.is_full and found[-1].step == 1 and not found[-1].backwards:
            found[-1] = found[-1].with_inner(axis)
        else:
            found.append(axis)
    return found


def _read_from(axes: Sequence[_Axis], size: int) -> tuple[list[str], str, str]:
    """The lines that find which element of x lies at `e`; whether there is one; its index."""
    lines, inside, terms = [], [], []
    for number, axis in enumerate(axes):
        below, name = prod(other.extent for other in axes[number + 1 :]), f"i{number}"
        stride = prod(other.count for other in axes[number + 1 :])
        place = quotient("e", below, size)
        if number:
            place = rest(place, axis.extent, size // below)
        lines.append(f"{name} = {place}" + (f" - {axis.low}" if axis.low else ""))
        if not axis.is_full:
            inside.append(f"({name} >= 0) & ({name} < {(axis.count - 1) * axis.step + 1})")
        if axis.step > 1:
            inside.append(f"({name} % {axis.step} == 0)")
            name = f"{name} // {axis.step}"
        if axis.backwards:
            name = f"({axis.count - 1} - {name})"
        elif axis.step > 1:
            name = f"({name})"
        terms.append((name, stride))
    return lines, " & ".join(inside), index(*terms)
