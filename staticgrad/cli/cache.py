"""Show or clear the disk cache of compiled programs and kernels."""

from __future__ import annotations

import argparse
from typing import Any

from staticgrad.kernels.cache import CacheInfo, default_cache


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `staticgrad cache`."""
    command.add_argument(
        "action", choices=["info", "clear"], nargs="?", default="info", help="what to do (%(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Print what the cache holds, or empty it."""
    cache = default_cache()
    if options.action == "clear":
        print(f"removed {cache.clear()} entries")
    print(describe(cache.info()))
    return 0


def describe(info: CacheInfo) -> str:
    """The cache in a few words."""
    if not info.enabled:
        return f"cache: off ({info.reason})"
    entries = ", ".join(f"{count} {kind}s" for kind, count in sorted(info.entries.items())) or "empty"
    problem = f"; {info.reason}" if info.reason else ""
    return f"cache: {info.directory}: {entries}, {info.bytes:,} bytes{problem}"


def listed(info: CacheInfo) -> dict[str, Any]:
    """The cache as values that JSON can hold."""
    return {
        "directory": str(info.directory),
        "enabled": info.enabled,
        "entries": info.entries,
        "bytes": info.bytes,
        "problem": info.reason,
    }
