"""What `sg.compare` finds: differences, times and memory of the two modes; as text, as numbers, as a file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from staticgrad.table import aligned, duration, size
from staticgrad.tensor import Array

_SHOWN = 12  # differences that the table lists, the largest first


@dataclass(frozen=True)
class Difference:
    """One array of the two modes compared.

    Attributes:
        kind: "result", "state", "gradient" or "argument".
        name: of the array, in the user's words.
        spec: dtype and shape, or what is wrong where only one mode has the array or their types differ.
        equal: the same bits in both (NaN equals NaN).
        absolute: the largest |dynamic - static|; infinite where one is NaN or infinite and the other is not.
        relative: `absolute` over the largest magnitude in the array.
        ulp: the largest number of floating-point numbers between two elements; small elements that are differences
            of large ones make it large.
    """

    kind: str
    name: str
    spec: str
    equal: bool
    absolute: float
    relative: float
    ulp: float


def difference(kind: str, name: str, first: Array | None, second: Array | None) -> Difference:
    """Compare an array of the dynamic run with that of the compiled one; None is an array that was not made."""
    if first is None or second is None:
        missing = "dynamic" if first is None else "static"
        return Difference(kind, name, f"missing in the {missing} run", False, np.inf, np.inf, np.inf)
    if first.shape != second.shape or first.dtype != second.dtype:
        spec = f"{first.dtype}{list(first.shape)} dynamic, {second.dtype}{list(second.shape)} static"
        return Difference(kind, name, spec, False, np.inf, np.inf, np.inf)
    spec = f"{first.dtype}{list(first.shape)}"
    same = (first == second) | ((first != first) & (second != second))
    if same.all():
        signs = first.dtype.kind != "f" or bool((np.signbit(first) == np.signbit(second))[first == 0].all())
        return Difference(kind, name, spec, signs, 0.0, 0.0, 0.0)
    a, b = first[~same], second[~same]
    if first.dtype.kind != "f":
        largest = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
        return Difference(kind, name, spec, False, largest, largest / max(1.0, _magnitude(first)), np.inf)
    if not (np.isfinite(a) & np.isfinite(b)).all():
        return Difference(kind, name, spec, False, np.inf, np.inf, np.inf)
    largest = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    ordered_a, ordered_b = _ordered(a), _ordered(b)
    between = np.maximum(ordered_a, ordered_b) - np.minimum(ordered_a, ordered_b)
    magnitude = max(_magnitude(first), _magnitude(second))
    return Difference(kind, name, spec, False, largest, largest / magnitude, float(between.max()))


def _magnitude(array: Array) -> float:
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0


def _ordered(array: Array) -> Array:
    """Floats as unsigned integers in the order of the floats, so that neighbours differ by one."""
    bits = array.view(np.dtype(f"u{array.dtype.itemsize}")).astype(np.uint64)
    sign = np.uint64(1) << np.uint64(8 * array.dtype.itemsize - 1)
    # Both zeros are `sign`; a negative float lies as far below it as its magnitude says.
    return np.where(bits & sign, sign - (bits & (sign - np.uint64(1))), bits + sign)


@dataclass(frozen=True)
class Memory:
    """Bytes at the largest.

    Attributes:
        dynamic_peak: of the storage that the dynamic call made and held at one time (see `LiveMemory`).
        arena: of the compiled program.
        outputs: of the results and gradients that a compiled call makes beside its arena.
        lower_bound: the least arena for the program's order.
        naive: the arena if no two values shared a byte.
    """

    dynamic_peak: int
    arena: int
    outputs: int
    lower_bound: int
    naive: int

    @property
    def static_peak(self) -> int:
        """The arena with the outputs: what stands against `dynamic_peak`."""
        return self.arena + self.outputs


@dataclass(frozen=True)
class Comparison:
    """A function run dynamically and compiled. Prints as a table.

    Attributes:
        name: of the function.
        differences: of every result, updated state, gradient and written argument.
        dynamic_times, static_times: seconds of each timed call.
        arithmetic_seconds, dynamic_outside_seconds: median time that a dynamic call spends inside NumPy, and outside.
        native_seconds, static_outside_seconds: that a compiled call spends inside the native call, and outside.
        ops: of a dynamic call, forward, backward and optimizer.
        kernels, distinct_kernels: groups that a compiled call runs, and kernels that had to be generated for them.
        compile_seconds: capture, planning and code; with `from_cache` the code came from the disk.
        memory: of both.
    """

    name: str
    differences: tuple[Difference, ...]
    dynamic_times: tuple[float, ...]
    static_times: tuple[float, ...]
    arithmetic_seconds: float
    native_seconds: float
    dynamic_outside_seconds: float
    static_outside_seconds: float
    ops: int
    kernels: int
    distinct_kernels: int
    compile_seconds: float
    from_cache: bool
    memory: Memory

    @property
    def dynamic_seconds(self) -> float:
        """Median time of a dynamic call."""
        return float(np.median(self.dynamic_times))

    @property
    def static_seconds(self) -> float:
        """Median time of a compiled call."""
        return float(np.median(self.static_times))

    @property
    def speedup(self) -> float:
        """How many compiled calls take the time of a dynamic one."""
        return self.dynamic_seconds / self.static_seconds

    @property
    def dynamic_overhead(self) -> float:
        """Seconds per op of a dynamic call that are not spent inside NumPy: Python, type rules, tape."""
        return self.dynamic_outside_seconds / max(1, self.ops)

    @property
    def static_overhead(self) -> float:
        """Seconds per op of a compiled call that are not spent in the native call: arguments, guards, results."""
        return self.static_outside_seconds / max(1, self.ops)

    @property
    def calls_to_pay(self) -> float:
        """After how many calls the time to compile is won back; infinite where a dynamic call is no slower."""
        won = self.dynamic_seconds - self.static_seconds
        return self.compile_seconds / won if won > 0 else float("inf")

    @property
    def equal(self) -> bool:
        """Whether everything has the same bits in both modes."""
        return all(found.equal for found in self.differences)

    @property
    def largest(self) -> float:
        """The largest relative difference of any array."""
        return max((found.relative for found in self.differences), default=0.0)

    def measures(self) -> list[tuple[str, str, str]]:
        """The rows of the first table: what, dynamic, static."""
        memory = self.memory
        origin = "from the disk cache" if self.from_cache else "compiled now"
        pays = "never" if self.calls_to_pay == float("inf") else f"{np.ceil(self.calls_to_pay):.0f} calls"
        return [
            ("time per call", duration(self.dynamic_seconds), f"{duration(self.static_seconds)} ({self.speedup:.1f}x)"),
            ("  of it arithmetic", duration(self.arithmetic_seconds), duration(self.native_seconds)),
            ("overhead per op", duration(self.dynamic_overhead), duration(self.static_overhead)),
            ("ops / kernels", str(self.ops), f"{self.kernels} ({self.distinct_kernels} distinct)"),
            ("peak memory", size(memory.dynamic_peak), size(memory.static_peak)),
            ("  arena", "", size(memory.arena)),
            ("  outputs", "", size(memory.outputs)),
            ("  arena, lower bound", "", size(memory.lower_bound)),
            ("  arena, nothing shared", "", size(memory.naive)),
            ("compile", "", f"{duration(self.compile_seconds)} {origin}"),
            ("  won back after", "", pays),
        ]

    def difference_rows(self) -> list[tuple[str, ...]]:
        """The rows of the second table, the largest relative difference first."""
        ranked = sorted(self.differences, key=lambda found: (found.equal, -found.relative))
        return [
            (
                found.kind,
                found.name,
                found.spec,
                "equal" if found.equal else f"{found.absolute:.2e}",
                "" if found.equal else f"{found.relative:.1e}",
                "" if found.equal else f"{found.ulp:.0f}",
            )
            for found in ranked
        ]

    @property
    def headline(self) -> str:
        """One line: how far the two modes are apart, and how fast they are."""
        told = "equal bits" if self.equal else f"largest relative difference {self.largest:.1e}"
        return f"{self.name}: {told}; static {self.speedup:.1f}x as fast as dynamic"

    def __str__(self) -> str:
        measured = aligned(MEASURES, self.measures(), left=(0,))
        rows = self.difference_rows()
        differences = aligned(DIFFERENCES, rows[:_SHOWN], left=(0, 1, 2)) if rows else "nothing to compare"
        if len(rows) > _SHOWN:
            differences += f"\nand {len(rows) - _SHOWN} more, none larger"
        return f"{self.headline}\n\n{measured}\n\n{differences}"

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """All numbers, in dicts and lists that `json` can write (an infinite number as None)."""
        found = _plain(self)
        for name in ("dynamic_seconds", "static_seconds", "speedup", "dynamic_overhead", "static_overhead"):
            found[name] = getattr(self, name)
        found["calls_to_pay"] = _plain(self.calls_to_pay)
        found["equal"] = self.equal
        return dict(found)

    def save(self, path: str | Path) -> None:
        """Write a picture (.png, .svg, .pdf) or a page (.html, .md), by the suffix.

        Raises:
            ValueError: another suffix.
            ImportError: a picture without matplotlib, which comes with the extra `viz`.
        """
        from staticgrad.comparison_file import save

        save(self, Path(path))


MEASURES = ("", "dynamic", "static")
DIFFERENCES = ("", "name", "type", "largest difference", "relative", "ulp")


def _plain(value: Any) -> Any:
    if isinstance(value, Comparison | Difference | Memory):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
