"""What the GPU can do at most: copies inside its memory, and float32 matrix products with and without TF32.

Measured with PyTorch, in CUDA graphs so that no launch is part of a copy. Where PyTorch has no GPU, by copies of
the driver and by staticgrad's own products, which the results say: the floors are then what we reach, not the peak.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

COPY_BYTES = tuple(2**exponent for exponent in (24, 26, 28, 30, 32))  # read and written together
GEMM_SIZES = (4096, 8192)
REPEATS = 7
COPIED_AT_ONCE = 2**33  # bytes in one timing, so that small copies are repeated
MULTIPLIED_AT_ONCE = 4


def measure() -> dict[str, Any]:
    """`gemm_gflops`, `gemm_tf32_gflops` where there is one, `copy_gb_per_second` by bytes, and `by`: what measured."""
    try:
        import torch
    except ImportError:
        return _by_staticgrad()
    return _by_torch(torch) if torch.cuda.is_available() else _by_staticgrad()


def fitting(free: int) -> tuple[int, ...]:
    """The sizes of copies that leave half of the free memory alone."""
    return tuple(total for total in COPY_BYTES if total <= free / 2)


def gigabytes_per_second(total: int, repeats: int, seconds: float) -> float:
    """The speed of `repeats` copies that each read and write `total` bytes together."""
    return 1e-9 * total * repeats / seconds


def gigaflops(size: int, products: int, seconds: float) -> float:
    """The speed of products of two square matrices."""
    return 2e-9 * size**3 * products / seconds


def fastest(run: Callable[[], None], wait: Callable[[], None]) -> float:
    """The seconds of the fastest of REPEATS runs after one that is not timed, each from an idle GPU to an idle GPU."""
    run()
    wait()
    best = float("inf")
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - begin)
    return best


def _by_torch(torch: Any) -> dict[str, Any]:
    wait = torch.cuda.synchronize
    found: dict[str, Any] = {"by": f"torch {torch.__version__}", "copy_gb_per_second": {}}
    for total in fitting(torch.cuda.mem_get_info()[0]):
        source = torch.rand(total // 8, device="cuda")
        target = torch.empty_like(source)
        repeats = max(1, COPIED_AT_ONCE // total)
        ways: tuple[Callable[[], Any], ...] = (
            lambda s=source, t=target: t.copy_(s),
            lambda s=source, t=target: torch.mul(s, 1.0, out=t),
        )
        seconds = min(fastest(_replayed(torch, way, repeats), wait) for way in ways)
        found["copy_gb_per_second"][str(total)] = round(gigabytes_per_second(total, repeats, seconds), 1)
    for name, precision in (("gemm_gflops", "highest"), ("gemm_tf32_gflops", "high")):
        torch.set_float32_matmul_precision(precision)
        found[name] = round(max(_torch_product(torch, size, wait) for size in GEMM_SIZES), 1)
    return found


def _replayed(torch: Any, work: Callable[[], Any], repeats: int) -> Callable[[], None]:
    """`work` many times as one CUDA graph; it is run once before, for what it does at its first call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            work()
    replay: Callable[[], None] = graph.replay
    return replay


def _torch_product(torch: Any, size: int, wait: Callable[[], None]) -> float:
    left, right = (torch.randn(size, size, device="cuda") for _ in range(2))
    out = torch.empty_like(left)

    def run() -> None:
        for _ in range(MULTIPLIED_AT_ONCE):
            torch.mm(left, right, out=out)

    return gigaflops(size, MULTIPLIED_AT_ONCE, fastest(run, wait))


def _by_staticgrad() -> dict[str, Any]:
    from numba import cuda

    import staticgrad as sg

    found: dict[str, Any] = {"by": f"the driver's copies, products of staticgrad {sg.__version__}"}
    found["copy_gb_per_second"] = {}
    for total in fitting(sg.cuda.memory_info()[0]):
        source, target = (cuda.device_array(total // 8, np.float32) for _ in range(2))
        cuda.to_device(np.ones(total // 8, np.float32), to=source)
        repeats = max(1, COPIED_AT_ONCE // total)

        def run(source: Any = source, target: Any = target, repeats: int = repeats) -> None:
            for _ in range(repeats):
                target.copy_to_device(source)

        seconds = fastest(run, cuda.synchronize)
        found["copy_gb_per_second"][str(total)] = round(gigabytes_per_second(total, repeats, seconds), 1)
    found["gemm_gflops"] = round(max(_staticgrad_product(sg, size) for size in GEMM_SIZES), 1)
    return found


def _staticgrad_product(sg: Any, size: int) -> float:
    random = np.random.default_rng(0)
    left, right = (sg.asarray(random.standard_normal((size, size), np.float32)).to("cuda") for _ in range(2))
    product = sg.compile(lambda x, y: x @ y, device="cuda")

    def run() -> None:
        for _ in range(MULTIPLIED_AT_ONCE):
            product(left, right)

    return gigaflops(size, MULTIPLIED_AT_ONCE, fastest(run, sg.cuda.synchronize))
