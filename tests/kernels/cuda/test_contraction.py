"""Matrix products on a small simulated GPU, against the interpreter: every layout, edge, division and epilogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for

from staticgrad.graph.epilogue import product_of
from staticgrad.graph.fusion import fuse
from staticgrad.graph.group import Group
from staticgrad.graph.interpret import interpret
from staticgrad.graph.members import Members
from staticgrad.graph.node import Graph, Node, reachable
from staticgrad.kernels.cuda import contraction, simulator, toolkit
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.tiles import Division, tiles_for
from staticgrad.kernels.kernel import Operand
from staticgrad.kernels.products import MatrixProduct

pytestmark = pytest.mark.skipif(not toolkit.SIMULATED, reason="runs launches in the simulator; a GPU is in use")

Array = np.ndarray[Any, Any]
SMALL = simulator.SMALL
TARGETS = (SMALL, Target(warp=4, block=4, processors=3, small=0), Target(warp=4, block=16, processors=1, small=0))
LARGE_TILE, MEDIUM_TILE, SMALL_TILE = range(3)


class Run:
    """The launches of one group, run in the simulator's memory.

    Attributes:
        values: what the group has written.
        launches: what has run.
        intact: whether all that the group reads is as it was.
    """

    def __init__(self, group: Group, known: Mapping[Node, Array], target: Target, *, error: int = 0) -> None:
        node = product_of(group.nodes)
        assert node is not None
        self.memory = simulator.Memory()
        self.launches, own_bytes = contraction.product_launches(node, group, Members(), target, guarded=bool(error))
        self.places = {node: self._place(known[node]) for node in group.reads}
        self.places |= {node: self.memory.allocate(node.nbytes) for node in group.writes}
        self.own = self.memory.allocate(own_bytes)
        self.status = self._place(np.array([error, 0, 0]))
        for launch in self.launches:
            addresses = [self._address(operand) for operand in launch.operands]
            function = simulator.build(launch.kernel)
            simulator.launch(function, launch.kernel.dtypes, self.memory, addresses, launch.grid, launch.block)
        self.values = {node: self._value(node) for node in group.writes}
        self.intact = all(np.array_equal(self._value(node), known[node], equal_nan=True) for node in group.reads)

    def _place(self, array: Array) -> int:
        address = self.memory.allocate(array.nbytes)
        self.memory.at(address)[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return address

    def _address(self, operand: Operand) -> int:
        if operand.kind == "status":
            return self.status
        if operand.kind == "own":
            return self.own + operand.offset
        assert operand.node is not None
        return self.places[operand.node] + operand.offset

    def _value(self, node: Node) -> Array:
        return self.memory.at(self.places[node])[: node.nbytes].view(node.dtype).reshape(node.shape)


def values_of(graph: Graph, arrays: Sequence[Array]) -> dict[Node, Array]:
    """Every value of a graph."""
    nodes = reachable(graph.results)
    found, _ = interpret(Graph(graph.inputs, nodes), arrays)
    return dict(zip(nodes, found, strict=True))


def run(graph: Graph, target: Target = SMALL, seed: int = 0) -> list[Launch]:
    """Run every group of a graph that has a product and compare what it writes; the launches."""
    arrays = arrays_for(graph, seed)
    known = values_of(graph, arrays) | dict(zip(graph.inputs, arrays, strict=True))
    launches = []
    for group in fuse(graph):
        if group.kind == "matmul":
            ran = Run(group, known, target)
            for node, value in ran.values.items():
                close(value, known[node])
            assert ran.intact
            launches += ran.launches
    assert launches
    return launches


def close(found: Array, wanted: Array) -> None:
    assert found.dtype == wanted.dtype
    if found.dtype == bool:
        assert np.mean(found != wanted) < 0.02  # a number that rounds to the other side of a threshold
        return
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=scale * (2e-5 if found.dtype == np.float32 else 1e-12))


def forced(monkeypatch: pytest.MonkeyPatch, tile: int, parts: int = 1) -> None:
    """Compute every product by one kind of tile and in so many parts, whatever is fastest."""

    def chosen(product: MatrixProduct, target: Target) -> Division:
        return Division(tiles_for(target)[tile], parts)

    monkeypatch.setattr(contraction, "divide", chosen)


def product(
    m: int, n: int, k: int, *, a: bool = False, b: bool = False, dtype: str = "float32", stack: Sequence[int] = ()
) -> tuple[Builder, Node]:
    builder = Builder()
    x = builder.argument((*stack, k, m) if a else (*stack, m, k), dtype)
    y = builder.argument((*stack, n, k) if b else (*stack, k, n), dtype)
    return builder, builder("matmul", x, y, transpose_x=a, transpose_y=b)


# ---------------------------------------------------------------- tiles

TRANSPOSES = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(("a", "b"), TRANSPOSES)
@pytest.mark.parametrize("tile", [LARGE_TILE, MEDIUM_TILE, SMALL_TILE])
@pytest.mark.parametrize("shape", [(32, 16, 24), (36, 20, 12), (37, 19, 21), (5, 33, 3)], ids=str)
def test_tiles(shape: tuple[int, int, int], tile: int, a: bool, b: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tiles; edges that vectors fit into; edges that they do not; fewer terms than a tile takes."""
    forced(monkeypatch, tile)
    builder, out = product(*shape, a=a, b=b)
    run(builder.graph(out))


