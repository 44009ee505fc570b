"""The compiled step against PyTorch and JAX: `python -m benchmarks [--device cuda] [--rows A,B] [--engines ...]`.

Each engine runs in a process of its own, pinned to as many cores as it may use threads. The results go into a JSON
file; the exit code is 1 if engines disagreed or staticgrad failed on a row.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import gpu, report
from benchmarks.candidates import LackingError, Settings, available
from benchmarks.engines import ENGINES, OURS, engines_on
from benchmarks.floors import higher
from benchmarks.gpu_rows import rows_on
from benchmarks.measure import DisagreementError, row_results
from benchmarks.processes import ROOT, EngineError, environment, usable_cores
from benchmarks.rows import Row

RESULTS = {
    device: Path(__file__).parent / "results" / name for device, name in (("cpu", "speed.json"), ("cuda", "cuda.json"))
}
PICTURE = ROOT / "docs" / "images" / "speed.png"
BUSY = 0.5  # of the cores: a load average above it at the start is said


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked: all that is wrong is said before anything runs."""
    command = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument("--rows", default="all", help=f"all, or some of {','.join(rows_on('cpu'))}; more with cuda")
    command.add_argument("--engines", default="all", help=f"all, or some of {','.join(ENGINES)}")
    command.add_argument("--threads", type=int, help="by default 2, with cuda as many as there are cores")
    command.add_argument("--rounds", type=int, help="timed rounds of 0.2 s for each engine: 15; with cuda 9 of 0.1 s")
    command.add_argument("--quick", action="store_true", help="3 short rounds, to see that everything runs")
    command.add_argument("--seconds", type=float, default=math.inf, help="begin no row that is likely to end later")
    command.add_argument("--out", type=Path, help="where the results go (JSON)")
    command.add_argument("--plot", type=Path, nargs="?", const=PICTURE, help="where the picture goes")
    command.add_argument(
        "--python", action="append", default=[], metavar="ENGINE=PATH", help="the Python of an engine or its library"
    )
    only = command.add_mutually_exclusive_group()
    only.add_argument("--compile-only", action="store_true", help="compilation and memory, no step times")
    only.add_argument("--no-compile", action="store_true", help="step times, no compilation and memory")
    options = command.parse_args(words)
    by_default(options)
    options.rows = chosen(command, "--rows", options.rows, rows_on(options.device))
    options.engines = chosen(command, "--engines", options.engines, engines_on(options.device))
    options.pythons = pythons(command, options.python)
    for name in ("threads", "rounds"):
        if getattr(options, name) < 1:
            command.error(f"--{name} must be at least 1; got {getattr(options, name)}")
    if not options.out.parent.is_dir():
        command.error(f"--out: there is no folder {options.out.parent}")
    if options.device == "cuda" and (options.compile_only or options.plot):
        command.error("--compile-only and --plot are for the CPU")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        command.error('--plot needs matplotlib: pip install "staticgrad[bench]"')
    return options


