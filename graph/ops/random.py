"""Counter-based random bits: a pure function of a key and a position, the same in both modes and on every device.

Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.op import ErrorSample, NotDifferentiable, Sample, elementwise
from staticgrad.graph.ops import numpy_math as vm

_BITS = NotDifferentiable("random bits do not vary with their key")


def _random_bits(key: Any, counter: Any) -> Any:
    return vm.threefry2x32(key, counter)


def _samples() -> list[Sample]:
    counter = np.arange(7, dtype=np.uint64)
    return [
        Sample((np.array(5, np.uint64), counter), {}),
        Sample((np.array(2**63 + 1, np.uint64), counter + 2**40), {}),
    ]


# key and counter uint64, 64 random bits each.
random_bits = elementwise(
    "random_bits",
    scalar=_random_bits,
    partials=(_BITS, _BITS),
    dtype="uint64",
    promotes=False,
    samples=_samples,
    errors=(
        ErrorSample((np.ones(3, np.int64), np.ones(3, np.int64)), {}, DTypeError, "uint64"),
        ErrorSample((np.ones(3, np.uint64), np.ones(4, np.uint64)), {}, ShapeError, "broadcast"),
    ),
)
