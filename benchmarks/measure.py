"""How one row of the speed benchmark is measured: agreement first, then rounds, then compilation and memory.

All engines of a row are alive at once, idle but for the one that is asked, and take turns in every round, so that a
machine which drifts slows all alike. Each round begins from the initial weights with some steps that are not timed.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import OURS, variants
from benchmarks.processes import Child, EngineError, busy_seconds, environment, jax_cache
from benchmarks.rows import Row

STEPS_COMPARED = 5
TOLERANCE = 1e-3  # relative, of losses and of the mean magnitude of other results
ROUND_SECONDS, WARM_UP_SECONDS, CALIBRATION_SECONDS = 0.2, 0.05, 0.1
WARM_PROCESSES = 3
KERNELS_SHOWN = 6
IDLE_SECONDS, IDLE_SHARE = 0.3, 0.1


class DisagreementError(RuntimeError):
    """Engines gave different losses for the same row."""


@dataclass(frozen=True)
class Settings:
    """What the command line asks for. `folder` holds arrays, caches and logs while the benchmark runs."""

    engines: tuple[str, ...]
    pythons: dict[str, str]
    threads: int
    rounds: int
    steps: bool
    compilation: bool
    folder: Path


@dataclass
class Candidate:
    """One engine in one of its forms, and what was found for it."""

    engine: str
    variant: str
    caches: Path
    child: Child
    found: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    one_step: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.engine} ({self.variant})" if self.variant else self.engine


def row_results(row: Row, settings: Settings) -> dict[str, Any]:
    """Everything measured of one row: `engines` by name, and `left_out` with reasons.

    Raises:
        DisagreementError: losses differ; names the row, the step and what each engine found.
    """
    arrays = settings.folder / f"{row.name}.npz"
    np.savez(arrays, **row.arrays())  # type: ignore[arg-type]  # its stub takes the names for its own options
    left_out: dict[str, str] = {}
    restless: list[str] = []
    others = 0.0
    with contextlib.ExitStack() as stack:
        candidates = []
        for engine in settings.engines:
            forms = variants(engine, row.optimizes)
            for variant in forms if settings.steps else forms[:1]:
                try:
                    candidates.append(_start(row, engine, variant, settings, arrays, stack))
                except EngineError as error:
                    left_out[engine] = str(error)
        left_out = {engine: why for engine, why in left_out.items() if all(c.engine != engine for c in candidates)}
        check_agreement(row.name, {candidate.name: candidate.found["values"] for candidate in candidates})
        if settings.steps:
            candidates = _fastest_forms(candidates)
            restless = _restless(candidates)
            others = _take_turns(candidates, settings.rounds)
            _profile(candidates)
    if settings.compilation:
        for candidate in list(candidates):
            try:
                _fill(row, candidate, settings, arrays)
            except EngineError as error:
                left_out[candidate.engine] = f"in a fresh process: {error}"
                candidates.remove(candidate)
        _warm_starts(row, candidates, settings, arrays)
    engines = {c.engine: _summary(c, settings) for c in candidates}
    return {"engines": engines, "left_out": left_out, "restless": restless, "others_cores": others}


def check_agreement(row: str, values: dict[str, list[list[float]]]) -> None:
    """Compare, step by step, what the engines computed: for each step the loss and what else the row gives back.

    Raises:
        DisagreementError: more than TOLERANCE apart, or not finite.
    """
    if len({len(found) for found in values.values()} | {STEPS_COMPARED}) > 1:
        raise DisagreementError(f"{row}: {STEPS_COMPARED} steps expected of each engine; got {_counts(values)}")
    for step in range(STEPS_COMPARED):
        at_step = {name: found[step] for name, found in values.items()}
        if len({len(numbers) for numbers in at_step.values()}) > 1:
            raise DisagreementError(f"{row}: engines give different numbers of results at step {step + 1}: {at_step}")
        for numbers in zip(*at_step.values(), strict=True):
            apart = max(numbers) - min(numbers)
            if not (apart <= TOLERANCE * max(map(abs, numbers)) and all(map(math.isfinite, numbers))):
                listed = ", ".join(f"{name} {number:.6g}" for name, number in zip(at_step, numbers, strict=True))
                raise DisagreementError(
                    f"{row}: the engines disagree at step {step + 1}: {listed}; no time is given for this row"
                )


def _counts(values: dict[str, list[list[float]]]) -> str:
    return ", ".join(f"{name} {len(found)}" for name, found in values.items())


# ---------------------------------------------------------------- processes


def _start(
    row: Row, engine: str, variant: str, settings: Settings, arrays: Path, stack: contextlib.ExitStack
) -> Candidate:
    """A process with empty caches that has run the first steps."""
    label = "-".join(filter(None, (row.name, engine, variant.replace(" ", "_"))))
    caches = settings.folder / label
    child = stack.enter_context(_child(engine, settings, environment(settings.threads, caches), label))
    candidate = Candidate(engine, variant, caches, child)
    imported, built = _first_steps(child, row, engine, variant, settings, arrays)
    candidate.found = {
        "import_s": imported["seconds"],
        "cold_s": built["seconds"],
        "values": built["values"],
    }
    return candidate


def _child(engine: str, settings: Settings, variables: dict[str, str], label: str) -> Child:
    return Child(settings.pythons[engine], settings.threads, variables, settings.folder / f"{label}.log")


def _first_steps(
    child: Child, row: Row, engine: str, variant: str, settings: Settings, arrays: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    imported = child.ask("import", engine=engine, threads=settings.threads)
    built = child.ask("build", row=row.name, variant=variant, arrays=str(arrays), steps=STEPS_COMPARED)
    return imported, built


def _again(row: Row, candidate: Candidate, settings: Settings, arrays: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first steps in a new process that finds the caches of the candidate."""
    variables = environment(settings.threads, candidate.caches) | jax_cache(candidate.caches)
    with _child(candidate.engine, settings, variables, f"{candidate.caches.name}-warm") as child:
        return _first_steps(child, row, candidate.engine, candidate.variant, settings, arrays)


