"""One launch: a kernel, what it works on, and how many threads run it."""

from __future__ import annotations

from dataclasses import dataclass

from staticgrad.kernels.kernel import Kernel, Operand

BLOCK = "block = int64(cuda.blockIdx.x)"
OPENING = ("thread = int64(cuda.threadIdx.x)", BLOCK)  # the lines of every kernel that tell a thread which one it is
GRID = "int64(cuda.gridDim.x)"  # the number of blocks


@dataclass(frozen=True)
class Launch:
    """A kernel with the operands and the shape of one launch.

    Attributes:
        grid, block: blocks, and threads of each.
        own_bytes: working memory that this launch and its neighbours leave values in.
    """

    kernel: Kernel
    operands: tuple[Operand, ...]
    grid: int
    block: int
    own_bytes: int = 0


def blocks_for(items: int, each: int, most: int) -> int:
    """How many blocks there are for `items` when a block takes `each` at a time and `most` are useful."""
    return max(1, min(most, -(-items // each)))
