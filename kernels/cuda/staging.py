"""Large transfers to the device: through pinned memory, so that the GPU fetches them while Python goes on."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.gpu import GPU
    from staticgrad.kernels.cuda.stream import Stream

CHUNK = 8 << 20  # bytes of one piece
PIECES = 3  # while the device fetches one, the next is filled
_NO_TIME = 2  # of an event: it is only waited for, and done as long as it has not been recorded


class Staging:
    """Pinned memory in pieces that are used in turn; each waits for its last transfer before it is filled again."""

    def __init__(self, gpu: GPU) -> None:
        self._gpu = gpu
        self._pieces: list[tuple[int, Any]] = []  # address, and the event behind the last transfer
        self._next = 0
        self._lock = threading.Lock()

    def write(self, address: int, values: np.ndarray[Any, Any], stream: Stream) -> None:
        """Queue a copy of a C-contiguous array to the device; the array may be changed as soon as this returns."""
        call, source = self._gpu.call, values.ctypes.data
        with self._lock:
            for start in range(0, values.nbytes, CHUNK):
                nbytes = min(CHUNK, values.nbytes - start)
                piece, event = self._free_piece()
                ctypes.memmove(piece, source + start, nbytes)
                call("cuMemcpyHtoDAsync", address + start, piece, nbytes, stream.handle)
                call("cuEventRecord", event, stream.handle)

    def _free_piece(self) -> tuple[int, Any]:
        """The piece whose turn it is, after the device has fetched what was in it."""
        call = self._gpu.call
        if self._next == len(self._pieces):
            self._pieces.append((int(call("cuMemHostAlloc", CHUNK, 0)), call("cuEventCreate", _NO_TIME)))
        found = self._pieces[self._next]
        self._next = (self._next + 1) % PIECES
        call("cuEventSynchronize", found[1])
        return found
