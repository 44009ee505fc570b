"""Rewrites: each on its own for exact equality of values, then all of them on random graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builder import SPECIAL, Builder, Choice, arrays_for, graphs
from hypothesis import assume, given, settings

from staticgrad.graph.interpret import interpret
from staticgrad.graph.location import Location
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.rewrite import RULES, RULES_OF_KIND, rewrite
from staticgrad.graph.verify import verify

Array = np.ndarray[Any, Any]


def same_bits(first: Array, second: Array) -> bool:
    """Equal shapes, dtypes, values and signs of zeros; a NaN equals any NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    equal = np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    if first.dtype.kind != "f":
        return equal
    number = ~np.isnan(first)
    return equal and bool(np.all(np.signbit(first[number]) == np.signbit(second[number])))


def same_results(before: Graph, after: Graph, arrays: list[Array]) -> bool:
    pairs = zip(interpret(before, arrays), interpret(after, arrays), strict=True)
    return all(same_bits(a, b) for old, new in pairs for a, b in zip(old, new, strict=True))


def names(graph: Graph) -> list[str]:
    """The ops in order, without the leaves."""
    return [node.op.name for node in graph.nodes if node.op.kind != "leaf"]


def special_arrays(graph: Graph) -> list[Array]:
    """Every pair of special values, for inputs of 121 elements; random ones for the others."""
    grid = np.meshgrid(SPECIAL, SPECIAL)
    arrays = arrays_for(graph, special=True)
    for position, leaf in enumerate(graph.inputs):
        if leaf.size == len(SPECIAL) ** 2 and leaf.dtype.kind == "f":
            with np.errstate(all="ignore"):
                arrays[position] = grid[position % 2].reshape(leaf.shape).astype(leaf.dtype)
    return arrays


N = len(SPECIAL) ** 2
Make = Callable[[Builder], Node]


def floats(make: Callable[..., Node], dtype: str = "float32", shape: tuple[int, ...] = (N,)) -> Make:
    """A case over two inputs x and y that meet in every pair of special values."""
    return lambda b: make(b, b.argument(shape, dtype), b.argument(shape, dtype))


def integers(make: Callable[..., Node], dtype: str = "int32") -> Make:
    return floats(make, dtype, (7,))


def booleans(make: Callable[..., Node]) -> Make:
    return floats(make, "bool", (9,))


def shaped(make: Callable[..., Node], *shapes: tuple[int, ...], dtype: str = "float32") -> Make:
    return lambda b: make(b, *[b.argument(shape, dtype) for shape in shapes])


def cast(b: Builder, x: Node, *dtypes: str) -> Node:
    for dtype in dtypes:
        x = b("cast", x, dtype=np.dtype(dtype))
    return x


def sliced(b: Builder, x: Node, start: Any, stop: Any, step: Any) -> Node:
    return b("slice", x, start=start, stop=stop, step=step)


