"""Graphs by hand and at random, for the tests of everything that works on graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from staticgrad.graph.location import UNKNOWN, Location
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.op import registry
from staticgrad.graph.ops.leaf import Value

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


@st.composite
def graphs(draw: st.DrawFn, choice: Choice = EVERYTHING, max_nodes: int = 25, updates: bool = True) -> Graph:
    """Random graphs of one dtype and up to three small axes, with views, reductions, products and updates.

    `max_nodes` is the number of steps; some of them make two nodes or none.
    """
    builder = Builder()
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    shapes = st.sampled_from((shape, shape, shape[1:], (1,) * len(shape[:1]) + shape[1:], shape[::-1]))
    values = [builder.argument(draw(shapes), choice.dtype) for _ in range(draw(st.integers(1, 3)))]
    states = [builder.state(draw(shapes), choice.dtype) for _ in range(draw(st.integers(0, 2)))]
    values += states
    for _ in range(draw(st.integers(max_nodes // 3, max_nodes))):
        values += _step(draw, builder, values, choice)
    outputs = [*draw(st.lists(st.sampled_from(values), max_size=3)), values[-1]]
    pairs = []
    for state in states if updates else ():
        fitting = [value for value in values if value.spec == state.spec]
        if draw(st.booleans()):
            pairs.append((state, draw(st.sampled_from(fitting))))
    return builder.graph(*outputs, updates=pairs)


def _step(draw: st.DrawFn, b: Builder, values: Sequence[Node], choice: Choice) -> list[Node]:
    """The nodes of one random step; none when it does not fit."""
    kind = draw(st.sampled_from(choice.kinds))
    x = draw(st.sampled_from(values[-2:] if draw(st.booleans()) else values))  # half of the steps make chains
    if kind == "unary":
        return [b(draw(st.sampled_from(choice.unary)), x)]
    if kind == "number":
        number = b.constant(draw(st.sampled_from(choice.numbers)), choice.dtype)
        operands = (x, number) if draw(st.booleans()) else (number, x)
        return [b(draw(st.sampled_from(choice.binary)), *operands)]
    if kind == "reduction":
        axis = tuple(sorted(draw(st.sets(st.integers(0, x.ndim - 1))))) if x.ndim else ()
        return [b(draw(st.sampled_from(choice.reductions)), x, axis=axis)]
    if kind == "view":
        return _view(draw, b, x)
    if kind == "cast":
        dtype = draw(st.sampled_from(("float64", "float32", "bool")))
        return [b("cast", b("cast", x, dtype=np.dtype(dtype)), dtype=np.dtype(choice.dtype))]
    if kind == "scan":
        return [b("cumulative_sum", x, axis=draw(st.integers(0, x.ndim - 1)))] if x.ndim else []
    y = draw(st.sampled_from(values))
    if kind == "matmul":
        return _product(draw, b, x, y)
    if kind == "join":
        return _join(draw, b, x, y)
    if not _broadcast(x, y):
        return []
    if kind == "select":
        condition = b(draw(st.sampled_from(("less", "equal", "not_equal"))), x, y)
        if draw(st.booleans()):
            condition = b("logical_not", condition)
        return [b("select", condition, x, y)]
    return [b(draw(st.sampled_from(choice.binary)), x, y)]


def _broadcast(x: Node, y: Node) -> bool:
    try:
        return len(np.broadcast_shapes(x.shape, y.shape)) <= 3
    except ValueError:
        return False


def _view(draw: st.DrawFn, b: Builder, x: Node) -> list[Node]:
    kind = draw(st.sampled_from(("reshape", "flat", "permute", "swap", "broadcast", "slice")))
    if kind == "flat":
        return [b("reshape", x, shape=(x.size,))]
    if kind == "reshape":
        ones = draw(st.integers(0, x.ndim))
        return [b("reshape", x, shape=(*x.shape[:ones], 1, *x.shape[ones:]))] if x.ndim < 3 else []
    if kind == "permute":
        return [b("permute_dims", x, axes=tuple(draw(st.permutations(range(x.ndim)))))]
    if kind == "swap":
        axes = (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)
        return [b("permute_dims", x, axes=axes)] if x.ndim >= 2 else []
    if kind == "broadcast":
        stretched = tuple(draw(st.integers(1, 3)) if extent == 1 else extent for extent in x.shape)
        return [b("broadcast_to", x, shape=stretched if x.ndim == 3 else (draw(st.integers(1, 3)), *stretched))]
    return [_slice(draw, b, x)]


def _slice(draw: st.DrawFn, b: Builder, x: Node) -> Node:
    start, stop, step = [], [], []
    for extent in x.shape:
        stride = draw(st.sampled_from((1, 1, 2, -1)))
        first = draw(st.integers(0, extent - 1))
        start.append(first)
        stop.append(draw(st.integers(first + 1, extent)) if stride > 0 else draw(st.integers(-1, first - 1)))
        step.append(stride)
    return b("slice", x, start=tuple(start), stop=tuple(stop), step=tuple(step))


def _product(draw: st.DrawFn, b: Builder, x: Node, y: Node) -> list[Node]:
    flags = {"transpose_x": draw(st.booleans()), "transpose_y": draw(st.booleans())}
    if min(x.ndim, y.ndim) < 2:
        return []
    inner_x, inner_y = x.shape[-2 if flags["transpose_x"] else -1], y.shape[-1 if flags["transpose_y"] else -2]
    stacks = {extent for shape in (x.shape, y.shape) for extent in shape[:-2]} - {1}
    return [b("matmul", x, y, **flags)] if inner_x == inner_y and len(stacks) <= 1 else []


def _join(draw: st.DrawFn, b: Builder, x: Node, y: Node) -> list[Node]:
    if not x.ndim or x.ndim != y.ndim:
        return []
    axis = draw(st.integers(0, x.ndim - 1))
    if any(m != n for i, (m, n) in enumerate(zip(x.shape, y.shape, strict=True)) if i != axis):
        return []
    joined = b("concat", x, y, axis=axis)
    start = tuple(x.shape[axis] if i == axis else 0 for i in range(x.ndim))
    piece = b("slice", joined, start=start, stop=joined.shape, step=(1,) * x.ndim)
    return [piece, b("embed", piece, shape=joined.shape, start=start, step=(1,) * x.ndim)]
