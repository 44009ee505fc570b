"""Fills the figures in README.md and docs/speed.md from the committed results files.

    python -m benchmarks.readme

The text between `<!-- results -->` and `<!-- /results -->` is made here and nowhere else; so are the table between
`<!-- speed -->` and `<!-- /speed -->` and its picture, and the tables of docs/speed.md, once there are results.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks import report

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"
SPEED = RESULTS / "speed.json"
ONE_THREAD = RESULTS / "speed_1_thread.json"
ON_GPU = RESULTS / "cuda.json"
NOT_YET = "No results from a GPU have been committed yet.\n"
SPEED_PAGE = ROOT / "docs" / "speed.md"
PICTURE = ROOT / "docs" / "images" / "speed.png"
_PLACE = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
_SPEED_PLACE = re.compile(r"(<!-- speed -->\n).*?(<!-- /speed -->)", re.DOTALL)


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows() -> list[tuple[str, str]]:
    """The figures: what was measured, and what came out."""
    accuracy, start, planner, graphs = _read("accuracy"), _read("start"), _read("planner"), _read("graphs")
    scale, ulp, loops = _read("scale"), _read("ulp"), _read("loops")
    layers = loops["layers"]
    heights = [entry["height_over_capacity"] for entry in planner["sets"].values()]
    whole = {(case["sweep"], case["value"]): case["whole"] for case in graphs["cases"]}
    wide, chain = _speedup(whole["width", 128]), _speedup(whole["depth", 10_000])
    common = ("exp", "log", "tanh", "sigmoid", "erf", "sin", "cos", "pow")
    worst = max(ulp[name][kind]["largest"] for name in common for kind in ("float32", "float64"))
    return [
        (
            f"digits, held-out fifth, mean of {accuracy['seeds']} seeds",
            f"{accuracy['digits']['static']['mean']} % compiled, {accuracy['digits']['dynamic']['mean']} % dynamic",
        ),
        (
            "8,000 MNIST digits, 2,000 held out, mean of 5 seeds",
            f"{accuracy['idx']['static']['mean']} % compiled, {accuracy['idx']['dynamic']['mean']} % dynamic",
        ),
        (
            "training steps per second on the digits (batch 64, 64-256-10, Adam)",
            f"{accuracy['digits']['static']['steps_per_second']:,} compiled, "
            f"{accuracy['digits']['dynamic']['steps_per_second']:,} dynamic",
        ),
        ("forward and backward of an MLP of width 128, compiled over dynamic", f"{wide:.0f} times as fast"),
        ("forward and backward of a chain of 10,000 small ops", f"{chain:.0f} times as fast"),
        ("`import staticgrad`", f"{start['import_seconds']:.2f} s, without Numba"),
        (
            "first call of an MNIST MLP step, nothing cached",
            f"{start['cold_first_call_seconds']:.2f} s",
        ),
        (
            "the same in a second process",
            f"{1000 * start['warm_first_call_seconds']:.0f} ms, {start['warm_numba_compiles']} Numba compiles",
        ),
        (
            "an epoch of a small MLP by `run`, over the sum of its native steps",
            f"{loops['epoch']['run_over_native']:.2f}; shuffled {loops['epoch']['run_shuffled_over_native']:.2f}",
        ),
        (
            "first call of a model of 48 equal blocks, of 2 blocks, nothing cached",
            f"{layers['48']['seconds']:.2f} s, {layers['2']['seconds']:.2f} s",
        ),
        (
            "memory planner, 11 hard public problems, height over capacity",
            f"{statistics.mean(heights):.3f} on average",
        ),
        (
            "capture, backward and planning of 100,000 ops over 10,000",
            f"at most {max(entry['ratio'] for entry in scale.values()):.1f} times the time",
        ),
        ("worst error of exp, log, tanh, sigmoid, erf, sin, cos, pow", f"{worst:.2f} ulp"),
    ]


def _speedup(times: Any) -> float:
    return float(times["dynamic"][1] / times["static"][1])


def speed() -> str | None:
    """The table of `python -m benchmarks` and a link to its picture; None without results."""
    if not SPEED.exists():
        return None
    picture = PICTURE.relative_to(ROOT).as_posix()
    return f"{report.markdown(json.loads(SPEED.read_text()))}\n![Step times over the best peer's]({picture})\n"


def filled(text: str) -> str:
    """`text` with its figures; the part on speed stays as it is where that was not measured."""
    lines = ["| what | figure |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows())]
    table = "\n".join(lines) + "\n"
    text = _PLACE.sub(lambda match: match[1] + table + match[2], text)
    block = speed()
    return text if block is None else _SPEED_PLACE.sub(lambda match: match[1] + block + match[2], text)


def speed_page(text: str) -> str:
    """`text` with the tables of each benchmark that was run, and a sentence where that of the GPU was not."""
    for name, results in (("two threads", SPEED), ("one thread", ONE_THREAD), ("gpu", ON_GPU)):
        if results.exists():
            found = json.loads(results.read_text())
            block = f"```text\n{report.text(found)}\n```\n\n{report.measured_on(found)}\n"
        elif results == ON_GPU:
            block = NOT_YET
        else:
            continue
        place = re.compile(rf"(<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        text = place.sub(lambda match, block=block: match[1] + block, text)  # type: ignore[misc]
    return text


def main() -> None:
    """Write README.md with the picture of its part on speed, and docs/speed.md."""
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    SPEED_PAGE.write_text(speed_page(SPEED_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if SPEED.exists():
        report.plot(json.loads(SPEED.read_text()), PICTURE)
    else:
        print(
            f"readme: there is no {SPEED.relative_to(ROOT)}: the table of speed stays; run python -m benchmarks first"
        )


if __name__ == "__main__":
    main()
