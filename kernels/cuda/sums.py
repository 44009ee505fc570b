"""What a fused group adds up over rows or over everything, always in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from staticgrad.graph.members import Member
from staticgrad.graph.structure import Level
from staticgrad.kernels.cuda.kernel_text import KernelText, Points
from staticgrad.kernels.cuda.launch import GRID, blocks_for
from staticgrad.kernels.cuda.points import Axes
from staticgrad.kernels.cuda.stages import (
    PART,
    GroupStages,
    Sum,
    condition,
    indented,
    stored,
)
from staticgrad.kernels.reduction_steps import accumulator_dtype, first_value, narrowed, step, stored_value


class SumStages(GroupStages):
    """Sums with several results, totals, and the single values computed from them."""

    def _parts(self, one: Sum) -> int:
        """Into how many parts a sum is cut, each added up by a block."""
        if self.small:
            return 1
        terms = prod(self.axes[axis] for axis in one.reduced)
        if not one.kept:
            return blocks_for(terms, self.threads * PART // 4, self.target.blocks)
        across, along = self._shape(one)
        tiles = -(-prod(self.axes[axis] for axis in one.kept) // across)
        return max(1, min(self.target.blocks // tiles, -(-terms // (along * PART))))

    def _shape(self, one: Sum) -> tuple[int, int]:
        """How many results a block has in hand, and how many threads share one of them.

        Where neighbours belong to different results a warp has one result for each thread, and the warps of a block
        share the terms; else the threads of a warp share them, and each warp has a result.
        """
        warp, warps = self.target.warp, self.threads // self.target.warp
        return (warp, warps) if one.inner_is_kept else (warps, warp)

    def _columns(self, text: KernelText, one: Sum) -> int:
        """Sums of many terms into several results, or parts of them."""
        kept, reduced = self._over("m", one.kept), self._over("q", one.reduced)
        (across, along), parts = self._shape(one), self._parts(one)
        result, share = f"quotient(thread, {self.target.warp})", f"rest(thread, {self.target.warp})"
        if one.inner_is_kept:
            result, share = share, result
        points = Points(text, [kept, reduced], 1)
        begin = self._add_up(points, one.members)
        tiles, length = -(-kept.size // across), -(-reduced.size // parts)
        ends = [line for member in one.members for line in self._result(text, one, member, parts)]
        text.lines += [
            *points.before,
            "tile = block",
            f"while tile < {tiles * parts}:",
            *indented(
                [
                    f"m = rest(tile, {tiles}) * {across} + {result}",
                    f"inside = m < {kept.size}",
                    f"m = select(inside, m, int64({kept.size - 1}))",
                    *kept.lines,
                    *points.row,
                    *begin,
                    f"part = quotient(tile, {tiles})",
                    f"q = part * {length} + {share}",
                    f"end = min((part + 1) * {length}, {reduced.size})",
                    "while q < end:",
                    *indented([*points.each(), f"q += {along}"]),
                    *ends,
                    f"tile += {GRID}",
                ]
            ),
        ]
        return tiles * parts

    def _add_up(self, points: Points, members: Sequence[Member]) -> list[str]:
        """Compute what sums read at a point and add it to a register each; what stands before the loop."""
        points.compute(self._cone(members))
        begin = []
        for member in members:
            node = member.node
            register = f"c{points.text.names[node][1:]}"
            begin.append(f"{register} = {first_value(node)}")
            for value in points.read(member.accesses[0], points.lanes):
                points.point.append(f"{register} = {step(node, register, value)}")
        return begin

    def _result(self, text: KernelText, one: Sum, member: Member, parts: int) -> list[str]:
        """Bring together what the threads of one result have added up, and store it."""
        node, warp, warps = member.node, self.target.warp, self.threads // self.target.warp
        register = f"c{text.names[node][1:]}"
        dtype = accumulator_dtype(node, wide=True)
        if parts > 1:
            if node not in self.own:
                self.own[node] = self._own(parts * node.size * dtype.itemsize)
            target = f"{text.working(node, dtype)}[part * {node.size} + m]"
        else:
            target = f"{text.storage(node)}[m]"
        if not one.inner_is_kept or warps == 1:
            lines = [] if one.inner_is_kept else text.together(node, register, warp)
            first = [] if one.inner_is_kept else [f"rest(thread, {warp}) == 0"]
            value = f"{dtype.name}({register})" if parts > 1 and dtype != node.dtype else register
            return [*lines, condition("inside", *first), f"    {target} = {stored(node, value)}"]
        shared = text.shared(node.dtype, self.threads)
        total = f"u{text.names[node][1:]}"
        value = total if parts > 1 else narrowed(node, total)
        return [
            f"{shared}[thread] = {stored(node, register)}",
            "cuda.syncthreads()",
            condition(f"inside & (thread < {warp})"),
            f"    {total} = {first_value(node, wide=True)}",
            f"    for w in range({warps}):",
            f"        {total} = {step(node, total, stored_value(f'{shared}[w * {warp} + thread]', node), wide=True)}",
            f"    {target} = {stored(node, value)}",
            "cuda.syncthreads()",
        ]

    def _join(self, text: KernelText, one: Sum) -> int:
        """Add up the parts of each result."""
        parts, size = self._parts(one), one.members[0].node.size
        lines = []
        for member in one.members:
            node = member.node
            total = f"u{text.names[node][1:]}"
            part = stored_value(f"{text.working(node, accumulator_dtype(node, wide=True))}[w * {size} + m]", node)
            lines += [
                f"{total} = {first_value(node, wide=True)}",
                f"for w in range({parts}):",
                f"    {total} = {step(node, total, part, wide=True)}",
                f"{text.storage(node)}[m] = {stored(node, narrowed(node, total))}",
            ]
        text.lines += [
            f"m = block * {self.threads} + thread",
            f"while m < {size}:",
            *indented([*lines, f"m += {GRID} * {self.threads}"]),
        ]
        return blocks_for(size, self.threads, self.target.blocks)

    def _nothing_added(self, text: KernelText) -> int:
        """The results of reductions without terms."""
        lines = []
        for node in self.writes:
            value = stored(node, first_value(node))
            lines += ["m = thread", f"while m < {node.size}:"]
            lines += [f"    {text.storage(node)}[m] = {value}", f"    m += {self.threads}"]
        text.lines += lines
        return 1

    # ------------------------------------------------------------ single values

    def _part_of_total(self, text: KernelText, one: Sum) -> int:
        """Each block adds up some of the points."""
        parts = self._parts(one)
        text.lines += self._added_by_block(text, one, parts)
        for member in one.members:
            node = member.node
            dtype = accumulator_dtype(node, wide=True)
            if node not in self.own:
                self.own[node] = self._own(parts * dtype.itemsize)
            register = f"c{text.names[node][1:]}"
            value = f"{dtype.name}({register})" if dtype != node.dtype else stored(node, register)
            text.lines += [condition("thread == 0"), f"    {text.working(node, dtype)}[block] = {value}"]
        return parts

    def _added_by_block(self, text: KernelText, one: Sum, parts: int) -> list[str]:
        """What a block adds up of a total, one of `parts`; every thread has the result."""
        axes = self._over("q", one.reduced)
        lanes = self._lanes_along(axes)
        points = Points(text, [axes], lanes)
        begin = self._add_up(points, one.members)
        stride = self.threads * lanes
        lines = [
            *points.before,
            *begin,
            f"q = (block * {self.threads} + thread) * {lanes}" if parts > 1 else f"q = thread * {lanes}",
            f"while q < {axes.size}:",
            *indented([*points.each(), f"q += {stride * parts}"]),
        ]
        for member in one.members:
            lines += text.together(member.node, f"c{text.names[member.node][1:]}", self.threads)
        return lines

    def _lanes_along(self, axes: Axes) -> int:
        return self.lanes if axes.axes and axes.axes[-1] == len(self.axes) - 1 else 1

    def _numbers(self, text: KernelText) -> int:
        """Totals, and the single values computed from them or before everything else."""
        level = self.level
        points = Points(text, [Axes("q", (), ())], 1)
        points.compute([m for m in self.structure.members if level[m.node] == Level.BEFORE])
        text.lines += points.before
        for one in self.totals:
            parts = self._parts(one)
            text.lines += self._added_by_block(text, one, 1) if parts == 1 else self._added_parts(text, one, parts)
            for member in one.members:
                name = text.names[member.node]
                wide = narrowed(member.node, f"c{name[1:]}") if parts > 1 else f"c{name[1:]}"
                text.lines.append(f"{name} = {wide}")
                points.common[member.node] = [name]
        points.before = []
        points.compute([m for m in self.structure.members if level[m.node] == Level.AFTER and m.kind == "map"])
        single = [node for node in self.writes if node in points.common]
        stores = [f"{text.storage(node)}[0] = {stored(node, points.common[node][0])}" for node in single]
        if any(node in self.aliases for node in single):  # what all threads have read is replaced
            text.lines.append("cuda.syncthreads()")
        text.lines += [condition("(block == 0) & (thread == 0)"), *indented([*points.before, *stores])]
        return 1

    def _added_parts(self, text: KernelText, one: Sum, parts: int) -> list[str]:
        lines = []
        for member in one.members:
            node = member.node
            register = f"c{text.names[node][1:]}"
            part = stored_value(f"{text.working(node, accumulator_dtype(node, wide=True))}[q]", node)
            lines += [
                f"{register} = {first_value(node, wide=True)}",
                "q = thread",
                f"while q < {parts}:",
                f"    {register} = {step(node, register, part, wide=True)}",
                f"    q += {self.threads}",
                *text.together(node, register, self.threads, wide=True),
            ]
        return lines
