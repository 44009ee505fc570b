"""Kernels of single elementwise ops that serve operands of any length: an op at once is compiled once for its dtypes.

The result's elements are counted by `e`. An operand lies to them in one of these ways, which are part of the kernel;
how many elements there are, and the extents below, are numbers that it is given:

    each      element e
    one       a single element in the device's memory
    number    a number of the CPU's, given by value
    cycle     element e % period: a row under a matrix
    run       element e // inner: a column beside a matrix
    block     element e // inner % period: the bias of channels

A thread handles neighbours with one wide access, as the kernels of fused groups do; the last ones one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from staticgrad.graph.location import Location
from staticgrad.graph.node import DType, Node, Shape, Spec
from staticgrad.graph.op import Op
from staticgrad.graph.ops import leaf
from staticgrad.kernels.cuda.points import NARROW, lanes_of
from staticgrad.kernels.cuda.stages import indented, stored
from staticgrad.kernels.cuda.target import VECTOR_BYTES, Target
from staticgrad.kernels.expressions import BOOL, elementwise_expression
from staticgrad.kernels.group_text import INT64
from staticgrad.kernels.kernel import Kernel

ANYWHERE = Location("<op>", 0, "<op>")


@dataclass(frozen=True)
class Way:
    """How an operand lies to the result.

    Attributes:
        together: whether the neighbours of one thread lie as they do in the result, or are one element.
    """

    kind: Literal["each", "one", "number", "cycle", "run", "block"]
    together: bool = True

    @property
    def extents(self) -> tuple[str, ...]:
        """The names of the numbers that tell the index of an element."""
        return {"cycle": ("period",), "run": ("inner",), "block": ("inner", "period")}.get(self.kind, ())


def way_of(shape: Shape, result: Shape, lanes: int) -> tuple[Way, tuple[int, ...]] | None:
    """How an operand of a shape lies to a result that it is broadcast to, and its extents; None where no way fits."""
    padded = (1,) * (len(result) - len(shape)) + tuple(shape)
    axes = [axis for axis, extent in enumerate(result) if extent != 1]
    own = [axis for axis in axes if padded[axis] != 1]
    if own == axes:
        return Way("each"), ()
    if not own:
        return Way("one"), ()
    first, last = axes.index(own[0]), axes.index(own[-1])
    if axes[first : last + 1] != own:
        return None
    inner = prod(result[axis] for axis in axes[last + 1 :])
    period = prod(result[axis] for axis in own)
    if inner == 1:
        return Way("cycle", period % lanes == 0), (period,)
    together = inner % lanes == 0
    return (Way("run", together), (inner,)) if first == 0 else (Way("block", together), (inner, period))


def lanes_for(dtypes: Sequence[DType]) -> int:
    """How many neighbours one thread handles at once."""
    return lanes_of(4, [dtype.itemsize for dtype in dtypes], VECTOR_BYTES)


@dataclass(frozen=True)
class AnyLength:
    """One elementwise op on operands of some dtypes that lie in some ways.

    The kernel takes the addresses of the operands that have one and of the result; then the number of elements, the
    extents of the operands in turn, and the numbers among the operands.

    Attributes:
        narrow: whether there are less than 2^31 elements.
    """

    op: Op
    dtypes: tuple[DType, ...]
    ways: tuple[Way, ...]
    attributes: tuple[tuple[str, Any], ...]
    narrow: bool

    def kernel(self, target: Target) -> Kernel:
        """The kernel."""
        return _Text(self, target).kernel()


class _Text:
    """The lines of a kernel. Names: `v` several elements of an operand, `a` one, `t` results."""

    def __init__(self, what: AnyLength, target: Target) -> None:
        self.what = what
        self.target = target
        self.node = node_of(what.op, what.dtypes, dict(what.attributes))
        self.places = [number for number, way in enumerate(what.ways) if way.kind != "number"]
        self.lanes = lanes_for([*(what.dtypes[number] for number in self.places), self.node.dtype])
        self.pointer = {number: f"p{position}" for position, number in enumerate(self.places)}
        self.result = f"p{len(self.places)}"

    def kernel(self) -> Kernel:
        what, step = self.what, self.target.block * self.lanes
        numbers = [number for number, way in enumerate(what.ways) if way.kind == "number"]
        extents = [f"{name}{number}" for number, way in enumerate(what.ways) for name in way.extents]
        names = [*self.pointer.values(), self.result, "count", *extents, *(f"x{number}" for number in numbers)]
        body = [
            *(f"a{number} = {self._read(number, '0')}" for number in self.places if what.ways[number].kind == "one"),
            f"e = (int64(cuda.blockIdx.x) * {self.target.block} + int64(cuda.threadIdx.x)) * {self.lanes}",
            "while e < count:",
            f"    if e + {self.lanes} <= count:",
            *indented(indented(self._several())),
            "    else:",
            "        for i in range(e, count):",
            *indented(indented(indented(self._single()))),
            f"    e += int64(cuda.gridDim.x) * {step}",
        ]
        text = [f"def kernel({', '.join(names)}):", f'    """{what.op.name}', "", *self._about(), '    """']
        dtypes = (*(what.dtypes[number] for number in self.places), self.node.dtype)
        values = (*[INT64] * (1 + len(extents)), *(what.dtypes[number] for number in numbers))
        return Kernel("\n".join([*text, *indented(body)]) + "\n", dtypes, values=values)

    def _about(self) -> list[str]:
        lines = [f"    {self.pointer[number]}: {self.what.dtypes[number]}, read: {self.what.ways[number].kind}"
                 for number in self.places]  # fmt: skip
        return [*lines, f"    {self.result}: {self.node.dtype}[count], written"]

    def _several(self) -> list[str]:
        """The neighbours of one thread."""
        lines: list[str] = []
        operands = [self._wide(number, lines) for number in range(len(self.what.ways))]
        values = [f"t{k}" for k in range(self.lanes)]
        for k, value in enumerate(values):
            lines.append(f"{value} = {stored(self.node, self._value([texts[k] for texts in operands]))}")
        return [*lines, f"store{self.lanes}({self.result}, e, {', '.join(values)})"]

    def _wide(self, number: int, lines: list[str]) -> list[str]:
        """The texts of an operand at each of the neighbours."""
        way, name = self.what.ways[number], f"v{number}"
        if way.kind in ("one", "number"):
            return [self._fixed(number)] * self.lanes
        if way.kind in ("each", "cycle") and way.together:
            lines.append(f"{name} = load{self.lanes}({self.pointer[number]}, {self._index(number, 'e')})")
            found = [f"{name}[{k}]" for k in range(self.lanes)]
            return [f"({text} != 0)" for text in found] if self.what.dtypes[number] == BOOL else found
        count = 1 if way.together else self.lanes
        places = [f"(e + {k})" if k else "e" for k in range(count)]
        lines += [f"{name}_{k} = {self._read(number, self._index(number, place))}" for k, place in enumerate(places)]
        return [f"{name}_{k % count}" for k in range(self.lanes)]

    def _single(self) -> list[str]:
        """One element."""
        lines, operands = [], []
        for number, way in enumerate(self.what.ways):
            if way.kind in ("one", "number"):
                operands.append(self._fixed(number))
                continue
            lines.append(f"a{number} = {self._read(number, self._index(number, 'i'))}")
            operands.append(f"a{number}")
        return [*lines, f"{self.result}[i] = {stored(self.node, self._value(operands))}"]

    def _fixed(self, number: int) -> str:
        """The text of an operand that is the same everywhere."""
        if self.what.ways[number].kind == "one":
            return f"a{number}"
        return f"(x{number} != 0)" if self.what.dtypes[number] == BOOL else f"x{number}"

    def _read(self, number: int, index: str) -> str:
        text = f"{self.pointer[number]}[{index}]"
        return f"({text} != 0)" if self.what.dtypes[number] == BOOL else text

    def _index(self, number: int, place: str) -> str:
        extents = [f"{name}{number}" for name in self.what.ways[number].extents]
        for name in extents:
            short, long = ("rest", "%") if name.startswith("period") else ("quotient", "//")
            place = f"{short}({place}, {name})" if self.what.narrow else f"{place} {long} {name}"
        return place

    def _value(self, operands: Sequence[str]) -> str:
        return elementwise_expression(self.node, operands)


def is_narrow(count: int) -> bool:
    """Whether numbers up to `count` are divided by 32-bit instructions."""
    return count < NARROW


def node_of(op: Op, dtypes: Sequence[DType], attributes: Mapping[str, Any], shapes: Sequence[Shape] = ()) -> Node:
    """An op as the one node of a graph whose inputs are its operands; of single elements where no shapes are given."""
    inputs = []
    specs = [Spec(shape, dtype) for shape, dtype in zip(shapes or [()] * len(dtypes), dtypes, strict=True)]
    for index, (shape, dtype) in enumerate(specs):
        told = {"index": index, "role": "argument", "name": f"x{index}", "shape": shape, "dtype": dtype}
        inputs.append(Node(leaf.graph_input, (), told, shape, dtype, "", ANYWHERE))
    spec = op.infer(specs, attributes)
    return Node(op, tuple(inputs), dict(attributes), spec.shape, spec.dtype, "", ANYWHERE)
