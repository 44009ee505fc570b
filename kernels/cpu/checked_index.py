"""Checks an index inside a kernel: what is out of range is reported, and replaced by an index that is safe to use."""

from __future__ import annotations

from typing import Any

from numba import int64
from numba.extending import register_jitable


@register_jitable(error_model="numpy")
def checked_index(index: Any, extent: Any, status: Any, code: Any) -> Any:
    """The index counted from the front, in [0, extent). The first one out of range is written to the status block.

    Args: `status` int64[3], `code` int64[1] with what is written into `status[0]`; `extent` at least 1.
    """
    place = int64(index)
    if place < 0:
        place += extent
    if place < 0 or place >= extent:
        if status[0] == 0:
            status[0] = code[0]
            status[1] = int64(index)
            status[2] = int64(extent)
        place = int64(0)
    return place


@register_jitable(error_model="numpy")
def checked_position(position: Any, extent: Any, status: Any, code: Any) -> Any:
    """`checked_index` for what may not be negative, such as a label."""
    place = int64(position)
    if place < 0 or place >= extent:
        if status[0] == 0:
            status[0] = code[0]
            status[1] = int64(position)
            status[2] = int64(extent)
        place = int64(0)
    return place
