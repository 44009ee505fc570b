"""The offsets planner on the published hard sets and on training chains: `python -m benchmarks.planner --data DIR`.

DIR holds one `NAME.CAPACITY.csv` a set, with the columns `id,lower,upper,size`. Written to
`benchmarks/results/planner.json`: for each set the height of each placement order and of the final plan over the
capacity, the lower bound and the seconds; for chains of 10,000 and 100,000 intervals the height over the lower bound
and the seconds. Known from other planners on the same sets: best fit in decreasing size 1.28 to 1.44.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from staticgrad.graph.offsets import check_offsets, height, lower_bound, plan_offsets

Interval = tuple[int, int, int]
RESULTS = Path(__file__).parent / "results" / "planner.json"


def read_set(path: Path) -> tuple[str, int, list[Interval]]:
    """Name, capacity and intervals of one file."""
    name, capacity, _ = path.name.split(".")
    with path.open(newline="") as file:
        rows = [(int(row["lower"]), int(row["upper"]), int(row["size"])) for row in csv.DictReader(file)]
    return name, int(capacity), rows


def training_chain(count: int, seed: int = 0) -> list[Interval]:
    """`count` intervals: a fifth each of activations saved till backward, parameter gradients till the optimizer,
    cotangents, and temporaries of both passes."""
    random = np.random.default_rng(seed)
    layers = count // 5
    end = 4 * layers
    intervals = []
    for layer in range(layers):
        width, weight, forward, backward = (64 * random.integers(1, 64, 4)).tolist()
        step = end - 2 * layer - 2
        intervals += [
            (2 * layer, end - 2 * layer, width),
            (2 * layer, 2 * layer + 1, forward),
            (step, step + 3, width),
            (step, step + 1, backward),
            (step, end + 2 + layer, weight),
        ]
    return intervals


def timed_plan(intervals: list[Interval], repeats: int = 1, **options: int) -> tuple[int, float]:
    """Height of a checked plan, and the least seconds of the repeats."""
    seconds = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        offsets = plan_offsets(intervals, **options)
        seconds = min(seconds, time.perf_counter() - begin)
    check_offsets(intervals, offsets)
    return height(intervals, offsets), seconds


def measure_sets(folder: Path) -> dict[str, Any]:
    """Height over capacity, lower bound over capacity and seconds of every set in the folder."""
    sets = {}
    for path in sorted(folder.glob("*.csv")):
        name, capacity, intervals = read_set(path)
        orders, orders_seconds = timed_plan(intervals, effort=0)
        reached, seconds = timed_plan(intervals)
        sets[name] = {
            "intervals": len(intervals),
            "lower_bound_over_capacity": round(lower_bound(intervals) / capacity, 4),
            "orders_over_capacity": round(orders / capacity, 4),
            "orders_seconds": round(orders_seconds, 3),
            "height_over_capacity": round(reached / capacity, 4),
            "seconds": round(seconds, 3),
        }
    return sets


def measure_chains() -> dict[str, Any]:
    """Height over lower bound and seconds of chains of 10,000 and 100,000 intervals, and the ratio of the times."""
    chains: dict[str, Any] = {}
    for count in (10_000, 100_000):
        intervals = training_chain(count)
        reached, seconds = timed_plan(intervals, repeats=3)
        chains[str(count)] = {
            "height_over_lower_bound": round(reached / lower_bound(intervals), 5),
            "seconds": round(seconds, 3),
        }
    chains["time_ratio"] = round(chains["100000"]["seconds"] / chains["10000"]["seconds"], 2)
    return chains


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure staticgrad.graph.plan_offsets")
    parser.add_argument("--data", type=Path, required=True, help="folder of NAME.CAPACITY.csv files")
    folder = parser.parse_args().data
    sets = measure_sets(folder)
    if not sets:
        parser.error(f"--data must hold NAME.CAPACITY.csv files; found none in {folder}")
    mean = {
        key: round(float(np.mean([row[key] for row in sets.values()])), 4)
        for key in ("orders_over_capacity", "height_over_capacity", "seconds")
    }
    results = {"sets": sets, "mean": mean, "training_chains": measure_chains()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
