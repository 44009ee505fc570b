"""What this machine can do at most: `python -m benchmarks.floors --threads N` (or `--device cuda`) prints it as JSON.

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
REPEATS, PASSES = 7, 4
COPIED_AT_ONCE = 2**27  # bytes in one timing, so that small copies are repeated


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
    gate = threading.Barrier(threads)
    times: list[list[tuple[float, float]]] = [[] for _ in range(threads)]

    def work(spans: list[tuple[float, float]]) -> None:
        source, target = np.ones(part, np.float32), np.zeros(part, np.float32)
        for _ in range(REPEATS):
            gate.wait()
            begin = time.perf_counter()
            for _ in range(repeats):
                np.copyto(target, source)
            spans.append((begin, time.perf_counter()))

    workers = [threading.Thread(target=work, args=(spans,)) for spans in times]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = [(min(begin for begin, _ in spans), max(end for _, end in spans)) for spans in zip(*times, strict=True)]
    fastest: float = min(end - begin for begin, end in together)
    return 1e-9 * repeats * 8 * part * threads / fastest


def measure(threads: int) -> dict[str, Any]:
    """`gemm_gflops`, and `copy_gb_per_second` by bytes: the best of several passes, since others may use the cores."""
    peak, copies = 0.0, dict.fromkeys(COPY_BYTES, 0.0)
    for _ in range(PASSES):
        peak = max(peak, gemm_peak())
        copies = {size: max(best, copy_bandwidth(size, threads)) for size, best in copies.items()}
    return {
        "gemm_gflops": round(peak, 1),
        "copy_gb_per_second": {str(size): round(best, 1) for size, best in copies.items()},
    }


def higher(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The better figures of two measurements: what disturbs them makes them lower, never higher."""
    copies = {
        size: max(speed, second["copy_gb_per_second"][size]) for size, speed in first["copy_gb_per_second"].items()
    }
    return {"gemm_gflops": max(first["gemm_gflops"], second["gemm_gflops"]), "copy_gb_per_second": copies}


def floor_microseconds(flops: float, moved: float, machine: dict[str, Any], precision: str = "float32") -> float | None:
    """The least time of so many flops and so many bytes, whichever takes longer; None where there are none."""
    if not flops and not moved:
        return None
    speed = machine["gemm_gflops"] if precision == "float32" else machine[f"gemm_{precision}_gflops"]
    return max(flops / speed / 1e3, copy_microseconds(moved, machine))


def copy_microseconds(moved: float, machine: dict[str, Any]) -> float:
    """What a copy of so many bytes takes, read and written together, by the speed measured for the size above."""
    speeds: dict[int, float] = {int(size): speed for size, speed in machine["copy_gb_per_second"].items()}
    fitting = [size for size in speeds if size >= moved] or [max(speeds)]
    return moved / speeds[min(fitting)] / 1e3


def main() -> None:
    """Measure and print."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = command.parse_args()
    if options.device == "cuda":
        from benchmarks import gpu_floors

        print(json.dumps(gpu_floors.measure()))
    else:
        print(json.dumps(measure(options.threads)))


if __name__ == "__main__":
    main()
