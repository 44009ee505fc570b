"""Kernels that are started by themselves, with arguments that are new each time: what an op at once is made of."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.graph.node import DType
from staticgrad.kernels.cuda.hardware import Start
from staticgrad.kernels.kernel import Kernel

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.gpu import GPU
    from staticgrad.kernels.cuda.launch_graph import Function
    from staticgrad.kernels.cuda.stream import Stream

_SLOT = 8  # bytes that each argument is given


def starter(gpu: GPU, function: Function, kernel: Kernel, block: int) -> Start:
    """What starts a kernel."""
    count = len(kernel.dtypes) + len(kernel.values)
    pack = struct.Struct("<" + "Q" * len(kernel.dtypes) + "".join(map(_packed, kernel.values))).pack_into
    launch = gpu.driver.cuLaunchKernel
    unused: list[tuple[Any, Any, int]] = []  # places for arguments; taken and given back without a lock, in one step

    def start(stream: Stream, grid: int, arguments: Sequence[Any]) -> None:
        try:
            place = unused.pop()
        except IndexError:
            place = _place(count)
        slots, _, address = place
        pack(slots, 0, *arguments)
        given = (function.handle, grid, 1, 1, block, 1, 1, 0, stream.handle, address, 0)
        (code,) = launch(*given)
        if code:
            gpu.call.after(code, "cuLaunchKernel", *given)
        unused.append(place)  # the driver has copied the arguments

    return start


def _place(count: int) -> tuple[Any, Any, int]:
    """Slots for arguments, the pointers to them, and where these are."""
    slots = (ctypes.c_uint64 * count)()
    first = ctypes.addressof(slots)
    pointers = (ctypes.c_uint64 * count)(*range(first, first + _SLOT * count, _SLOT))
    return slots, pointers, ctypes.addressof(pointers)


def _packed(dtype: DType) -> str:
    """How a number lies in its slot, for `struct`."""
    letter = "B" if dtype == np.bool_ else {"f4": "f", "f8": "d"}.get(dtype.str[1:])
    if letter is None:
        letter = {1: "b", 2: "h", 4: "i", 8: "q"}[dtype.itemsize]
        letter = letter.upper() if dtype.kind == "u" else letter
    padding = _SLOT - dtype.itemsize
    return f"{letter}{padding}x" if padding else letter
