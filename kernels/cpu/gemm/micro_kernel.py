"""The innermost loop: a tile of C in registers, a row of B and a column of A at each turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from staticgrad.kernels.cpu.gemm.writer import ZERO, Text

UNROLL = 2


@dataclass(frozen=True, slots=True)
class Stream:
    """Where an operand's tile starts, and how far apart what it is read by lies, in elements."""

    start: str
    across: int  # from a row of A to the next
    along: int  # along k
    aligned: bool = False


def accumulate(text: Text, k: int, a: Stream, b: Stream, rows: int, counts: Sequence[int]) -> list[list[str]]:
    """The sums over k of a tile: `rows` rows of vectors with `counts` elements each."""
    turns = k // UNROLL
    sums = [[ZERO] * len(counts) for _ in range(rows)]
    if turns == 1:
        turns = 0
    if turns:
        sums = _loop(text, turns, a, b, sums, counts)
        a = Stream(text.offset(a.start, turns * UNROLL * a.along), a.across, a.along)
        b = Stream(text.offset(b.start, turns * UNROLL * b.along), b.across, b.along, b.aligned)
    for turn in range(k - turns * UNROLL):
        _turn(text, a, b, turn, sums, counts)
    return sums


def _loop(
    text: Text, turns: int, a: Stream, b: Stream, sums: list[list[str]], counts: Sequence[int]
) -> list[list[str]]:
    name = text.name()
    head, entered = f"turns_{name}", text.block
    text.lines.append(f"  br label %{head}")
    text.label(head)
    place = len(text.lines)
    start = [[f"%s_{name}_{row}_{vector}" for vector in range(len(counts))] for row in range(len(sums))]
    now = [list(row) for row in start]
    inside_a, inside_b = Stream(f"%a_{name}", a.across, a.along), Stream(f"%b_{name}", b.across, b.along, b.aligned)
    for turn in range(UNROLL):
        _turn(text, inside_a, inside_b, turn, now, counts)
    after_a = text.offset(inside_a.start, UNROLL * a.along)
    after_b = text.offset(inside_b.start, UNROLL * b.along)
    following = text.value(f"add i64 %k_{name}, -1")
    more = text.value(f"icmp ne i64 {following}, 0")
    text.lines.append(f"  br i1 {more}, label %{head}, label %done_{name}")
    phis = [
        f"  %k_{name} = phi i64 [ {turns}, %{entered} ], [ {following}, %{head} ]",
        f"  {inside_a.start} = phi ptr [ {a.start}, %{entered} ], [ {after_a}, %{head} ]",
        f"  {inside_b.start} = phi ptr [ {b.start}, %{entered} ], [ {after_b}, %{head} ]",
    ]
    for first, old, new in zip(sums, start, now, strict=True):
        for zero, before, after in zip(first, old, new, strict=True):
            phis.append(f"  {before} = phi {text.vector} [ {zero}, %{entered} ], [ {after}, %{head} ]")
    text.lines[place:place] = phis
    text.label(f"done_{name}")
    return now


def _turn(text: Text, a: Stream, b: Stream, turn: int, sums: list[list[str]], counts: Sequence[int]) -> None:
    align = text.lanes * text.itemsize if b.aligned else None
    vectors = [
        text.load(text.offset(b.start, turn * b.along + vector * text.lanes), None if b.aligned else count, align)
        for vector, count in enumerate(counts)
    ]
    for row, line in enumerate(sums):
        number = text.broadcast(text.offset(a.start, row * a.across + turn * a.along))
        for vector, value in enumerate(vectors):
            line[vector] = text.intrinsic("llvm.fmuladd", number, value, line[vector])
