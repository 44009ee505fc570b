"""How a matrix product is divided among the threads of a GPU: tiles of the result, and parts of the sums.

The figures are rough, of GPUs with 128 lanes for float32 in each multiprocessor; they only rank one way of division
against another.
"""

from __future__ import annotations

from dataclasses import dataclass

from staticgrad.kernels.cuda.target import VECTOR_BYTES, Target
from staticgrad.kernels.products import MatrixProduct

LANES = 128  # multiplications of a multiprocessor in one cycle, at best
PEAK = {8: 0.8, 4: 0.45}  # which share of them tiles reach, by the rows of one thread: fewer wait for shared memory
LATENCY = {8: 80, 4: 28}  # cycles that one term takes a tile at least
START = 1500  # cycles until a block multiplies, and to store what it has
LAUNCH = 5000  # cycles that a joining kernel takes, but for what it moves
BYTES = 16  # of memory that a multiprocessor reads or writes in a cycle, when all do
DEPTH = {8: 8, 4: 16}  # terms of the sums that tiles take at a time: what is read ahead has to fit in registers too
TERMS = 16  # terms that a thread adds up at least, where results are divided among threads
LEAST_STEPS = 4  # tiles along k in one part


@dataclass(frozen=True)
class Tile:
    """What a block computes of a result at a time.

    Attributes:
        warps, lanes: rows and columns in which the block's warps stand, and each warp's threads.
        each: rows, and columns, of one thread.
        depth: terms of the sums in shared memory at a time.
    """

    warps: tuple[int, int]
    lanes: tuple[int, int]
    each: int
    depth: int

    @property
    def rows(self) -> int:
        return self.warps[0] * self.lanes[0] * self.each

    @property
    def columns(self) -> int:
        return self.warps[1] * self.lanes[1] * self.each

    @property
    def threads(self) -> int:
        return self.warps[0] * self.warps[1] * self.lanes[0] * self.lanes[1]

    def count(self, product: MatrixProduct) -> int:
        """How many tiles the results of a product have."""
        return -(-product.m // self.rows) * -(-product.n // self.columns) * product.batch


@dataclass(frozen=True)
class Division:
    """The way a product is computed, and into how many parts the sums are cut.

    Without a tile the threads of a warp share each result, or of a block a warp's width of them (`by_columns`).
    """

    tile: Tile | None
    parts: int = 1
    by_columns: bool = False


def tiles_for(target: Target) -> list[Tile]:
    """The tiles to choose from, large ones first."""
    lanes = _near_square(target.warp)
    whole = _near_square(target.block // target.warp)
    few = _near_square(max(1, target.block // 4 // target.warp))
    warps = [(whole[1], whole[0]), (whole[1], whole[0]), (few[1], few[0])]
    return [
        Tile(found, lanes, each, min(DEPTH[each], 2 * target.warp))
        for found, each in zip(warps, (8, 4, 4), strict=True)
    ]


def divide(product: MatrixProduct, target: Target) -> Division:
    """The fastest division, by the figures above."""
    if min(product.m, product.n) == 1 or product.m * product.n <= 2 * target.warp:
        return _without_tile(product, target)
    found = [Division(tile, parts) for tile in tiles_for(target) for parts in _parts_to_try(product, target, tile)]
    return min(found, key=lambda one: _cycles(product, target, one))


def part_length(product: MatrixProduct, step: int, parts: int) -> int:
    """How many terms of the sums one part has, whole steps but in the last."""
    return -(-product.k // (step * parts)) * step


def lanes_of_product(itemsize: int) -> int:
    """How many elements a thread reads at once: 4, 2 or 1."""
    return min(4, max(1, VECTOR_BYTES // itemsize))


def _near_square(number: int) -> tuple[int, int]:
    """A power of two as two factors, of which the second is the larger one where they differ."""
    bits = number.bit_length() - 1
    return 1 << (bits // 2), 1 << (bits - bits // 2)


def _whole(product: MatrixProduct, step: int, parts: int) -> int:
    """The number of parts when none of them is empty, at most `parts`."""
    return -(-product.k // part_length(product, step, parts)) if product.k else 1


def _parts_to_try(product: MatrixProduct, target: Target, tile: Tile) -> list[int]:
    most = max(1, min(-(-product.k // (tile.depth * LEAST_STEPS)), 4 * target.processors // tile.count(product)))
    wanted = {1, most, *(target.processors * rounds // tile.count(product) for rounds in (1, 2))}
    return sorted({_whole(product, tile.depth, parts) for parts in wanted if 1 <= parts <= most})


def _cycles(product: MatrixProduct, target: Target, division: Division) -> float:
    tile, parts = division.tile, division.parts
    assert tile is not None
    blocks = tile.count(product) * parts
    rounds = -(-blocks // target.processors)
    term = max(LATENCY[tile.each], rounds * tile.rows * tile.columns / (LANES * PEAK[tile.each]))
    cycles = START + part_length(product, tile.depth, parts) * term
    if parts > 1:
        moved = 2 * parts * product.batch * product.m * product.n * product.dtype.itemsize
        cycles += LAUNCH + moved / (BYTES * target.processors)
    return cycles


# ---------------------------------------------------------------- products with vectors, and small ones


def _without_tile(product: MatrixProduct, target: Target) -> Division:
    """The division of a product whose results are few, or where each element of a matrix is read once."""
    results, warps = product.batch * product.m * product.n, target.block // target.warp
    (matrix_step, _), extent = (
        (product.strides_of_b, product.n) if product.m == 1 else (product.strides_of_a, product.m)
    )
    by_columns = min(product.m, product.n) == 1 and matrix_step == 1 and extent >= 2 * target.warp
    if by_columns:
        blocks = -(-extent // (target.warp * lanes_of_product(product.dtype.itemsize))) * product.batch
        wanted, most = target.blocks // (2 * blocks), product.k // (TERMS * warps)
    else:
        wanted, most = 2 * target.blocks // results, product.k // (TERMS * target.warp)
    return Division(None, _whole(product, TERMS, max(1, min(wanted, most))), by_columns)
