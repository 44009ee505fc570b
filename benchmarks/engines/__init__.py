"""One module for each library that the speed benchmark times.

Importing one imports its library. Each offers

    VERSION
    configure(threads)
    build(row, arrays, variant, device) -> Step     with the data on the device, "cpu" or "cuda"
    fetch(result) -> NumPy array                    of one result of a step
    peak_memory() -> bytes                          the most that was allocated on the GPU
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _ended() -> None:
    """Nothing is under way."""


@dataclass(frozen=True)
class Step:
    """A row made ready: `run()` is one whole step. On the CPU it returns once its results are there, on a GPU before.

    `run` gives the loss, or a tuple of the loss and other results, which the next step may overwrite; `restart` puts
    back the initial weights and moments; `profile`, where there is one, gives for each kernel of a step its ops, name
    and seconds; `wait` returns once all that was started has ended.
    """

    run: Callable[[], Any]
    restart: Callable[[], None]
    profile: Callable[[], list[tuple[str, str, float]]] | None = None
    wait: Callable[[], None] = _ended


class NotOfferedError(RuntimeError):
    """A library lacks what a row is about."""


ENGINES = {
    "staticgrad": "staticgrad",
    "staticgrad_dynamic": "staticgrad",
    "torch": "torch",
    "torch_compile": "torch",
    "jax": "jax",
}
"""Names on the command line, and the library of each."""

OURS = ("staticgrad", "staticgrad_dynamic")


def engines_on(device: str) -> tuple[str, ...]:
    """The engines that are timed on a device."""
    return tuple(engine for engine in ENGINES if device == "cpu" or engine != "staticgrad_dynamic")


def variants(engine: str, optimizes: bool, device: str) -> tuple[str, ...]:
    """The forms in which an engine is tried on a row; the fastest is kept."""
    if engine == "torch_compile" and device == "cuda":
        return ("reduce-overhead", "one graph")
    if engine == "torch_compile" and optimizes:
        return ("fused Adam", "compiled Adam")
    return ("",)
