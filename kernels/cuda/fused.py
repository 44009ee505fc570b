"""Generates the kernels of a fused group for a GPU: readable Python for `numba.cuda`, from the group's nest of loops.

The nest becomes up to four kinds of stages, in this order:

    points    every point by a thread of its own, where nothing needs rows
    rows      every row by a team of threads: part of a warp, a warp or a block; one pass over the row for each
              reduction that another value of the row needs
    sums      what is added up over rows or over everything: parts of it by blocks, then the parts by one kernel, always
              in the same order, so that the results are the same from run to run
    numbers   single values before and after all others, by one block

A small group is one launch: one block does the stages in turn, with a barrier between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from staticgrad.graph.node import Node
from staticgrad.graph.structure import Level, Structure
from staticgrad.kernels.cuda.kernel_text import KernelText
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.rows import RowStages
from staticgrad.kernels.cuda.sums import SumStages
from staticgrad.kernels.cuda.target import Target

Stage = Callable[[KernelText], int]  # writes its lines, answers how many blocks it can use


def generate(
    structure: Structure,
    writes: Sequence[Node],
    aliases: Mapping[Node, Node],
    target: Target,
    *,
    guarded: bool = False,
) -> tuple[list[Launch], int]:
    """The launches that compute the structure's members and store `writes`, and the working memory they share.

    Args:
        aliases: for a written node the read one whose storage the plan lets it take; both are one pointer.
        guarded: do nothing where an earlier kernel has reported an error.
    """
    group = _Group(structure, writes, aliases, target, guarded)
    return group.launches(), group.own_bytes


def read_late(structure: Structure, writes: Sequence[Node]) -> set[Node]:
    """The owners that are read from memory after points and rows have been written: what is added up then."""
    return _Group(structure, writes, {}, Target(), False).read_late()


class _Group(RowStages, SumStages):
    """The stages of a group, made into launches."""

    def launches(self) -> list[Launch]:
        """The kernels in order, each with what it works on."""
        stages: list[Stage] = []
        if self._has_rows():
            self._keep_row_values()
            stages.append(self._rows)
        elif any(self.level[node] == Level.FULL for node in self.writes):
            stages.append(self._points)
        for one in self.sums:
            if one.kept:
                stages.append(partial(self._columns, one=one))
                stages += [partial(self._join, one=one)] if self._parts(one) > 1 else []
        if not self.structure.size:
            stages.append(self._nothing_added)
        stages += [partial(self._part_of_total, one=one) for one in self.totals if self._parts(one) > 1]
        if self.totals or any(self.level[node] == Level.BEFORE for node in self.writes):
            stages.append(self._numbers)
        if self.small:
            return [self._launch(stages)]
        return [self._launch([stage]) for stage in stages]

    def _launch(self, stages: Sequence[Stage]) -> Launch:
        """One kernel that does the stages in turn; where there are several, one block does."""
        text = KernelText(self.structure, self.writes, self.aliases, self.target, self.threads, self.own)
        grid = 1
        for number, stage in enumerate(stages):
            if number:
                text.lines.append("cuda.syncthreads()")
            grid = max(grid, stage(text))
        text.resident = self.resident
        kernel = text.kernel(guarded=self.guarded)
        return Launch(kernel, tuple(text.operands), 1 if len(stages) > 1 else grid, self.threads)

    def read_late(self) -> set[Node]:
        """See the function of this name."""
        found: set[Node] = set()
        for one in self.sums:
            for member in (*self._cone(one.members), *one.members):
                found |= {access.owner for access in member.accesses if access.owner not in self.members}
        return found
