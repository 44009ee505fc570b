"""How far a long run has come, on standard error."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Progress:
    """A progress bar where standard error is a terminal and tqdm is installed, else ten plain lines.

    Args:
        total: steps in all.
        label: what stands before the figures.

    Example: `with Progress(100, "train") as shown: ... shown.show(7)`.
    """

    def __init__(self, total: int, label: str) -> None:
        self._total = total
        self._label = label
        self._done = 0
        tqdm = _bar() if sys.stderr.isatty() else None
        self._bar = None if tqdm is None else tqdm(total=total, desc=label, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int) -> None:
        """Say that `done` steps are done, more than at the last call."""
        if self._bar is not None:
            self._bar.update(done - self._done)
        else:
            stride = math.ceil(self._total / 10)
            if done // stride > self._done // stride or done == self._total:
                print(f"{self._label}: step {done} of {self._total}", file=sys.stderr, flush=True)
        self._done = done


def progress(steps: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The steps, with a count of those that are done."""
    with Progress(total, label) as shown:
        for done, step in enumerate(steps, 1):
            yield step
            shown.show(done)


def _bar() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