@pytest.mark.parametrize("target", TARGETS, ids=["8 threads", "4 threads", "16 threads"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", [LARGE_TILE, MEDIUM_TILE, SMALL_TILE])
def test_blocks_of_other_sizes(tile: int, dtype: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, tile)
    for a, b in TRANSPOSES:
        builder, out = product(34, 22, 18, a=a, b=b, dtype=dtype)
        run(builder.graph(out), target)


@pytest.mark.parametrize("tile", [LARGE_TILE, SMALL_TILE])
@pytest.mark.parametrize(("k", "parts"), [(32, 2), (40, 3), (37, 2), (37, 5)])
def test_parts_of_the_sums(k: int, parts: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, tile, parts)
    for n in (20, 19):
        builder, out = product(13, n, k, a=True)
        bias = builder.argument((n,))
        launches = run(builder.graph(builder("tanh", builder("add", out, bias))))
        assert ["tanh" in launch.kernel.source for launch in launches] == [False, True]


def test_parts_do_not_depend_on_the_order_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, SMALL_TILE, 4)
    builder, out = product(9, 10, 40)
    graph = builder.graph(out)
    (group,) = fuse(graph)
    known = dict(zip(graph.inputs, arrays_for(graph), strict=True))
    first, second = (Run(group, known, SMALL).values[out] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_equal_products_are_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, SMALL_TILE)
    builder = Builder()
    x, weights = builder.argument((12, 8)), builder.argument((3, 8, 12))
    picked = [
        builder("reshape", builder("slice", weights, start=(i, 0, 0), stop=(i + 1, 8, 12), step=(1, 1, 1)),
                shape=(8, 12))
        for i in range(3)
    ]  # fmt: skip
    launches = run(builder.graph(*(builder("matmul", x, y) for y in picked)))
    assert len(launches) == 3
    assert len({launch.kernel.symbol for launch in launches}) == 1


# ---------------------------------------------------------------- stacks and views


@pytest.mark.parametrize("tile", [LARGE_TILE, SMALL_TILE])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((3, 10, 8), (3, 8, 12)),
        ((3, 10, 8), (8, 12)),
        ((1, 10, 8), (3, 8, 12)),
        ((2, 3, 9, 7), (2, 3, 7, 11)),
        ((2, 1, 9, 7), (1, 3, 7, 11)),
        ((2, 1, 9, 7), (3, 7, 11)),
    ],
    ids=str,
)
def test_stacks(x: tuple[int, ...], y: tuple[int, ...], tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, tile)
    builder = Builder()
    out = builder("matmul", builder.argument(x), builder.argument(y))
    bias = builder.argument(out.shape[-1:])
    run(builder.graph(builder("tanh", builder("add", out, bias))))
    monkeypatch.undo()
    run(builder.graph(builder("tanh", builder("add", out, bias))))


def test_a_stack_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, SMALL_TILE, 3)
    builder, out = product(9, 12, 30, stack=(2, 3))
    run(builder.graph(builder("neg", out)))


