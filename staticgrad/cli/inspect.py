"""Show what a saved program holds: its graph, its memory plan, its kernels and its state."""

from __future__ import annotations

import argparse
from pathlib import Path

import staticgrad as sg

_PARTS = ("state", "graph", "memory", "kernels")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `staticgrad inspect`."""
    command.add_argument("file", type=Path, help="a program written by the save() of a compiled function")
    command.add_argument("--show", choices=_PARTS, nargs="+", default=list(_PARTS), help="which parts (all)")


def run(options: argparse.Namespace) -> int:
    """Print the chosen parts."""
    program = sg.load(options.file)
    print(program)
    if "state" in options.show:
        for name, tensor in program.state.items():
            print(f"  state {name}: {tensor.spec}")
        for name, value in program.scalars.items():
            print(f"  number {name}: {value}")
    texts = {"graph": lambda: str(program.graph), "memory": program.memory, "kernels": program.source}
    for part, text in texts.items():
        if part in options.show:
            print(f"\n{text()}")
    return 0
