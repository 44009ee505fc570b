"""The names that the source of a kernel may use on every device."""

from __future__ import annotations

from typing import Any

DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


def names_with(types: Any) -> dict[str, Any]:
    """The dtypes as a compiler's module `types` has them, the vector maths, the steps of sums, checked indices."""
    from staticgrad.kernels import accumulate, checked_index, vector_math

    names = {name: getattr(vector_math, name) for name in vector_math.__all__ if name != "EXACT"}
    names |= {name: getattr(types, name) for name in DTYPES}
    names |= {name: getattr(accumulate, name) for name in ("accumulate_sum", "accumulate_product")}
    names |= {name: getattr(checked_index, name) for name in ("checked_index", "checked_position")}
    return names | {"inf": float("inf"), "nan": float("nan"), "range": range}