@pytest.mark.parametrize("start", [0, 4, 3])
def test_views_are_read_where_they_lie(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of a wider matrix from one that is aligned on, and from one that is not; and a permuted stack."""
    forced(monkeypatch, SMALL_TILE)
    builder = Builder()
    wide, y, stack = builder.argument((12, 24)), builder.argument((16, 8)), builder.argument((12, 5, 16))
    columns = builder("slice", wide, start=(0, start), stop=(12, start + 16), step=(1, 1))
    heads = builder("permute_dims", stack, axes=(1, 0, 2))
    launches = run(builder.graph(builder("matmul", columns, y), builder("matmul", heads, y)))
    assert len(launches) == 2
    vectors = "load4(p0" in launches[0].kernel.source
    assert vectors is (start != 3)


# ---------------------------------------------------------------- without tiles


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("a", "b"), TRANSPOSES)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 1, 40), (1, 40, 24), (40, 1, 24), (1, 37, 21), (37, 1, 21), (2, 3, 5), (2, 2, 64), (1, 8, 300)],
    ids=str,
)
def test_vectors_and_small_products(shape: tuple[int, int, int], a: bool, b: bool, dtype: str) -> None:
    builder, out = product(*shape, a=a, b=b, dtype=dtype)
    run(builder.graph(out))


@pytest.mark.parametrize(("a", "b"), [(False, False), (True, True)])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("by_columns", [False, True])
def test_a_stack_of_vectors(by_columns: bool, parts: int, a: bool, b: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(product: MatrixProduct, target: Target) -> Division:
        beside, _ = product.strides_of_b if product.m == 1 else product.strides_of_a
        return Division(None, parts, by_columns and beside == 1)

    monkeypatch.setattr(contraction, "divide", chosen)
    for m, n in ((1, 12), (1, 11), (12, 1), (11, 1)):
        builder, out = product(m, n, 36, a=a, b=b, stack=(2,))
        run(builder.graph(out))


def test_the_epilogue_of_a_small_product() -> None:
    builder, out = product(2, 3, 50)
    bias = builder.argument((3,))
    run(builder.graph(builder("tanh", builder("add", out, bias))))


def test_without_terms() -> None:
    builder, out = product(5, 6, 0)
    bias = builder.argument((6,))
    (launch,) = run(builder.graph(builder("add", out, bias)))
    assert "sum_0 = float32(0.0)" in launch.kernel.source


def test_without_results() -> None:
    builder, out = product(0, 6, 4)
    (group,) = fuse(builder.graph(out))
    assert contraction.product_launches(out, group, Members(), SMALL) == ([], 0)


# ---------------------------------------------------------------- what follows a product

Function = Callable[[Builder, Node, Node], Sequence[Node]]


def bias_and_relu(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    return [b("maximum", b("add", total, bias), 0.0)]


def bias_and_gelu(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    x = b("add", total, bias)
    return [b("mul", b("mul", x, 0.5), b("add", b("erf", b("mul", x, 0.7071)), 1.0))]


def tanh_and_total(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    return [b("tanh", b("add", total, bias)), total]


def mask(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    x = b("add", total, bias)
    negative = b("less_equal", x, 0.0)
    return [b("select", negative, b("mul", x, 0.1), x), negative]


def mask_only(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    return [b("greater", total, bias)]


def scaled_by_a_number(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    return [b("mul", total, b.argument((), total.dtype)), b("add", total, bias)]


def by_rows(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    rows = b.argument((total.shape[-2], 1), total.dtype)
    return [b("mul", b("add", total, bias), rows)]


def beside_a_matrix(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    return [b("mul", total, b.argument(total.shape, total.dtype))]


def selected(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    return [b("select", b.argument(total.shape, "bool"), total, bias)]


def sums(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    x = b("mul", total, bias)
    return [x, b("sum", x, axis=tuple(range(total.ndim - 1)))]


def sums_of_what_is_not_stored(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    x, axes = b("mul", total, bias), tuple(range(total.ndim - 1))
    return [b("sum", x, axis=axes), b("sum", b("square", x), axis=axes)]


def sums_of_the_product(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    return [b("tanh", b("add", total, bias)), b("sum", total, axis=tuple(range(total.ndim - 1)))]


def stored_and_summed(b: Builder, total: Node, bias: Node) -> Sequence[Node]:
    return [total, b("tanh", b("add", total, bias)), b("sum", total, axis=tuple(range(total.ndim - 1)))]


EPILOGUES: list[Function] = [
    bias_and_relu, bias_and_gelu, tanh_and_total, mask, mask_only, scaled_by_a_number, by_rows, beside_a_matrix,
    selected, sums, sums_of_what_is_not_stored, sums_of_the_product, stored_and_summed,
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [20, 19])
@pytest.mark.parametrize("function", EPILOGUES)
def test_epilogues(function: Function, n: int, dtype: str) -> None:
    builder, out = product(13, n, 10, dtype=dtype)
    results = function(builder, out, builder.argument((n,), dtype))
    graph = builder.graph(*results)
    (group,) = fuse(graph)
    assert set(group.writes) == set(results)
    for target in TARGETS:
        launches = run(graph, target)
        assert len(launches) == 1 or "sum" in function.__name__


@pytest.mark.parametrize("function", [mask, by_rows, sums, sums_of_the_product])
def test_epilogues_of_parts(function: Function, monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, SMALL_TILE, 2)
    for n in (20, 19):
        builder, out = product(13, n, 20)
        run(builder.graph(*function(builder, out, builder.argument((n,)))))


@pytest.mark.parametrize("function", [mask, selected, sums, sums_of_what_is_not_stored, sums_of_the_product])
def test_epilogues_of_stacks(function: Function) -> None:
    builder, out = product(5, 12, 8, stack=(4,))
    graph = builder.graph(*function(builder, out, builder.argument((12,))))
    assert len(fuse(graph)) == 1
    run(graph)


def test_operands_of_every_stretch_of_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """No single stride serves both operands: each stretch of the stack reads its own part of what follows."""
    for parts in (1, 2):
        forced(monkeypatch, SMALL_TILE, parts)
        builder = Builder()
        out = builder("matmul", builder.argument((2, 1, 9, 16)), builder.argument((1, 3, 16, 8)))
        (result,) = selected(builder, out, builder.argument((8,)))
        graph = builder.graph(result)
        assert len(fuse(graph)) == 1
        assert len(run(graph)) == 2 * parts


def test_sums_in_parts_leave_the_product_alone() -> None:
    """The parts of a long sum lie behind the product that it reads."""
    builder, out = product(260, 8, 4)
    graph = builder.graph(*sums_of_the_product(builder, out, builder.argument((8,))))
    launches = run(graph, TARGETS[1])
    assert len(launches) == 3


def test_a_sum_does_not_read_what_has_taken_the_place_of_the_product() -> None:
    """The value that is written has the product's shape and dtype; the sum needs the product as it was."""
    builder, out = product(9, 8, 12)
    graph = builder.graph(*sums_of_the_product(builder, out, builder.argument((8,))))
    (group,) = fuse(graph)
    launches, own_bytes = contraction.product_launches(out, group, Members(), SMALL)
    assert own_bytes >= out.nbytes
    assert any(operand.kind == "own" and operand.node is out for operand in launches[-1].operands)


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint16"])
@pytest.mark.parametrize("shape", [(17, 20, 24), (5, 7, 9), (1, 40, 24), (40, 1, 24), (2, 2, 30)], ids=str)
def test_whole_numbers(shape: tuple[int, int, int], dtype: str) -> None:
    """The op takes floating numbers only; the kernels do not mind, and whole numbers wrap around in their dtype."""
    m, n, k = shape
    builder = Builder()
    x, y = builder.argument((m, k), dtype), builder.argument((k, n), dtype)
    like = builder("matmul", *(builder.argument(leaf.shape) for leaf in (x, y)))
    out = Node(like.op, (x, y), {}, like.shape, np.dtype(dtype))
    generator = np.random.default_rng(0)
    known = {leaf: generator.integers(0, 100, leaf.shape).astype(dtype) for leaf in (x, y)}
    group = Group("matmul", (out,), (x, y), (out,))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(Run(group, known, SMALL).values[out], known[x] @ known[y])


@pytest.mark.parametrize(("shape", "parts"), [((12, 12, 16), 1), ((12, 12, 16), 2), ((2, 2, 9), 1), ((1, 30, 9), 1)])
def test_nothing_is_written_after_an_error(
    shape: tuple[int, int, int], parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts > 1:
        forced(monkeypatch, SMALL_TILE, parts)
    builder, out = product(*shape)
    graph = builder.graph(out)
    (group,) = fuse(graph)
    found = Run(group, dict(zip(graph.inputs, arrays_for(graph), strict=True)), SMALL, error=1).values[out]
    assert set(found.view(np.uint8).reshape(-1)) == {0xA5}


def test_a_kernel_reads_like_this() -> None:
    builder, out = product(2, 3, 5)
    (group,) = fuse(builder.graph(out))
    (launch,), _ = contraction.product_launches(out, group, Members(), SMALL)
    assert launch.kernel.source == (
        "def kernel(p0, p1, p2):\n"
        '    """matmul: (2, 5) by (5, 3)\n'
        "\n"
        "    p0: float32[10], read\n"
        "    p1: float32[15], read\n"
        "    p2: float32[6], written\n"
        '    """\n'
        "    thread = int64(cuda.threadIdx.x)\n"
        "    block = int64(cuda.blockIdx.x)\n"
        "    lane = rest(thread, 4)\n"
        "    item = block * 2 + quotient(thread, 4)\n"
        "    inside = item < 6\n"
        "    item = min(item, 5)\n"
        "    begin, end = int64(0), int64(5)\n"
        "    result = rest(item, 6)\n"
        "    result0 = quotient(result, 6)\n"
        "    result1 = quotient(result, 3)\n"
        "    result2 = rest(result, 3)\n"
        "    from_a = result1 * 5\n"
        "    from_b = result2\n"
        "    sum_0 = float32(0.0)\n"
        "    k = begin + lane\n"
        "    while k < end:\n"
        "        x_0 = p0[from_a + k]\n"
        "        y_0 = p1[from_b + k * 3]\n"
        "        sum_0 = sum_0 + x_0 * y_0\n"
        "        k += 4\n"
        "    sum_0 = sum_0 + shuffle_xor(sum_0, 2)\n"
        "    sum_0 = sum_0 + shuffle_xor(sum_0, 1)\n"
        "    if inside & (lane == 0):\n"
        "        at = result1 * 3 + result2\n"
        "        p2[at] = sum_0\n"
    )
