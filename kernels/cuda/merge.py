"""Small launches that do not need each other, made one: a kernel whose blocks are divided among them.

A launch takes longer to start than a small kernel to run, and a step of a small model is a chain of them. Launches are
put in order by their depth, the number of launches that have to run before them one after the other. Those of one depth
never depend on each other, and making one of several leaves the depth of all others as it is.

A kernel becomes a part of another one as a function of the block's number. Launches of the same kernel share it: only
which pointers it gets is told by the block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from staticgrad.graph.node import DType
from staticgrad.kernels.cuda.dependencies import dependencies, depths, reduced
from staticgrad.kernels.cuda.launch import BLOCK, GRID
from staticgrad.kernels.cuda.stages import UNBOUNDED, indented
from staticgrad.kernels.cuda.step import Step
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Kernel

WAVE = 2  # blocks of merged launches for each multiprocessor: all of them run at once
MOST_POINTERS = 256  # of one kernel
SHARED_BYTES = 48 * 1024  # that a block can have
_SHARED = re.compile(r"shared_memory\((\d+), (\w+)\)")


@dataclass(frozen=True)
class Arranged:
    """Steps in an order in which they can run, and for each of them those that it must wait for."""

    steps: list[Step]
    after: list[list[int]]


def arranged(steps: Sequence[Step], target: Target) -> Arranged:
    """The steps of a program, which can run in the order given, with small ones merged."""
    before = dependencies([step.touched for step in steps])
    depth = depths(before)
    by_depth: dict[int, list[int]] = {}
    for number in range(len(steps)):
        by_depth.setdefault(depth[number], []).append(number)
    found: list[Step] = []
    place: dict[int, int] = {}  # where each of the given steps has gone
    waits: list[set[int]] = []
    for _, numbers in sorted(by_depth.items()):
        for together in _together(numbers, steps, target):
            place |= dict.fromkeys(together, len(found))
            waits.append({place[other] for number in together for other in before[number]})
            found.append(merged([steps[number] for number in together]))
    return Arranged(found, reduced(waits))


# ---------------------------------------------------------------- which ones


@dataclass
class _Bin:
    """Launches that become one."""

    numbers: list[int] = field(default_factory=list)
    kernels: set[str] = field(default_factory=set)
    blocks: int = 0
    pointers: int = 0
    shared: int = 0

    def takes(self, step: Step, most_blocks: int) -> bool:
        """Whether there is room for one more."""
        return (
            self.blocks + step.grid <= most_blocks
            and self.pointers + len(step.addresses) <= MOST_POINTERS
            and self.shared + self._new_shared(step) <= SHARED_BYTES
        )

    def add(self, number: int, step: Step) -> None:
        """Take one more."""
        self.shared += self._new_shared(step)
        self.numbers.append(number)
        self.kernels.add(step.symbol)
        self.blocks += step.grid
        self.pointers += len(step.addresses)

    def _new_shared(self, step: Step) -> int:
        return 0 if step.kernel is None or step.symbol in self.kernels else shared_bytes(step.kernel)


def _together(numbers: Sequence[int], steps: Sequence[Step], target: Target) -> list[list[int]]:
    """The launches of one depth, those that become one together; in the order of their first ones."""
    alone = [[number] for number in numbers if not _is_small(steps[number], target)]
    bins: list[_Bin] = []
    same: dict[str, list[int]] = {}
    for number in numbers:
        if _is_small(steps[number], target):
            same.setdefault(steps[number].symbol, []).append(number)
    for number in (number for found in same.values() for number in found):
        room = next((one for one in bins if one.takes(steps[number], WAVE * target.processors)), None)
        if room is None:
            bins.append(room := _Bin())
        room.add(number, steps[number])
    return sorted([*alone, *(one.numbers for one in bins)], key=min)


def _is_small(step: Step, target: Target) -> bool:
    """Whether a launch may share one with others: it leaves room, and its kernel asks for nothing special."""
    kernel = step.kernel
    return (
        kernel is not None
        and step.grid <= target.processors
        and step.block <= UNBOUNDED
        and "launch_bounds" not in kernel.source
    )


def shared_bytes(kernel: Kernel) -> int:
    """The shared memory of a block, with room to align each array."""
    return sum(int(count) * np.dtype(name).itemsize + 16 for count, name in _SHARED.findall(kernel.source))


# ---------------------------------------------------------------- one kernel of several


@dataclass(frozen=True)
class _Part:
    """Launches of one kernel and shape inside a merged one: the first block of each, and of its pointers."""

    kernel: Kernel
    grid: int
    block: int
    starts: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """The block behind the last one."""
        return self.starts[-1][0] + self.grid


def merged(steps: Sequence[Step]) -> Step:
    """One step that does what some independent ones do."""
    if len(steps) == 1:
        return steps[0]
    same: dict[tuple[str, int, int], list[Step]] = {}
    for step in steps:
        same.setdefault((step.symbol, step.grid, step.block), []).append(step)
    ordered = [step for found in same.values() for step in found]
    parts, blocks, pointers = [], 0, 0
    for found in same.values():
        one, starts = found[0], []
        assert one.kernel is not None
        for step in found:
            starts.append((blocks, pointers))
            blocks, pointers = blocks + step.grid, pointers + len(step.addresses)
        parts.append(_Part(one.kernel, one.grid, one.block, tuple(starts)))
    kernel = _kernel(tuple(parts))
    return Step(
        kernel.symbol,
        tuple(address for step in ordered for address in step.addresses),
        tuple(dict.fromkeys(touched for step in ordered for touched in step.touched)),
        _added(step.blocks for step in ordered),
        kernel,
        blocks,
        max(step.block for step in ordered),
    )


def _added(counts: Iterable[dict[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for count in counts:
        for group, blocks in count.items():
            total[group] = total.get(group, 0) + blocks
    return total


@lru_cache(1024)
def _kernel(parts: tuple[_Part, ...]) -> Kernel:
    """The kernel whose blocks do the parts."""
    threads = max(part.block for part in parts)
    dtypes: list[DType] = []
    about, lines = [], []
    for number, part in enumerate(parts):
        dtypes += part.kernel.dtypes * len(part.starts)
        several = f"{len(part.starts)} times " if len(part.starts) > 1 else ""
        about.append(f"    {part.starts[0][0]} to {part.end - 1}: {several}{_title(part.kernel)}")
        if part is parts[-1]:
            lines.append("else:")
        else:
            lines.append(f"{'elif' if number else 'if'} block < {part.end}:")
        lines += indented(_calls(part, f"q{number}", threads))
    if len(parts) == 1:
        lines = [line.removeprefix("    ") for line in lines[1:]]
    pointers = ", ".join(f"p{position}" for position in range(len(dtypes)))
    head = ['"""Launches side by side, by the number of the block:', "", *(line.strip() for line in about), '"""']
    body = [*head, "thread = int64(cuda.threadIdx.x)", BLOCK, *lines]
    text = "\n".join([f"def kernel({pointers}):", *indented(body)]).replace("    \n", "\n")
    functions = [_function(part.kernel) for part in parts]
    return Kernel("\n\n".join([*functions, text]) + "\n", tuple(dtypes))


def _calls(part: _Part, name: str, threads: int) -> list[str]:
    """The lines that do one part, where the block is one of its own."""
    count = len(part.kernel.dtypes)
    lines = []
    if len(part.starts) == 1:
        ((first, pointers),) = part.starts
        names = [f"p{pointers + i}" for i in range(count)]
        block = f"block - {first}" if first else "block"
    else:
        names, block = [f"{name}_{i}" for i in range(count)], "block - first"
        for number, (first, pointers) in enumerate(part.starts):
            last = number == len(part.starts) - 1
            lines.append("else:" if last else f"{'elif' if number else 'if'} block < {first + part.grid}:")
            given = [f"{one} = p{pointers + i}" for i, one in enumerate(names)]
            lines += indented([f"first = int64({first})", *given])
    call = f"{_name(part.kernel)}({', '.join([block, f'int64({part.grid})', *names])})"
    return [*lines, f"if thread < {part.block}:", f"    {call}"] if part.block < threads else [*lines, call]


def _name(kernel: Kernel) -> str:
    return kernel.symbol.replace("kernel", "part")


def _function(kernel: Kernel) -> str:
    """A kernel as a function of the number of the block and of how many there are."""
    if f"    {BLOCK}\n" not in kernel.source:
        raise ValueError(f"a kernel to be merged must begin with {BLOCK!r}; got\n{kernel.source}")
    text = kernel.source.replace(f"    {BLOCK}\n", "").replace(GRID, "blocks")
    return "@part\n" + text.replace("def kernel(", f"def {_name(kernel)}(block, blocks, ", 1).rstrip()


def _title(kernel: Kernel) -> str:
    """What a kernel computes, from its docstring."""
    text = kernel.source.split('"""')[1]
    return " ".join(text.split("\n\n")[0].split())


__all__ = ["Arranged", "arranged", "merged", "shared_bytes"]
