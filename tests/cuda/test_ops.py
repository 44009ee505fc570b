"""Every op on the GPU against the CPU's program, in float32 and float64, with special values; and random graphs."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from builder import Builder, Choice, arrays_for, random_graph
from gpu_runs import by_reference, check_all_same, check_same, check_units, on_cpu, on_gpu
from gpu_sizes import SIMULATED, SIZES

from staticgrad.graph.errors import DTypeError
from staticgrad.graph.op import Op, registry

Array = np.ndarray[Any, Any]

ELEMENTWISE = sorted(name for name, op in registry.items() if op.kind == "elementwise" and op.domain)
SAMPLED = sorted(name for name, op in registry.items() if op.kind != "leaf" and op.samples is not None)

# Both sides evaluate the same polynomials; the compilers may contract different products and sums.
UNITS = 4.0
# In units of one where values are smaller: both lose as much near their roots.
NEAR_ROOTS = {"lgamma": 16.0, "digamma": 16.0}
LESS_ACCURATE = {"pow": 8.0, "gelu": 8.0, "erfc": 8.0}
# One IEEE operation, or none: equal bits.
EXACT = frozenset(
    [
        "abs",
        "add",
        "ceil",
        "copysign",
        "div",
        "equal",
        "floor",
        "floor_divide",
        "fmod",
        "greater",
        "greater_equal",
        "isfinite",
        "isinf",
        "isnan",
        "less",
        "less_equal",
        "maximum",
        "minimum",
        "mul",
        "neg",
        "not_equal",
        "reciprocal",
        "remainder",
        "round",
        "select",
        "sign",
        "sqrt",
        "square",
        "sub",
        "trunc",
    ]
)


def special_values(dtype: str) -> Array:
    """Zeros, infinities, NaN, the ends of the range and subnormals first, then plain numbers; of both signs."""
    info = np.finfo(dtype)
    edges = [0, np.inf, np.nan, info.smallest_subnormal, info.max, info.tiny, info.tiny / 8, info.eps, 1 - info.epsneg]
    plain = [0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 10, 30, 88, 100, 700, 1e4, 1e10, 1e30]
    values = np.array([float(value) for value in edges + plain], dtype)
    return np.stack([values, -values], axis=1).reshape(-1)


def operands_of(op: Op, dtype: str) -> list[Array]:
    """For each operand numbers of the usual domain, numbers of every size, and special values in all pairs."""
    generator = np.random.default_rng(0)
    count = int(np.prod(SIZES.matrix))
    wide = np.log2(float(np.finfo(dtype).max)) - 1
    found = []
    for interval in op.domain:
        usual = generator.uniform(interval.low, interval.high, count)
        every = generator.choice((-1.0, 1.0), count) * np.exp2(generator.uniform(-wide, wide, count))
        found.append(np.where(generator.random(count) < 0.5, usual, every).astype(dtype))
    special = special_values(dtype)
    if len(found) == 1:
        found[0][: special.size] = special[:count]
    else:
        pairs = np.array(list(product(special[: SIZES.specials], repeat=2)))
        for column, values in enumerate(found[-2:]):
            values[: len(pairs)] = pairs[:, column]
    if op.operands[0] == "condition":
        found[0] = generator.random(count) < 0.5
    return [values.reshape(SIZES.matrix) for values in found]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str, dtype: str) -> None:
    given = operands_of(registry[name], dtype)
    if SIMULATED and name in NEAR_ROOTS:  # the simulator has SciPy's, which are far off beside the poles
        given = [np.maximum(np.abs(array), np.finfo(dtype).tiny) for array in given]
    b = Builder()
    graph = b.graph(b(name, *(b.argument(array.shape, array.dtype) for array in given)))
    found, wanted = on_gpu(graph, given)[0], on_cpu(graph, given)[0]
    if name in EXACT:
        check_same(found, wanted, name)
    elif name in NEAR_ROOTS:
        check_units(found, wanted, NEAR_ROOTS[name], given, least=1.0)
    else:
        check_units(found, wanted, LESS_ACCURATE.get(name, UNITS), given)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_samples_of_an_op(name: str) -> None:
    """In one program; the dtypes that floats do not reach, and every attribute."""
    op, b = registry[name], Builder()
    outputs, given = [], []
    for sample in op.samples() if op.samples is not None else ():
        arrays = [np.array(operand, order="C") for operand in sample.operands]
        try:
            outputs.append(b(name, *(b.argument(x.shape, x.dtype) for x in arrays), **sample.attributes))
        except DTypeError:  # a dtype that the op does not take
            b.inputs[len(given) :] = []
            continue
        given += arrays
    assert outputs
    graph = b.graph(*outputs)
    for found, wanted in zip(on_gpu(graph, given), by_reference(graph, given), strict=True):
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        else:
            check_same(found, wanted)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64"])
def test_casts_of_whole_numbers(dtype: str) -> None:
    """To every dtype, in one kernel."""
    values = np.random.default_rng(0).integers(-(2**40), 2**40, SIZES.matrix).astype(dtype)
    b = Builder()
    x = b.argument(values.shape, dtype)
    kinds = ("bool", "uint8", "int8", "int32", "int64", "uint64", "float32", "float64")
    graph = b.graph(*(b("cast", x, dtype=np.dtype(kind)) for kind in kinds))
    check_all_same(on_gpu(graph, [values]), on_cpu(graph, [values]))


def test_broadcast_operands_and_views() -> None:
    """Rows, columns and numbers beside a matrix, read forwards, backwards, in steps and across."""
    rows, columns = SIZES.matrix
    b = Builder()
    x, row, column, number = b.argument((rows, columns)), b.argument((columns,)), b.argument((rows, 1)), b.argument(())
    y = b("add", b("mul", x, row), b("sub", column, number))
    backwards = b("slice", y, start=(rows - 1, 0), stop=(-1, columns), step=(-2, 3))
    graph = b.graph(y, b("permute_dims", y, axes=(1, 0)), b("exp", backwards))
    given = arrays_for(graph)
    found, wanted = on_gpu(graph, given), on_cpu(graph, given)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_far_reaching_groups(dtype: str) -> None:
    """Values that several outputs need: each is computed where it is wanted, and comes out the same."""
    b = Builder()
    x = b.argument(SIZES.matrix, dtype)
    y = b("tanh", x)
    square = b("mul", y, y)
    graph = b.graph(y, square, b("sum", square, axis=(1,)), b("max", y, axis=(0,)), b("less", y, square))
    given = arrays_for(graph)
    found = on_gpu(graph, given)
    check_all_same(found, on_gpu(graph, given))
    check_same(found[1], found[0] * found[0])
    check_same(found[3], found[0].max(axis=0))
    check_same(found[4], found[0] < found[1])


@pytest.mark.parametrize("seed", range(SIZES.random_graphs))
def test_random_graphs(seed: int) -> None:
    """Planned, without reuse and with poisoned slots: the same bits, and the values of the reference."""
    graph = random_graph(seed, 30, Choice(dtype="float64"))
    given = arrays_for(graph)
    planned = on_gpu(graph, given)
    for one, other in zip(planned, by_reference(graph, given), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-8)
    if seed % 4 == 0:
        check_all_same(on_gpu(graph, given, reuse=False), planned)
        check_all_same(on_gpu(graph, given, poison=True), planned)
