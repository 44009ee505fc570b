"""The accuracy of the vector maths, in units in the last place: `python -m benchmarks.ulp [name ...]`.

Each function is measured on a dense sweep of its usual domain and on random bit patterns of the whole range, in
float32 against float64, in float64 against an 80-bit long double, or against mpmath where NumPy has no such function.
The results go to `benchmarks/results/ulp.json` and into the table of `docs/vector_math.md`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
from numba import njit, types

from staticgrad.graph.ops import numpy_math
from staticgrad.kernels import vector_math

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ulp.json"
PAGE = ROOT / "docs" / "vector_math.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SWEEP_POINTS = 1 << 20
RANDOM_POINTS = 1 << 19
SLOW_POINTS = 1 << 13  # for references from mpmath
PRECISIONS: dict[str, Any] = {"float32": np.float32, "float64": np.float64}

# name: the usual domain, in float32 and in float64 where that is wider
DOMAINS: dict[str, tuple[float, float]] = {
    "exp": (-104, 89),
    "exp2": (-150, 128),
    "expm1": (-20, 89),
    "log": (1e-3, 1e3),
    "log2": (1e-3, 1e3),
    "log10": (1e-3, 1e3),
    "log1p": (-1, 1e3),
    "sqrt": (0, 1e3),
    "rsqrt": (1e-3, 1e3),
    "cbrt": (-1e3, 1e3),
    "tanh": (-10, 10),
    "sigmoid": (-104, 40),
    "erf": (-6, 6),
    "erfc": (-6, 10),
    "sin": (-1e3, 1e3),
    "cos": (-1e3, 1e3),
    "tan": (-1e3, 1e3),
    "sinh": (-89, 89),
    "cosh": (-89, 89),
    "asin": (-1, 1),
    "acos": (-1, 1),
    "atan": (-100, 100),
    "asinh": (-1e3, 1e3),
    "acosh": (1, 1e3),
    "atanh": (-1, 1),
    "lgamma": (1e-3, 100),
    "digamma": (1e-3, 100),
    "pow": (1e-3, 1e3),
    "atan2": (-1e3, 1e3),
}
POSITIVE = ("lgamma", "digamma")  # left of zero their zeros lie between floats: no relative error is meant there
FLAT = 100.0  # erf and erfc are constant beyond, to the last bit of a long double, where mpmath's series overflow
MPMATH: dict[str, Callable[[mp.mpf], mp.mpf]] = {
    "erf": lambda x: mp.erf(max(-FLAT, min(x, FLAT))),
    "erfc": lambda x: mp.erfc(max(-FLAT, min(x, FLAT))),
    "lgamma": lambda x: mp.re(mp.loggamma(x)),
    "digamma": mp.digamma,
}


@dataclass(frozen=True)
class Accuracy:
    """The error of one function in one precision, the operands of its maximum, and the cost."""

    largest: float
    mean: float
    worst_operands: list[float]
    nanoseconds: float
    compile_milliseconds: float


def kernel(name: str, precision: str) -> tuple[Any, float]:
    """A compiled loop of one function over arrays, and the milliseconds that compiling took."""
    function = getattr(vector_math, name)
    array = getattr(types, precision)[::1]

    def unary(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = function(x[i])

    def binary(x: Any, y: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = function(x[i], y[i])

    pair = name in ("pow", "atan2")
    started = time.perf_counter()
    signature = types.void(*[array] * (3 if pair else 2))
    compiled = njit([signature])(binary if pair else unary)
    return compiled, 1e3 * (time.perf_counter() - started)


def operands(name: str, precision: str) -> list[np.ndarray]:
    """The points at which a function is measured: a sweep of its domain, then random bits."""
    dtype = PRECISIONS[precision]
    random = np.random.default_rng(0)
    slow = name in MPMATH and precision == "float64"
    sweep, bits = (SLOW_POINTS, SLOW_POINTS // 4) if slow else (SWEEP_POINTS, RANDOM_POINTS)
    lower, upper = DOMAINS[name]
    width = 8 * np.dtype(dtype).itemsize
    patterns = random.integers(0, 2**width, (2, bits), dtype=f"uint{width}").view(dtype)
    if name == "pow":  # bases over the whole range, with exponents that reach both ends of the results
        base = np.abs(patterns[0])
        with np.errstate(all="ignore"):
            reach = np.log(np.finfo(dtype).max) / np.abs(np.log(base.astype(np.float64)))
        exponent = (random.uniform(-1.1, 1.1, bits) * np.minimum(reach, 1e5)).astype(dtype)
        near = random.uniform(lower, upper, sweep).astype(dtype)
        return [np.concatenate([near, base]), np.concatenate([random.uniform(-12, 12, sweep).astype(dtype), exponent])]
    if name == "atan2":
        pairs = random.uniform(lower, upper, (2, sweep)).astype(dtype)
        return [np.concatenate([pairs[i], patterns[i]]) for i in range(2)]
    if name in POSITIVE:
        patterns = np.abs(patterns)
    return [np.concatenate([np.linspace(lower, upper, sweep).astype(dtype), patterns[0]])]


def reference(name: str, points: list[np.ndarray]) -> np.ndarray:
    """The function in a wider precision."""
    with np.errstate(all="ignore"):
        if points[0].dtype == np.float32:
            wide: np.ndarray = getattr(numpy_math, name)(*(x.astype(np.float64) for x in points))
            return wide.astype(np.longdouble)
        if name not in MPMATH:
            exact: np.ndarray = getattr(numpy_math, name)(*(x.astype(np.longdouble) for x in points))
            return exact
    with mp.workdps(30):
        values = [_from_mpmath(MPMATH[name], float(x)) for x in points[0]]
    return np.array(values, np.longdouble)


def _from_mpmath(function: Callable[[mp.mpf], mp.mpf], x: float) -> np.longdouble:
    if not np.isfinite(x):
        return np.longdouble("nan")
    return np.longdouble(mp.nstr(function(mp.mpf(x)), 25))


def ulp_errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in units in the last place of got's type, NaN where either is not finite."""
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)
        finite = np.isfinite(got) & np.isfinite(rounded)
        unit = np.spacing(np.abs(np.where(finite, rounded, 1))).astype(np.longdouble)
        return np.where(finite, np.abs(got - want) / unit, np.nan).astype(np.float64)


