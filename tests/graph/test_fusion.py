"""Fusion: which nodes share a kernel, what kernels read and write, and that the order of groups is sound."""

from __future__ import annotations

from builder import Builder, graphs
from hypothesis import given

from staticgrad.graph.fusion import MAX_NODES, fuse
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import find_uses
from staticgrad.graph.node import Graph, Node


def row(b: Builder, value: Node, like: Node) -> Node:
    """A value of each row, stretched along the last axis."""
    return b("broadcast_to", b("reshape", value, shape=(*value.shape, 1)), shape=like.shape)


def softmax(b: Builder, x: Node) -> Node:
    e = b("exp", b("sub", x, row(b, b("max", x, axis=(1,)), x)))
    return b("div", e, row(b, b("sum", e, axis=(1,)), x))


def log_softmax(b: Builder, x: Node) -> Node:
    shifted = b("sub", x, row(b, b("max", x, axis=(1,)), x))
    return b("sub", shifted, row(b, b("log", b("sum", b("exp", shifted), axis=(1,))), x))


def normalized(b: Builder, x: Node) -> tuple[Node, Node]:
    """(x - mean) / sqrt(variance + 1e-5) of each row, and the reciprocal of the root."""
    share = 1 / x.shape[1]
    centred = b("sub", x, row(b, b("mul", b("sum", x, axis=(1,)), share), x))
    variance = b("mul", b("sum", b("square", centred), axis=(1,)), share)
    scale = b("rsqrt", b("add", variance, 1e-5))
    return b("mul", centred, row(b, scale, x)), scale


def fused(groups: list[Group]) -> list[Group]:
    return [group for group in groups if group.kind == "fused"]


def test_softmax_is_one_kernel() -> None:
    b = Builder()
    x = b.argument((8, 5))
    (group,) = fuse(b.graph(softmax(b, x)))
    assert group.reads == (x,)
    assert len(group.writes) == 1


def test_log_softmax_with_its_loss_is_one_kernel_forward_and_backward() -> None:
    b = Builder()
    x, labels = b.argument((8, 5)), b.argument((8,), "int64")
    index = b("reshape", labels, shape=(8, 1))
    logs = log_softmax(b, x)
    loss = b("mul", b("sum", b("neg", b("take_along_axis", logs, index, axis=1)), axis=(0, 1)), 1 / 8)
    (forward,) = fuse(b.graph(loss))
    assert set(forward.reads) == {x, labels}
    assert forward.writes == (loss,)
    ones = b("broadcast_to", b.constant([[-0.125]]), shape=(8, 1))
    back = b("scatter_add_along_axis", ones, index, size=5, axis=1)
    change = b("sub", back, b("mul", b("exp", logs), row(b, b("sum", back, axis=(1,)), x)))
    assert len(fuse(b.graph(loss, change))) == 1
    assert len(fuse(b.graph(change))) == 1


def test_layer_norm_is_one_kernel_forward_and_backward() -> None:
    b = Builder()
    x, weight, bias, change = b.argument((8, 6)), b.argument((6,)), b.argument((6,)), b.argument((8, 6))
    unit, scale = normalized(b, x)
    out = b("add", b("mul", unit, weight), bias)
    assert len(fuse(b.graph(out))) == 1
    inner = b("mul", change, weight)
    mean = row(b, b("mul", b("sum", inner, axis=(1,)), 1 / 6), x)
    along = row(b, b("mul", b("sum", b("mul", inner, unit), axis=(1,)), 1 / 6), x)
    back = b("mul", b("sub", b("sub", inner, mean), b("mul", unit, along)), row(b, scale, x))
    sums = [b("sum", b("mul", change, unit), axis=(0,)), b("sum", change, axis=(0,))]
    assert len(fuse(b.graph(back, *sums))) == 1


def adam(b: Builder, shape: tuple[int, ...], step: Node) -> list[tuple[Node, Node]]:
    weight, mean, square, gradient = b.state(shape), b.state(shape), b.state(shape), b.argument(shape)
    new_mean = b("add", b("mul", mean, 0.9), b("mul", gradient, 0.1))
    new_square = b("add", b("mul", square, 0.99), b("mul", b("square", gradient), 0.01))
    change = b("div", new_mean, b("add", b("sqrt", new_square), 1e-8))
    return [(weight, b("sub", weight, b("mul", change, step))), (mean, new_mean), (square, new_square)]


