"""One module for each library that the speed benchmark times.

Each offers `VERSION`, `configure(threads)` and `build(row, arrays, variant) -> Step`; importing it imports the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """A row made ready: `run()` is one whole step and returns once its results are there.

    `run` gives the loss, or a tuple of the loss and other results; `restart` puts back the initial weights and moments;
    `profile`, where there is one, gives for each kernel of a step its ops, name and seconds.
    """

    run: Callable[[], Any]
    restart: Callable[[], None]
    profile: Callable[[], list[tuple[str, str, float]]] | None = None


ENGINES = {
    "staticgrad": "staticgrad",
    "staticgrad_dynamic": "staticgrad",
    "torch": "torch",
    "torch_compile": "torch",
    "jax": "jax",
}
"""Names on the command line, and the library of each."""

OURS = ("staticgrad", "staticgrad_dynamic")


def variants(engine: str, optimizes: bool) -> tuple[str, ...]:
    """The forms in which an engine is tried on a row; the fastest is kept."""
    if engine == "torch_compile" and optimizes:
        return ("fused Adam", "compiled Adam")
    return ("",)
