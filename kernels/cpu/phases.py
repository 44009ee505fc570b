"""Which threads do what, and where they must wait for each other.

The tasks of a program are cut into phases; between two phases all threads meet. Within a phase no task touches what
another one writes, unless one thread does both in their order. Long loops are shared by all threads; a short task is
done by the thread that has least to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from staticgrad.kernels.cpu.steps import Barrier, Check, Gemm, KernelCall, Owned, Step, Work

SHARE_FROM = 4_000.0  # ns: half of a shorter task is not worth meeting for
PARALLEL_FROM = 30_000.0  # ns of shared work: below, a step is over before a sleeping thread has woken up
BARRIER = 400.0  # ns
LONGEST_PHASE = 64  # tasks: each one is compared with all others of its phase


@dataclass(frozen=True)
class Range:
    """Bytes `[start, end)` of the arena or of one entry of the table; `space` names which."""

    space: object
    start: int
    end: int

    def meets(self, other: Range) -> bool:
        """Whether they have a byte in common."""
        return self.space == other.space and self.start < other.end and other.start < self.end


@dataclass(frozen=True)
class Task:
    """A step with what it touches and how long it takes, roughly, in ns on one thread.

    `alone` keeps every other task out of its phase.
    """

    work: Work | Check
    reads: tuple[Range, ...] = ()
    writes: tuple[Range, ...] = ()
    cost: float = 0.0
    alone: bool = False

    @property
    def shareable(self) -> bool:
        """Whether several threads can each do a part of it."""
        work = self.work
        return isinstance(work, Gemm) or (isinstance(work, KernelCall) and work.extent > work.grain)

    @property
    def shared(self) -> bool:
        """Whether in a program for several threads all of them do a part."""
        return self.shareable and self.cost >= SHARE_FROM


def is_parallel(tasks: Iterable[Task]) -> bool:
    """Whether a program has enough work for several threads."""
    return sum(task.cost for task in tasks if task.shared) >= PARALLEL_FROM


def on_one_thread(tasks: Iterable[Task]) -> list[Step]:
    """The steps of a program that a single thread runs."""
    return [task.work for task in tasks]


def on_threads(tasks: Sequence[Task], threads: int) -> list[Step]:
    """The steps of a program for several threads; `threads` is how many there are likely to be."""
    steps: list[Step] = []
    phase = _Phase(threads)
    for task in tasks:
        if isinstance(task.work, Check):
            steps.append(task.work)
            phase = _Phase(threads)
            continue
        step = phase.place(task)
        if step is None:
            steps.append(Barrier())
            phase = _Phase(threads)
            step = phase.place(task)
            assert step is not None
        steps.append(step)
    return steps


class _Phase:
    """The tasks between two barriers."""

    def __init__(self, threads: int) -> None:
        self._tasks: list[tuple[Task, int | None]] = []
        self._load = [0.0] * threads

    def place(self, task: Task) -> Step | None:
        """The task as a step of this phase, or None where it has to wait for the next one."""
        assert not isinstance(task.work, Check)
        if self._tasks and (task.alone or self._tasks[-1][0].alone or len(self._tasks) >= LONGEST_PHASE):
            return None
        owners = {owner for other, owner in self._tasks if _conflict(task, other)}
        if task.shared:
            if owners:
                return None
            self._load = [load + task.cost / len(self._load) for load in self._load]
            self._tasks.append((task, None))
            return task.work
        if owners:
            if len(owners) > 1 or None in owners:
                return None
            (owner,) = owners
            assert owner is not None
            if self._load[owner] + task.cost > min(self._load) + SHARE_FROM + BARRIER:
                return None
        else:
            owner = self._load.index(min(self._load))
        self._load[owner] += task.cost
        self._tasks.append((task, owner))
        return Owned(task.work, owner)


def _conflict(first: Task, second: Task) -> bool:
    return _meet(first.writes, second.writes) or _meet(first.writes, second.reads) or _meet(first.reads, second.writes)


def _meet(some: Sequence[Range], others: Sequence[Range]) -> bool:
    return any(one.meets(other) for one in some for other in others)