# name, the graph's one output, the ops that are left
EXACT: list[tuple[str, Make, list[str]]] = [
    ("x + -0.0", floats(lambda b, x, y: b("add", x, -0.0)), []),
    ("-0.0 + x", floats(lambda b, x, y: b("add", b.constant(-0.0), x)), []),
    ("x + 0.0 stays", floats(lambda b, x, y: b("add", x, 0.0)), ["add"]),
    ("int x + 0", integers(lambda b, x, y: b("add", x, 0)), []),
    ("x + -y", floats(lambda b, x, y: b("add", x, b("neg", y))), ["sub"]),
    ("-x + y", floats(lambda b, x, y: b("add", b("neg", x), y)), ["sub"]),
    ("x - 0.0", floats(lambda b, x, y: b("sub", x, 0.0)), []),
    ("x - -0.0 stays", floats(lambda b, x, y: b("sub", x, -0.0)), ["sub"]),
    ("-0.0 - x", floats(lambda b, x, y: b("sub", b.constant(-0.0), x)), ["neg"]),
    ("0.0 - x stays", floats(lambda b, x, y: b("sub", b.constant(0.0), x)), ["sub"]),
    ("int 0 - x", integers(lambda b, x, y: b("sub", b.constant(0, "int32"), x)), ["neg"]),
    ("uint 0 - x", integers(lambda b, x, y: b("sub", b.constant(0, "uint8"), x), "uint8"), ["neg"]),
    ("x - -y", floats(lambda b, x, y: b("sub", x, b("neg", y))), ["add"]),
    ("x - x stays", floats(lambda b, x, y: b("sub", x, x)), ["sub"]),
    ("x * 1", floats(lambda b, x, y: b("mul", x, 1.0)), []),
    ("x * -1", floats(lambda b, x, y: b("mul", b.constant(-1.0), x)), ["neg"]),
    ("x * 0 stays", floats(lambda b, x, y: b("mul", x, 0.0)), ["mul"]),
    ("int x * 0", integers(lambda b, x, y: b("mul", x, 0)), ["broadcast_to"]),
    ("x * x", floats(lambda b, x, y: b("mul", x, x)), ["square"]),
    ("-x * -y", floats(lambda b, x, y: b("mul", b("neg", x), b("neg", y))), ["mul"]),
    ("-x * 3", floats(lambda b, x, y: b("mul", b("neg", x), 3.0)), ["mul"]),
    ("-(x * 3)", floats(lambda b, x, y: b("neg", b("mul", x, 3.0))), ["mul"]),
    ("x / 1", floats(lambda b, x, y: b("div", x, 1.0)), []),
    ("x / -1", floats(lambda b, x, y: b("div", x, -1.0)), ["neg"]),
    ("x / 8", floats(lambda b, x, y: b("div", x, 8.0)), ["mul"]),
    ("x / -0.25 double", floats(lambda b, x, y: b("div", x, -0.25), "float64"), ["mul"]),
    ("x / 3 stays", floats(lambda b, x, y: b("div", x, 3.0)), ["div"]),
    ("x / 2**127 stays", floats(lambda b, x, y: b("div", x, 2.0**127)), ["div"]),
    ("x / 0 stays", floats(lambda b, x, y: b("div", x, 0.0)), ["div"]),
    ("x / inf stays", floats(lambda b, x, y: b("div", x, np.inf)), ["div"]),
    ("1 / x", floats(lambda b, x, y: b("div", b.constant(1.0), x)), ["reciprocal"]),
    ("-x / -y", floats(lambda b, x, y: b("div", b("neg", x), b("neg", y))), ["div"]),
    ("-x / 3", floats(lambda b, x, y: b("div", b("neg", x), 3.0)), ["div"]),
    ("3 / -x", floats(lambda b, x, y: b("div", b.constant(3.0), b("neg", x))), ["div"]),
    ("-(-x)", floats(lambda b, x, y: b("neg", b("neg", x))), []),
    ("abs(-x)", floats(lambda b, x, y: b("abs", b("neg", x))), ["abs"]),
    ("abs(abs(x))", floats(lambda b, x, y: b("abs", b("abs", x))), ["abs"]),
    ("square(-x)", floats(lambda b, x, y: b("square", b("neg", x))), ["square"]),
    ("square(abs(x))", floats(lambda b, x, y: b("square", b("abs", x))), ["square"]),
    ("floor(floor(x))", floats(lambda b, x, y: b("floor", b("floor", x))), ["floor"]),
    ("round(round(x))", floats(lambda b, x, y: b("round", b("round", x))), ["round"]),
    ("sign(sign(x))", floats(lambda b, x, y: b("sign", b("sign", x))), ["sign"]),
    ("pow(x, 0)", floats(lambda b, x, y: b("pow", x, 0.0)), ["broadcast_to"]),
    ("pow(x, 1)", floats(lambda b, x, y: b("pow", x, 1.0)), []),
    ("pow(x, 0.5) stays", floats(lambda b, x, y: b("pow", x, 0.5)), ["pow"]),
    ("select(True, x, y)", floats(lambda b, x, y: b("select", b.constant(True, "bool"), x, y)), []),
    ("select(False, x, y)", floats(lambda b, x, y: b("select", b.constant(False, "bool"), x, y)), []),
    ("select(c, x, x)", floats(lambda b, x, y: b("select", b("less", x, y), x, x)), []),
    (
        "select(not c, x, y)",
        floats(lambda b, x, y: b("select", b("logical_not", b("less", x, y)), x, y)),
        ["less", "select"],
    ),
    (
        "select(c, select(c, x, y), 3)",
        floats(lambda b, x, y: (c := b("less", x, y)) and b("select", c, b("select", c, x, y), 3.0)),
        ["less", "select"],
    ),
    (
        "select(c, 3, select(c, x, y))",
        floats(lambda b, x, y: (c := b("less", x, y)) and b("select", c, b.constant(3.0), b("select", c, x, y))),
        ["less", "select"],
    ),
    ("not not c", booleans(lambda b, x, y: b("logical_not", b("logical_not", x))), []),
    ("not (x == y)", floats(lambda b, x, y: b("logical_not", b("equal", x, y))), ["not_equal"]),
    ("not (x != y)", floats(lambda b, x, y: b("logical_not", b("not_equal", x, y))), ["equal"]),
    ("not (x < y) stays", floats(lambda b, x, y: b("logical_not", b("less", x, y))), ["less", "logical_not"]),
    ("~~x", integers(lambda b, x, y: b("bitwise_invert", b("bitwise_invert", x))), []),
    ("c and c", booleans(lambda b, x, y: b("bitwise_and", x, x)), []),
    ("c and True", booleans(lambda b, x, y: b("bitwise_and", x, True)), []),
    ("c and False", booleans(lambda b, x, y: b("bitwise_and", x, False)), ["broadcast_to"]),
    ("c or False", booleans(lambda b, x, y: b("bitwise_or", x, False)), []),
    ("c or True", booleans(lambda b, x, y: b("bitwise_or", x, True)), ["broadcast_to"]),
    ("max(x, x)", floats(lambda b, x, y: b("maximum", x, x)), []),
    ("cast to own", floats(lambda b, x, y: cast(b, x, "float32")), []),
    ("float32 as float64 as float32", floats(lambda b, x, y: cast(b, x, "float64", "float32")), []),
    (
        "float64 as float32 as float64 stays",
        floats(lambda b, x, y: cast(b, x, "float32", "float64"), "float64"),
        ["cast", "cast"],
    ),
    ("int32 as float32 as int32 stays", integers(lambda b, x, y: cast(b, x, "float32", "int32")), ["cast", "cast"]),
    ("int32 as float64 as float32", integers(lambda b, x, y: cast(b, x, "float64", "float32")), ["cast"]),
    (
        "int64 as float64 as float32 stays",
        integers(lambda b, x, y: cast(b, x, "float64", "float32"), "int64"),
        ["cast", "cast"],
    ),
    (
        "int16 as float32 as int8 stays",
        integers(lambda b, x, y: cast(b, x, "float32", "int8"), "int16"),
        ["cast", "cast"],
    ),
    ("int8 as int64 as uint8", integers(lambda b, x, y: cast(b, x, "int64", "uint8"), "int8"), ["cast"]),
    ("bool as float32 as bool", booleans(lambda b, x, y: cast(b, x, "float32", "bool")), []),
    (
        "reshape of reshape",
        shaped(lambda b, x: b("reshape", b("reshape", x, shape=(6,)), shape=(3, 2)), (2, 3)),
        ["reshape"],
    ),
    ("reshape back", shaped(lambda b, x: b("reshape", b("reshape", x, shape=(6,)), shape=(2, 3)), (2, 3)), []),
    (
        "permute of permute",
        shaped(lambda b, x: b("permute_dims", b("permute_dims", x, axes=(2, 0, 1)), axes=(2, 0, 1)), (2, 3, 4)),
        ["permute_dims"],
    ),
    (
        "permute back",
        shaped(lambda b, x: b("permute_dims", b("permute_dims", x, axes=(2, 0, 1)), axes=(1, 2, 0)), (2, 3, 4)),
        [],
    ),
    ("permute in order", shaped(lambda b, x: b("permute_dims", x, axes=(0, 1)), (2, 3)), []),
    ("permute of ones", shaped(lambda b, x: b("permute_dims", x, axes=(1, 2, 0)), (1, 3, 4)), ["reshape"]),
    (
        "broadcast of broadcast",
        shaped(lambda b, x: b("broadcast_to", b("broadcast_to", x, shape=(2, 3)), shape=(4, 2, 3)), (3,)),
        ["broadcast_to"],
    ),
    (
        "broadcast of added ones",
        shaped(lambda b, x: b("broadcast_to", b("reshape", x, shape=(1, 3)), shape=(2, 3)), (3,)),
        ["broadcast_to"],
    ),
    ("broadcast without stretch", shaped(lambda b, x: b("broadcast_to", x, shape=(1, 3)), (3,)), ["reshape"]),
    (
        "views of one element",
        shaped(
            lambda b, x: b("permute_dims", b("reshape", b("broadcast_to", x, shape=(6,)), shape=(2, 3)), axes=(1, 0)),
            (),
        ),
        ["broadcast_to"],
    ),
    (
        "broadcast before an op",
        shaped(lambda b, x, y: b("mul", x, b("broadcast_to", y, shape=(2, 3))), (2, 3), (3,)),
        ["mul"],
    ),
    (
        "broadcast that shapes the result stays",
        shaped(lambda b, x, y: b("mul", x, b("broadcast_to", y, shape=(2, 3))), (3,), (3,)),
        ["broadcast_to", "mul"],
    ),
    (
        "added ones before an op",
        shaped(lambda b, x, y: b("mul", x, b("reshape", y, shape=(1, 3))), (2, 3), (3,)),
        ["mul"],
    ),
    ("slice of everything", shaped(lambda b, x: sliced(b, x, (0, 0), (2, 3), (1, 1)), (2, 3)), []),
    ("slice reversed stays", shaped(lambda b, x: sliced(b, x, (1, 0), (-1, 3), (-1, 1)), (2, 3)), ["slice"]),
    (
        "slice of slice",
        shaped(lambda b, x: sliced(b, sliced(b, x, (9, 1), (-1, 8), (-2, 3)), (3, 0), (0, 2), (-2, 1)), (10, 9)),
        ["slice"],
    ),
    ("reversed twice", shaped(lambda b, x: sliced(b, sliced(b, x, (9,), (-1,), (-1,)), (9,), (-1,), (-1,)), (10,)), []),
    (
        "slice of concat",
        shaped(lambda b, x, y: sliced(b, b("concat", x, y, axis=1), (0, 3), (2, 7), (1, 1)), (2, 3), (2, 4)),
        [],
    ),
    (
        "slice inside concat",
        shaped(lambda b, x, y: sliced(b, b("concat", x, y, axis=1), (0, 4), (2, 7), (1, 2)), (2, 3), (2, 4)),
        ["slice"],
    ),
    (
        "slice across concat stays",
        shaped(lambda b, x, y: sliced(b, b("concat", x, y, axis=1), (0, 2), (2, 7), (1, 1)), (2, 3), (2, 4)),
        ["concat", "slice"],
    ),
    (
        "slice of embed",
        shaped(lambda b, x: sliced(b, b("embed", x, shape=(7,), start=(1,), step=(2,)), (1,), (6,), (2,)), (3,)),
        [],
    ),
    ("embed of everything", shaped(lambda b, x: b("embed", x, shape=(3,), start=(0,), step=(1,)), (3,)), []),
    ("concat of one", shaped(lambda b, x: b("concat", x, axis=0), (3,)), []),
    ("concat with nothing", shaped(lambda b, x, y: b("concat", x, y, axis=0), (3,), (0,)), []),
    ("max over ones", shaped(lambda b, x: b("max", x, axis=(1,)), (2, 1)), ["reshape"]),
    ("prod over no axes", shaped(lambda b, x: b("prod", x, axis=()), (2, 1)), []),
    ("sum of ones", lambda b: b("sum", b("broadcast_to", b.constant(1.0), shape=(9, 7)), axis=(0,)), ["broadcast_to"]),
    (
        "sum of tenths stays",
        lambda b: b("sum", b("broadcast_to", b.constant(0.1), shape=(9,)), axis=(0,)),
        ["broadcast_to", "sum"],
    ),
    (
        "sum of stretched integers",
        shaped(lambda b, x: b("sum", b("broadcast_to", x, shape=(9,)), axis=(0,)), (), dtype="int32"),
        ["mul"],
    ),
    (
        "sum of stretched floats stays",
        shaped(lambda b, x: b("sum", b("broadcast_to", x, shape=(9,)), axis=(0,)), ()),
        ["broadcast_to", "sum"],
    ),
    ("max of stretched", lambda b: b("max", b("broadcast_to", b.constant(3.0), shape=(9,)), axis=(0,)), []),
    ("constants", lambda b: b("mul", b.constant([1.0, 2.0]), b("exp", b.constant(2.0))), []),
    ("stretched constants", lambda b: b("mul", b("broadcast_to", b.constant(3.0), shape=(4,)), 2.0), ["broadcast_to"]),
    (
        "stack of one",
        shaped(lambda b, x, y: b("matmul", x, y), (1, 2, 3), (1, 3, 4)),
        ["reshape", "reshape", "matmul", "reshape"],
    ),
]


