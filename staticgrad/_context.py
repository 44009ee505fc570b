"""What a thread is doing: capturing a graph, recording a tape, pushing tangents forward."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

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
    `quietly(function, *args, **kwargs)` calls a function of NumPy arrays with floating-point warnings off. It cannot be
    nested: inside such a call it raises RuntimeError. `plain` says in one look that an op only has to run: there is no
    capture, no observer and no inference mode.
    """

    capture: Capture | None = None
    grad_enabled: bool = True
    inference: bool = False
    depth: int = 0
    observer: Observer | None = None
    plain: bool = True

    def __init__(self) -> None:
        # NumPy keeps what to warn of in a context variable; entering a context costs a tenth of np.errstate.
        quiet = contextvars.Context()
        quiet.run(np.seterr, all="ignore")
        self.quietly: Callable[..., Any] = quiet.run

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("capture", "inference", "observer"):
            super().__setattr__("plain", self.capture is None and self.observer is None and not self.inference)


context = Context()
