"""Epilogues: what is done to the elements of a matrix product becomes part of its kernel, where that pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from builder import Builder

from staticgrad.graph.epilogue import LONGEST_SUM, NEAR
from staticgrad.graph.fusion import fuse
from staticgrad.graph.group import Group
from staticgrad.graph.node import Node


def groups_of(*results: Node, builder: Builder, updates: list[tuple[Node, Node]] | None = None) -> list[Group]:
    return fuse(builder.graph(*results, updates=updates or ()))


def one_group(build: Callable[[Builder, Node], Node], shape: tuple[int, ...] = (8, 6)) -> bool:
    """Whether what `build` makes of a product of this shape is one group with the product."""
    b = Builder()
    product = b("matmul", b.argument((*shape[:-1], 4)), b.argument((4, shape[-1])))
    return len(groups_of(build(b, product), builder=b)) == 1


def matrix(b: Builder) -> Node:
    return b.argument((8, 6))


def test_bias_and_activation() -> None:
    b = Builder()
    x, weight, bias = b.argument((8, 4)), b.argument((4, 6)), b.argument((6,))
    product = b("matmul", x, weight)
    out = b("tanh", b("add", product, bias))
    (group,) = groups_of(out, builder=b)
    assert group.kind == "matmul"
    assert group.writes == (out,)
    assert set(group.reads) == {x, weight, bias}
    assert group.in_place == ()
    assert group.scratch_bytes == 0  # until it is overwritten, the product lies where the result will


def test_the_gradient_of_a_layer_and_of_its_bias() -> None:
    b = Builder()
    cotangent, weight, hidden = b.argument((8, 4)), b.argument((6, 4)), b.argument((8, 6))
    slope = b("sub", 1.0, b("square", hidden))
    gradient = b("mul", b("matmul", cotangent, weight, transpose_y=True), slope)
    (group,) = groups_of(gradient, b("sum", gradient, axis=(0,)), builder=b)
    assert group.kind == "matmul"
    assert len(group.writes) == 2


def test_a_product_that_others_read_is_stored_too() -> None:
    b = Builder()
    product = b("matmul", b.argument((8, 4)), b.argument((4, 6)))
    out = b("exp", product)
    last = b("sum", product, axis=(1,))
    groups = groups_of(out, last, builder=b)
    assert {node for group in groups for node in group.writes} == {product, out, last}
    assert len(groups) == 2


def test_truth_values_alone_leave_the_product_in_working_memory() -> None:
    b = Builder()
    product = b("matmul", b.argument((8, 4)), b.argument((4, 6)))
    (group,) = groups_of(b("greater", product, 0.0), builder=b)
    assert group.kind == "matmul"
    assert group.scratch_bytes == product.nbytes


@pytest.mark.parametrize(
    "build",
    [
        lambda b, product: b("mul", product, b.argument(())),
        lambda b, product: b("mul", product, b.argument((8, 1))),
        lambda b, product: b("mul", product, b.argument((1, 6))),
        lambda b, product: b("mul", product, b.argument((8, 6))),
        lambda b, product: b("mul", product, b("slice", b.argument((8, 9)), start=(0, 2), stop=(8, 8), step=(1, 1))),
        lambda b, product: b("select", b.argument((8, 6), "bool"), product, 0.0),
        lambda b, product: b("mul", product, b("cast", b("less", product, 0.0), dtype=product.dtype)),
        lambda b, product: b("neg", b("reshape", product, shape=(48,))),
        lambda b, product: b("sum", b("neg", product), axis=(0,)),
    ],
    ids=["number", "column", "row", "matrix", "part", "mask", "cast", "reshape", "sum"],
)
def test_what_can_follow(build: Callable[[Builder, Node], Node]) -> None:
    assert one_group(build)


@pytest.mark.parametrize(
    "build",
    [
        lambda b, product: b("tanh", b("permute_dims", product, axes=(1, 0))),
        lambda b, product: b("add", product, b("permute_dims", b.argument((6, 8)), axes=(1, 0))),
        lambda b, product: b("add", product, b("slice", b.argument((8, 12)), start=(0, 0), stop=(8, 12), step=(1, 2))),
        lambda b, product: b("sum", b("neg", product), axis=(1,)),
        lambda b, product: b("sum", b("neg", product), axis=(0, 1)),
        lambda b, product: b("max", b("neg", product), axis=(0,)),
        lambda b, product: b("cast", product, dtype="float64"),
        lambda b, product: b("select", b("equal", b.argument((8, 6), "int32"), 0), product, 0.0),
        lambda b, product: b("lgamma", product),
        lambda b, product: b("sub", b("add", b("mul", product, matrix(b)), matrix(b)), matrix(b)),
    ],
    ids=[
        "turned",
        "turned operand",
        "every other",
        "rows",
        "all",
        "max",
        "wider",
        "integers",
        "branches",
        "matrices",
    ],
)
def test_what_has_a_kernel_of_its_own(build: Callable[[Builder, Node], Node]) -> None:
    assert not one_group(build)


@pytest.mark.parametrize(("rows", "together"), [(128, True), (512, False)])
def test_a_large_matrix_is_streamed_by_a_kernel_of_its_own(rows: int, together: bool) -> None:
    shape = (rows, NEAR // 4 // 128)
    assert one_group(lambda b, product: b("mul", product, b.argument(shape)), shape) is together
    assert one_group(lambda b, product: b("select", b.argument(shape, "bool"), product, 0.0), shape)
    assert one_group(lambda b, product: b("tanh", product), shape)


@pytest.mark.parametrize(("rows", "alone"), [(LONGEST_SUM, True), (LONGEST_SUM + 1, False)])
def test_a_long_sum_is_added_up_elsewhere(rows: int, alone: bool) -> None:
    assert one_group(lambda b, product: b("sum", b("neg", product), axis=(0,)), (rows, 6)) is alone


@pytest.mark.parametrize("shape", [(1, 6), (8, 1), (0, 6)])
def test_vectors_and_nothing_are_left_alone(shape: tuple[int, int]) -> None:
    assert not one_group(lambda b, product: b("neg", product), shape)


def test_a_stack_of_products() -> None:
    assert one_group(lambda b, product: b("add", product, b.argument((6,))), (3, 8, 6))
    assert one_group(lambda b, product: b("add", product, b.argument((3, 8, 6))), (3, 8, 6))
    assert not one_group(lambda b, product: b("add", product, b.argument((8, 6))), (3, 8, 6))
    assert not one_group(lambda b, product: b("add", product, b.argument((3, 8, 1))), (3, 8, 6))


def test_an_update_of_state_has_a_kernel_of_its_own() -> None:
    b = Builder()
    weight = b.state((4, 6))
    gradient = b("matmul", b.argument((8, 4)), b.argument((8, 6)), transpose_x=True)
    value = b("sub", weight, b("mul", gradient, 0.1))
    product, update = groups_of(builder=b, updates=[(weight, value)])
    assert [product.kind, update.kind] == ["matmul", "fused"]
    assert (value, weight) in update.in_place


def test_a_product_is_not_moved_behind_what_reads_it_for_its_reader() -> None:
    b = Builder()
    product = b("matmul", b.argument((8, 8)), b.argument((8, 8)))
    other = b("matmul", product, product)
    out = b("add", b("neg", product), other)  # reads both: the first product cannot wait for the second
    groups = groups_of(out, builder=b)
    assert [group.kind for group in groups] == ["matmul", "matmul"]
    assert groups[0].nodes == (product,)