@pytest.mark.parametrize(("make", "left"), [case[1:] for case in EXACT], ids=[case[0] for case in EXACT])
def test_each_rewrite_is_exact(make: Make, left: list[str]) -> None:
    builder = Builder()
    before = builder.graph(make(builder))
    verify(before)
    after = rewrite(before)
    verify(after)
    assert names(after) == left
    assert after.inputs == before.inputs
    assert rewrite(after) is after
    assert same_results(before, after, special_arrays(before))


def test_views_that_undo_each_other_around_elementwise_ops() -> None:
    b = Builder()
    x, y, rate = b.argument((2, 3, 4)), b.argument((2, 6)), b.scalar()
    turned = b("permute_dims", b("neg", b("mul", rate, b("permute_dims", x, axes=(2, 0, 1)))), axes=(1, 2, 0))
    flat = b("reshape", b("abs", b("reshape", y, shape=(12,))), shape=(2, 6))
    before = b.graph(turned, flat)
    after = rewrite(before)
    verify(after)
    assert names(after) == ["mul", "neg", "abs"]
    assert same_results(before, after, arrays_for(before, special=True))


def test_views_that_others_need_stay() -> None:
    b = Builder()
    x, y = b.argument((2, 3)), b.argument((3, 2))
    between = b("neg", b("permute_dims", x, axes=(1, 0)))
    shared = b("permute_dims", between, axes=(1, 0))
    other = b("permute_dims", b("add", y, b("permute_dims", x, axes=(1, 0))), axes=(1, 0))
    after = rewrite(b.graph(shared, between, other))
    assert names(after) == ["permute_dims", "neg", "permute_dims", "add", "permute_dims"]
    assert rewrite(after) is after


