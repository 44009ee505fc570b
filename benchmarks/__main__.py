"""The compiled step against PyTorch and JAX: `python -m benchmarks [--rows A,B] [--engines ...] [--threads N]`.

Each engine runs in a process of its own, pinned to as many cores as it may use threads. The results go into a JSON
file; the exit code is 1 if engines disagreed or staticgrad failed on a row.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.engines import ENGINES, OURS
from benchmarks.floors import higher
from benchmarks.measure import DisagreementError, Settings, available, row_results
from benchmarks.processes import ROOT, EngineError, environment, usable_cores
from benchmarks.rows import ROWS, Row

RESULTS = Path(__file__).parent / "results" / "speed.json"
PICTURE = ROOT / "docs" / "images" / "speed.png"
BUSY = 0.5  # of the cores: a load average above it at the start is said


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked: all that is wrong is said before anything runs."""
    command = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    command.add_argument("--rows", default="all", help=f"all, or some of {','.join(ROWS)}")
    command.add_argument("--engines", default=",".join(ENGINES), help=f"some of {','.join(ENGINES)}")
    command.add_argument("--threads", type=int, default=min(2, len(usable_cores())))
    command.add_argument("--rounds", type=int, default=15, help="timed rounds of 0.2 s for each engine")
    command.add_argument("--out", type=Path, default=RESULTS, help="where the results go (JSON)")
    command.add_argument("--plot", type=Path, nargs="?", const=PICTURE, help="where the picture goes")
    command.add_argument(
        "--python", action="append", default=[], metavar="ENGINE=PATH", help="the Python of an engine or its library"
    )
    only = command.add_mutually_exclusive_group()
    only.add_argument("--compile-only", action="store_true", help="compilation and memory, no step times")
    only.add_argument("--no-compile", action="store_true", help="step times, no compilation and memory")
    options = command.parse_args(words)
    options.rows = chosen(command, "--rows", options.rows, ROWS)
    options.engines = chosen(command, "--engines", options.engines, ENGINES)
    options.pythons = pythons(command, options.python)
    for name in ("threads", "rounds"):
        if getattr(options, name) < 1:
            command.error(f"--{name} must be at least 1; got {getattr(options, name)}")
    if not options.out.parent.is_dir():
        command.error(f"--out: there is no folder {options.out.parent}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        command.error('--plot needs matplotlib: pip install "staticgrad[bench]"')
    return options


def chosen(command: argparse.ArgumentParser, option: str, value: str, known: Any) -> tuple[str, ...]:
    """The names in a list with commas, each once, in the order given."""
    names = tuple(known) if value == "all" else tuple(dict.fromkeys(filter(None, value.split(","))))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        command.error(f"{option}: unknown {', '.join(unknown) or 'nothing'}; choose from {', '.join(known)}")
    return names


def pythons(command: argparse.ArgumentParser, given: list[str]) -> dict[str, str]:
    """The interpreter of each engine: this one, unless the engine's name or its library's was given another."""
    found = dict.fromkeys(ENGINES, sys.executable)
    for pair in given:
        name, _, path = pair.partition("=")
        if name not in ENGINES or not path:
            command.error(f"--python: expected ENGINE=PATH with one of {', '.join(ENGINES)}; got {pair!r}")
        if shutil.which(path) is None:
            command.error(f"--python: {path} is not a program")
        found |= {engine: path for engine, library in ENGINES.items() if engine == name or library == name}
    return found


def warnings(threads: int) -> list[str]:
    """What makes the times of this machine doubtful."""
    cores, load = len(usable_cores()), os.getloadavg()[0]
    found = []
    if threads > cores:
        found.append(f"too few cores: {threads} threads on {cores}")
    if load > BUSY * cores:
        found.append(f"busy machine: a load of {load:.2f} on {cores} cores at the start; the times may mean little")
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from staticgrad.cli.doctor import examine

    found = examine()
    names = ("system", "processor", "vector instructions", "cores", "BLAS", "python", "numpy", "numba", "llvmlite")
    return {name: found[name] for name in names if name in found} | {"date": datetime.date.today().isoformat()}


def floors(threads: int) -> dict[str, Any]:
    """What the machine can do at most with so many threads, measured in a process of its own."""
    cores = usable_cores()[:threads]
    pinned = (lambda: os.sched_setaffinity(0, cores)) if hasattr(os, "sched_setaffinity") else None
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.floors", "--threads", str(threads)],
        cwd=ROOT, env=environment(threads, None), check=True, stdout=subprocess.PIPE, preexec_fn=pinned,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(row: Row, settings: Settings, limits: dict[str, Any] | None) -> dict[str, Any]:
    """One row, or the error that it ended with."""
    try:
        found = report.judged(row, row_results(row, settings), settings.threads, limits)
    except (DisagreementError, EngineError) as error:
        return {"what": row.what, "error": str(error)}
    failed = [f"{engine} failed: {why}" for engine, why in found["left_out"].items() if engine in OURS]
    return found | {"error": f"{row.name}: {'; '.join(failed)}"} if failed else found


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure every row; the results file is written anew after each."""
    asked = Settings(
        options.engines, options.pythons, options.threads, options.rounds, not options.compile_only,
        not options.no_compile, folder,
    )  # fmt: skip
    results: dict[str, Any] = {
        "machine": machine(), "threads": options.threads, "rounds": options.rounds,
        "load_average_before": round(os.getloadavg()[0], 2), "warnings": warnings(options.threads),
    }  # fmt: skip
    results["versions"], results["left_out"] = available(asked)
    for line in (*results["warnings"], *(f"left out: {name}: {why}" for name, why in results["left_out"].items())):
        print(line, flush=True)
    settings = Settings(
        tuple(results["versions"]), asked.pythons, asked.threads, asked.rounds, asked.steps, asked.compilation, folder
    )
    results["floors"] = floors(options.threads) if asked.steps else None
    results["rows"] = {}
    for name in options.rows:
        print(f"{name} ...", flush=True)
        results["rows"][name] = measured(ROWS[name], settings, results["floors"])
        results["load_average_after"] = round(os.getloadavg()[0], 2)
        store(results, options.out)
    if asked.steps:
        results["floors"] = higher(results["floors"], floors(options.threads))
        for name, found in results["rows"].items():
            if "engines" in found:
                results["rows"][name] = report.judged(ROWS[name], found, options.threads, results["floors"])
        store(results, options.out)
    return results


def store(results: dict[str, Any], out: Path) -> None:
    """Write the results file."""
    out.write_text(json.dumps(rounded(results), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Floats with four significant digits, losses with six, so that the file reads well."""
    if isinstance(value, dict):
        return {key: [float(f"{x:.6g}") for x in item] if key == "losses" else rounded(item) for key, item in
                value.items()}  # fmt: skip
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> int:
    """Measure, print the tables, draw the picture."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="staticgrad-benchmark-") as folder:
        try:
            results = run(options, Path(folder))
        except EngineError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("\n" + report.text(results))
    if options.plot:
        report.plot(results, options.plot)
    return 1 if any("error" in row for row in results["rows"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
