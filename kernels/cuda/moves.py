"""Kernels that move bytes: what has no values to compute, inside a sequence of launches."""

from __future__ import annotations

import numpy as np

from staticgrad.kernels.cuda.launch import GRID, OPENING, blocks_for
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.group_text import INT64
from staticgrad.kernels.kernel import Kernel

WORD = np.dtype(np.uint32)
BYTE = np.dtype(np.uint8)
_OPENING = "\n    ".join(OPENING)


def fill(nbytes: int, target: Target) -> tuple[Kernel, int]:
    """The kernel that sets every bit of `nbytes` bytes from an aligned address on, and its blocks."""
    source = f'''def kernel(p0):
    """{nbytes} bytes of ones

    p0: uint8, written
    """
    {_OPENING}
    i = block * {target.block} + thread
    while i < {nbytes}:
        p0[i] = uint8(255)
        i += {GRID} * {target.block}
'''
    return Kernel(source, (BYTE,)), blocks_for(nbytes, target.block, target.blocks)


def copy(nbytes: int, target: Target, *, guarded: bool) -> tuple[Kernel, int]:
    """The kernel that copies `nbytes` bytes between aligned addresses, and its blocks.

    With `guarded` it takes the status block too, and does nothing after an error.
    """
    dtype = BYTE if nbytes % WORD.itemsize else WORD
    count = nbytes // dtype.itemsize
    lanes = 1 if count % 4 else 4
    move = "p1[i] = p0[i]" if lanes == 1 else "a = load4(p0, i)\n        store4(p1, i, a[0], a[1], a[2], a[3])"
    guard = "\n    if p2[0] != 0:\n        return" if guarded else ""
    source = f'''def kernel(p0, p1{", p2" if guarded else ""}):
    """a copy of {nbytes} bytes

    p0: {dtype}, read
    p1: {dtype}, written
    """{guard}
    {_OPENING}
    i = (block * {target.block} + thread) * {lanes}
    while i < {count}:
        {move}
        i += {GRID} * {target.block * lanes}
'''
    dtypes = (dtype, dtype, INT64) if guarded else (dtype, dtype)
    return Kernel(source, dtypes), blocks_for(count // lanes, target.block, target.blocks)


def report() -> Kernel:
    """The kernel that tells the host what the status block says, where it says anything."""
    source = f'''def kernel(p0, p1):
    """what went wrong, for the host

    p0: int64, read
    p1: int64, written
    """
    {_OPENING}
    if (block == 0) & (thread == 0):
        if p0[0] != 0:
            p1[2] = p0[2]
            p1[1] = p0[1]
            p1[0] = p0[0]
'''
    return Kernel(source, (INT64, INT64))
