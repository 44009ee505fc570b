"""Minimax polynomials of the vector maths: `python -m benchmarks.minimax [name]` prints each table of coefficients.

The Remez exchange algorithm (E. Remez, 1934; as told in J.-M. Muller, "Elementary Functions", chapter 3), run in
60 decimal digits by mpmath. Each entry says what is approximated, on which interval, and by which weight its error
counts; the weight is chosen so that the error is relative to the result of the function in which the table is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp
import numpy as np

Function = Callable[[mp.mpf], mp.mpf]
EXCHANGES = 12


@dataclass(frozen=True)
class Table:
    """What one table of coefficients approximates, and the degrees that suffice in float32 and in float64."""

    name: str
    function: Function
    weight: Function
    lower: float
    upper: float
    single_degree: int | None
    double_degree: int
    single_upper: float | None = None


def remez(function: Function, weight: Function, lower: float, upper: float, degree: int) -> tuple[list[mp.mpf], mp.mpf]:
    """Coefficients c, lowest first, that minimise max |weight(x) (function(x) - sum c_k x^k)| on [lower, upper]."""
    middle, radius = (mp.mpf(lower) + upper) / 2, (mp.mpf(upper) - lower) / 2
    size = max(400, 30 * degree)
    grid = [middle - radius * mp.cos(mp.pi * (k + mp.mpf(1) / 2) / size) for k in range(size)]
    values = [function(x) for x in grid]
    weights = [weight(x) for x in grid]
    chosen = [round((1 - float(mp.cos(mp.pi * k / (degree + 1)))) / 2 * (size - 1)) for k in range(degree + 2)]
    coefficients, level = [], mp.mpf(0)
    for _ in range(EXCHANGES):
        rows = mp.matrix(degree + 2, degree + 2)
        right = mp.matrix(degree + 2, 1)
        for row, k in enumerate(chosen):
            for power in range(degree + 1):
                rows[row, power] = grid[k] ** power
            rows[row, degree + 1] = (-1) ** row / weights[k]
            right[row] = values[k]
        solution = mp.lu_solve(rows, right)
        coefficients, level = list(solution[: degree + 1]), abs(solution[degree + 1])
        errors = [w * (v - mp.polyval(coefficients[::-1], x)) for w, v, x in zip(weights, values, grid, strict=True)]
        exchanged = _alternating_peaks(errors, degree + 2)
        if exchanged == chosen:
            break
        chosen = exchanged
    return coefficients, max(level, max(abs(e) for e in errors))


def _alternating_peaks(errors: list[mp.mpf], count: int) -> list[int]:
    """The positions of `count` errors, alternating in sign, as large as can be."""
    peaks: list[int] = []
    for position, error in enumerate(errors):
        if peaks and (error > 0) == (errors[peaks[-1]] > 0):
            if abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = position
        else:
            peaks.append(position)
    while len(peaks) > count:
        peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
    if len(peaks) < count:
        raise ValueError(f"remez: {count} alternations are needed and {len(peaks)} found; the grid is too coarse")
    return peaks


def _series(function: Function, series: Function, limit: float = 1e-12) -> Function:
    """`function` away from zero and its series near zero, where the quotient cannot be computed."""
    return lambda x: series(x) if abs(x) < limit else function(x)


def _root(function: Function) -> Function:
    return lambda z: function(mp.sqrt(z))


def _scaled_erfc(pole: float) -> Function:
    """erfc(x) exp(x^2) (1 + 2x) with x = pole (1 + t) / (1 - t), as M. Shepherd and J. Laframboise, 1981."""

    def value(t: mp.mpf) -> mp.mpf:
        x = pole * (1 + t) / (1 - t)
        return mp.erfc(x) * mp.exp(x * x) * (1 + 2 * x)

    return value


def _digamma_over_its_root(t: mp.mpf) -> mp.mpf:
    """digamma(x) / (x - root) with x = 1.5 + t; the root lies between two grid points."""
    x = t + mp.mpf(3) / 2
    return mp.digamma(x) / (x - mp.findroot(mp.digamma, 1.4616321449683622))


HALF_LN2 = 0.34658
TABLES = (
    Table("EXP", _series(lambda r: (mp.expm1(r) - r) / r**2, lambda r: mp.mpf(1) / 2 + r / 6),
          lambda r: r * r / mp.exp(r), -HALF_LN2, HALF_LN2, 4, 10),
    Table("EXP2", _series(lambda r: mp.expm1(r * mp.ln2) / r, lambda r: mp.ln2 + r * mp.ln2**2 / 2),
          lambda r: r / mp.mpf(2) ** r, -0.5, 0.5, 5, 11),
    Table("LOG", _series(lambda z: (mp.log((1 + mp.sqrt(z)) / (1 - mp.sqrt(z))) - 2 * mp.sqrt(z)) / mp.sqrt(z) ** 3,
                         lambda z: mp.mpf(2) / 3 + 2 * z / 5, 1e-20),
          lambda z: z, 0, 0.029438, 3, 6),
    Table("NARROW_LOG2", _series(_root(lambda s: mp.log((1 + s) / (1 - s), 2) / s), lambda z: 2 / mp.ln2 * (1 + z / 3),
                                 1e-20),
          lambda z: mp.mpf(1), 0, 0.029438, None, 4),
    Table("NARROW_EXP2", _series(lambda r: mp.expm1(r * mp.ln2) / r, lambda r: mp.ln2 + r * mp.ln2**2 / 2),
          lambda r: r / mp.mpf(2) ** r, -0.5, 0.5, None, 6),
    Table("LOG_TAIL", _series(_root(lambda s: (mp.log((1 + s) / (1 - s)) - 2 * s - 2 * s**3 / 3) / s**5),
                              lambda z: mp.mpf(2) / 5 + 2 * z / 7, 1e-12),
          lambda z: z * z, 0, 0.029438, None, 7),
    Table("SINH", _series(_root(lambda x: (mp.sinh(x) - x) / x**3), lambda z: mp.mpf(1) / 6 + z / 120, 1e-20),
          lambda z: z, 0, 1, 3, 6),
    Table("TANH", _series(_root(lambda x: (mp.tanh(x) - x) / x**3), lambda z: -mp.mpf(1) / 3 + 2 * z / 15, 1e-20),
          lambda z: z, 0, 0.390625, 5, 11),
    Table("ASIN", _series(_root(lambda x: (mp.asin(x) - x) / x**3), lambda z: mp.mpf(1) / 6 + 3 * z / 40, 1e-20),
          lambda z: z, 0, 0.25, 5, 12),
    Table("ATAN", _series(_root(lambda x: (mp.atan(x) - x) / x**3), lambda z: -mp.mpf(1) / 3 + z / 5, 1e-20),
          lambda z: z, 0, 0.17158, 4, 10),
    Table("SIN", _series(_root(lambda x: (mp.sin(x) - x) / x**3), lambda z: -mp.mpf(1) / 6 + z / 120, 1e-20),
          lambda z: z, 0, 0.61686, 2, 5),
    Table("COS", _series(_root(lambda x: (mp.cos(x) - 1 + x**2 / 2) / x**4), lambda z: mp.mpf(1) / 24 - z / 720, 1e-12),
          lambda z: z * z, 0, 0.61686, 2, 5),
    Table("ERF", _series(_root(lambda x: mp.erf(x) / x - 1), lambda z: 2 / mp.sqrt(mp.pi) * (1 - z / 3) - 1, 1e-20),
          lambda z: mp.mpf(1), 0, 1, 6, 11),
    Table("LOG_ERFC", lambda x: mp.log(mp.erfc(x)), mp.erfc, 1, 6, 6, 17, single_upper=4),
    Table("ERFC", _scaled_erfc(4), lambda t: mp.mpf(1), -1, 0.745, 11, 24, single_upper=0.433),
    Table("LGAMMA", _series(lambda t: mp.loggamma(2 + t) / t, lambda t: 1 - mp.euler + t * (mp.zeta(2) - 1) / 2),
          lambda t: mp.mpf(1), -0.5, 0.5, 8, 18),
    Table("DIGAMMA", _digamma_over_its_root, lambda t: mp.mpf(1), -0.5, 0.5, None, 23),
)  # fmt: skip


def print_table(table: Table) -> None:
    """Print the float32 and the float64 coefficients of one table, lowest first, with their largest error."""
    for precision, degree in (("SINGLE", table.single_degree), ("DOUBLE", table.double_degree)):
        if degree is None:
            continue
        upper = table.single_upper if precision == "SINGLE" and table.single_upper is not None else table.upper
        coefficients, error = remez(table.function, table.weight, table.lower, upper, degree)
        rounded = [np.float32(float(c)) if precision == "SINGLE" else np.float64(float(c)) for c in coefficients]
        print(f"# {table.name} {precision}: error 2^{float(mp.log(error, 2)):.1f}")
        print(", ".join(str(value) for value in rounded))


def main() -> None:
    """Print every table, or the ones that the command line names."""
    mp.mp.dps = 60
    for table in TABLES:
        if len(sys.argv) == 1 or table.name in sys.argv[1:]:
            print_table(table)


if __name__ == "__main__":
    main()
