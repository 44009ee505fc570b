"""The command line: `staticgrad train | compare | inspect | doctor | cache`, one file for each."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from staticgrad.cli import cache, compare, doctor, inspect, train
from staticgrad.cli.messages import CommandError
from staticgrad.graph.errors import StaticgradError

_COMMANDS = {"train": train, "compare": compare, "inspect": inspect, "doctor": doctor, "cache": cache}
_COMPILING = ("train", "compare")
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(prog="staticgrad", description="Train and look at static programs.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        if name in _COMPILING:
            command.add_argument("--verbose", action="store_true", help="say how long each stage of compiling took")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C."""
    try:
        options = parser().parse_args(argv)
    except SystemExit as stop:  # argparse has written what is wrong
        return int(stop.code or 0)
    if getattr(options, "verbose", False):
        logging.basicConfig(format="%(message)s")
        logging.getLogger("staticgrad").setLevel(logging.INFO)
    try:
        code = int(_COMMANDS[options.command].run(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("staticgrad: stopped", file=sys.stderr)
        return INTERRUPTED
    except CommandError as error:
        print(f"staticgrad {options.command}: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        print(f"staticgrad {options.command}: not enough memory: {_described(error)}; take less", file=sys.stderr)
        return 1
    except (OSError, ValueError, TypeError, ImportError, StaticgradError) as error:
        print(f"staticgrad {options.command}: {_described(error)}", file=sys.stderr)
        return 1


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return "; ".join(line.strip() for line in str(error).splitlines())