# ---------------------------------------------------------------- products: exact on whole numbers


def permuted(b: Builder, x: Node, *axes: int) -> Node:
    return b("permute_dims", x, axes=axes)


PRODUCTS: list[tuple[str, Make, list[str]]] = [
    ("x transposed", shaped(lambda b, x, y: b("matmul", permuted(b, x, 1, 0), y), (3, 2), (3, 4)), ["matmul"]),
    ("y transposed", shaped(lambda b, x, y: b("matmul", x, permuted(b, y, 1, 0)), (2, 3), (4, 3)), ["matmul"]),
    (
        "flag and transposed",
        shaped(lambda b, x, y: b("matmul", permuted(b, x, 1, 0), y, transpose_x=True), (2, 3), (3, 4)),
        ["matmul"],
    ),
    (
        "stack transposed",
        shaped(lambda b, x, y: b("matmul", permuted(b, x, 0, 2, 1), permuted(b, y, 0, 2, 1)), (5, 3, 2), (5, 4, 3)),
        ["matmul"],
    ),
    (
        "heads: the last axis goes next to last",
        shaped(lambda b, x, y: b("matmul", x, permuted(b, y, 0, 2, 3, 1)), (2, 3, 4, 5), (2, 6, 3, 5)),
        ["permute_dims", "matmul"],
    ),
    ("result transposed", shaped(lambda b, x, y: permuted(b, b("matmul", x, y), 1, 0), (2, 3), (3, 4)), ["matmul"]),
    (
        "result of flags transposed",
        shaped(lambda b, x, y: permuted(b, b("matmul", x, y, transpose_x=True), 0, 2, 1), (5, 3, 2), (3, 4)),
        ["matmul"],
    ),
    (
        "stretched stack",
        shaped(
            lambda b, x, y: b("matmul", x, b("broadcast_to", y, shape=(5, 3, 4)), transpose_x=True), (5, 3, 2), (3, 4)
        ),
        ["matmul"],
    ),
    (
        "rows of a stack",
        shaped(lambda b, x, y: b("matmul", x, y), (5, 2, 3), (3, 4)),
        ["reshape", "matmul", "reshape"],
    ),
    (
        "rows of a permuted stack stay",
        shaped(lambda b, x, y: b("matmul", permuted(b, x, 1, 0, 2), y), (2, 5, 3), (3, 4)),
        ["permute_dims", "matmul"],
    ),
    (
        "gradient of a shared weight",
        shaped(lambda b, x, y: b("sum", b("matmul", x, y, transpose_x=True), axis=(0,)), (5, 3, 2), (5, 3, 4)),
        ["reshape", "reshape", "matmul"],
    ),
]


