"""The kernel that does what several launches do: side by side, each by blocks of its own, or in turn, by one block.

A kernel becomes a part of another one as a function of the block's number. Launches of the same kernel share it: only
which pointers it gets is told by the number of the block or of the turn.

Where a part has fewer threads than the block, the others are idle. Side by side they end there, so that the part may
have barriers: a barrier waits for the threads that are left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from textwrap import shorten
from typing import Literal

import numpy as np

from staticgrad.graph.node import DType
from staticgrad.kernels.cuda.launch import BLOCK, GRID
from staticgrad.kernels.cuda.stages import indented
from staticgrad.kernels.cuda.step import Step
from staticgrad.kernels.kernel import Kernel

BARRIER = "cuda.syncthreads()"
_SHARED = re.compile(r"shared_memory\((\d+), (\w+)\)")
_Along = Literal["block", "turn"]


def side_by_side(steps: Sequence[Step]) -> Step:
    """One step that does what some independent ones do, at once."""
    same: dict[tuple[str, int, int], list[Step]] = {}
    for step in steps:
        same.setdefault((step.symbol, step.grid, step.block), []).append(step)
    return _merged(list(same.values()), "block")


def in_turn(steps: Sequence[Step]) -> Step:
    """One step that does what some of one block do, one after the other."""
    return _merged([list(found) for _, found in groupby(steps, lambda step: (step.symbol, step.block))], "turn")


def runs_of(steps: Sequence[Step]) -> int:
    """How many parts `in_turn` makes of some steps."""
    return len(list(groupby(steps, lambda step: (step.symbol, step.block))))


def shared_bytes(kernel: Kernel) -> int:
    """The shared memory of a block, with room to align each array."""
    return sum(int(count) * np.dtype(name).itemsize + 16 for count, name in _SHARED.findall(kernel.source))


@dataclass(frozen=True)
class _Part:
    """Launches of one kernel and shape: the first block (or the turn) of each, and the first of its pointers."""

    kernel: Kernel
    grid: int
    block: int
    starts: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """The block or turn behind the last one."""
        return self.starts[-1][0] + self.grid


def _merged(same: Sequence[Sequence[Step]], along: _Along) -> Step:
    parts, count, pointers = [], 0, 0
    for found in same:
        one, starts = found[0], []
        assert one.kernel is not None
        for step in found:
            starts.append((count, pointers))
            count, pointers = count + step.grid, pointers + len(step.addresses)
        parts.append(_Part(one.kernel, one.grid, one.block, tuple(starts)))
    steps = [step for found in same for step in found]
    kernel = _kernel(tuple(parts), along)
    return Step(
        kernel.symbol,
        tuple(address for step in steps for address in step.addresses),
        tuple(dict.fromkeys(touched for step in steps for touched in step.touched)),
        _added(step.blocks for step in steps),
        kernel,
        count if along == "block" else 1,
        max(step.block for step in steps),
    )


def _added(counts: Iterable[dict[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for count in counts:
        for group, blocks in count.items():
            total[group] = total.get(group, 0) + blocks
    return total


# ---------------------------------------------------------------- text


@lru_cache(1024)
def _kernel(parts: tuple[_Part, ...], along: _Along) -> Kernel:
    """The kernel that does the parts."""
    threads = max(part.block for part in parts)
    dtypes: list[DType] = []
    about, lines = [], []
    for number, part in enumerate(parts):
        dtypes += part.kernel.dtypes * len(part.starts)
        several = f"{len(part.starts)} times " if len(part.starts) > 1 else ""
        first, last = part.starts[0][0], part.end - 1
        about.append(f"{first}{f' to {last}' if last > first else ''}: {several}{_title(part.kernel)}")
        lines += [_branch(number, len(parts), along, part.end), *indented(_calls(part, number, along, threads))]
    if len(parts) == 1:
        lines = [line.removeprefix("    ") for line in lines[1:]]
    how = "side by side, by the number of the block" if along == "block" else "in turn, by one block"
    opening = ["thread = int64(cuda.threadIdx.x)", BLOCK]
    if along == "turn":
        lines = [f"for turn in range({parts[-1].end}):", *indented([*lines, BARRIER])]
    pointers = ", ".join(f"p{position}" for position in range(len(dtypes)))
    text = [f"def kernel({pointers}):", f'    """Launches {how}:', "", *indented([*about, '"""', *opening, *lines])]
    functions = [_function(kernel) for kernel in dict.fromkeys(part.kernel for part in parts)]
    return Kernel("\n\n".join([*functions, "\n".join(text)]) + "\n", tuple(dtypes))


def _branch(number: int, count: int, along: _Along, end: int) -> str:
    """The line that begins one of several cases, where a counter is below `end`."""
    if number == count - 1:
        return "else:"
    return f"{'elif' if number else 'if'} {along} < {end}:"


def _calls(part: _Part, number: int, along: _Along, threads: int) -> list[str]:
    """The lines that do one part, where its turn or block has come."""
    count = len(part.kernel.dtypes)
    lines = []
    if len(part.starts) == 1:
        ((first, pointers),) = part.starts
        names = [f"p{pointers + i}" for i in range(count)]
        block = f"block - {first}" if along == "block" and first else "block"
    else:
        names, block = [f"q{number}_{i}" for i in range(count)], "block - first" if along == "block" else "block"
        for place, (first, pointers) in enumerate(part.starts):
            chosen = [f"first = int64({first})"] if along == "block" else []
            chosen += [f"{name} = p{pointers + i}" for i, name in enumerate(names)]
            lines += [_branch(place, len(part.starts), along, first + part.grid), *indented(chosen)]
    call = f"{_name(part.kernel)}({', '.join([block, f'int64({part.grid})', *names])})"
    return [*lines, f"if thread < {part.block}:", f"    {call}"] if part.block < threads else [*lines, call]


def _name(kernel: Kernel) -> str:
    return kernel.symbol.replace("kernel", "part")


def _function(kernel: Kernel) -> str:
    """A kernel as a function of the number of the block and of how many there are."""
    if f"    {BLOCK}\n" not in kernel.source:
        raise ValueError(f"a kernel to be merged must have the line {BLOCK!r}; got\n{kernel.source}")
    text = kernel.source.replace(f"    {BLOCK}\n", "").replace(GRID, "blocks")
    return "@part\n" + text.replace("def kernel(", f"def {_name(kernel)}(block, blocks, ", 1).rstrip()


def _title(kernel: Kernel) -> str:
    """What a kernel computes, from its docstring."""
    text = kernel.source.split('"""')[1]
    return shorten(text.split("\n\n")[0], 90, placeholder=" …")


__all__ = ["BARRIER", "in_turn", "runs_of", "shared_bytes", "side_by_side"]
