"""Rows, sums and extremes of many shapes on the GPU: right, and with the same bits at every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for
from gpu_runs import by_reference, check_all_same, check_same, check_sums, on_gpu, program_of, run
from gpu_sizes import SIZES

from staticgrad.graph.rewrite import rewrite

Array = np.ndarray[Any, Any]


def runs_alike(graph: Any, given: list[Array]) -> list[Array]:
    """The outputs of a graph, after three runs that must agree: started launch by launch, then as one."""
    program = program_of(rewrite(graph))
    first = run(program, given)
    for _ in range(2):
        check_all_same(run(program, given), first)
    return first[: len(graph.outputs)]


@pytest.mark.parametrize(("rows", "length"), SIZES.rows)
def test_softmax_and_sums_along_both_axes(rows: int, length: int) -> None:
    b = Builder()
    x, w = b.argument((rows, length)), b.argument((length,))
    largest = b("reshape", b("max", x, axis=(1,)), shape=(rows, 1))
    powers = b("exp", b("sub", x, largest))
    soft = b("div", powers, b("reshape", b("sum", powers, axis=(1,)), shape=(rows, 1)))
    scaled = b("mul", soft, w)
    graph = b.graph(scaled, b("sum", scaled, axis=(1,)), b("sum", scaled, axis=(0,)), b("sum", scaled, axis=(0, 1)))
    given = arrays_for(graph)
    found = runs_alike(graph, given)
    wide = given[0].astype(np.float64)
    powers_wide = np.exp(wide - wide.max(axis=1, keepdims=True))
    wanted = powers_wide / powers_wide.sum(axis=1, keepdims=True) * given[1]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-30)
    for values, axis in zip(found[1:], (1, 0, (0, 1)), strict=True):
        check_sums(values, wanted.sum(axis=axis), np.abs(wanted).sum(axis=axis), units=16)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
def test_totals_of_everything(dtype: str) -> None:
    generator = np.random.default_rng(1)
    b = Builder()
    x = b.argument((SIZES.total,), dtype)
    if dtype in ("float32", "float64"):
        values = generator.standard_normal(SIZES.total).astype(dtype)
        graph = b.graph(b("sum", x, axis=(0,)), b("max", x, axis=(0,)), b("min", x, axis=(0,)))
        total, high, low = runs_alike(graph, [values])
        exact = np.sum(values, dtype=np.longdouble)
        check_sums(total, np.float64(exact), np.abs(values).sum(dtype=np.float64), units=1)
        assert (high, low) == (values.max(), values.min())
        return
    values = generator.integers(0, 2 if dtype == "bool" else 100, SIZES.total).astype(dtype)
    names = ("any", "all") if dtype == "bool" else ("sum", "max", "min")
    graph = b.graph(*(b(name, x, axis=(0,)) for name in names))
    check_all_same(runs_alike(graph, [values]), by_reference(graph, [values])[: len(names)])


@pytest.mark.parametrize("axis", [(0,), (1,), (0, 1)])
def test_special_values_go_through(axis: tuple[int, ...]) -> None:
    """One NaN or infinity in an otherwise plain column or row."""
    rows, columns = SIZES.matrix
    values = np.ones((rows, columns), np.float32)
    values[rows // 2, columns // 3] = np.nan
    values[rows - 1, columns - 1] = np.inf
    values[0, 1], values[1, 1] = np.inf, -np.inf
    values[2, 0] = -0.0
    b = Builder()
    x = b.argument(values.shape)
    graph = b.graph(*(b(name, x, axis=axis) for name in ("max", "min", "prod", "sum")))
    with np.errstate(invalid="ignore"):
        wanted = by_reference(graph, [values])[:4]
    check_all_same(runs_alike(graph, [values]), wanted)


@pytest.mark.parametrize("axis", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_sums_over_some_of_three_axes(axis: tuple[int, ...]) -> None:
    b = Builder()
    rows, columns = SIZES.matrix
    x = b.argument((rows // 7, 3, columns))
    graph = b.graph(b("sum", b("mul", x, x), axis=axis), b("min", x, axis=axis))
    given = arrays_for(graph)
    squares, low = runs_alike(graph, given)
    wanted = (given[0].astype(np.float64) ** 2).sum(axis=axis)
    check_sums(squares, wanted, wanted, units=8)
    check_same(low, given[0].min(axis=axis))


# ---------------------------------------------------------------- positions of extremes


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize(("before", "extent", "after"), SIZES.searched)
def test_the_first_of_equals(name: str, before: int, extent: int, after: int) -> None:
    generator = np.random.default_rng(0)
    shape = (before, extent, after)
    b = Builder()
    x, y = b.argument(shape), b.argument(shape, "int32")
    graph = b.graph(b(name, x, axis=(1,)), b(name, y, axis=(1,)))
    few = [generator.integers(0, 7, shape).astype(dtype) for dtype in ("float32", "int32")]
    for found, values in zip(runs_alike(graph, few), few, strict=True):
        np.testing.assert_array_equal(found, getattr(np, name)(values, axis=1))
    many = few[0].copy()
    many[generator.random(shape) < 2 / extent] = np.nan  # the first NaN counts as the extreme
    many[generator.random(shape) < 2 / extent] = np.inf
    many[generator.random(shape) < 2 / extent] = -np.inf
    found = runs_alike(graph, [many, few[1]])[0]
    np.testing.assert_array_equal(found, getattr(np, name)(many, axis=1))


@pytest.mark.parametrize("where", [0, 1, -1])
def test_an_extreme_at_the_ends(where: int) -> None:
    before, extent, after = SIZES.searched[0]
    values = np.zeros((before, extent, after), np.float32)
    values[:, where] = 1.0
    b = Builder()
    graph = b.graph(b("argmax", b.argument(values.shape), axis=(1,)))
    np.testing.assert_array_equal(on_gpu(graph, [values])[0], np.full((before, after), where % extent))
