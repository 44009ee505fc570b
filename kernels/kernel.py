"""A kernel: generated Python source over raw pointers, its identity, and the operands of a call."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from staticgrad.graph.node import DType, Node


@dataclass(frozen=True)
class Kernel:
    """Source of `def kernel(p0, p1, …)` and the dtypes behind its pointers. Equal text is one kernel.

    After the pointers come `numbers` integers: none, or first the turns [begin, end) of its outermost loop; and then,
    in kernels for a GPU, numbers of the dtypes in `values`.

    The source depends on positions, shapes and strides only, never on the user's names or files, so that equal groups
    of nodes give equal text.
    """

    source: str
    dtypes: tuple[DType, ...]
    numbers: int = 0
    values: tuple[DType, ...] = ()

    @cached_property
    def symbol(self) -> str:
        names = " ".join(dtype.name for dtype in (*self.dtypes, *self.values))
        return "kernel_" + hashlib.sha256(f"{self.source}\n{names}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Operand:
    """What a call passes for one pointer: a value's storage, working memory, or where errors are reported.

    Working memory is "scratch" where the plan has a place for it, and "own" where each thread has some of its own;
    "joint" is that of the first thread, which the others' follow. `node` is the owner of the storage for "storage",
    and the node that reports for "error"; `offset` is in bytes.
    """

    kind: Literal["storage", "scratch", "own", "joint", "status", "error"]
    node: Node | None = None
    offset: int = 0


@dataclass(frozen=True)
class Call:
    """A kernel with the operands of one call.

    Attributes:
        extent: turns of the outermost loop, where the kernel can be told which ones to make.
        grain: turns that should stay together when threads share them.
        own_bytes: working memory for each thread that takes part.
        joins: the calls that bring together what the threads have left in theirs.
        numbers: what a joining kernel takes after `begin` and `end`.
    """

    kernel: Kernel
    operands: tuple[Operand, ...]
    extent: int = 0
    grain: int = 1
    own_bytes: int = 0
    joins: tuple[Call, ...] = ()
    numbers: tuple[int, ...] = ()
