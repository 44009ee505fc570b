"""Many steps in one native call: the rows of each step gathered, the step run, its results put at their place.

The loop is a function of a few machine instructions (`runtime`). It stops before its end
where a step reports a failure, and is called for as many steps as a moment allows, so that Python can act in between.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from staticgrad.kernels.cpu.machine_code import Code

SYMBOL = "staticgrad_loop"
_PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)  # releases the GIL around the call


class Rows(NamedTuple):
    """An input whose rows change from step to step.

    Attributes:
        source: address of the first row that the first step reads, or of row 0 where an order says which rows.
        row_bytes: from one row to the next.
        staging: address of room for the rows of one step; 0 where steps read them at the source itself.
        entry: the input's place in the table of pointers.
    """

    source: int
    row_bytes: int
    staging: int
    entry: int


class Results(NamedTuple):
    """An output that is kept of every step: at `start`, `nbytes` from one step to the next; `entry` as for `Rows`."""

    start: int
    nbytes: int
    entry: int


def run_steps(
    step: Any,
    arena: int,
    table: Any,
    status: Any,
    order: int,
    batch: int,
    rows: Sequence[Rows],
    results: Sequence[Results],
    steps: int,
) -> int:
    """Run `step(arena, table)` `steps` times; how often it ran to its end, less where the status word is set.

    Args:
        order: address of the numbers (int64) of the rows of all steps, `batch` for each; 0 for rows as they lie.
        batch: rows in a step.
    """
    header = [ctypes.cast(step, ctypes.c_void_p).value, arena, table.buffer_info()[0], status.buffer_info()[0]]
    job = array("Q", [*header, order, batch, len(rows), len(results)])
    for row in rows:
        job.extend((row.source, row.row_bytes, row.staging, row.entry))
    for result in results:
        job.extend((result.start, result.nbytes, result.entry))
    assert _loop is not None  # programs load the runtime
    return int(_loop(job.buffer_info()[0], steps))


def use(code: Code) -> None:
    """Take the loop from the runtime of this process."""
    global _loop
    _loop = _PROTOTYPE(code.address(SYMBOL))


_loop: Callable[[int, int], int] | None = None


# Four 64-bit words for each of the rows begin at word 8 of the job, three for each of the results behind them.
IR = f"""\
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define internal void @gather(ptr %to, ptr %from, i64 %row.bytes, ptr %order, i64 %batch) {{
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %after, %copy ]
  %done = icmp eq i64 %i, %batch
  br i1 %done, label %exit, label %copy
copy:
  %number.at = getelementptr i64, ptr %order, i64 %i
  %number = load i64, ptr %number.at
  %offset = mul i64 %number, %row.bytes
  %source = getelementptr i8, ptr %from, i64 %offset
  %place = mul i64 %i, %row.bytes
  %target = getelementptr i8, ptr %to, i64 %place
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %source, i64 %row.bytes, i1 false)
  %after = add i64 %i, 1
  br label %next
exit:
  ret void
}}

define i64 @{SYMBOL}(ptr %job, i64 %steps) {{
entry:
  %step = load ptr, ptr %job
  %arena.at = getelementptr i64, ptr %job, i64 1
  %arena = load ptr, ptr %arena.at
  %table.at = getelementptr i64, ptr %job, i64 2
  %table = load ptr, ptr %table.at
  %status.at = getelementptr i64, ptr %job, i64 3
  %status = load ptr, ptr %status.at
  %order.at = getelementptr i64, ptr %job, i64 4
  %order = load ptr, ptr %order.at
  %batch.at = getelementptr i64, ptr %job, i64 5
  %batch = load i64, ptr %batch.at
  %rows.at = getelementptr i64, ptr %job, i64 6
  %rows = load i64, ptr %rows.at
  %results.at = getelementptr i64, ptr %job, i64 7
  %results = load i64, ptr %results.at
  %first.row = getelementptr i64, ptr %job, i64 8
  %row.words = mul i64 %rows, 4
  %first.result = getelementptr i64, ptr %first.row, i64 %row.words
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %after, %ran ]
  %done = icmp eq i64 %i, %steps
  br i1 %done, label %exit, label %begin
begin:
  %position = mul i64 %i, %batch
  %numbers = getelementptr i64, ptr %order, i64 %position
  br label %next.row
next.row:
  %r = phi i64 [ 0, %begin ], [ %r.after, %put ]
  %rows.done = icmp eq i64 %r, %rows
  br i1 %rows.done, label %next.result, label %row
row:
  %r.word = mul i64 %r, 4
  %source.at = getelementptr i64, ptr %first.row, i64 %r.word
  %source = load ptr, ptr %source.at
  %bytes.at = getelementptr i64, ptr %source.at, i64 1
  %row.bytes = load i64, ptr %bytes.at
  %staging.at = getelementptr i64, ptr %source.at, i64 2
  %staging = load ptr, ptr %staging.at
  %entry.at = getelementptr i64, ptr %source.at, i64 3
  %index = load i64, ptr %entry.at
  %in.place = icmp eq ptr %staging, null
  br i1 %in.place, label %there, label %gathered
there:
  %distance = mul i64 %position, %row.bytes
  %lying = getelementptr i8, ptr %source, i64 %distance
  br label %put
gathered:
  call void @gather(ptr %staging, ptr %source, i64 %row.bytes, ptr %numbers, i64 %batch)
  br label %put
put:
  %input = phi ptr [ %lying, %there ], [ %staging, %gathered ]
  %place = getelementptr ptr, ptr %table, i64 %index
  store ptr %input, ptr %place
  %r.after = add i64 %r, 1
  br label %next.row
next.result:
  %k = phi i64 [ 0, %next.row ], [ %k.after, %result ]
  %results.done = icmp eq i64 %k, %results
  br i1 %results.done, label %run, label %result
result:
  %k.word = mul i64 %k, 3
  %start.at = getelementptr i64, ptr %first.result, i64 %k.word
  %start = load ptr, ptr %start.at
  %nbytes.at = getelementptr i64, ptr %start.at, i64 1
  %nbytes = load i64, ptr %nbytes.at
  %k.entry.at = getelementptr i64, ptr %start.at, i64 2
  %k.index = load i64, ptr %k.entry.at
  %behind = mul i64 %i, %nbytes
  %output = getelementptr i8, ptr %start, i64 %behind
  %k.place = getelementptr ptr, ptr %table, i64 %k.index
  store ptr %output, ptr %k.place
  %k.after = add i64 %k, 1
  br label %next.result
run:
  call void %step(ptr %arena, ptr %table)
  %word = load i64, ptr %status
  %failed = icmp ne i64 %word, 0
  br i1 %failed, label %exit, label %ran
ran:
  %after = add i64 %i, 1
  br label %next
exit:
  ret i64 %i
}}
"""
