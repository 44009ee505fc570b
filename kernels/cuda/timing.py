"""How long launches take on a GPU, by its own clock."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.gpu import GPU
    from staticgrad.kernels.cuda.hardware import Bound, LaunchSequence

COPIES = 4  # of the launches in one CUDA graph, so that starting it counts little
WARM_UP = 3  # runs: the first starts launches one by one, the second makes the graph
SECONDS = 0.002  # that one measurement should take at least
MOST = 50  # runs of one measurement
MEASUREMENTS = 5


def seconds_of(gpu: GPU, launches: Sequence[Bound]) -> float:
    """The median time of several measurements."""
    sequence = gpu.sequence([*launches] * COPIES)
    for _ in range(WARM_UP):
        sequence.run()
    events = [gpu.call("cuEventCreate", 0) for _ in range(2)]
    try:
        one = _measured(gpu, sequence, events, 1)
        runs = max(1, min(MOST, int(SECONDS / (one + 1e-9))))
        return median(_measured(gpu, sequence, events, runs) for _ in range(MEASUREMENTS)) / COPIES
    finally:
        for event in events:
            gpu.call("cuEventDestroy", event)


def _measured(gpu: GPU, sequence: LaunchSequence, events: Sequence[Any], runs: int) -> float:
    """Seconds of one run."""
    stream = gpu.stream.handle
    gpu.call("cuEventRecord", events[0], stream)
    for _ in range(runs):
        sequence.run()
    gpu.call("cuEventRecord", events[1], stream)
    gpu.call("cuEventSynchronize", events[1])
    return float(gpu.call("cuEventElapsedTime", *events)) / 1000 / runs


__all__ = ["seconds_of"]
