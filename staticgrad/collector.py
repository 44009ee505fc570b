"""Python's garbage collector, held back while a program is made.

A capture makes hundreds of thousands of objects and frees hardly any. The collector, which looks at all of them again
whenever a quarter more has been made, would take a third of the time of a long graph.
"""

from __future__ import annotations

import gc
import threading


class _Pause:
    """`with collection_paused:` no cyclic garbage is collected; any number of threads may be inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._was_enabled:
                gc.enable()


collection_paused = _Pause()
