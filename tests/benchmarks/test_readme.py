"""The figures in the README are those of the committed results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def readme(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import readme

    yield readme
    for name in [name for name in sys.modules if name == "benchmarks" or name.startswith("benchmarks.")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_readme_holds_the_committed_results(readme):
    text = readme.README.read_text(encoding="utf-8")
    assert "<!-- results -->" in text
    assert readme.filled(text) == text


def test_the_page_on_speed_holds_the_committed_results(readme):
    text = readme.SPEED_PAGE.read_text(encoding="utf-8")
    assert "<!-- two threads -->" in text
    assert "<!-- one thread -->" in text
    assert readme.speed_page(text) == text


def test_filling_replaces_what_was_there(readme):
    made = readme.filled("a\n<!-- results -->\nold\n<!-- /results -->\nb\n")
    assert "old" not in made
    assert made.startswith("a\n<!-- results -->\n| what | figure |")
    assert readme.filled(made) == made
