"""Ctrl-C as a wish that is met between two steps, so that no step is ever half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether the user has asked to stop."""

    requested = False


@contextmanager
def deferred_interrupts() -> Iterator[Stop]:
    """Within the block the first Ctrl-C only sets `requested`; a second one interrupts at once, as usual.

    Outside the main thread, where Python allows no signal handlers, Ctrl-C is left as it is.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
