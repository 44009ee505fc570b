"""Held-out accuracy of `staticgrad train` with its defaults: five seeds, both modes, on the digits and on IDX files.

    python -m benchmarks.accuracy [--data DIR] [--out FILE]

A seed decides the initial weights, the order of the batches and, for the digits, which fifth is held out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from staticgrad.cli import parser
from staticgrad.cli.doctor import examine
from staticgrad.cli.train import Trainer, load_images

SEEDS = range(5)
OUT = Path(__file__).parent / "results" / "accuracy.json"


def measure(arguments: list[str]) -> dict[str, Any]:
    """Train once for each seed and mode; accuracies in percent and steps per second."""
    found: dict[str, Any] = {}
    for mode in ("dynamic", "static"):
        accuracies, rates = [], []
        for seed in SEEDS:
            options = parser().parse_args(["train", "--mode", mode, "--seed", str(seed), *arguments])
            outcome = Trainer(load_images(options), options, mode).train()
            accuracies.append(round(100 * outcome.accuracy, 2))
            rates.append(round(outcome.steps_per_second))
        found[mode] = {
            "accuracy": accuracies,
            "mean": round(statistics.mean(accuracies), 2),
            "steps_per_second": round(statistics.median(rates)),
        }
        print(" ".join(arguments[:1]), mode, found[mode])
    return found


def machine() -> dict[str, Any]:
    """What the steps per second depend on."""
    found = examine()
    names = (
        "system",
        "processor",
        "cores",
        "threads",
        "BLAS",
        "BLAS threads",
        "python",
        "numpy",
        "numba",
        "staticgrad",
    )
    return {name: found[name] for name in names if name in found}


def main() -> None:
    """Measure and write the results file."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--data", help="folder of IDX files named as MNIST's")
    command.add_argument("--out", type=Path, default=OUT)
    options = command.parse_args()
    results = {
        "machine": machine(),
        "seeds": len(SEEDS),
        "digits": measure([]),
    }
    if options.data:
        results["idx"] = measure(["--data", options.data])
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