def by_default(options: argparse.Namespace) -> None:
    """What depends on the device where it was not given."""
    cpu, cores = options.device == "cpu", len(usable_cores())
    defaults = {"threads": min(2, cores) if cpu else cores, "rounds": 15 if cpu else 9, "out": RESULTS[options.device]}
    if options.quick:
        defaults["rounds"] = 3
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


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


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on.

    Raises:
        EngineError: there is no GPU that staticgrad can use.
    """
    chip = gpu.asked() if device == "cuda" else {}
    if "missing" in chip:
        raise EngineError(f"--device cuda: {chip['missing']}")
    from staticgrad.cli.doctor import examine

    found = examine()
    names = ("system", "processor", "vector instructions", "cores", "BLAS", "python", "numpy", "numba", "llvmlite")
    described = {name: found[name] for name in names if name in found}
    return chip | described | {"date": datetime.date.today().isoformat()}


def floors(threads: int, device: str = "cpu") -> dict[str, Any]:
    """What the machine can do at most, on the CPU with so many threads, measured in a process of its own.

    Raises:
        EngineError: that process failed; it has said why.
    """
    cores = usable_cores()[:threads]
    pins = device == "cpu" and hasattr(os, "sched_setaffinity")
    pinned = (lambda: os.sched_setaffinity(0, cores)) if pins else None
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.floors", "--threads", str(threads), "--device", device],
        cwd=ROOT, env=environment(threads, None, device), check=False, stdout=subprocess.PIPE, preexec_fn=pinned,
    )  # fmt: skip
    if done.returncode:
        raise EngineError(f"the floors could not be measured: benchmarks.floors ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(row: Row, settings: Settings, limits: dict[str, Any] | None) -> dict[str, Any]:
    """One row, or the error that it ended with, or what staticgrad lacks for it."""
    try:
        found = report.judged(row, row_results(row, settings), settings.threads, limits)
    except LackingError as error:
        return {"what": row.what, "missing": str(error)}
    except (DisagreementError, EngineError) as error:
        return {"what": row.what, "error": str(error)}
    failed = [f"{engine} failed: {why}" for engine, why in found["left_out"].items() if engine in OURS]
    return found | {"error": f"{row.name}: {'; '.join(failed)}"} if failed else found


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure every row; the results file is written anew after each."""
    begin = time.perf_counter()
    cpu, rows = options.device == "cpu", rows_on(options.device)
    asked = Settings(
        options.engines, options.pythons, options.threads, options.rounds, not options.compile_only,
        not options.no_compile and cpu, folder, options.device, round_seconds(options),
    )  # fmt: skip
    results: dict[str, Any] = {
        "device": options.device, "quick": options.quick, "machine": machine(options.device),
        "threads": options.threads, "rounds": options.rounds, "load_average_before": round(os.getloadavg()[0], 2),
        "warnings": warnings(options.threads), "floors": None, "rows": {},
    }  # fmt: skip
    results["versions"], results["left_out"] = available(asked)
    if asked.steps:
        try:
            results["floors"] = floors(options.threads, options.device)
        except EngineError as error:  # the ratios are worth having without
            results["warnings"].append(str(error))
    for line in (*results["warnings"], *(f"left out: {name}: {why}" for name, why in results["left_out"].items())):
        print(line, flush=True)
    settings = replace(asked, engines=tuple(results["versions"]))
    longest = 0.0
    for name in options.rows:
        row_begin = time.perf_counter()
        if row_begin - begin + longest > options.seconds:
            results["rows"][name] = {"what": rows[name].what, "skipped": f"little was left of {options.seconds:g} s"}
            continue
        print(f"{name} ...", flush=True)
        try:
            results["rows"][name] = measured(rows[name], settings, results["floors"])
        except KeyboardInterrupt:
            results["warnings"].append(f"stopped from outside during {name}")
            break
        longest = max(longest, time.perf_counter() - row_begin)
        results["load_average_after"] = round(os.getloadavg()[0], 2)
        store(results, options.out)
    if results["floors"] and cpu:
        results["floors"] = higher(results["floors"], floors(options.threads))
        for name, found in results["rows"].items():
            if "engines" in found:
                results["rows"][name] = report.judged(rows[name], found, options.threads, results["floors"])
    store(results, options.out)
    return results


def round_seconds(options: argparse.Namespace) -> float:
    """How long one engine's part of a round takes: on a GPU no core has to be shared out evenly."""
    return 0.05 if options.quick else 0.2 if options.device == "cpu" else 0.1


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit from outside: what there is, is shown
    with tempfile.TemporaryDirectory(prefix="staticgrad-benchmark-") as folder:
        try:
            results = run(options, Path(folder))
        except EngineError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("\n" + report.text(results))
    if options.plot:
        report.plot(results, options.plot)
    stopped = len(results["rows"]) < len(options.rows)
    return 1 if stopped or any("error" in row for row in results["rows"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
