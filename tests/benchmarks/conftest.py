"""The folder of the benchmarks is importable in their tests, and forgotten after each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the root of the repository on the path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    yield
    for name in [name for name in sys.modules if name == "benchmarks" or name.startswith("benchmarks.")]:
        del sys.modules[name]