@pytest.mark.parametrize(("make", "left"), [case[1:] for case in PRODUCTS], ids=[case[0] for case in PRODUCTS])
def test_each_rewrite_of_products(make: Make, left: list[str]) -> None:
    builder = Builder()
    before = builder.graph(make(builder))
    after = rewrite(before)
    verify(after)
    assert names(after) == left
    assert rewrite(after) is after
    assert same_results(before, after, whole_numbers(before, 0))


def whole_numbers(graph: Graph, seed: int) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.integers(-3, 4, size=leaf.shape).astype(leaf.dtype) for leaf in graph.inputs]


def test_a_product_with_another_reader_is_not_computed_twice() -> None:
    b = Builder()
    product = b("matmul", b.argument((2, 3)), b.argument((3, 4)))
    after = rewrite(b.graph(permuted(b, product, 1, 0), b("tanh", product)))
    assert names(after).count("matmul") == 1


def test_a_reader_that_vanishes_lets_a_rewrite_through() -> None:
    b = Builder()
    product = b("matmul", b.argument((2, 3)), b.argument((3, 4)))
    after = rewrite(b.graph(permuted(b, product, 1, 0), b("permute_dims", product, axes=(1, 0))))
    assert names(after) == ["matmul"]
    assert after.outputs[0] is after.outputs[1]


