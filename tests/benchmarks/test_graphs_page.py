"""The page on static and dynamic graphs says what the committed results say."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import graphs_page

    yield graphs_page
    for name in [name for name in sys.modules if name == "benchmarks" or name.startswith("benchmarks.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def results():
    return json.loads((ROOT / "benchmarks" / "results" / "graphs.json").read_text(encoding="utf-8"))


def test_the_page_is_made_from_the_committed_results(page_module, results):
    page = page_module.PAGE.read_text(encoding="utf-8")
    assert page_module.filled(page, results) == page
    for name in ("memory", "backward", "overhead", "accuracy"):
        assert (page_module.IMAGES / f"{name}.png").exists()


def test_the_committed_results_are_of_a_full_run(results):
    assert not results["quick"]
    found = {(case["sweep"], case["value"]) for case in results["cases"]}
    assert {("depth", 10), ("depth", 10_000)} <= found
    assert {sweep for sweep, _ in found} == {"width", "batch", "depth"}


def test_the_gradients_of_the_results_are_right(results):
    for case in results["accuracy"]:
        assert max(case["float64_against_differences"].values()) < 1e-9, case
        assert max(case["float32_against_float64"].values()) < 1e-3, case
        assert case["static_against_dynamic"] < 1e-12, case


def test_a_page_without_a_place_for_a_table(page_module, results):
    with pytest.raises(ValueError, match="one place for 'machine'; found 0"):
        page_module.filled("no places here", results)
