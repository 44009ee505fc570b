"""The examples run, at small sizes, and show what they say they show."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits():
    found = example("digits").main(epochs=3)
    assert found["dynamic"] > 0.85
    assert abs(found["dynamic"] - found["compiled"]) < 0.01


def test_resume():
    assert example("resume").main(steps=8)


def test_orbit():
    assert example("orbit").main(steps=20, corrections=8) < 1e-9


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
