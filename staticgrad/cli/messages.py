"""What commands share: their error, and how they count and wait."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class CommandError(Exception):
    """A mistake that the user can mend; the message says how. `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def numbers(text: str) -> list[int]:
    """A list such as `128,64` of positive integers."""
    found = [int(part) for part in text.split(",") if part.strip()]
    if any(number < 1 for number in found):
        raise ValueError(text)
    return found


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def rate(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not number > 0:
        raise ValueError(text)
    return number


def progress(steps: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The steps, with a progress bar on standard error where tqdm is installed, else a line at each tenth."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from _plain(steps, total, label)
        return
    yield from tqdm(steps, total=total, desc=label, leave=False, disable=None)


def _plain(steps: Iterable[T], total: int, label: str) -> Iterator[T]:
    for done, step in enumerate(steps, 1):
        yield step
        if total >= 10 and done % (total // 10) == 0:
            print(f"{label}: {done} of {total}", file=sys.stderr)
