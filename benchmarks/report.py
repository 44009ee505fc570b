"""What the speed benchmark found, judged and shown: ratios and bars, text and Markdown tables, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines import ENGINES, OURS
from benchmarks.floors import copy_microseconds, floor_microseconds
from benchmarks.gpu_rows import rows_on
from benchmarks.rows import Row

SINGLE_THREAD_BAR = 1.0
COLD_BAR, WARM_BAR, WARM_SECONDS, MEMORY_BAR = 1.5, 0.5, 0.1, 0.9
COPY_SHARE = "share of the speed of a copy"
OTHERS_CORES = 0.1  # used by other processes during the rounds: more is said
COLOURS = {
    "staticgrad": "#0b7285",
    "staticgrad_dynamic": "#66d9e8",
    "torch": "#f59f00",
    "torch_compile": "#ffd43b",
    "jax": "#adb5bd",
}
Found = dict[str, Any]


# ---------------------------------------------------------------- judging


def judged(row: Row, found: Found, threads: int, floors: Found | None) -> Found:
    """What was measured of a row with ratios, floor and bars added."""
    engines = found["engines"]
    result = {"what": row.what, **found}
    peer = best_peer(engines, "median_us")
    ours = engines.get("staticgrad", {})
    if peer and "median_us" in ours:
        result |= {"best_peer": peer, "ratio": ours["median_us"] / engines[peer]["median_us"]}
    if floors and "median_us" in ours:
        result |= _shares(row, ours["median_us"], floors)
    result["bars"] = [
        {"figure": figure, "value": value, "bar": bar, "met": value <= bar}
        for figure, value, bar in _figures(row, engines, threads)
    ]
    if row.copy_bar is not None and "copy_share" in result:
        share = result["copy_share"]
        result["bars"].append(
            {"figure": COPY_SHARE, "value": share, "bar": row.copy_bar, "met": share >= row.copy_bar, "least": True}
        )
    return result


def _shares(row: Row, microseconds: float, floors: Found) -> Found:
    """The floor of a row and its share of the step, where the machine's speed of its kind is known."""
    flops, moved = row.costs()
    if not (flops or moved) or (row.precision != "float32" and f"gemm_{row.precision}_gflops" not in floors):
        return {}
    floor = floor_microseconds(flops, moved, floors, row.precision)
    found = {"floor_us": floor, "share": floor / microseconds}
    if row.copy_bar is not None:
        found["copy_share"] = copy_microseconds(moved, floors) / microseconds
    return found


def best_peer(engines: Found, figure: str) -> str | None:
    """The peer whose `figure` is least; None where no peer has it."""
    having = [name for name in engines if name not in OURS and figure in engines[name]]
    return min(having, key=lambda name: float(engines[name][figure]), default=None)


def _figures(row: Row, engines: Found, threads: int) -> Iterator[tuple[str, float, float]]:
    """Name, value and bar of each figure that the engines at hand allow."""
    ours, jax = engines.get("staticgrad", {}), engines.get("jax", {})

    def over(other: Found, figure: str) -> Iterator[float]:
        if figure in ours and figure in other:
            yield ours[figure] / other[figure]

    for ratio in over(engines.get(best_peer(engines, "median_us") or "", {}), "median_us"):
        yield "step over the best peer's", ratio, row.bar if threads > 1 else SINGLE_THREAD_BAR
    if row.bar_us is not None and threads > 1 and "median_us" in ours:
        yield "step, µs", ours["median_us"], row.bar_us
    for ratio in over(jax, "cold_s"):
        yield "cold compile over jax's", ratio, COLD_BAR
    if "warm_s" in ours:
        yield "warm compile, s", ours["warm_s"], WARM_SECONDS
    for ratio in over(jax, "warm_s"):
        yield "warm compile over jax's", ratio, WARM_BAR
    for ratio in over(engines.get(best_peer(engines, "peak_mib") or "", {}), "peak_mib"):
        yield "peak memory over the best peer's", ratio, MEMORY_BAR
    dynamic, torch = engines.get("staticgrad_dynamic", {}), engines.get("torch", {})
    if row.dynamic_bar is not None and "median_us" in dynamic and "median_us" in torch:
        yield "dynamic mode over torch eager", dynamic["median_us"] / torch["median_us"], row.dynamic_bar


