"""Streams: queues of work for a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.array import Buffer
    from staticgrad.kernels.cuda.gpu import GPU

_NON_BLOCKING = 1  # does not wait for the legacy stream, which other libraries may use
_NO_TIME = 2  # of an event: it is only waited for


class Stream:
    """Work that a GPU does in order; work of different streams may overlap. Make one with `GPU.new_stream`.

    Attributes:
        handle: the driver's stream. It is never destroyed but passed on to the next Stream, so that memory can be given
            back in its order at any later time.
        workspace: memory that a library's products work in, where there have been some.
    """

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.workspace: Buffer | None = None
        try:
            self.handle, self._event = gpu.idle_streams.pop()
        except IndexError:
            self.handle = gpu.call("cuStreamCreate", _NON_BLOCKING)
            gpu.streams.append(self.handle)
            self._event = gpu.call("cuEventCreate", _NO_TIME)

    def synchronize(self) -> None:
        """Wait until all work queued on this stream is done.

        Raises:
            DeviceError: a launch has failed.
            IndexRangeError: a run has met an index out of range.
        """
        self.gpu.call("cuStreamSynchronize", self.handle)
        self.gpu.raise_reported()

    def wait_for(self, other: Stream) -> None:
        """Have what is queued here from now on wait for what is queued on another stream up to now."""
        self.gpu.call("cuEventRecord", other._event, other.handle)
        self.gpu.call("cuStreamWaitEvent", self.handle, other._event, 0)

    def __del__(self) -> None:
        if hasattr(self, "_event"):
            self.gpu.idle_streams.append((self.handle, self._event))
