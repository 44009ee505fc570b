"""What this machine can do at most: `python -m benchmarks.floors --threads N` prints it as JSON.

The peak of float32 matrix products by NumPy's BLAS, and the bandwidth of copies by N threads at several sizes, because
a step whose data stays in a cache is not bound by the memory behind it. The fastest repeat counts.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from typing import Any

import numpy as np

GEMM_SIZES = (1024, 2048)
COPY_BYTES = tuple(2**exponent for exponent in (18, 20, 22, 24, 26, 28))  # read and written together
REPEATS = 9
COPIED_AT_ONCE = 2**28  # bytes in one timing, so that small copies are repeated


def gemm_peak() -> float:
    """GFLOP/s of the fastest product of two square float32 matrices."""
    random = np.random.default_rng(0)
    best = 0.0
    for size in GEMM_SIZES:
        left, right = (random.standard_normal((size, size), dtype=np.float32) for _ in range(2))
        out = np.empty_like(left)
        for _ in range(REPEATS):
            begin = time.perf_counter()
            np.matmul(left, right, out=out)
            best = max(best, 2e-9 * size**3 / (time.perf_counter() - begin))
    return best


def copy_bandwidth(total: int, threads: int) -> float:
    """GB/s, read and written bytes together, of copying `total / 2` bytes in as many parts as threads."""
    part = total // (2 * threads * 4)
    repeats = max(1, COPIED_AT_ONCE // total)
    gate = threading.Barrier(threads + 1)
    rounds = REPEATS + 1

    def work() -> None:
        source, target = np.ones(part, np.float32), np.zeros(part, np.float32)
        for _ in range(rounds):
            gate.wait()
            for _ in range(repeats):
                np.copyto(target, source)
            gate.wait()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    times = []
    for _ in range(rounds):
        gate.wait()
        begin = time.perf_counter()
        gate.wait()
        times.append(time.perf_counter() - begin)
    for worker in workers:
        worker.join()
    return 1e-9 * repeats * 8 * part * threads / min(times[1:])


def measure(threads: int) -> dict[str, Any]:
    """`gemm_gflops`, and `copy_gb_per_second` by bytes."""
    return {
        "gemm_gflops": round(gemm_peak(), 1),
        "copy_gb_per_second": {str(size): round(copy_bandwidth(size, threads), 1) for size in COPY_BYTES},
    }


def floor_microseconds(flops: float, moved: float, machine: dict[str, Any]) -> float | None:
    """The least time of so many flops and so many bytes, whichever takes longer; None where there are none."""
    if not flops and not moved:
        return None
    speeds = {int(size): speed for size, speed in machine["copy_gb_per_second"].items()}
    fitting = [size for size in speeds if size >= moved] or [max(speeds)]
    return max(flops / machine["gemm_gflops"], moved / speeds[min(fitting)]) / 1e3


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--threads", type=int, default=1)
    print(json.dumps(measure(command.parse_args().threads)))