# ---------------------------------------------------------------- tables


def text(results: Found) -> str:
    """The tables for a terminal: steps, then compilation and memory, then what was left out or missed its bar."""
    names = [name for name in ENGINES if any(name in row.get("engines", {}) for row in results["rows"].values())]
    second = _compile_lines if results.get("device", "cpu") == "cpu" else _host_lines
    parts = [aligned(_step_lines(results, names)), aligned(second(results, names))]
    return "\n\n".join(part for part in (*parts, "\n".join(_notes(results))) if part)


def _step_lines(results: Found, names: Sequence[str]) -> list[list[str]]:
    lines = [["step, µs: median (min)", *names, "ratio", "bar", "floor", "share"]]
    for name, row in results["rows"].items():
        engines = row.get("engines", {})
        if any("median_us" in engine for engine in engines.values()):
            bar = next((bar["bar"] for bar in row["bars"] if bar["figure"].startswith("step over")), None)
            cells = [_times(engines.get(engine, {})) for engine in names]
            lines.append(
                [name, *cells, _number(row.get("ratio")), _number(bar), _number(row.get("floor_us")),
                 _number(row.get("share"))]
            )  # fmt: skip
    return lines


def _times(engine: Found) -> str:
    return f"{_number(engine['median_us'])} ({_number(engine['min_us'])})" if "median_us" in engine else "-"


def _compile_lines(results: Found, names: Sequence[str]) -> list[list[str]]:
    lines = [["cold s / warm s / MiB", *names]]
    for name, row in results["rows"].items():
        engines = row.get("engines", {})
        if any("warm_s" in engine for engine in engines.values()):
            lines.append([name, *(_compilation(engines.get(engine, {})) for engine in names)])
    return lines


def _compilation(engine: Found) -> str:
    figures = (engine.get("cold_s"), engine.get("warm_s"), engine.get("peak_mib"))
    return " / ".join(map(_number, figures)) if "warm_s" in engine else "-"


def _host_lines(results: Found, names: Sequence[str]) -> list[list[str]]:
    """Of a GPU: how long a call keeps its caller, the first call of a process, and the most memory."""
    lines = [["call µs / first call s / GPU MiB", *names, "of a copy"]]
    for name, row in results["rows"].items():
        engines = row.get("engines", {})
        if any("host_us" in engine for engine in engines.values()):
            cells = (_host(engines.get(engine, {})) for engine in names)
            lines.append([name, *cells, _number(row.get("copy_share"))])
    return lines


def _host(engine: Found) -> str:
    figures = (engine.get("host_us"), engine.get("first_call_s"), engine.get("device_mib"))
    return " / ".join(map(_number, figures)) if "host_us" in engine else "-"


def _notes(results: Found) -> Iterator[str]:
    yield from (f"note: {warning}" for warning in results["warnings"])
    yield from (f"left out: {engine}: {reason}" for engine, reason in results["left_out"].items())
    for name, row in results["rows"].items():
        if "error" in row:
            yield f"error: {row['error']}"
        if "missing" in row:
            yield f"missing: {name}: {row['missing']}"
        if "skipped" in row:
            yield f"not run: {name}: {row['skipped']}"
        yield from (f"left out of {name}: {engine}: {why}" for engine, why in row.get("left_out", {}).items())
        yield from (f"note: {name}: {engine} keeps a core busy while it waits" for engine in row.get("restless", []))
        if row.get("others_cores", 0) > OTHERS_CORES:
            yield f"note: {name}: other processes used {row['others_cores']:.2f} cores while it was timed"
        for bar in row.get("bars", []):
            if not bar["met"]:
                limit = "at least" if bar.get("least") else "at most"
                yield f"missed: {name}: {bar['figure']} {_number(bar['value'])}, {limit} {_number(bar['bar'])}"
                if bar["figure"].startswith("step"):
                    yield from _profile(row)


