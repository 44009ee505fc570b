"""How generated kernels reduce, as text: what a reduction starts from, and how one more value is added."""

from __future__ import annotations

import numpy as np

from staticgrad.graph.node import DType, Node
from staticgrad.kernels.expressions import BOOL, literal

FLOAT64 = np.dtype(np.float64)


def accumulator_dtype(node: Node, wide: bool) -> DType:
    """The dtype of an accumulator: parts of a sum are added in float64."""
    return FLOAT64 if wide and node.op.name == "sum" and node.dtype.kind == "f" else node.dtype


def first_value(node: Node, wide: bool = False) -> str:
    """What a reduction starts from."""
    dtype = accumulator_dtype(node, wide)
    match node.op.name:
        case "sum":
            return literal(0, dtype)
        case "prod":
            return literal(1, dtype)
        case "any":
            return "False"
        case "all":
            return "True"
        case name:
            return least_value(name, dtype)


def least_value(name: str, dtype: DType) -> str:
    """The value that every other one beats in a search for the extreme."""
    largest = name in ("min", "argmin")
    if dtype.kind == "f":
        return literal(float("inf") if largest else float("-inf"), dtype)
    limits = np.iinfo(dtype)
    return literal(limits.max if largest else limits.min, dtype)


def step(node: Node, total: str, value: str, *, reorder: bool = False, wide: bool = False) -> str:
    """`total` with one more value; `reorder` where the order of a sum does not matter."""
    dtype = accumulator_dtype(node, wide)
    if dtype != node.dtype:
        value = f"{dtype.name}({value})"
    match node.op.name:
        case "sum" if dtype.kind == "f":
            return f"accumulate_sum({total}, {value})" if reorder else f"{total} + {value}"
        case "prod" if dtype.kind == "f":
            return f"accumulate_product({total}, {value})" if reorder else f"{total} * {value}"
        case "sum":
            return f"{dtype.name}({total} + {value})"
        case "prod":
            return f"{dtype.name}({total} * {value})"
        case "max":
            return f"larger({total}, {value})"
        case "min":
            return f"smaller({total}, {value})"
        case "any":
            return f"bool({total} | {value})"
        case "all":
            return f"bool({total} & {value})"
        case name:
            raise NotImplementedError(f"{name}: no accumulation is defined")


def stored_value(place: str, node: Node) -> str:
    """A partial result as it is read from memory."""
    return f"({place} != 0)" if node.dtype == BOOL else place


def narrowed(node: Node, total: str) -> str:
    """A wide accumulator in the dtype of the result."""
    dtype = accumulator_dtype(node, wide=True)
    return total if dtype == node.dtype else f"{node.dtype.name}({total})"
