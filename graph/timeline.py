"""How long each stage on the way from a function to a program takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Timeline = dict[str, float]
"""Seconds by the name of the stage, in the order in which the stages first ran."""

_current: ContextVar[Timeline | None] = ContextVar("timeline", default=None)


@contextmanager
def recorded() -> Iterator[Timeline]:
    """The stages that run inside the block."""
    found: Timeline = {}
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time of the block to the stage `name`; stages do not contain each other."""
    found = _current.get()
    if found is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        found[name] = found.get(name, 0.0) + time.perf_counter() - start


def described(timeline: Timeline) -> str:
    """The stages in one line: `capture 21 ms, fuse 8 ms, …, total 0.31 s`."""
    stages = [f"{name} {seconds * 1e3:.0f} ms" for name, seconds in timeline.items()]
    return ", ".join([*stages, f"total {sum(timeline.values()):.2f} s"])
