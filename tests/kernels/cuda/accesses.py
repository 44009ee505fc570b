"""What the threads of one launch do to memory, and what of it depends on which thread comes first.

Two accesses to a byte are in conflict where one of them writes, they belong to different threads, and no barrier of the
block stands between them; between blocks nothing does. Atomic accesses are in conflict with others only. Shuffles order
nothing: the instruction makes the threads of a warp wait for each other's registers, not for memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
READ, WRITE, ATOMIC = range(3)


class Access(NamedTuple):
    """One access: `barriers` counts those of its block that the thread has passed, `number` its accesses before."""

    address: int
    nbytes: int
    kind: int
    block: int
    thread: int
    barriers: int
    number: int
    line: int

    @property
    def moment(self) -> Moment:
        """What tells it from all others of its launch."""
        return self.block, self.thread, self.number


Moment = tuple[int, int, int]


@dataclass
class Conflict:
    """Two accesses to a byte in no order, and the moments at which such a byte is read; none where two write it."""

    one: Access
    other: Access
    reads: set[Moment]


@dataclass
class Launched:
    """All that one launch has done.

    Attributes:
        threads: of a block, in warps of `warp`.
        accesses: each with the fields of an `Access`.
        meetings: for each thread of a block its barriers and shuffles in order, as (kind, line).
        source: the kernel's lines.
    """

    symbol: str
    source: Sequence[str]
    threads: int
    warp: int
    accesses: list[tuple[int, ...]] = field(default_factory=list)
    meetings: dict[tuple[int, int], list[tuple[str, int]]] = field(default_factory=dict)

    def told(self, line: int) -> str:
        """A line of the kernel with its number."""
        text = self.source[line - 1].strip() if 0 < line <= len(self.source) else ""
        return f"line {line} `{text}`"

    # ------------------------------------------------------------ barriers and shuffles

    def strangers(self) -> Iterator[str]:
        """Threads that do not come to a barrier that others of the block wait at, or to a shuffle of their warp.

        Warps that come to no barrier at all are idle: a barrier waits for the threads that are left.
        """
        for block in sorted({block for block, _ in self.meetings}):
            met = [self.meetings.get((block, thread), []) for thread in range(self.threads)]
            barriers = [[one for one in found if one[0] == "barrier"] for found in met]
            for thread in range(self.threads):
                first = thread - thread % self.warp
                if barriers[thread] != barriers[0] and any(map(len, barriers[first : first + self.warp])):
                    yield self._parted("barrier", block, (0, barriers[0]), (thread, barriers[thread]))
                elif met[thread] != met[first]:
                    yield self._parted("shuffle", block, (first, met[first]), (thread, met[thread]))
                else:
                    continue
                return

    def _parted(
        self, what: str, block: int, one: tuple[int, list[tuple[str, int]]], other: tuple[int, list[tuple[str, int]]]
    ) -> str:
        number = next(
            (n for n, (a, b) in enumerate(zip(one[1], other[1], strict=False)) if a != b),
            min(len(one[1]), len(other[1])),
        )
        places = [
            f"thread {thread} comes to {self.told(met[number][1]) if number < len(met) else 'the end'}"
            for thread, met in (one, other)
        ]
        return f"{what} {number} of block {block}: {' but '.join(places)}"

    # ------------------------------------------------------------ memory

    def conflicts(self) -> list[Conflict]:
        """One for each pair of lines, those between blocks first."""
        table = np.array(self.accesses, np.int64).reshape(-1, len(Access._fields))
        unit, rows = _units(table)
        kind, block, thread, barriers = (table[rows, column] for column in range(2, 6))
        found: dict[tuple[int, int], Conflict] = {}
        for keys, agents in (((unit,), block), ((unit, block, barriers), thread)):
            for members in _disputed(keys, agents, kind):
                new = _conflict([Access(*found) for found in table[rows[members]].tolist()], agents is block)
                old = found.setdefault((new.one.line, new.other.line), new)
                old.reads = old.reads | new.reads if old.reads and new.reads else set()
        return list(found.values())

    def told_conflict(self, conflict: Conflict) -> str:
        """A conflict in words."""
        names = ("reads", "writes", "adds to")
        told = [
            f"thread {access.thread} of block {access.block} {names[access.kind]} it after {access.barriers} barriers "
            f"at {self.told(access.line)}"
            for access in (conflict.one, conflict.other)
        ]
        return f"byte {max(conflict.one.address, conflict.other.address):#x}: {', '.join(told)}"


def _units(table: Array) -> tuple[Array, Array]:
    """The pieces of memory that accesses touch, each as large as all allow, and the access that touches each."""
    if not len(table):
        return table[:, 0], table[:, 0]
    start = table[:, 0].min()
    size = np.gcd.reduce(np.concatenate([table[:, 0] - start, table[:, 1]]))
    first, count = (table[:, 0] - start) // size, table[:, 1] // size
    rows = np.repeat(np.arange(len(table)), count)
    return first[rows] + np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count), rows


def _disputed(keys: Sequence[Array], agents: Array, kinds: Array) -> Iterator[Array]:
    """Where all keys agree, the accesses that several agents have made, of which one writes and not all are atomic."""
    if not len(agents):
        return
    order = np.lexsort(tuple(keys))
    agents, kinds = agents[order], kinds[order]
    starts = np.flatnonzero(np.concatenate([[True], np.any([np.diff(key[order]) != 0 for key in keys], axis=0)]))
    stops = np.append(starts[1:], len(order))
    several = np.minimum.reduceat(agents, starts) != np.maximum.reduceat(agents, starts)
    written = (np.maximum.reduceat(kinds, starts) > READ) & (np.minimum.reduceat(kinds, starts) < ATOMIC)
    for group in np.flatnonzero(several & written):
        yield order[starts[group] : stops[group]]


def _conflict(found: Sequence[Access], between_blocks: bool) -> Conflict:
    """Of several accesses to a byte two that are in conflict: writes if possible."""
    ranks = {WRITE: 0, ATOMIC: 1, READ: 2}
    ordered = sorted(found, key=lambda access: ranks[access.kind])
    other = ordered[0]
    apart = [one for one in ordered if (one.block != other.block if between_blocks else one.thread != other.thread)]
    one = next(access for access in apart if {access.kind, other.kind} != {ATOMIC})
    return Conflict(one, other, {access.moment for access in apart} if one.kind == READ else set())