def test_an_optimizer_step_is_one_kernel_for_each_parameter() -> None:
    b = Builder()
    step = b("div", b.scalar(), b("sub", 1.0, b("pow", 0.9, b.scalar())))
    updates = [pair for shape in ((4, 4), (4,), (4, 4)) for pair in adam(b, shape, step)]
    groups = fuse(b.graph(updates=updates))
    assert len(groups) == 4  # one more for the step size that all of them share
    assert sorted(len(group.writes) for group in groups) == [1, 3, 3, 3]
    for group in groups[1:]:
        pairs = set(group.in_place)
        assert {(value, leaf) for leaf, value in updates if value in group.writes} <= pairs


def test_a_value_never_leaves_a_kernel_and_comes_back() -> None:
    b = Builder()
    x = b.argument((4, 4))
    h = b("tanh", x)
    product = b("matmul", h, h)
    out = b("add", h, product)  # with h in one kernel, the product would have to run in its middle
    groups = fuse(b.graph(b("tanh", b("permute_dims", out, axes=(1, 0)))))
    assert [group.kind for group in groups] == ["fused", "matmul", "fused"]
    assert set(groups[1].reads) == {h}
    assert groups[1].writes == (out,)


def test_a_row_of_all_elements_is_only_visited_again_if_it_is_short() -> None:
    for size, count in ((1000, 1), (1_000_000, 2)):
        b = Builder()
        x = b.argument((size,))
        total = b("broadcast_to", b("reshape", b("sum", x, axis=(0,)), shape=(1,)), shape=(size,))
        assert len(fuse(b.graph(b("div", x, total)))) == count


def test_matmul_reads_transposes_and_strided_rows_where_they_lie() -> None:
    b = Builder()
    x, y = b.argument((4, 6)), b.argument((4, 8))
    left = b("permute_dims", x, axes=(1, 0))
    right = b("slice", y, start=(0, 2), stop=(4, 5), step=(1, 1))
    (group,) = fuse(b.graph(b("matmul", left, right)))
    assert group.reads == (x, y)
    every_other = b("slice", y, start=(0, 0), stop=(4, 8), step=(1, 2))
    groups = fuse(b.graph(b("matmul", left, every_other)))
    assert [group.kind for group in groups] == ["fused", "matmul"]
    assert groups[0].writes == (every_other,)


def test_in_place_needs_the_same_place_of_every_element() -> None:
    b = Builder()
    x = b.argument((4, 4))
    flipped = b("slice", x, start=(3, 0), stop=(-1, 4), step=(-1, 1))
    (straight,) = fuse(b.graph(b("tanh", x)))
    (crossed,) = fuse(b.graph(b("add", x, flipped)))
    assert straight.in_place == ((straight.writes[0], x),)
    assert crossed.in_place == ()


def test_in_place_needs_the_last_pass_over_the_input() -> None:
    b = Builder()
    x = b.argument((8, 5))
    largest = row(b, b("max", x, axis=(1,)), x)
    early, late = b("exp", x), b("sub", x, largest)
    (group,) = fuse(b.graph(early, late))
    assert (late, x) in group.in_place
    assert (early, x) not in group.in_place


def test_long_chains_are_cut_into_equal_kernels() -> None:
    b = Builder()
    x = value = b.argument((64,))
    for _ in range(500):
        value = b("tanh", b("add", value, x))
    groups = fuse(b.graph(value))
    assert max(len(group.nodes) for group in groups) <= MAX_NODES
    assert len(groups) <= 2 * 1000 // MAX_NODES


@given(graphs())
def test_groups_of_random_graphs(graph: Graph) -> None:
    groups = fuse(graph)
    find_uses(graph, groups)  # every value is stored before it is read, once, and every result is stored
    members = [node for group in groups for node in group.nodes]
    assert len(members) == len(set(members))
    for group in groups:
        assert set(group.writes) <= set(group.nodes)
        assert not set(group.reads) & set(group.nodes)
        for written, read in group.in_place:
            assert written in group.writes
            assert read in group.reads
            assert (written.dtype, written.size) == (read.dtype, read.size)