def nanoseconds_per_element(compiled: Any, points: list[np.ndarray]) -> float:
    """The best of several runs over points spread through the middle half of the sweep, in the nearest caches."""
    size = len(points[0])
    start = [x[size // 6 : size // 2 : max(1, size // 12288)].copy() for x in points]
    out = np.empty_like(start[0])
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(10):
            compiled(*start, out)
        best = min(best, time.perf_counter() - started)
    return 1e9 * best / (10 * out.size)


def measure(name: str, precision: str) -> Accuracy:
    """Measure one function in one precision."""
    compiled, milliseconds = kernel(name, precision)
    points = operands(name, precision)
    out = np.empty_like(points[0])
    compiled(*points, out)
    errors = ulp_errors(out, reference(name, points))
    worst = int(np.nanargmax(errors))
    return Accuracy(
        largest=round(float(errors[worst]), 3),
        mean=round(float(np.nanmean(errors)), 3),
        worst_operands=[float(x[worst]) for x in points],
        nanoseconds=round(nanoseconds_per_element(compiled, points), 2),
        compile_milliseconds=round(milliseconds),
    )


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| function | float32: largest | mean | ns | float64: largest | mean | ns |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        cells = [
            f"{row[precision]['largest']:.2f} | {row[precision]['mean']:.2f} | {row[precision]['nanoseconds']:.2f}"
            for precision in PRECISIONS
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the functions that the command line names, or all, and write the results and the table."""
    names = sys.argv[1:] or list(DOMAINS)
    unknown = sorted(set(names) - set(DOMAINS))
    if unknown:
        raise SystemExit(f"ulp: unknown functions {', '.join(unknown)}; choose from {', '.join(DOMAINS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kernel("sqrt", "float32")  # what Numba loads at its first compilation is not charged to a function
    for name in names:
        results[name] = {precision: asdict(measure(name, precision)) for precision in PRECISIONS}
        summary = ", ".join(f"{p} {row['largest']} ulp {row['nanoseconds']} ns" for p, row in results[name].items())
        print(f"{name}: {summary}", flush=True)
    results = {name: results[name] for name in DOMAINS if name in results}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
