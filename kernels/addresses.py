"""Where a step of a program finds its bytes: in the memory that the plan owns, or behind a pointer of the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arena:
    """The address `arena + offset + thread * stride`, in bytes; `stride` for memory that each thread has its own of."""

    offset: int
    stride: int = 0


@dataclass(frozen=True, slots=True)
class Argument:
    """The address `table[index] + offset + thread * stride`, in bytes."""

    index: int
    offset: int = 0
    stride: int = 0


Address = Arena | Argument
