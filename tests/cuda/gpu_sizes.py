"""How large what the GPU's tests compute is: real sizes, and tiny ones for the simulator.

The real ones are chosen so that every kernel has several blocks, and rows and tiles that end in the middle of a block.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

SIMULATED = os.environ.get("STATICGRAD_CUDA_TESTS") == "simulator"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """One matrix product: operands as they lie in memory, so that `transpose` says which of them is read across."""

    x: Shape
    y: Shape
    transpose: tuple[bool, bool] = (False, False)
    dtype: str = "float32"

    def __str__(self) -> str:
        marks = [f"{list(shape)}{'.T' if turned else ''}" for shape, turned in
                 zip((self.x, self.y), self.transpose, strict=True)]  # fmt: skip
        return f"{' @ '.join(marks)} {self.dtype}"


@dataclass(frozen=True)
class Sizes:
    """The sizes of one run of the tests.

    Attributes:
        matrix: of elementwise ops; odd, so that no vector access fits its rows.
        specials: how many special values binary ops see in all pairs.
        rows: (rows, length) of softmax and sums along both axes.
        total: elements of a sum to one number.
        searched: (before, axis, after) of the positions of extremes.
        products: plain matrix products.
        joined: (m, k, n) of products with something computed behind them.
        taken: (table rows, columns, indices).
        scattered: (indices, result rows, columns).
        scanned: (before, axis, after) of running totals.
        drawn: random numbers.
        random_graphs: how many.
        models: every how manieth model is trained.
        layers: widths of the networks that are launched many times.
        batch: rows of their arguments.
        steps: of a training whose memory is watched.
        transfer: float32 elements copied to the GPU and back.
        copies: bytes around the limits of the ways to copy.
    """

    matrix: Shape
    specials: int
    rows: tuple[tuple[int, int], ...]
    total: int
    searched: tuple[tuple[int, int, int], ...]
    products: tuple[Product, ...]
    joined: tuple[tuple[int, int, int], ...]
    taken: tuple[tuple[int, int, int], ...]
    scattered: tuple[tuple[int, int, int], ...]
    scanned: tuple[tuple[int, int, int], ...]
    drawn: int
    random_graphs: int
    models: int
    layers: Shape
    batch: int
    steps: int
    transfer: int
    copies: tuple[int, ...]


def _real() -> Sizes:
    n, t = False, True
    return Sizes(
        matrix=(1000, 333),
        specials=48,
        rows=((1, 1), (1, 100_003), (3, 33_333), (130, 1000), (4097, 33), (100_003, 3), (300_007, 1), (257, 1024)),
        total=10_000_000,
        searched=((1, 1_000_003, 1), (1003, 333, 1), (5, 777, 131), (100_003, 2, 1)),
        products=(
            Product((1024, 512), (512, 1024)),  # large tiles
            Product((1024, 512), (1024, 512), (n, t)),
            Product((512, 1024), (512, 1024), (t, n)),
            Product((1001, 333), (333, 777)),  # nothing fits
            Product((333, 1001), (777, 333), (t, t)),
            Product((130, 65), (65, 67)),  # small tiles
            Product((64, 20_001), (20_001, 70)),  # parts along the sums
            Product((20_001, 64), (20_001, 70), (t, n)),
            Product((9, 301, 65), (9, 65, 203)),  # batches
            Product((2, 3, 129, 64), (3, 64, 130)),  # one operand for several
            Product((5, 64, 129), (5, 130, 64), (t, t)),
            Product((5000, 784), (784, 1)),  # vectors
            Product((1, 784), (784, 5000)),
            Product((1, 784), (5000, 784), (n, t)),
            Product((1, 100_003), (100_003, 1)),
            Product((1003, 1), (1, 517)),
            Product((5, 10_001), (10_001, 6)),  # few results
            Product((7, 0), (0, 9)),
            Product((1000, 333), (333, 777), dtype="float64"),
            Product((333, 1000), (777, 333), (t, t), dtype="float64"),
            Product((5000, 784), (784, 1), dtype="float64"),
            Product((64, 20_001), (20_001, 70), dtype="float64"),
        ),
        joined=((1000, 333, 777), (128, 784, 512), (256, 100, 1), (64, 20_001, 70)),
        taken=((50_000, 65, 10_007), (1000, 1, 100_003), (7, 1030, 3)),
        scattered=((100_003, 10, 33), (10_007, 50_000, 65), (100_003, 100_003, 1), (500_009, 3, 1), (17, 5, 1030)),
        scanned=((1, 1_000_003, 1), (1000, 333, 1), (3, 70_001, 1), (1, 40_001, 65), (31, 100, 67), (5003, 7, 1)),
        drawn=1_000_003,
        random_graphs=8,
        models=6,
        layers=(784, 512, 256, 10),
        batch=128,
        steps=100,
        transfer=25_000_000,
        copies=(1, 65_535, 65_536, 65_537, 8 << 20, (8 << 20) + 1, (24 << 20) + 3),
    )


def _tiny() -> Sizes:
    n, t = False, True
    return Sizes(
        matrix=(9, 7),
        specials=6,
        rows=((1, 1), (1, 130), (5, 16), (40, 3), (70, 1)),
        total=500,
        searched=((1, 130, 1), (9, 17, 1), (2, 9, 5)),
        products=(
            Product((17, 9), (9, 18)),
            Product((9, 12), (10, 9), (t, t)),
            Product((16, 16), (16, 16), dtype="float64"),
            Product((4, 70), (70, 5)),
            Product((2, 3, 5, 4), (3, 4, 6)),
            Product((20, 9), (9, 1)),
            Product((1, 9), (9, 20)),
            Product((1, 9), (20, 9), (n, t)),
            Product((7, 0), (0, 9)),
        ),
        joined=((9, 5, 11), (6, 40, 4)),
        taken=((9, 5, 17), (7, 1, 20)),
        scattered=((40, 3, 5), (17, 20, 2), (30, 30, 1)),
        scanned=((1, 130, 1), (5, 17, 1), (2, 9, 5)),
        drawn=103,
        random_graphs=4,
        models=18,
        layers=(5, 8, 6, 3),
        batch=4,
        steps=6,
        transfer=1000,
        copies=(1, 255, 257),
    )


SIZES = _tiny() if SIMULATED else _real()
