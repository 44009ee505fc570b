"""What commands share: their error, and how they read numbers."""

from __future__ import annotations

import argparse
import math


class CommandError(Exception):
    """A mistake that the user can mend; the message says how. `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def numbers(text: str) -> list[int]:
    """A list such as `128,64` of positive integers."""
    return [positive(part) for part in text.split(",") if part.strip()]


def positive(text: str) -> int:
    """An integer of at least 1."""
    return _integer(text, least=1)


def seed(text: str) -> int:
    """An integer of at least 0."""
    return _integer(text, least=0)


def rate(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"takes a number above 0; got {text!r}")
    return number


def _integer(text: str, *, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"takes integers of at least {least}; got {text!r}")
    return number