# ---------------------------------------------------------------- stated differences


@pytest.mark.parametrize(("exponent", "left"), [(2.0, ["square"]), (-1.0, ["reciprocal"])])
def test_powers_differ_by_one_unit_in_the_last_place_at_most(exponent: float, left: list[str]) -> None:
    b = Builder()
    before = b.graph(b("pow", b.argument((1000,), "float64"), exponent))
    after = rewrite(before)
    arrays = [np.random.default_rng(0).normal(size=1000)]
    assert names(after) == left
    np.testing.assert_array_max_ulp(interpret(before, arrays)[0][0], interpret(after, arrays)[0][0], maxulp=1)
    specials = [np.resize(np.asarray(SPECIAL), 1000)]
    np.testing.assert_array_equal(interpret(before, specials)[0][0], interpret(after, specials)[0][0])


def test_a_sum_over_ones_keeps_the_sign_of_a_zero() -> None:
    b = Builder()
    after = rewrite(b.graph(b("sum", b.argument((2, 1)), axis=(1,))))
    (result,), _ = interpret(after, [np.array([[-0.0], [3.0]], np.float32)])
    assert names(after) == ["reshape"]
    assert np.signbit(result).tolist() == [True, False]


# ---------------------------------------------------------------- constants, equal work, dead code


def test_large_and_repeated_constants_are_not_baked() -> None:
    b = Builder()
    large = b("exp", b.constant(np.zeros(40_000)))
    stretched = b("broadcast_to", b.constant([1.0, 2.0]), shape=(5, 2))
    padded = b("embed", b.constant([1.0]), shape=(50,), start=(3,), step=(1,))
    after = rewrite(b.graph(large, stretched, padded))
    assert names(after) == ["exp", "broadcast_to", "embed"]


def test_a_constant_index_out_of_range_is_left_to_the_run() -> None:
    b = Builder()
    after = rewrite(b.graph(b("take", b.constant([1.0, 2.0]), b.constant(5, "int64"), axis=0)))
    assert names(after) == ["take"]


def test_equal_work_is_shared() -> None:
    b = Builder()
    x, y = b.argument((3,)), b.argument((3,))
    outputs = [b("mul", x, y), b("mul", y, x), b("sub", x, y), b("sub", y, x), b("tanh", b("mul", x, y))]
    after = rewrite(b.graph(*outputs))
    assert names(after) == ["mul", "sub", "sub", "tanh"]
    assert after.outputs[0] is after.outputs[1]


def test_only_equal_constants_are_shared() -> None:
    b = Builder()
    x = b.argument((3,))
    outputs = [b("add", x, 0.0), b("add", x, b.constant(0.0)), b("mul", x, 0.0), b("mul", x, -0.0)]
    after = rewrite(b.graph(*outputs))
    assert names(after) == ["add", "mul", "mul"]


