"""Run one training step in both modes from the same state, and compare results, time and memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.cli.messages import CommandError, positive
from staticgrad.cli.train import perceptron
from staticgrad.comparison_file import PAGES, PICTURES


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `staticgrad compare`."""
    command.add_argument("--width", type=positive, default=64, help="of every hidden layer (%(default)s)")
    command.add_argument("--depth", type=positive, default=2, help="number of hidden layers (%(default)s)")
    command.add_argument("--batch", type=positive, default=32, help="rows of a batch (%(default)s)")
    command.add_argument("--inputs", type=positive, default=64, help="features of a row (%(default)s)")
    command.add_argument("--repeat", type=positive, default=20, help="timed calls of each mode (%(default)s)")
    command.add_argument("--save", type=Path, help="file for the report: .png, .svg, .pdf, .html or .md")


def run(options: argparse.Namespace) -> int:
    """Print the comparison, and save it if asked to."""
    if options.save is not None:
        _check_target(options.save)
    sg.random.manual_seed(0)
    model = perceptron([options.inputs, *[options.width] * options.depth, 10])
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.batch, options.inputs)).astype(np.float32)
    report = sg.compare(step, x, rng.integers(0, 10, options.batch), repeat=options.repeat)
    print(report)
    if options.save is not None:
        report.save(options.save)
        print(f"saved: {options.save}")
    return 0


def _check_target(path: Path) -> None:
    """Better known now than after the measurement."""
    if path.suffix.lower() not in PICTURES + PAGES:
        raise CommandError(
            f"--save: the suffix must be one of {', '.join(PICTURES + PAGES)}; got {path.name!r}", code=2
        )
    if not path.parent.is_dir():
        raise CommandError(f"--save: there is no folder {path.parent}; make it first")
