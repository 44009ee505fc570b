"""The innermost loop: a tile of C in registers, a row of B and a column of A at each turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from staticgrad.kernels.cpu.gemm.writer import ZERO, Text


@dataclass(frozen=True, slots=True)
class Stream:
    """Where an operand's tile starts, and how far apart what it is read by lies, in elements."""

    start: str
    across: int  # from a row of A to the next
    along: int  # along k
    aligned: bool = False


def accumulate(text: Text, k: int, a: Stream, b: Stream, rows: int, counts: Sequence[int]) -> list[list[str]]:
    """The sums over k of a tile: `rows` rows of vectors with `counts` elements each.

    The loop is not unrolled: its few instructions beside the multiply-adds fit between them.
    """
    name = text.name()
    head, entered = f"turns_{name}", text.block
    text.lines.append(f"  br label %{head}")
    text.label(head)
    place = len(text.lines)
    before = [[f"%s_{name}_{row}_{vector}" for vector in range(len(counts))] for row in range(rows)]
    now = replace(a, start=f"%a_{name}"), replace(b, start=f"%b_{name}")
    sums = _turn(text, *now, before, counts)
    after_a = text.offset(now[0].start, a.along)
    after_b = text.offset(now[1].start, b.along)
    following = text.value(f"add i64 %k_{name}, -1")
    more = text.value(f"icmp ne i64 {following}, 0")
    text.lines.append(f"  br i1 {more}, label %{head}, label %done_{name}")
    phis = [
        f"  %k_{name} = phi i64 [ {k}, %{entered} ], [ {following}, %{head} ]",
        f"  {now[0].start} = phi ptr [ {a.start}, %{entered} ], [ {after_a}, %{head} ]",
        f"  {now[1].start} = phi ptr [ {b.start}, %{entered} ], [ {after_b}, %{head} ]",
    ]
    for old, new in zip(chain(*before), chain(*sums), strict=True):
        phis.append(f"  {old} = phi {text.vector} [ {ZERO}, %{entered} ], [ {new}, %{head} ]")
    text.lines[place:place] = phis
    text.label(f"done_{name}")
    return sums


def _turn(text: Text, a: Stream, b: Stream, sums: Sequence[Sequence[str]], counts: Sequence[int]) -> list[list[str]]:
    align = text.lanes * text.itemsize if b.aligned else None
    vectors = [
        text.load(text.offset(b.start, vector * text.lanes), None if b.aligned else count, align)
        for vector, count in enumerate(counts)
    ]
    added = []
    for row, line in enumerate(sums):
        number = text.broadcast(text.offset(a.start, row * a.across))
        added.append(
            [text.intrinsic("llvm.fmuladd", number, value, total) for value, total in zip(vectors, line, strict=True)]
        )
    return added