def _fill(row: Row, candidate: Candidate, settings: Settings, arrays: Path) -> None:
    """The first process of each engine filled its cache but for JAX's, whose cold compilation goes without one."""
    if candidate.engine == "jax":
        _again(row, candidate, settings, arrays)


def _warm_starts(row: Row, candidates: list[Candidate], settings: Settings, arrays: Path) -> None:
    """Medians over new processes, in turns."""
    starts: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {c.engine: [] for c in candidates}
    for _ in range(WARM_PROCESSES):
        for candidate in candidates:
            starts[candidate.engine].append(_again(row, candidate, settings, arrays))
    for candidate in candidates:
        pairs = starts[candidate.engine]
        candidate.found["import_s"] = statistics.median(imported["seconds"] for imported, _ in pairs)
        candidate.found["warm_s"] = statistics.median(built["seconds"] for _, built in pairs)
        candidate.found["peak_mib"] = statistics.median(built["memory"] for _, built in pairs) / 2**20
        candidate.found["peak_reset"] = all(built["memory_reset"] for _, built in pairs)


# ---------------------------------------------------------------- times


def _fastest_forms(candidates: list[Candidate]) -> list[Candidate]:
    """Of each engine the form whose steps were fastest in three short tries, in turns; the others end."""
    for _ in range(3):
        for candidate in candidates:
            taken = candidate.child.ask("calibrate", seconds=CALIBRATION_SECONDS)["seconds"]
            candidate.one_step = min(taken, candidate.one_step or taken)
    kept: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.one_step):
        if candidate.engine in kept:
            candidate.child.close()
        else:
            kept[candidate.engine] = candidate
    return [candidate for candidate in candidates if kept[candidate.engine] is candidate]


def _restless(candidates: list[Candidate]) -> list[str]:
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


def _take_turns(candidates: list[Candidate], rounds: int) -> float:
    """Time the rounds; how many cores other processes used meanwhile."""

    def used_by_others() -> float:
        return busy_seconds() - sum(candidate.child.processor_seconds() for candidate in candidates)

    begin, before = time.perf_counter(), used_by_others()
    for _ in range(rounds):
        for candidate in candidates:
            steps, warm_up = (math.ceil(s / candidate.one_step) for s in (ROUND_SECONDS, WARM_UP_SECONDS))
            candidate.times.append(candidate.child.ask("round", steps=steps, warm_up=warm_up)["seconds"])
    return max(0.0, used_by_others() - before) / (time.perf_counter() - begin)


def _profile(candidates: list[Candidate]) -> None:
    """Where the time of our compiled step goes: its slowest kernels, those of the same ops as one."""
    for candidate in candidates:
        if candidate.engine == "staticgrad":
            times: dict[tuple[str, str], list[float]] = {}
            for ops, kernel, seconds in candidate.child.ask("profile")["kernels"]:
                times.setdefault((ops, kernel), []).append(seconds)
            slowest = sorted(times.items(), key=lambda item: -sum(item[1]))[:KERNELS_SHOWN]
            candidate.found["profile"] = [
                {"ops": ops, "kernel": kernel, "calls": len(seconds), "us": 1e6 * sum(seconds)}
                for (ops, kernel), seconds in slowest
            ]


def _summary(candidate: Candidate, settings: Settings) -> dict[str, Any]:
    found = candidate.found
    summary: dict[str, Any] = {"losses": [numbers[0] for numbers in found["values"]]}
    if candidate.variant:
        summary["variant"] = candidate.variant
    if candidate.times:
        summary["median_us"] = 1e6 * statistics.median(candidate.times)
        summary["min_us"] = 1e6 * min(candidate.times)
    if "profile" in found:
        summary["profile"] = found["profile"]
    if settings.compilation:
        names = ("import_s", "cold_s", "warm_s", "peak_mib", "peak_reset")
        summary |= {name: found[name] for name in names}
        summary["start_s"] = found["import_s"] + found["warm_s"]  # of a later process: imports and the first step
    return summary


# ---------------------------------------------------------------- which engines there are


def available(settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """The version of each engine that can be imported, and of each other the reason.

    Raises:
        EngineError: staticgrad itself cannot be imported.
    """
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for engine in settings.engines:
        try:
            with _child(engine, settings, environment(settings.threads, None), f"{engine}-import") as child:
                versions[engine] = child.ask("import", engine=engine, threads=settings.threads)["version"]
        except (EngineError, OSError, subprocess.SubprocessError) as error:
            if engine in OURS:
                raise EngineError(f"{engine} does not start with {settings.pythons[engine]}: {error}") from error
            missing = getattr(error, "missing", None)
            left_out[engine] = f"{missing} is not installed for {settings.pythons[engine]}" if missing else str(error)
    return versions, left_out
