"""What a thread is doing: capturing a graph, recording a tape, pushing tangents forward."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from staticgrad.capture import Capture


class Observer(Protocol):
    """Is told of every op that runs at once: right before it, and right after with its operands and its result."""

    def before(self) -> None:
        """An op is about to run."""

    def after(self, operands: list[Any], result: Any) -> None:
        """It has run, on these arrays."""


class Context(threading.local):
    """Thread-local modes.

    `capture` is the graph under construction, `depth` counts nested transforms, `observer` watches what runs at once.
    """

    capture: Capture | None = None
    grad_enabled: bool = True
    inference: bool = False
    depth: int = 0
    observer: Observer | None = None


context = Context()
