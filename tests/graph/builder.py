"""Graphs by hand and at random, for the tests of everything that works on graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.graph.location import UNKNOWN, Location
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.op import registry
from staticgrad.graph.ops.leaf import Value

if TYPE_CHECKING:
    from hypothesis import strategies

SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-40, 3e38, np.inf, -np.inf, np.nan)


class Builder:
    """Collects inputs and makes nodes: `b = Builder(); x = b.argument((2, 3)); b.graph(b("tanh", x))`."""

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.scope = ""
        self.location: Location = UNKNOWN

    def argument(self, shape: Sequence[int] = (), dtype: Any = "float32", name: str = "") -> Node:
        return self._input("argument", shape, dtype, name)

    def state(self, shape: Sequence[int] = (), dtype: Any = "float32", name: str = "") -> Node:
        return self._input("state", shape, dtype, name)

    def scalar(self, dtype: Any = "float32", name: str = "") -> Node:
        return self._input("scalar", (), dtype, name)

    def _input(self, role: str, shape: Sequence[int], dtype: Any, name: str) -> Node:
        index = len(self.inputs)
        attributes = {
            "index": index,
            "role": role,
            "name": name or f"{role[0]}{index}",
            "shape": tuple(shape),
            "dtype": np.dtype(dtype),
        }
        self.inputs.append(self("input", **attributes))
        return self.inputs[-1]

    def constant(self, value: Any, dtype: Any = "float32") -> Node:
        return self("constant", value=Value.of(np.asarray(value, dtype)))

    def __call__(self, name: str, /, *operands: Any, **attributes: Any) -> Node:
        """The node of the op `name`; numbers among the operands become constants of the first node's dtype."""
        op = registry[name]
        typed = [operand.dtype for operand in operands if isinstance(operand, Node)]
        nodes = tuple(x if isinstance(x, Node) else self.constant(x, typed[-1]) for x in operands)
        spec = op.infer([node.spec for node in nodes], attributes)
        return Node(op, nodes, attributes, spec.shape, spec.dtype, self.scope, self.location)

    def graph(self, *outputs: Node, updates: Sequence[tuple[Node, Node]] = ()) -> Graph:
        return Graph(tuple(self.inputs), outputs, tuple(updates))


def arrays_for(graph: Graph, seed: int = 0, *, special: bool = False) -> list[np.ndarray[Any, Any]]:
    """One array for each input: normal numbers, or with `special` a third of them zeros, infinities and NaN."""
    generator = np.random.default_rng(seed)
    return [_array(generator, leaf, special) for leaf in graph.inputs]


def _array(generator: np.random.Generator, leaf: Node, special: bool) -> np.ndarray[Any, Any]:
    if leaf.dtype.kind == "f":
        values = generator.normal(size=leaf.shape)
        if special:
            values = np.where(generator.random(leaf.shape) < 1 / 3, generator.choice(SPECIAL, leaf.shape), values)
        with np.errstate(all="ignore"):
            return np.asarray(values).astype(leaf.dtype)
    if leaf.dtype.kind == "b":
        return np.asarray(generator.random(leaf.shape) < 0.5)
    return np.asarray(generator.integers(0, 100, size=leaf.shape)).astype(leaf.dtype)


# ---------------------------------------------------------------- graphs at random


@dataclass(frozen=True)
class Choice:
    """What random graphs are made of; a kind listed twice comes twice as often."""

    kinds: Sequence[str] = (
        "unary",
        "binary",
        "binary",
        "number",
        "view",
        "view",
        "reduction",
        "matmul",
        "select",
        "join",
        "cast",
        "scan",
    )
    unary: Sequence[str] = ("neg", "abs", "tanh", "exp", "square", "sqrt", "floor", "sign", "reciprocal")
    binary: Sequence[str] = ("add", "sub", "mul", "div", "maximum", "minimum", "pow")
    reductions: Sequence[str] = ("sum", "max", "min", "prod")
    numbers: Sequence[float] = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 3.0, np.inf, np.nan)
    dtype: str = "float32"


EVERYTHING = Choice()


