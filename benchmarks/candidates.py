"""The engines of a row: their processes, the first steps, and the starts of later processes.

On a GPU, engines are imported side by side, since most of a short run would be that, and the forms of one library are
compiled side by side; on the CPU nothing happens beside anything.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engines import ENGINES, OURS, variants
from benchmarks.processes import Child, EngineError, environment, jax_cache
from benchmarks.rows import Row

STEPS_COMPARED, STEPS_ALIKE = 5, 2
WARM_PROCESSES = 3


class LackingError(RuntimeError):
    """This staticgrad does not offer what the row is about."""


@dataclass(frozen=True)
class Settings:
    """What the command line asks for. `folder` holds arrays, caches and logs while the benchmark runs.

    Attributes:
        steps, compilation: whether steps are timed, and whether the starts of later processes are.
        round_seconds: how long one engine's part of a round takes.
    """

    engines: tuple[str, ...]
    pythons: dict[str, str]
    threads: int
    rounds: int
    steps: bool
    compilation: bool
    folder: Path
    device: str = "cpu"
    round_seconds: float = 0.2


@dataclass(eq=False)
class Candidate:
    """One engine in one of its forms, and what was found for it."""

    engine: str
    variant: str
    caches: Path
    child: Child
    found: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    host_times: list[float] = field(default_factory=list)
    one_step: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.engine} ({self.variant})" if self.variant else self.engine


class Candidates:
    """The candidates of a row that are still in it, and why others are not: `left_out` by name."""

    def __init__(self, present: Sequence[Candidate]) -> None:
        self.present = list(present)
        self.left_out: dict[str, str] = {}

    def all_do(self, work: Callable[[Candidate], None], together: Sequence[Candidate] | None = None) -> None:
        """Have candidates do something one after the other, or those of `together` side by side; who fails leaves.

        Raises:
            LackingError: staticgrad says that it lacks what the row is about.
        """
        if together is None:
            for candidate in list(self.present):
                self.all_do(work, [candidate])
            return
        with ThreadPoolExecutor(max(1, len(together))) as pool:
            errors = list(pool.map(lambda candidate: _error_of(work, candidate), together))
        for candidate, error in zip(together, errors, strict=True):
            if error is not None:
                self.leave(candidate, str(error))
                if error.kind == "NotOfferedError" and candidate.engine in OURS:
                    raise LackingError(str(error).partition(": ")[2]) from error

    def leave(self, candidate: Candidate, why: str) -> None:
        """Take a candidate out; its process ends."""
        self.left_out[candidate.name] = why
        self.present.remove(candidate)
        candidate.child.close()


def _error_of(work: Callable[[Candidate], None], candidate: Candidate) -> EngineError | None:
    try:
        work(candidate)
    except EngineError as error:
        return error
    return None


# ---------------------------------------------------------------- the first steps


def started(row: Row, settings: Settings, arrays: Path, stack: contextlib.ExitStack) -> Candidates:
    """Every engine in each of its forms after its first steps, in processes with empty caches.

    Raises:
        LackingError: staticgrad says that it lacks what the row is about.
    """
    candidates = Candidates(
        [
            _process(row, engine, variant, settings, stack)
            for engine in settings.engines
            for variant in _forms(engine, row, settings)
        ]
    )

    def imports(candidate: Candidate) -> None:
        candidate.found["import_s"] = _import(candidate.child, candidate.engine, settings)["seconds"]

    def builds(candidate: Candidate) -> None:
        built = _build(candidate.child, row, candidate.variant, arrays)
        candidate.found |= {"cold_s": built["seconds"], "values": built["values"], "memory": built["memory"]}

    def imports_and_builds(candidate: Candidate) -> None:
        imports(candidate)
        builds(candidate)

    if settings.device == "cpu":
        candidates.all_do(imports_and_builds)
        return candidates
    candidates.all_do(imports, list(candidates.present))
    for library in dict.fromkeys(ENGINES.values()):
        candidates.all_do(builds, [c for c in candidates.present if ENGINES[c.engine] == library])
    return candidates


def steps_compared(row: Row) -> int:
    """Of how many steps the results are compared: all steps of a row that keeps no state give the same."""
    return STEPS_COMPARED if row.optimizes else STEPS_ALIKE


def _forms(engine: str, row: Row, settings: Settings) -> tuple[str, ...]:
    forms = variants(engine, row.optimizes, settings.device)
    return forms if settings.steps else forms[:1]


def _process(row: Row, engine: str, variant: str, settings: Settings, stack: contextlib.ExitStack) -> Candidate:
    label = "-".join(filter(None, (row.name, engine, variant.replace(" ", "_"))))
    caches = settings.folder / label
    variables = environment(settings.threads, caches, settings.device)
    return Candidate(engine, variant, caches, stack.enter_context(_child(engine, settings, variables, label)))


def _child(engine: str, settings: Settings, variables: dict[str, str], label: str) -> Child:
    log = settings.folder / f"{label}.log"
    return Child(settings.pythons[engine], settings.threads, variables, log, settings.device)


def _import(child: Child, engine: str, settings: Settings) -> dict[str, Any]:
    return child.ask("import", engine=engine, threads=settings.threads, device=settings.device)


def _build(child: Child, row: Row, variant: str, arrays: Path) -> dict[str, Any]:
    return child.ask("build", row=row.name, variant=variant, arrays=str(arrays), steps=steps_compared(row))


# ---------------------------------------------------------------- later processes


def warm_starts(row: Row, candidates: Candidates, settings: Settings, arrays: Path) -> None:
    """Imports and first steps in new processes that find the caches: medians, in turns."""
    starts: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {c.name: [] for c in candidates.present}

    def again(candidate: Candidate) -> None:
        variables = environment(settings.threads, candidate.caches) | jax_cache(candidate.caches)
        with _child(candidate.engine, settings, variables, f"{candidate.caches.name}-warm") as child:
            imported = _import(child, candidate.engine, settings)
            starts[candidate.name].append((imported, _build(child, row, candidate.variant, arrays)))

    # The first process of each engine filled its cache but for JAX's, whose cold compilation goes without one.
    candidates.all_do(again, [candidate for candidate in candidates.present if candidate.engine == "jax"])
    for pairs in starts.values():
        pairs.clear()
    for _ in range(WARM_PROCESSES):
        candidates.all_do(again)
    for candidate in candidates.present:
        pairs = starts[candidate.name]
        candidate.found["import_s"] = statistics.median(imported["seconds"] for imported, _ in pairs)
        candidate.found["warm_s"] = statistics.median(built["seconds"] for _, built in pairs)
        candidate.found["peak_mib"] = statistics.median(built["memory"] for _, built in pairs) / 2**20
        candidate.found["peak_reset"] = all(built["memory_reset"] for _, built in pairs)


# ---------------------------------------------------------------- which engines there are


def available(settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """The version of each engine that can be imported, and of each other the reason.

    Raises:
        EngineError: staticgrad itself cannot be imported.
    """
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    with ThreadPoolExecutor(1 if settings.device == "cpu" else len(settings.engines)) as pool:
        outcomes = list(pool.map(lambda engine: _version_or_error(engine, settings), settings.engines))
    for engine, found in zip(settings.engines, outcomes, strict=True):
        if isinstance(found, str):
            versions[engine] = found
        elif engine in OURS:
            raise EngineError(f"{engine} does not start with {settings.pythons[engine]}: {found}") from found
        else:
            missing = getattr(found, "missing", None)
            left_out[engine] = f"{missing} is not installed for {settings.pythons[engine]}" if missing else str(found)
    return versions, left_out


def _version_or_error(engine: str, settings: Settings) -> str | Exception:
    variables = environment(settings.threads, None, settings.device)
    try:
        with _child(engine, settings, variables, f"{engine}-import") as child:
            return str(_import(child, engine, settings)["version"])
    except (EngineError, OSError, subprocess.SubprocessError) as error:
        return error
