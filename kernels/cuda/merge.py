"""Small launches made one: those that do not need each other side by side, and those of one block in turn.

A launch takes longer to start than a small kernel to run, and a step of a small model is a chain of them. Launches are
put in order by their depth, the number of launches that have to run before them one after the other. Those of one depth
never depend on each other, and making one of several leaves the depth of all others as it is.

What is left of a chain, each link of which is a single block and waits only for the one before it, is done by one block
in turn, with a barrier behind each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from staticgrad.kernels.cuda.dependencies import dependencies, depths, reduced
from staticgrad.kernels.cuda.merged_kernel import BARRIER, in_turn, runs_of, shared_bytes, side_by_side
from staticgrad.kernels.cuda.stages import UNBOUNDED
from staticgrad.kernels.cuda.step import Step
from staticgrad.kernels.cuda.target import Target

WAVE = 2  # blocks of merged launches for each multiprocessor: all of them run at once
MOST_POINTERS = 480  # of one kernel, whose arguments have 4 KiB
SHARED_BYTES = 48 * 1024  # that a block can have
MOST_RUNS = 8  # parts of launches in turn: each is in the kernel's code once


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
    together = [one for _, numbers in sorted(by_depth.items()) for one in _together(numbers, steps, target)]
    found = [_merged([steps[number] for number in numbers]) for numbers in together]
    after = _among(together, before)
    chains = _chains(found, after)
    return Arranged(
        [_chained([found[number] for number in numbers]) for numbers in chains],
        _among(chains, after),
    )


def _among(together: Sequence[Sequence[int]], before: Sequence[Sequence[int]]) -> list[list[int]]:
    """What groups of steps wait for, as numbers of groups, from what the steps wait for."""
    place = {number: position for position, numbers in enumerate(together) for number in numbers}
    return reduced(
        [
            {place[other] for number in numbers for other in before[number]} - {position}
            for position, numbers in enumerate(together)
        ]
    )


def _merged(steps: Sequence[Step]) -> Step:
    return steps[0] if len(steps) == 1 else side_by_side(steps)


def _chained(steps: Sequence[Step]) -> Step:
    return steps[0] if len(steps) == 1 else in_turn(steps)


# ---------------------------------------------------------------- side by side


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


# ---------------------------------------------------------------- in turn


def _chains(steps: Sequence[Step], after: Sequence[Sequence[int]]) -> list[list[int]]:
    """All steps, those that follow each other in one block together; in the order of their first ones."""
    waiting = [0] * len(steps)
    for numbers in after:
        for number in numbers:
            waiting[number] += 1
    chain_of: dict[int, list[int]] = {}  # by the last link
    found = []
    for number, step in enumerate(steps):
        chain = chain_of.pop(after[number][0], None) if len(after[number]) == 1 else None
        if chain is not None and waiting[chain[-1]] == 1 and _can_follow([steps[one] for one in chain], step):
            chain.append(number)
        else:
            found.append(chain := [number])
        chain_of[number] = chain
    return found


def _can_follow(chain: Sequence[Step], step: Step) -> bool:
    """Whether one block can do a step behind others."""
    steps = [*chain, step]
    kernels = dict.fromkeys(one.kernel for one in steps if one.kernel is not None)
    threads = max(one.block for one in steps)
    return (
        all(_by_one_block(one, threads) for one in steps)
        and sum(len(one.addresses) for one in steps) <= MOST_POINTERS
        and sum(map(shared_bytes, kernels)) <= SHARED_BYTES
        and runs_of(steps) <= MOST_RUNS
    )


def _by_one_block(step: Step, threads: int) -> bool:
    """Whether a block of so many threads can do a step, and others before and after it."""
    return (
        step.kernel is not None
        and step.grid == 1
        and threads <= UNBOUNDED
        and "launch_bounds" not in step.kernel.source
        and (step.block == threads or BARRIER not in step.kernel.source)
    )


__all__ = ["Arranged", "arranged"]
