"""The results of `benchmarks.graphs` as tables and pictures, and where they stand in the documents."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from staticgrad.table import duration, markdown, size

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "static_and_dynamic.md"
IMAGES = DOCS / "images"
SWEEPS = {"width": "model width", "batch": "batch", "depth": "chain of ops"}

Case = Mapping[str, Any]


# ---------------------------------------------------------------- numbers of a case


def backward(case: Case, mode: str) -> float:
    """Seconds that the backward pass adds to the forward pass."""
    return max(0.0, float(case["whole"][mode][1] - case["forward"][mode][1]))


def overhead(case: Case, mode: str) -> float:
    """Seconds per op outside of arithmetic."""
    return float(case["outside_seconds"][mode]) / float(case["ops"])


def peak(case: Case, mode: str) -> float:
    """Bytes at the largest: of live tensors, or of the arena with the outputs."""
    memory = case["memory"]
    return float(memory["dynamic_peak"] if mode == "dynamic" else memory["arena"] + memory["outputs"])


def calls_to_pay(case: Case, seconds: float) -> str:
    """How many calls win back `seconds`."""
    won = case["whole"]["dynamic"][1] - case["whole"]["static"][1]
    return f"{math.ceil(seconds / won):,}" if won > 0 else "never"


def ratio(first: float, second: float) -> str:
    """How many times `second` goes into `first`."""
    return f"{first / second:.1f}x" if second else ""


def error(value: float) -> str:
    return f"{value:.1e}"


# ---------------------------------------------------------------- tables


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by name, for the places in the page between `<!-- name -->` and `<!-- end -->`."""
    return {
        "machine": _machine(results),
        "memory": _memory(results["cases"]),
        "backward": _backward(results["cases"]),
        "overhead": _overhead(results["cases"]),
        "accuracy": _accuracy(results["accuracy"]),
        "compile": _compile(results["cases"]),
        "first": _first(results),
    }


def _point(case: Case) -> str:
    return f"{SWEEPS[case['sweep']]} {case['value']:,}"


def _machine(results: Mapping[str, Any]) -> str:
    held = results["machine"]
    versions = ", ".join(f"{name} {held[name]}" for name in ("numpy", "scipy", "numba", "llvmlite"))
    load = f"Load average {held['load_average_before']} before and {held['load_average_after']} after"
    return (
        f"{held['cpu']}, {held['cores']} cores, one BLAS thread, {held['system']}, Python {held['python']}, "
        f"{versions}, {held['date']}. {load}; the run took {results['seconds']:.0f} s."
    )


def _memory(cases: Sequence[Case]) -> str:
    header = ("", "dynamic", "static", "less by", "arena", "lower bound", "nothing shared")
    rows = [
        (
            _point(case),
            size(peak(case, "dynamic")),
            size(peak(case, "static")),
            ratio(peak(case, "dynamic"), peak(case, "static")),
            *(size(case["memory"][name]) for name in ("arena", "lower_bound", "naive")),
        )
        for case in cases
    ]
    return markdown(header, rows)


def _backward(cases: Sequence[Case]) -> str:
    header = ("", "forward, dynamic", "static", "backward, dynamic", "static", "both, dynamic", "static", "faster by")
    rows = []
    for case in cases:
        whole = [spread(case["whole"][mode]) for mode in ("dynamic", "static")]
        forward = [duration(case["forward"][mode][1]) for mode in ("dynamic", "static")]
        back = [duration(backward(case, mode)) for mode in ("dynamic", "static")]
        faster = ratio(case["whole"]["dynamic"][1], case["whole"]["static"][1])
        rows.append((_point(case), *forward, *back, *whole, faster))
    return markdown(header, rows)


def spread(quartiles: Sequence[float]) -> str:
    """The median, and how far the quartiles are apart as a part of it."""
    low, median, high = quartiles
    return f"{duration(median)} ±{(high - low) / 2 / median:.0%}"


def _overhead(cases: Sequence[Case]) -> str:
    header = ("", "ops", "kernels", "distinct", "per op, dynamic", "per op, static", "per call, static")
    rows = [
        (
            _point(case),
            f"{case['ops']:,}",
            f"{case['kernels']:,}",
            str(case["distinct_kernels"]),
            duration(overhead(case, "dynamic")),
            duration(overhead(case, "static")),
            duration(case["outside_seconds"]["static"]),
        )
        for case in cases
    ]
    return markdown(header, rows)


