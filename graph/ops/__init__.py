"""The ops, one file for each family. Importing this package fills the registry."""

from staticgrad.graph.ops import (
    arithmetic,
    contraction,
    indexing,
    leaf,
    random,
    reduction,
    rounding,
    scan,
    shape,
    transcendental,
)

__all__ = [
    "arithmetic",
    "contraction",
    "indexing",
    "leaf",
    "random",
    "reduction",
    "rounding",
    "scan",
    "shape",
    "transcendental",
]
