"""Timing a program group by group: the same kernels at the same addresses, with a clock read between the groups.

Threads that share a program meet at each reading, so that a group's time is that of the last one.

The clock is the C library's `clock_gettime`, called by the driver. It takes some tens of nanoseconds; two reads with
nothing between them measure how many, and that is taken off every group.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cpu import native
from staticgrad.kernels.cpu.compiler import code_of
from staticgrad.kernels.cpu.lower import lower
from staticgrad.kernels.cpu.program import Program, address_of

_STAMP = "staticgrad_stamp"


def _stamp_ir() -> str:
    return f"""\
declare i32 @clock_gettime(i32, ptr)
define void @{_STAMP}(ptr %stamp) {{
  %ignored = call i32 @clock_gettime(i32 {time.CLOCK_MONOTONIC}, ptr %stamp)
  ret void
}}
"""


class TimedProgram:
    """A program that tells how long each group of its plan took.

    Args:
        program: which is left as it is; its kernels are taken from memory or `cache` where they are known.
    """

    def __init__(self, program: Program, cache: DiskCache | None = None) -> None:
        self._program = program
        self.groups = len(program.plan.groups)
        lowered = lower(program.graph, program.plan, stamp=_STAMP, cache=cache)
        code = {symbol: code_of(kernel, cache) for symbol, kernel in lowered.kernels.items()}
        code |= {symbol: product.llvm() for symbol, product in lowered.products.items()}
        workspace = program.new_workspace()
        # stamps: twice before the first group, then after each group and after the copies
        self._stamps = np.zeros((self.groups + 3, 2), np.int64)
        self._table = np.append(workspace.table, np.uint64(address_of(self._stamps)))
        self._workspace = workspace
        built = native.build({**code, _STAMP: _stamp_ir()}, lowered.steps, parallel=lowered.parallel)
        self._step = native.load(built)

    def run(
        self, inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[np.ndarray[Any, Any]]
    ) -> np.ndarray[Any, Any]:
        """Run once, as `Program.run` does, and return seconds: of each group, and last of the copies at the end.

        Raises:
            IndexRangeError: an index lay outside the axis it selects from.
        """
        workspace = self._workspace
        for entry, array in enumerate([*inputs, *outputs], 1):
            self._table[entry] = address_of(array)
        self._step(workspace.arena, address_of(self._table))
        if workspace.status[0]:
            raise self._program._error(workspace.take_report())
        seconds = np.diff(self._stamps[:, 0] * 1e9 + self._stamps[:, 1]) * 1e-9
        corrected: np.ndarray[Any, Any] = np.maximum(seconds[1:] - seconds[0], 0.0)
        return corrected
