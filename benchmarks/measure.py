"""How one row of the speed benchmark is measured: agreement first, then rounds, then compilation and memory.

All engines of a row are alive at once, idle but for the one that is asked, and take turns in every round, so that a
machine which drifts slows all alike. Each round begins from the initial weights with some steps that are not timed.
On a GPU a round of steps is started without waiting for any but the last.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.candidates import (
    STEPS_COMPARED,
    Candidate,
    Candidates,
    Settings,
    started,
    steps_compared,
    warm_starts,
)
from benchmarks.processes import EngineError, busy_seconds
from benchmarks.rows import Row

WARM_UP_SECONDS, CALIBRATION_SECONDS = 0.05, 0.1
KERNELS_SHOWN = 6
IDLE_SECONDS, IDLE_SHARE = 0.3, 0.1


class DisagreementError(RuntimeError):
    """Engines gave different losses for the same row."""


def row_results(row: Row, settings: Settings) -> dict[str, Any]:
    """Everything measured of one row: `engines` by name, and `left_out` with reasons.

    Raises:
        DisagreementError: losses differ; names the row, the step and what each engine found.
        LackingError: staticgrad does not offer what the row is about.
    """
    arrays = settings.folder / f"{row.name}.npz"
    np.savez(arrays, **row.arrays())  # type: ignore[arg-type]  # its stub takes the names for its own options
    restless: list[str] = []
    others = 0.0
    try:
        with contextlib.ExitStack() as stack:
            candidates = started(row, settings, arrays, stack)
            values = {candidate.name: candidate.found["values"] for candidate in candidates.present}
            check_agreement(row.name, values, steps_compared(row), row.tolerance)
            if settings.steps:
                _keep_fastest_forms(candidates)
                restless = _restless(candidates.present)
                others = _take_turns(candidates, settings)
                _profile(candidates.present)
        if settings.compilation:
            warm_starts(row, candidates, settings, arrays)
    finally:
        arrays.unlink(missing_ok=True)  # up to a gigabyte
    engines = {c.engine: _summary(c, settings) for c in candidates.present}
    return {"engines": engines, "left_out": candidates.left_out, "restless": restless, "others_cores": others}


def check_agreement(
    row: str, values: dict[str, list[list[float]]], steps: int = STEPS_COMPARED, tolerance: float = 1e-3
) -> None:
    """Compare, step by step, what the engines computed: for each step the loss and what else the row gives back.

    Raises:
        DisagreementError: further apart than the tolerance, relative to the larger magnitude, or not finite.
    """
    if len({len(found) for found in values.values()} | {steps}) > 1:
        raise DisagreementError(f"{row}: {steps} steps expected of each engine; got {_counts(values)}")
    for step in range(steps):
        at_step = {name: found[step] for name, found in values.items()}
        if len({len(numbers) for numbers in at_step.values()}) > 1:
            raise DisagreementError(f"{row}: engines give different numbers of results at step {step + 1}: {at_step}")
        for numbers in zip(*at_step.values(), strict=True):
            apart = max(numbers) - min(numbers)
            if not (apart <= tolerance * max(map(abs, numbers)) and all(map(math.isfinite, numbers))):
                listed = ", ".join(f"{name} {number:.6g}" for name, number in zip(at_step, numbers, strict=True))
                raise DisagreementError(
                    f"{row}: the engines disagree at step {step + 1}: {listed}; no time is given for this row"
                )


def _counts(values: dict[str, list[list[float]]]) -> str:
    return ", ".join(f"{name} {len(found)}" for name, found in values.items())


# ---------------------------------------------------------------- times


def _keep_fastest_forms(candidates: Candidates) -> None:
    """Of each engine the form whose steps were fastest in three short tries, in turns; the others end."""

    def calibrate(candidate: Candidate) -> None:
        taken = candidate.child.ask("calibrate", seconds=CALIBRATION_SECONDS)["seconds"]
        candidate.one_step = min(taken, candidate.one_step or taken)

    for _ in range(3):
        candidates.all_do(calibrate)
    kept: dict[str, Candidate] = {}
    for candidate in sorted(candidates.present, key=lambda candidate: candidate.one_step):
        if kept.setdefault(candidate.engine, candidate) is not candidate:
            candidate.child.close()
    candidates.present = [candidate for candidate in candidates.present if kept[candidate.engine] is candidate]


def _restless(candidates: Sequence[Candidate]) -> list[str]:
    """The engines that keep a core busy while they wait: they disturb the others."""
    time.sleep(IDLE_SECONDS)  # threads may spin for some milliseconds after their last work
    before = [candidate.child.processor_seconds() for candidate in candidates]
    time.sleep(IDLE_SECONDS)
    used = [candidate.child.processor_seconds() for candidate in candidates]
    return [
        candidate.engine
        for candidate, begin, end in zip(candidates, before, used, strict=True)
        if end - begin > IDLE_SHARE * IDLE_SECONDS
    ]


def _take_turns(candidates: Candidates, settings: Settings) -> float:
    """Time the rounds; how many cores other processes used meanwhile."""

    def used_by_others() -> float:
        return busy_seconds() - sum(candidate.child.processor_seconds() for candidate in candidates.present)

    def one_round(candidate: Candidate) -> None:
        steps, warm_up = (math.ceil(s / candidate.one_step) for s in (settings.round_seconds, WARM_UP_SECONDS))
        found = candidate.child.ask("round", steps=steps, warm_up=warm_up)
        candidate.times.append(found["seconds"])
        if "host_seconds" in found:
            candidate.host_times.append(found["host_seconds"])

    begin, before = time.perf_counter(), used_by_others()
    for _ in range(settings.rounds):
        candidates.all_do(one_round)
    return max(0.0, used_by_others() - before) / (time.perf_counter() - begin)


def _profile(candidates: Sequence[Candidate]) -> None:
    """Where the time of our compiled step goes: its slowest kernels, those of the same ops as one."""
    for candidate in candidates:
        if candidate.engine == "staticgrad":
            times: dict[tuple[str, str], list[float]] = {}
            for ops, kernel, seconds in _kernels(candidate):
                times.setdefault((ops, kernel), []).append(seconds)
            slowest = sorted(times.items(), key=lambda item: -sum(item[1]))[:KERNELS_SHOWN]
            candidate.found["profile"] = [
                {"ops": ops, "kernel": kernel, "calls": len(seconds), "us": 1e6 * sum(seconds)}
                for (ops, kernel), seconds in slowest
            ]


def _kernels(candidate: Candidate) -> Any:
    """What the step tells of its kernels: nothing where it cannot, for the times of the row are there already."""
    try:
        return candidate.child.ask("profile")["kernels"]
    except EngineError:
        return []


def _summary(candidate: Candidate, settings: Settings) -> dict[str, Any]:
    found = candidate.found
    summary: dict[str, Any] = {"losses": [numbers[0] for numbers in found["values"]]}
    if candidate.variant:
        summary["variant"] = candidate.variant
    if candidate.times:
        summary["median_us"] = 1e6 * statistics.median(candidate.times)
        summary["min_us"] = 1e6 * min(candidate.times)
    if settings.device != "cpu":
        summary |= {"first_call_s": found["cold_s"], "device_mib": found["memory"] / 2**20}
    if candidate.host_times:
        summary["host_us"] = 1e6 * statistics.median(candidate.host_times)
    if "profile" in found:
        summary["profile"] = found["profile"]
    if settings.compilation:
        names = ("import_s", "cold_s", "warm_s", "peak_mib", "peak_reset")
        summary |= {name: found[name] for name in names}
        summary["start_s"] = found["import_s"] + found["warm_s"]  # of a later process: imports and the first step
    return summary
