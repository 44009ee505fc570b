"""Where in the user's code an op was called: the innermost frame outside this package."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import NamedTuple


class Location(NamedTuple):
    """A line of the user's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


UNKNOWN = Location("<unknown>", 0, "<unknown>")

_internal_folders: list[str] = [os.path.dirname(os.path.abspath(__file__)) + os.sep]
_is_internal: dict[str, bool] = {}


def register_internal(folder: str) -> None:
    """Count the files below `folder` as the library's own, so that locations skip them."""
    _internal_folders.append(os.path.abspath(folder) + os.sep)
    _is_internal.clear()


def _internal(file: str) -> bool:
    known = _is_internal.get(file)
    if known is None:
        known = file.startswith("<frozen") or any(file.startswith(folder) for folder in _internal_folders)
        _is_internal[file] = known
    return known


def user_location() -> Location:
    """The innermost frame of the call stack that is not the library's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not _internal(code.co_filename):
            return Location(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    return UNKNOWN
