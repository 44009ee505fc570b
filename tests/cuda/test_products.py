"""Matrix products of every way to divide them on the GPU, against float64: plain, in batches, and with what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builder import Builder
from gpu_runs import check_all_same, check_sums, program_of, run
from gpu_sizes import SIZES, Product

from staticgrad.graph.rewrite import rewrite

Array = np.ndarray[Any, Any]
UNITS = 4.0  # of roundoff of |x| @ |y|; a product in TF32 is off by thousands


def normal(*shapes: tuple[int, ...], dtype: str = "float32") -> list[Array]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def exact(x: Array, y: Array, transpose: tuple[bool, bool] = (False, False)) -> tuple[Array, Array]:
    """The product in float64, and that of the sizes."""
    wide = [
        np.swapaxes(array, -1, -2).astype(np.float64) if turned else array.astype(np.float64)
        for array, turned in zip((x, y), transpose, strict=True)
    ]
    return wide[0] @ wide[1], np.abs(wide[0]) @ np.abs(wide[1])


def runs_alike(graph: Any, given: list[Array]) -> list[Array]:
    """The outputs of a graph, after two runs that must agree."""
    program = program_of(rewrite(graph))
    first = run(program, given)
    check_all_same(run(program, given), first)
    return first[: len(graph.outputs)]


@pytest.mark.parametrize("case", SIZES.products, ids=str)
def test_a_product(case: Product) -> None:
    given = normal(case.x, case.y, dtype=case.dtype)
    b = Builder()
    x, y = (b.argument(array.shape, array.dtype) for array in given)
    graph = b.graph(b("matmul", x, y, transpose_x=case.transpose[0], transpose_y=case.transpose[1]))
    (found,) = runs_alike(graph, given)
    check_sums(found, *exact(given[0], given[1], case.transpose), units=UNITS)


@pytest.mark.parametrize(("m", "k", "n"), SIZES.joined)
def test_a_layer_and_the_gradient_of_its_bias(m: int, k: int, n: int) -> None:
    """Bias, activation and a second reader behind the product, and the sums of its columns."""
    given = normal((m, k), (k, n), (n,))
    b = Builder()
    x, y, bias = (b.argument(array.shape) for array in given)
    product = b("add", b("matmul", x, y), bias)
    active = b("tanh", product)
    slope = b("sub", 1.0, b("mul", active, active))
    found, slopes, sums = runs_alike(b.graph(active, slope, b("sum", slope, axis=(0,))), given)
    wanted, sizes = exact(given[0], given[1])
    check_sums(found, np.tanh(wanted + given[2]), sizes + np.abs(given[2]), units=UNITS)
    np.testing.assert_allclose(slopes, 1 - found * found, rtol=0, atol=1e-6)
    terms = 1 + found.astype(np.float64) ** 2  # what is subtracted from one another
    check_sums(sums, slopes.sum(axis=0, dtype=np.float64), terms.sum(axis=0), units=8)


@pytest.mark.parametrize(("m", "k", "n"), SIZES.joined[:2])
def test_a_product_that_updates_what_it_is_read_beside(m: int, k: int, n: int) -> None:
    """w <- w - x^T g / 8: the product goes straight into the state, run after run."""
    x, g, w = normal((k, m), (k, n), (m, n))
    b = Builder()
    one, other, state = b.argument(x.shape), b.argument(g.shape), b.state(w.shape)
    gradient = b("matmul", one, other, transpose_x=True, transpose_y=False)
    step = b("sub", state, b("mul", gradient, 0.125))
    program = program_of(rewrite(b.graph(b("sum", gradient, axis=(0, 1)), updates=[(state, step)])))
    wanted, sizes = exact(x, g, (True, False))
    total, *_, moved = run(program, [x, g, w])
    check_sums(total, wanted.sum(), sizes.sum(), units=UNITS)
    check_sums(moved, w - wanted / 8, np.abs(w) + sizes / 8, units=UNITS)
    check_all_same(run(program, [x, g, w]), [total, x, g, moved])


def test_whole_numbers_are_exact_and_special_values_reach_their_row_only() -> None:
    m, k, n = SIZES.joined[0]
    generator = np.random.default_rng(0)
    x, y = (generator.integers(-50, 50, shape).astype(np.float32) for shape in ((m, k), (k, n)))
    b = Builder()
    program = program_of(rewrite(b.graph(b("matmul", b.argument(x.shape), b.argument(y.shape)))))
    wanted = x.astype(np.float64) @ y.astype(np.float64)
    np.testing.assert_array_equal(run(program, [x, y])[0], wanted)
    y[y == 0] = 1  # infinity times zero would be NaN
    wanted = x.astype(np.float64) @ y.astype(np.float64)
    for value in (np.inf, -np.inf, np.nan):
        x[m // 2, k - 1] = value
        wanted[m // 2] = value * y[k - 1]
        np.testing.assert_array_equal(run(program, [x, y])[0], wanted)


@pytest.mark.parametrize(("m", "k", "n"), SIZES.joined[1:])
def test_products_of_views(m: int, k: int, n: int) -> None:
    """Halves of one array multiplied, and a permuted one: operands that do not begin where their memory does."""
    (both,) = normal((2 * m, k))
    (other,) = normal((k, n))
    b = Builder()
    x, y = b.argument(both.shape), b.argument(other.shape)
    upper = b("slice", x, start=(0, 0), stop=(m, k), step=(1, 1))
    lower = b("slice", x, start=(m, 0), stop=(2 * m, k), step=(1, 1))
    products = [b("matmul", half, y) for half in (upper, lower)]
    turned = b("matmul", b("permute_dims", y, axes=(1, 0)), b("permute_dims", lower, axes=(1, 0)))
    first, second, third = runs_alike(b.graph(*products, turned), [both, other])
    check_sums(first, *exact(both[:m], other), units=UNITS)
    check_sums(second, *exact(both[m:], other), units=UNITS)
    check_sums(third, *exact(other.T, both[m:].T), units=UNITS)
