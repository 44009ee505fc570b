"""Large transfers to the device: through pinned memory, so that the GPU fetches them while Python goes on."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.gpu import GPU, Stream

CHUNK = 8 << 20  # bytes of one piece
PIECES = 3  # while the device fetches one, the next is filled


class Staging:
    """Pinned memory in pieces that are used in turn; each waits for its last transfer before it is filled again."""

    def __init__(self, gpu: GPU) -> None:
        self._gpu = gpu
        self._pieces: list[tuple[int, Any]] = []  # address, and the event behind the last transfer
        self._next = 0
        self._lock = threading.Lock()

    def write(self, address: int, values: np.ndarray[Any, Any], stream: Stream) -> None:
        """Queue a copy of a C-contiguous array to the device; the array may be changed as soon as this returns."""
        with self._lock:
            if not self._pieces:
                self._pieces = [self._new_piece() for _ in range(PIECES)]
            source = values.ctypes.data
            for start in range(0, values.nbytes, CHUNK):
                nbytes = min(CHUNK, values.nbytes - start)
                piece, event = self._pieces[self._next]
                self._next = (self._next + 1) % PIECES
                self._gpu.call("cuEventSynchronize", event)
                ctypes.memmove(piece, source + start, nbytes)
                self._gpu.call("cuMemcpyHtoDAsync", address + start, piece, nbytes, stream.handle)
                self._gpu.call("cuEventRecord", event, stream.handle)

    def _new_piece(self) -> tuple[int, Any]:
        address = int(self._gpu.call("cuMemHostAlloc", CHUNK, 0))
        return address, self._gpu.call("cuEventCreate", 2)  # 2: without a time; such an event is done from the start
