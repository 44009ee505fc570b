"""What a thread is doing: capturing a graph, recording a tape, pushing tangents forward."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from staticgrad.capture import Capture


class Context(threading.local):
    """Thread-local modes. `capture` is the graph under construction; `depth` counts nested transforms."""

    capture: Capture | None = None
    grad_enabled: bool = True
    inference: bool = False
    depth: int = 0


context = Context()
