"""From function to plan in steps that grow with the length of the graph and no faster, at a constant depth of calls.

No time is measured: the calls of Python functions are counted. `benchmarks/scale.py` has the seconds.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

_spec = spec_from_file_location("scale_benchmark", Path(__file__).parents[1] / "benchmarks" / "scale.py")
assert _spec is not None
assert _spec.loader is not None
scale = module_from_spec(_spec)
_spec.loader.exec_module(scale)

SHORT, LONG = 300, 3000  # ops; their graphs have up to four times as many nodes
# Work that does not grow with the graph makes the ratio smaller than LONG / SHORT; searches with a limit larger.
MOST = 1.1 * LONG / SHORT


class Calls:
    """Counts the calls of functions, built-in ones too, and how deep they go."""

    def __init__(self) -> None:
        self.count = self.depth = self.deepest = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)
        elif event == "return":
            self.depth -= 1
        if event != "return":
            self.count += 1

    def of(self, name: str, length: int) -> dict[str, int]:
        sys.setprofile(self)
        try:
            return scale.timed_stages(scale.CHAINS[name], length)[1]
        finally:
            sys.setprofile(None)


@pytest.mark.parametrize("name", scale.CHAINS)
def test_steps_grow_with_the_length(name: str) -> None:
    scale.timed_stages(scale.CHAINS[name], 8)  # imports, and what is remembered between graphs
    short, long = Calls(), Calls()
    sizes = short.of(name, SHORT), long.of(name, LONG)
    assert sizes[1]["nodes"] > 2 * LONG
    assert sizes[1]["nodes"] <= MOST * sizes[0]["nodes"]
    assert sizes[1]["kernels"] <= MOST * sizes[0]["kernels"]
    assert sizes[1]["arena_bytes"] <= MOST * sizes[0]["arena_bytes"]
    assert long.count <= MOST * short.count
    assert long.deepest <= short.deepest + 5