def test_maximum_of_floats_is_not_turned_round() -> None:
    b = Builder()
    x, y = b.argument((3,)), b.argument((3,))
    assert names(rewrite(b.graph(b("maximum", x, y), b("maximum", y, x)))) == ["maximum", "maximum"]


def test_leaves_stay_apart_and_in_place() -> None:
    b = Builder()
    x, unused, state = b.argument((3,)), b.argument((3,)), b.state((3,))
    before = b.graph(b("add", x, -0.0), updates=[(state, b("mul", state, 1.0))])
    after = rewrite(before)
    assert after.inputs == (x, unused, state)
    assert after.outputs == (x,)
    assert after.updates == ((state, state),)


def test_new_nodes_keep_scope_and_location() -> None:
    b = Builder()
    x = b.argument((3,))
    b.scope, b.location = "model/hidden", Location("train.py", 12, "step")
    after = rewrite(b.graph(b("mul", b("neg", x), 3.0)))
    assert {(node.scope, node.location) for node in after.nodes if node is not x} == {(b.scope, b.location)}


def test_the_order_of_the_program_stays() -> None:
    b = Builder()
    x = b.argument((3,))
    first = b("tanh", b("mul", x, 1.0))
    second, third = b("exp", x), b("sin", b("mul", x, 1.0))
    after = rewrite(b.graph(third, second, first))
    assert names(after) == ["tanh", "exp", "sin"]


# ---------------------------------------------------------------- random graphs

# Ops whose NumPy loops give the same bits for any layout, so that every rewrite must keep every bit.
BITWISE = Choice(
    kinds=("unary", "binary", "binary", "number", "number", "view", "view", "reduction", "select", "join", "cast"),
    unary=("neg", "abs", "square", "sqrt", "floor", "sign", "reciprocal"),
    binary=("add", "sub", "mul", "div"),
    reductions=("max", "min"),
)
# Sums and products of whole numbers, exact in any order while they stay below 2**53.
WHOLE = Choice(
    kinds=(
        "unary",
        "binary",
        "number",
        "view",
        "view",
        "view",
        "reduction",
        "matmul",
        "matmul",
        "select",
        "join",
        "scan",
    ),
    unary=("neg", "abs", "floor", "sign"),
    binary=("add", "sub", "mul"),
    reductions=("sum", "max", "min", "prod"),
    numbers=(0.0, 1.0, -1.0, 2.0, 3.0),
    dtype="float64",
)


def check_normal_form(before: Graph) -> Graph:
    verify(before)
    after = rewrite(before)
    verify(after)
    assert after.inputs == before.inputs
    assert rewrite(after) is after
    return after


@settings(max_examples=300)
@given(graphs(BITWISE))
def test_random_graphs_keep_every_bit(before: Graph) -> None:
    assert same_results(before, check_normal_form(before), arrays_for(before, 1, special=True))


@settings(max_examples=300)
@given(graphs(WHOLE, steps=20))
def test_random_graphs_of_whole_numbers_keep_every_value(before: Graph) -> None:
    largest = 0.0

    def watch(node: Node, value: Array) -> None:
        nonlocal largest
        largest = max(largest, float(np.abs(value.astype(np.float64)).max(initial=0)))

    arrays = whole_numbers(before, 2)
    old = interpret(before, arrays, watch=watch)
    assume(largest < 2**40)
    new = interpret(check_normal_form(before), arrays)
    for first, second in zip(old[0] + old[1], new[0] + new[1], strict=True):
        np.testing.assert_array_equal(first, second)


@settings(max_examples=100)
@given(graphs())
def test_random_graphs_of_everything_reach_a_normal_form(before: Graph) -> None:
    check_normal_form(before)


# ---------------------------------------------------------------- size


def test_a_chain_of_100000_nodes() -> None:
    b = Builder()
    x = b.argument((4,))
    for _ in range(25_000):
        x = b("tanh", b("neg", b("mul", b("add", x, -0.0), 1.0)))
    after = rewrite(b.graph(x))
    verify(after)
    assert len(names(after)) == 50_000
    assert rewrite(after) is after


def test_every_rule_is_listed_for_an_op_that_exists() -> None:
    from staticgrad.graph.op import registry

    assert set(RULES) <= set(registry)
    assert set(RULES_OF_KIND) == {op.kind for op in registry.values()} - {"leaf"}
