"""Writes a comparison to a file: a picture, an HTML page or a Markdown page."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from staticgrad.comparison import DIFFERENCES, MEASURES, Comparison
from staticgrad.table import duration, markdown, size

PICTURES = (".png", ".svg", ".pdf")
PAGES = (".html", ".md")


def save(report: Comparison, path: Path) -> None:
    """Write `report` in the format that the suffix names; an old file stays whole until the new one is."""
    suffix = path.suffix.lower()
    if suffix not in PICTURES + PAGES:
        raise ValueError(f"Comparison.save: the suffix must be one of {', '.join(PICTURES + PAGES)}; got {path.name!r}")
    figure = _figure(report) if suffix in PICTURES else None
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    draft = Path(name)
    try:
        if figure is not None:
            figure.savefig(draft, format=suffix[1:], dpi=150)
        else:
            draft.write_text(_html(report) if suffix == ".html" else _markdown(report), encoding="utf-8")
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _markdown(report: Comparison) -> str:
    measures = [(row[0].strip(), *row[1:]) for row in report.measures()]
    tables = (markdown(MEASURES, measures), markdown(DIFFERENCES, report.difference_rows(), left=(0, 1, 2)))
    return "\n\n".join((f"# {report.headline}", *tables)) + "\n"


_STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.25em .8em;border-bottom:1px solid #ccc;text-align:left}"
)


def _html(report: Comparison) -> str:
    title = html.escape(report.headline)
    measures = [(row[0].strip(), *row[1:]) for row in report.measures()]
    tables = _html_table(MEASURES, measures) + _html_table(DIFFERENCES, report.difference_rows())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{tables}</body></html>\n"
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"

    return "<table>\n" + line(header, "th") + "".join(line(row, "td") for row in rows) + "</table>\n"


# ---------------------------------------------------------------- the picture

_DYNAMIC, _STATIC = "#b5651d", "#1f5fa8"


def _figure(report: Comparison) -> Any:
    """Four pairs of bars: time, memory, overhead per op, and ops against kernels."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Comparison.save: a picture needs matplotlib; install it with pip install 'staticgrad[viz]', or save an "
            ".html or .md page"
        ) from error
    memory = report.memory
    panels: list[tuple[str, float, float, Callable[[Any], str]]] = [
        ("time per call", report.dynamic_seconds, report.static_seconds, duration),
        ("peak memory", memory.dynamic_peak, memory.static_peak, size),
        ("overhead per op", report.dynamic_overhead, report.static_overhead, duration),
        ("ops, kernels", report.ops, report.kernels, str),
    ]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (title, dynamic, static, told) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        bars = axes.bar(("dynamic", "static"), (dynamic, static), color=(_DYNAMIC, _STATIC), width=0.6)
        axes.bar_label(bars, labels=[told(dynamic), told(static)], padding=2, fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.set_yticks([])
        axes.set_ylim(0, 1.2 * max(dynamic, static) or 1)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(report.headline, fontsize=10)
    return figure