def _profile(row: Found) -> Iterator[str]:
    for kernel in row["engines"]["staticgrad"].get("profile", []):
        share = kernel["us"] / row["engines"]["staticgrad"]["median_us"]
        calls = f"{kernel['calls']} calls" if kernel["calls"] > 1 else "1 call"
        yield f"        {share:4.0%}  {_number(kernel['us'])} µs in {calls}: {kernel['ops']} ({kernel['kernel']})"


def _number(value: float | None) -> str:
    """Three significant digits; thousands with commas."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def aligned(lines: list[list[str]]) -> str:
    """Columns side by side, the first to the left; empty when there is a heading alone."""
    if len(lines) < 2:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])] for cells in lines)
    return "\n".join("  ".join(cells) for cells in padded)


def markdown(results: Found) -> str:
    """The table of the README."""
    lines = ["| row | step | staticgrad | best peer | ratio | compile cold, warm |", "|---|---|--:|--:|--:|--:|"]
    for name, row in results["rows"].items():
        if "ratio" not in row:
            continue
        ours, peer = row["engines"]["staticgrad"], row["best_peer"]
        theirs = row["engines"][peer]["median_us"]
        times = f"{_number(ours['median_us'])} µs | {_number(theirs)} µs ({peer})"
        compiling = f"{_number(ours['cold_s'])} s, {1000 * ours['warm_s']:.0f} ms" if "warm_s" in ours else ""
        lines.append(f"| `{name}` | {row['what']} | {times} | {row['ratio']:.2f} | {compiling} |")
    return "\n".join([*lines, "", measured_on(results)]) + "\n"


def measured_on(results: Found) -> str:
    """The machine and the peers, as a sentence."""
    peers = ", ".join(f"{engine} {version}" for engine, version in results["versions"].items() if engine not in OURS)
    found, threads = results["machine"], results["threads"]
    if "gpu" in found:
        versions = f"driver {found['driver']}, CUDA {found['CUDA']}"
        return f"{found['gpu']}, {versions}, {found['date']}; medians of rounds in turns; {peers}."
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{count} of {found.get('processor', 'one machine')}; medians of rounds in turns; {peers}."


# ---------------------------------------------------------------- the picture


def plot(results: Found, path: Path) -> None:
    """Step times on the CPU over the best peer's, bars in a group for each row; the suffix of `path` is the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    rows = {name: row for name, row in results["rows"].items() if "ratio" in row}
    names = [name for name in ENGINES if any(name in row["engines"] for row in rows.values())]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.22 * max(1, len(names) * len(rows))))
    height = 0.8 / max(1, len(names))
    for place, (name, row) in enumerate(rows.items()):
        unit = row["engines"][row["best_peer"]]["median_us"]
        for number, engine in enumerate(names):
            if "median_us" not in row["engines"].get(engine, {}):
                continue
            value = row["engines"][engine]["median_us"] / unit
            position = place + (number - (len(names) - 1) / 2) * height
            axes.barh(position, value, height * 0.9, color=COLOURS[engine])
            axes.text(value, position, f" {_number(value)}", va="center", fontsize=7)
        axes.plot(
            [rows_on("cpu")[name].bar] * 2, [place - 0.45, place + 0.45], color="black", linewidth=1, linestyle=":"
        )
    axes.set_yticks(range(len(rows)), [f"{name}\n{_number(_unit(row))} µs" for name, row in rows.items()], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel(f"step over the best peer's (time below each name), {results['threads']} threads; dots: the bar")
    handles = [Patch(color=COLOURS[name]) for name in names]
    axes.legend(
        handles, names, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(names), frameon=False
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _unit(row: Found) -> float:
    return float(row["engines"][row["best_peer"]]["median_us"])
