"""How exactly matrix products in float32 are computed on a GPU: as asked for where a program is compiled."""

from __future__ import annotations

from contextvars import ContextVar

from staticgrad.graph.errors import DeviceError

PRECISIONS = ("float32", "tf32", "bfloat16")
"""What the factors are rounded to: not at all, to 10 bits of fraction, or to 7; sums are always in float32."""

_asked: ContextVar[str | None] = ContextVar("matmul precision", default=None)
_everywhere = ["float32"]


def current() -> str:
    """The precision that is asked for here, else that of the process."""
    return _asked.get() or _everywhere[0]


def set_everywhere(precision: str) -> None:
    """Change the precision of the process."""
    _everywhere[0] = checked(precision)


def checked(precision: str) -> str:
    """The name of a precision.

    Raises:
        DeviceError: there is none of this name.
    """
    if precision not in PRECISIONS:
        names = ", ".join(map(repr, PRECISIONS))
        raise DeviceError(f"matmul_precision: there are {names}; got {precision!r}")
    return precision


class Using:
    """Matrix products of programs compiled inside the `with` block have this precision."""

    def __init__(self, precision: str) -> None:
        self._precision = checked(precision)
        self._before: list[str | None] = []

    def __enter__(self) -> None:
        self._before.append(_asked.get())
        _asked.set(self._precision)

    def __exit__(self, *error: object) -> None:
        _asked.set(self._before.pop())


__all__ = ["PRECISIONS", "Using", "checked", "current", "set_everywhere"]
