"""How matrix products are divided: large tiles for large products, parts where tiles are few, none for vectors."""

from __future__ import annotations

import pytest
from builder import Builder
from hypothesis import given
from hypothesis import strategies as st

from staticgrad.graph.members import Members
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.tiles import Division, divide, lanes_of_product, part_length, tiles_for
from staticgrad.kernels.products import MatrixProduct, products

GPU = Target()
SMALL_GPU = Target(processors=20)


def product(m: int, n: int, k: int, *, batch: int = 1, a: bool = False, b: bool = False) -> MatrixProduct:
    builder = Builder()
    x = builder.argument((batch, k, m) if a else (batch, m, k))
    y = builder.argument((batch, n, k) if b else (batch, k, n))
    (found,) = products(builder("matmul", x, y, transpose_x=a, transpose_y=b), Members())
    return found


def rows_and_parts(division: Division) -> tuple[int, int]:
    assert division.tile is not None
    return division.tile.rows, division.parts


@pytest.mark.parametrize(
    ("shape", "rows", "parts"),
    [((4096, 4096, 4096), 128, 1), ((2048, 2048, 64), 128, 1), ((64, 128, 32), 32, 1), ((256, 256, 256), 32, 1)],
    ids=str,
)
def test_large_tiles_for_large_products(shape: tuple[int, int, int], rows: int, parts: int) -> None:
    assert rows_and_parts(divide(product(*shape), GPU)) == (rows, parts)


def test_long_sums_are_cut_where_tiles_are_few() -> None:
    """The gradient of a weight: a small matrix, added up over many samples."""
    rows, parts = rows_and_parts(divide(product(256, 256, 65_536, a=True), GPU))
    assert rows == 128
    assert parts > 16
    assert rows_and_parts(divide(product(256, 256, 65_536, a=True), SMALL_GPU))[1] < parts


def test_a_stack_fills_the_multiprocessors_by_itself() -> None:
    assert rows_and_parts(divide(product(128, 128, 64, batch=512), GPU)) == (128, 1)


@pytest.mark.parametrize(
    ("shape", "a", "b", "by_columns"),
    [
        ((1, 4096, 4096), False, False, True),
        ((1, 4096, 4096), False, True, False),
        ((4096, 1, 4096), False, False, False),
        ((4096, 1, 4096), True, False, True),
        ((1, 8, 4096), False, False, False),
        ((1, 1, 4096), False, False, False),
        ((8, 8, 4096), False, False, False),
    ],
)
def test_vectors_and_few_results_take_no_tiles(shape: tuple[int, int, int], a: bool, b: bool, by_columns: bool) -> None:
    division = divide(product(*shape, a=a, b=b), GPU)
    assert division.tile is None
    assert division.by_columns is by_columns


def test_tiles_are_what_the_kernels_can_do() -> None:
    """Powers of two, in which each thread has something to read; both halves fit into 48 KiB of shared memory."""
    for itemsize in (1, 4, 8):
        for target in (GPU, Target(warp=4, block=8), Target(warp=4, block=4), Target(warp=4, block=16)):
            for tile in tiles_for(target):
                assert tile.threads in (target.block, max(target.warp, target.block // 4))
                for extent in (tile.rows, tile.columns):
                    assert extent & (extent - 1) == 0
                    assert extent * tile.depth >= tile.threads * lanes_of_product(itemsize)
                assert 2 * tile.depth * (tile.rows + tile.columns + 8) * itemsize <= 48 * 1024
    assert [(tile.rows, tile.columns, tile.threads) for tile in tiles_for(GPU)] == [
        (128, 128, 256), (64, 64, 256), (32, 32, 64),
    ]  # fmt: skip


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 100_000), st.integers(1, 5), st.booleans(), st.booleans()
)
def test_no_part_is_empty(m: int, n: int, k: int, batch: int, a: bool, b: bool) -> None:
    found = product(m, n, k, batch=batch, a=a, b=b)
    division = divide(found, GPU)
    step = division.tile.depth if division.tile else 16
    length = part_length(found, step, division.parts)
    assert (division.parts - 1) * length < k <= division.parts * length
    assert length % step == 0
