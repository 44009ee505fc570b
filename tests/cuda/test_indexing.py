"""Look-ups, sums by index and running totals on the GPU, over several tiles and blocks: right, and always the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builder import Builder
from gpu_runs import by_reference, check_all_same, check_same, check_sums, program_of, run
from gpu_sizes import SIZES

from staticgrad.graph.rewrite import rewrite

Array = np.ndarray[Any, Any]


def runs_alike(graph: Any, given: list[Array]) -> list[Array]:
    """The outputs of a graph, after three runs that must agree."""
    program = program_of(rewrite(graph))
    first = run(program, given)
    for _ in range(2):
        check_all_same(run(program, given), first)
    return first[: len(graph.outputs)]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("rows", "columns", "count"), SIZES.taken)
def test_take(rows: int, columns: int, count: int, axis: int) -> None:
    generator = np.random.default_rng(0)
    shape = (rows, columns) if axis == 0 else (columns, rows)
    table = generator.standard_normal(shape).astype(np.float32)
    indices = generator.integers(-rows, rows, count)  # from the back too
    b = Builder()
    x, at = b.argument(shape), b.argument((count,), "int64")
    graph = b.graph(b("take", x, at, axis=axis))
    check_same(runs_alike(graph, [table, indices])[0], np.take(table, indices, axis=axis))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool"])
def test_take_along_an_axis(dtype: str) -> None:
    rows, columns = SIZES.matrix
    generator = np.random.default_rng(0)
    x = generator.integers(0, 100, (rows, columns)).astype(dtype)
    for axis, shape in ((0, (rows // 3, columns)), (1, (rows, 2 * columns))):
        at = generator.integers(0, x.shape[axis], shape)
        b = Builder()
        graph = b.graph(b("take_along_axis", b.argument(x.shape, dtype), b.argument(shape, "int64"), axis=axis))
        check_same(runs_alike(graph, [x, at])[0], np.take_along_axis(x, at, axis))


# ---------------------------------------------------------------- sums by index


def scattered(x: Array, indices: Array, rows: int) -> Array:
    """Sums of rows by index."""
    found = np.zeros((rows, *x.shape[1:]), x.dtype)
    np.add.at(found, indices, x)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("count", "rows", "columns"), SIZES.scattered)
def test_scatter_add(count: int, rows: int, columns: int, dtype: str) -> None:
    """With many duplicates: each sum has a set order."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((count, columns)).astype(dtype)
    indices = np.minimum(generator.integers(0, rows, count), generator.integers(0, rows, count))
    b = Builder()
    x, at = b.argument(values.shape, dtype), b.argument((count,), "int64")
    (found,) = runs_alike(b.graph(b("scatter_add", x, at, shape=(rows, columns), axis=0)), [values, indices])
    wide = values.astype(np.float64)
    check_sums(found, scattered(wide, indices, rows), scattered(np.abs(wide), indices, rows), units=64)


def test_all_to_one_place_and_none() -> None:
    count, rows, columns = SIZES.scattered[0]
    values = np.random.default_rng(0).integers(-100, 100, (count, columns)).astype(np.float32)
    b = Builder()
    x, at = b.argument(values.shape), b.argument((count,), "int64")
    graph = b.graph(b("scatter_add", x, at, shape=(rows, columns), axis=0))
    for place in (0, rows - 1):
        wanted = np.zeros((rows, columns), np.float32)
        wanted[place] = values.sum(axis=0)  # whole numbers: exact
        check_same(runs_alike(graph, [values, np.full(count, place)])[0], wanted)


@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_add_along_an_axis(axis: int) -> None:
    rows, columns = SIZES.matrix
    generator = np.random.default_rng(0)
    values = generator.integers(-100, 100, (rows, columns)).astype(np.float32)
    size = 1 + rows // 5
    indices = generator.integers(0, size, (rows, columns))
    b = Builder()
    x, at = b.argument(values.shape), b.argument(indices.shape, "int64")
    graph = b.graph(b("scatter_add_along_axis", x, at, axis=axis, size=size))
    check_same(runs_alike(graph, [values, indices])[0], by_reference(graph, [values, indices])[0])


# ---------------------------------------------------------------- running totals


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("before", "extent", "after"), SIZES.scanned)
def test_running_totals(before: int, extent: int, after: int, reverse: bool) -> None:
    generator = np.random.default_rng(0)
    shape = (before, extent, after)
    values = generator.standard_normal(shape).astype(np.float32)
    whole = generator.integers(-5, 6, shape).astype(np.int32)
    b = Builder()
    nodes = [b("cumulative_sum", b.argument(shape, dtype), axis=1, reverse=reverse) for dtype in ("float32", "int32")]
    found, exact = runs_alike(b.graph(*nodes), [values, whole])
    step = -1 if reverse else 1
    wide = values.astype(np.float64)[:, ::step]
    wanted, sizes = (np.cumsum(x, axis=1)[:, ::step] for x in (wide, np.abs(wide)))
    check_sums(found, wanted, sizes, units=8)
    np.testing.assert_array_equal(exact, np.cumsum(whole[:, ::step], axis=1)[:, ::step])


# ---------------------------------------------------------------- joining and padding


def test_concat_and_embed() -> None:
    rows, columns = SIZES.matrix
    generator = np.random.default_rng(0)
    pieces = [generator.standard_normal((rows, extent)).astype(np.float32) for extent in (1, columns, 4)]
    b = Builder()
    nodes = [b.argument(piece.shape) for piece in pieces]
    joined = b("concat", *nodes, axis=1)
    place = {"start": (2, 1), "step": (2, 1)}
    embedded = b("embed", nodes[1], shape=(2 * rows + 5, columns + 3), **place)
    found, around = runs_alike(b.graph(joined, embedded), pieces)
    check_same(found, np.concatenate(pieces, axis=1))
    wanted = np.zeros((2 * rows + 5, columns + 3), np.float32)
    wanted[2 : 2 + 2 * rows : 2, 1 : 1 + columns] = pieces[1]
    check_same(around, wanted)
