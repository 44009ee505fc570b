"""Which launches of a program must wait for which: those that touch the same bytes, where one of them writes.

Inputs that a program writes share no memory with any other array that it is called with, and its outputs are new: that
is what a program may rely on (`Program.run`), as the threads of a program on the CPU do. So two arrays of the caller
conflict only with themselves.
"""

from __future__ import annotations

import ast
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from staticgrad.kernels.kernel import Kernel


class Touched(NamedTuple):
    """Bytes `[start, end)` that a launch reads, or may write; `space` is an entry of the table, None for the arena."""

    space: int | str | None
    start: int
    end: int
    written: bool


@lru_cache(4096)
def written_pointers(kernel: Kernel) -> frozenset[int]:
    """The positions of the pointers that a kernel may write through, from its text.

    A pointer that is used in any other way than being read from counts as written.
    """
    (function,) = (one for one in ast.parse(kernel.source).body if isinstance(one, ast.FunctionDef))
    names = {argument.arg: position for position, argument in enumerate(function.args.args)}
    read = {
        id(place)
        for part in ast.walk(function)
        for place in _read_through(part)
        if isinstance(place, ast.Name) and place.id in names
    }
    return frozenset(
        names[part.id]
        for part in ast.walk(function)
        if isinstance(part, ast.Name) and part.id in names and id(part) not in read
    )


def _read_through(part: ast.AST) -> Iterable[ast.expr]:
    """The expressions that a part of the text reads one or more elements from."""
    if isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Load):
        return (part.value,)
    if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
        if part.func.id in ("load2", "load4"):
            return part.args[:1]
        if part.func.id in ("checked_index", "checked_position"):
            return part.args[3:]
    return ()


def dependencies(launches: Sequence[Iterable[Touched]]) -> list[list[int]]:
    """For each of some launches in order those before it that it must wait for, as few as say all, in order."""
    places = _Places(launches)
    found = []
    for number, touched in enumerate(launches):
        before: set[int] = set()
        for one in touched:
            before |= places.before(one)
        for one in sorted(touched, key=lambda one: one.written):
            places.touch(one, number)
        found.append(before)
    return reduced(found)


def reduced(before: Sequence[Iterable[int]]) -> list[list[int]]:
    """The dependencies without those that follow from others; each stands behind what it depends on."""
    reached: list[int] = []  # for each the set of all that run before it, as bits
    found = []
    for numbers in before:
        all_before, kept = 0, []
        for number in sorted(numbers, reverse=True):
            if not all_before >> number & 1:
                kept.append(number)
                all_before |= reached[number] | 1 << number
        reached.append(all_before)
        found.append(kept[::-1])
    return found


def depths(before: Sequence[Sequence[int]]) -> list[int]:
    """How many others have to run one after the other before each, at least."""
    found: list[int] = []
    for numbers in before:
        found.append(max((found[number] + 1 for number in numbers), default=0))
    return found


class _Places:
    """Memory cut where any launch's bytes begin or end; of each piece who wrote it last, and who has read it since."""

    def __init__(self, launches: Sequence[Iterable[Touched]]) -> None:
        cuts: dict[int | str | None, set[int]] = {}
        for one in (one for touched in launches for one in touched):
            cuts.setdefault(one.space, set()).update((one.start, one.end))
        self._cuts = {space: sorted(found) for space, found in cuts.items()}
        self._writer = {space: [-1] * len(found) for space, found in cuts.items()}
        self._readers: dict[int | str | None, list[list[int]]] = {
            space: [[] for _ in found] for space, found in cuts.items()
        }

    def _pieces(self, one: Touched) -> range:
        cuts = self._cuts[one.space]
        return range(bisect_left(cuts, one.start), bisect_left(cuts, one.end))

    def before(self, one: Touched) -> set[int]:
        """Who must be done before somebody touches bytes."""
        writer, readers = self._writer[one.space], self._readers[one.space]
        found = {writer[piece] for piece in self._pieces(one)}
        if one.written:
            found.update(number for piece in self._pieces(one) for number in readers[piece])
        return found - {-1}

    def touch(self, one: Touched, number: int) -> None:
        """Take note of who has touched bytes."""
        for piece in self._pieces(one):
            if one.written:
                self._writer[one.space][piece] = number
                self._readers[one.space][piece] = []
            else:
                self._readers[one.space][piece].append(number)


__all__ = ["Touched", "dependencies", "depths", "reduced", "written_pointers"]
