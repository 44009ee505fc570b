"""Grad modes: whether operations are recorded. Each works as a context manager and as a decorator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from staticgrad._context import context

F = TypeVar("F", bound=Callable[..., Any])


class _Mode:
    """Base of the modes: sets the thread's recording on entry and puts it back on exit; may be nested and reused."""

    _enabled = False
    _inference = False

    def __init__(self) -> None:
        self._previous: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        self._previous.append((context.grad_enabled, context.inference))
        context.grad_enabled = self._enabled
        context.inference = self._inference

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        context.grad_enabled, context.inference = self._previous.pop()

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]

    def _again(self) -> _Mode:
        return type(self)()


class no_grad(_Mode):  # noqa: N801  (PyTorch's names)
    """Record nothing inside the block."""


class enable_grad(_Mode):  # noqa: N801
    """Record inside the block, also within `no_grad`."""

    _enabled = True


class inference_mode(_Mode):  # noqa: N801
    """Record nothing inside the block; results can never take part in a recording later."""

    _inference = True

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self._enabled = not mode and context.grad_enabled
        self._inference = mode
        self._mode = mode

    def _again(self) -> _Mode:
        return inference_mode(self._mode)


class set_grad_enabled(_Mode):  # noqa: N801
    """Switch recording on or off: at once, and, used as a context manager, until the block ends."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self._enabled = bool(mode)
        self._before = (context.grad_enabled, context.inference)
        context.grad_enabled = self._enabled

    def __enter__(self) -> None:
        self._previous.append(self._before)
        context.grad_enabled = self._enabled

    def __call__(self, function: F) -> F:
        context.grad_enabled, context.inference = self._before
        return super().__call__(function)

    def _again(self) -> _Mode:
        return set_grad_enabled(self._enabled)


def is_grad_enabled() -> bool:
    """Whether operations are recorded in this thread."""
    return context.grad_enabled