def _accuracy(cases: Sequence[Case]) -> str:
    header = (
        "",
        "float64 against differences, dynamic",
        "static",
        "float32 against float64, dynamic",
        "static",
        "float64, static against dynamic",
    )
    rows = [
        (
            _point(case),
            *(error(case["float64_against_differences"][mode]) for mode in ("dynamic", "static")),
            *(error(case["float32_against_float64"][mode]) for mode in ("dynamic", "static")),
            error(case["static_against_dynamic"]),
        )
        for case in cases
    ]
    return markdown(header, rows)


def _compile(cases: Sequence[Case]) -> str:
    header = ("", "compile, nothing cached", "won back after", "load from the disk cache", "won back after")
    rows = [
        (
            _point(case),
            duration(case["compile_seconds"]),
            f"{calls_to_pay(case, case['compile_seconds'])} calls",
            duration(case["load_seconds"]),
            f"{calls_to_pay(case, case['load_seconds'])} calls",
        )
        for case in cases
    ]
    return markdown(header, rows)


def _first(results: Mapping[str, Any]) -> str:
    return (
        f"The first compilation of a process, of `x + 1`, took {duration(results['first_compile_seconds'])}: most of "
        "it is the import of the compiler."
    )


# ---------------------------------------------------------------- the page and the pictures


def filled(page: str, results: Mapping[str, Any]) -> str:
    """The page with every table in its place."""
    for name, text in tables(results).items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, found = pattern.subn(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)
        if found != 1:
            raise ValueError(f"graphs: the page must have one place for {name!r}; found {found}")
    return page


def write(results: Mapping[str, Any]) -> None:
    """Fill the page and draw its pictures."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    IMAGES.mkdir(parents=True, exist_ok=True)
    cases = results["cases"]

    def series(value: Callable[[Case, str], float]) -> dict[str, Callable[[Case], float]]:
        return {mode: lambda case, mode=mode: value(case, mode) for mode in ("dynamic", "static")}  # type: ignore[misc]

    memory = series(peak) | {"static, nothing shared": lambda case: case["memory"]["naive"] + case["memory"]["outputs"]}
    _draw("memory", "peak memory, bytes", cases, memory)
    _draw("backward", "backward pass, seconds", cases, series(backward))
    _draw("overhead", "overhead per op, seconds", cases, series(overhead))
    errors: dict[str, Callable[[Case], float]] = {}
    for mode in ("dynamic", "static"):
        errors[f"float32, {mode}"] = lambda case, mode=mode: case["float32_against_float64"][mode]  # type: ignore[misc]
        errors[f"float64, {mode}"] = lambda case, mode=mode: case["float64_against_differences"][mode]  # type: ignore[misc]
    _draw("accuracy", "relative error of the gradient", results["accuracy"], errors)


_STYLES = {
    "dynamic": {"color": "#b5651d", "marker": "o"},
    "static": {"color": "#1f5fa8", "marker": "s"},
    "static, nothing shared": {"color": "#8fb4dc", "marker": "s", "linestyle": ":"},
    "float32, dynamic": {"color": "#b5651d", "marker": "o"},
    "float32, static": {"color": "#1f5fa8", "marker": "s", "linestyle": "--"},
    "float64, dynamic": {"color": "#b5651d", "marker": "o", "markerfacecolor": "none"},
    "float64, static": {"color": "#1f5fa8", "marker": "s", "markerfacecolor": "none", "linestyle": "--"},
}


def _draw(name: str, label: str, cases: Sequence[Case], series: Mapping[str, Callable[[Case], float]]) -> None:
    """One panel for each sweep, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(SWEEPS), sharey=True)
    for axes, (sweep, title) in zip(panels, SWEEPS.items(), strict=True):
        points = [case for case in cases if case["sweep"] == sweep]
        for line, value in series.items():
            axes.plot([p["value"] for p in points], [value(p) for p in points], label=line, **_STYLES[line])
        axes.set(xscale="log", yscale="log", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(label)
    panels[-1].legend(fontsize=7)
    figure.savefig(IMAGES / f"{name}.png", dpi=90)