def graphs(choice: Choice = EVERYTHING, steps: int = 40) -> strategies.SearchStrategy[Graph]:
    """Random graphs of one dtype and up to three small axes, with views, reductions, products and updates.

    Hypothesis draws the seed and the number of steps, some of which make two nodes or none.
    """
    from hypothesis import strategies as st  # here: a machine with a GPU may lack it, and uses the rest of this file

    return st.builds(random_graph, st.integers(0, 2**32), st.integers(steps // 4, steps), st.just(choice))


class RandomGraph(Graph):
    """A graph that Hypothesis shows as `format_graph` prints it, not field by field through all operands."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"\n{self}\n")


def random_graph(seed: int, steps: int, choice: Choice = EVERYTHING) -> Graph:
    """The graph that `seed` and `steps` stand for."""
    r = Random(seed)
    b = Builder()
    shape = tuple(r.randint(1, 3) for _ in range(r.randint(0, 3)))
    shapes = (shape, shape, shape[1:], (1,) * len(shape[:1]) + shape[1:], shape[::-1])
    values = [b.argument(r.choice(shapes), choice.dtype) for _ in range(r.randint(1, 3))]
    states = [b.state(r.choice(shapes), choice.dtype) for _ in range(r.randint(0, 2))]
    values += states
    for _ in range(steps):
        values += _step(r, b, values, choice)
    read = {operand for value in values for operand in value.operands}
    unread = [value for value in values if value not in read]
    outputs = [*r.choices(values, k=r.randint(0, 2)), *(unread or values)[-4:]]
    updates = [(state, r.choice([value for value in values if value.spec == state.spec])) for state in states]
    return RandomGraph(tuple(b.inputs), tuple(outputs), tuple(pair for pair in updates if r.random() < 0.5))


def _step(r: Random, b: Builder, values: Sequence[Node], choice: Choice) -> list[Node]:
    """The nodes of one random step; none when it does not fit."""
    kind = r.choice(choice.kinds)
    x = r.choice(values[-2:] if r.random() < 0.5 else values)  # half of the steps make chains
    if kind == "unary":
        return [b(r.choice(choice.unary), x)]
    if kind == "number":
        number = b.constant(r.choice(choice.numbers), choice.dtype)
        operands = (x, number) if r.random() < 0.5 else (number, x)
        return [b(r.choice(choice.binary), *operands)]
    if kind == "reduction":
        axis = tuple(i for i in range(x.ndim) if r.random() < 0.5)
        return [b(r.choice(choice.reductions), x, axis=axis)]
    if kind == "view":
        return _view(r, b, x)
    if kind == "cast":
        dtype = r.choice(("float64", "float32", "bool"))
        return [b("cast", b("cast", x, dtype=np.dtype(dtype)), dtype=np.dtype(choice.dtype))]
    if kind == "scan":
        return [b("cumulative_sum", x, axis=r.randint(0, x.ndim - 1))] if x.ndim else []
    y = r.choice(values)
    if kind == "matmul":
        return _product(r, b, x, y)
    if kind == "join":
        return _join(r, b, x, y)
    if not _broadcast(x, y):
        return []
    if kind == "select":
        condition = b(r.choice(("less", "equal", "not_equal")), x, y)
        if r.random() < 0.5:
            condition = b("logical_not", condition)
        return [b("select", condition, x, y)]
    return [b(r.choice(choice.binary), x, y)]


def _broadcast(x: Node, y: Node) -> bool:
    try:
        return len(np.broadcast_shapes(x.shape, y.shape)) <= 3
    except ValueError:
        return False


def _view(r: Random, b: Builder, x: Node) -> list[Node]:
    kind = r.choice(("reshape", "flat", "permute", "swap", "broadcast", "slice"))
    if kind == "flat":
        return [b("reshape", x, shape=(x.size,))]
    if kind == "reshape":
        ones = r.randint(0, x.ndim)
        return [b("reshape", x, shape=(*x.shape[:ones], 1, *x.shape[ones:]))] if x.ndim < 3 else []
    if kind == "permute":
        return [b("permute_dims", x, axes=tuple(r.sample(range(x.ndim), x.ndim)))]
    if kind == "swap":
        axes = (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)
        return [b("permute_dims", x, axes=axes)] if x.ndim >= 2 else []
    if kind == "broadcast":
        stretched = tuple(r.randint(1, 3) if extent == 1 else extent for extent in x.shape)
        return [b("broadcast_to", x, shape=stretched if x.ndim == 3 else (r.randint(1, 3), *stretched))]
    return [_slice(r, b, x)]


def _slice(r: Random, b: Builder, x: Node) -> Node:
    start, stop, step = [], [], []
    for extent in x.shape:
        stride = r.choice((1, 1, 2, -1))
        first = r.randint(0, extent - 1)
        start.append(first)
        stop.append(r.randint(first + 1, extent) if stride > 0 else r.randint(-1, first - 1))
        step.append(stride)
    return b("slice", x, start=tuple(start), stop=tuple(stop), step=tuple(step))


def _product(r: Random, b: Builder, x: Node, y: Node) -> list[Node]:
    flags = {"transpose_x": r.random() < 0.5, "transpose_y": r.random() < 0.5}
    if min(x.ndim, y.ndim) < 2:
        return []
    inner_x, inner_y = x.shape[-2 if flags["transpose_x"] else -1], y.shape[-1 if flags["transpose_y"] else -2]
    stacks = {extent for shape in (x.shape, y.shape) for extent in shape[:-2]} - {1}
    return [b("matmul", x, y, **flags)] if inner_x == inner_y and len(stacks) <= 1 else []


def _join(r: Random, b: Builder, x: Node, y: Node) -> list[Node]:
    if not x.ndim or x.ndim != y.ndim:
        return []
    axis = r.randint(0, x.ndim - 1)
    if any(m != n for i, (m, n) in enumerate(zip(x.shape, y.shape, strict=True)) if i != axis):
        return []
    joined = b("concat", x, y, axis=axis)
    start = tuple(x.shape[axis] if i == axis else 0 for i in range(x.ndim))
    piece = b("slice", joined, start=start, stop=joined.shape, step=(1,) * x.ndim)
    return [piece, b("embed", piece, shape=joined.shape, start=start, step=(1,) * x.ndim)]
