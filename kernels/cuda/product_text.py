"""The text of a kernel that computes a matrix product: its matrices, and what becomes of each element of the result."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from staticgrad.graph.epilogue import batch_row_and_column
from staticgrad.graph.members import Access, Member
from staticgrad.graph.node import DType, Node
from staticgrad.graph.structure import Structure
from staticgrad.kernels.cuda.kernel_text import KernelText
from staticgrad.kernels.cuda.points import NARROW
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.tiles import lanes_of_product
from staticgrad.kernels.expressions import BOOL, literal
from staticgrad.kernels.group_text import term
from staticgrad.kernels.kernel import Operand
from staticgrad.kernels.products import Matrix, MatrixProduct

NOTHING = Structure((), 0, None, (), (), {}, {})  # what follows a product by itself


@dataclass(frozen=True)
class Outcome:
    """What is stored of each element of a product.

    Attributes:
        node: the product.
        structure: what follows it.
        stored: the values that are stored, each of the product's shape.
        own: where in the group's working memory those of them lie that have no storage, in bytes.
    """

    node: Node
    structure: Structure = NOTHING
    stored: tuple[Node, ...] = ()
    own: Mapping[Node, int] = field(default_factory=dict)

    def members(self) -> list[Member]:
        """What has to be computed, in order."""
        known = {member.node: member for member in self.structure.members}
        wanted: set[Node] = set()
        pending = list(self.stored)
        while pending:
            node = pending.pop()
            if node in known and node not in wanted:
                wanted.add(node)
                pending += [access.owner for access in known[node].accesses]
        return [member for member in self.structure.members if member.node in wanted]


@dataclass(frozen=True)
class Spot:
    """Where in the result some neighbouring elements of a row lie, as texts; "" for what is not known yet."""

    batch: str = ""
    row: str = ""
    column: str = ""


class ProductText(KernelText):
    """One kernel for a product.

    Args:
        threads: of a block.
        partial: where in the working memory the parts of the result lie, in bytes, if this kernel computes parts.
    """

    def __init__(
        self, product: MatrixProduct, outcome: Outcome, target: Target, threads: int, partial: int | None = None
    ) -> None:
        super().__init__(outcome.structure, outcome.stored, {}, target, threads, outcome.own)
        self.product = product
        self.outcome = outcome
        self.partial = partial
        self.dtype = product.dtype
        self._members = outcome.members() if partial is None else []
        self._known: dict[tuple[object, ...], list[str]] = {}

    # ------------------------------------------------------------ the docstring

    def title(self) -> list[str]:
        """The docstring's opening: the product's shape, and what follows."""
        product = self.product
        stack = f"{product.batch} of " if product.batch > 1 else ""
        ops = ["matmul", *(member.node.op.name for member in self._members)]
        shape = f"{stack}({product.m}, {product.k}) by ({product.k}, {product.n})"
        text = f'"""{" ".join(ops)}: {shape}{", in parts" if self.partial is not None else ""}'
        return textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ")

    def about(self, operand: Operand, dtype: DType) -> str:
        """What a pointer of the kernel is, for its docstring."""
        if operand.kind == "own":
            return f"{dtype}, working memory"
        return super().about(operand, dtype)

    # ------------------------------------------------------------ operands

    def matrix(self, matrix: Matrix) -> str:
        """The pointer to the first element of an operand."""
        return self.pointer("storage", matrix.owner, self.dtype, matrix.offset * self.dtype.itemsize)

    def zero(self) -> str:
        """Zero in the product's dtype."""
        return literal(0, self.dtype)

    def multiply_add(self, total: str, x: str, y: str) -> str:
        """`total + x * y` in the product's dtype."""
        text = f"{total} + {x} * {y}"
        return text if self.dtype.kind == "f" else f"{self.dtype.name}({text})"

    def plus(self, x: str, y: str) -> str:
        """`x + y` in the product's dtype."""
        return f"{x} + {y}" if self.dtype.kind == "f" else f"{self.dtype.name}({x} + {y})"

    def ahead(self, spot: Spot, lanes: int) -> list[str]:
        """Read what the epilogue needs of operands that depend on the known part of the spot only."""
        lines: list[str] = []
        for member in self._members:
            for access in member.accesses:
                if self._is_read(access):
                    self._read(access, spot, lanes, lines)
        return lines

    def _is_read(self, access: Access) -> bool:
        owner = access.owner
        single = owner.op.name == "constant" and owner.size == 1
        return not (single or owner is self.outcome.node or owner in self.members)

    def _read(self, access: Access, spot: Spot, lanes: int, lines: list[str]) -> list[str]:
        """The names of an operand's values at a spot, read if need be; none where the spot does not tell them."""
        strides = batch_row_and_column(access, self.outcome.node)
        places = (spot.batch, spot.row, spot.column)
        used = [place for place, stride in zip(places, strides, strict=True) if stride]
        if not all(used):
            return []
        key = (access.owner, access.offset, strides, *used)
        if key not in self._known:
            self._known[key] = self._load(access, strides, places, lanes, lines)
        return self._known[key]

    def _load(
        self, access: Access, strides: tuple[int, int, int], places: tuple[str, str, str], lanes: int, lines: list[str]
    ) -> list[str]:
        name = f"a{self.loaded}"
        self.loaded += 1
        owner = access.owner
        first = access.offset + self._first() * strides[0]
        pointer = self.pointer("storage", owner, owner.dtype, first * owner.dtype.itemsize)
        index = added(*(times(place, stride) for place, stride in zip(places, strides, strict=True)))
        if not strides[2] or lanes == 1:
            lines.append(f"{name} = {_read(owner, f'{pointer}[{index}]')}")
            return [name] * lanes
        if any(number % lanes for number in (first, *strides[:2])):
            lines += [f"{name}_{k} = {_read(owner, f'{pointer}[{added(index, k)}]')}" for k in range(lanes)]
            return [f"{name}_{k}" for k in range(lanes)]
        lines.append(f"{name} = load{lanes}({pointer}, {index})")
        return [_read(owner, f"{name}[{k}]") for k in range(lanes)]

    def _first(self) -> int:
        """The number in the whole batch of this product's first matrix."""
        return self.product.c.offset // (self.product.m * self.product.n)

    # ------------------------------------------------------------ results

    def lanes(self) -> int:
        """How many neighbouring elements of a row are stored at once."""
        count = lanes_of_product(self.dtype.itemsize)
        return count if self.product.n % count == 0 else 1

    def store(self, spot: Spot, totals: Sequence[str]) -> list[str]:
        """Lines that compute what is wanted of neighbouring elements of the product, and store it."""
        product = self.product
        batch = times(spot.batch, product.m * product.n if product.batch > 1 else 0)
        lines = [f"at = {added(batch, times(spot.row, product.n), spot.column)}"]
        if self.partial is not None:
            pointer = self.pointer("own", product.c.owner, self.dtype, self.partial)
            return [*lines, _stored(pointer, f"at + part * {product.batch * product.m * product.n}", list(totals))]
        values: dict[Node, list[str]] = {self.outcome.node: list(totals)}
        lines += self.ahead(spot, len(totals))
        for member in self._members:
            operands = [self._values(access, values, spot, len(totals), lines) for access in member.accesses]
            name = self.names[member.node]
            values[member.node] = [f"{name}_{k}" for k in range(len(totals))]
            for k, value in enumerate(values[member.node]):
                lines.append(f"{value} = {self.value(member, [found[k] for found in operands], '0')}")
        for node in self.outcome.stored:
            found = [f"uint8({value})" if node.dtype == BOOL else value for value in values[node]]
            lines.append(_stored(self._place(node), "at", found))
        return lines

    def _values(
        self, access: Access, values: Mapping[Node, list[str]], spot: Spot, lanes: int, lines: list[str]
    ) -> list[str]:
        owner = access.owner
        if owner in values:
            return values[owner]
        if owner.op.name == "constant" and owner.size == 1:
            return [literal(owner.attributes["value"].array().reshape(())[()], owner.dtype)] * lanes
        return self._read(access, spot, lanes, lines)

    def _place(self, node: Node) -> str:
        """The pointer to a stored value's elements of this product."""
        start = self.product.c.offset * node.dtype.itemsize
        if node in self.own:
            return self.pointer("own", node, node.dtype, self.own[node] + start)
        return self.pointer("storage", node, node.dtype, start)


def _read(owner: Node, text: str) -> str:
    return f"({text} != 0)" if owner.dtype == BOOL else text


def _stored(pointer: str, index: str, values: Sequence[str]) -> str:
    if len(values) == 1:
        return f"{pointer}[{index}] = {values[0]}"
    return f"store{len(values)}({pointer}, {index}, {', '.join(values)})"


def added(*parts: str | int) -> str:
    """The sum of texts and numbers as a text."""
    number = sum(part for part in parts if isinstance(part, int))
    texts = [part for part in parts if isinstance(part, str) and part != "0"]
    return " + ".join([*texts, str(number)] if number or not texts else texts)


def times(counter: str, stride: int) -> str:
    """A counter times a stride as a text."""
    return term(counter, stride) if stride and counter != "0" else "0"


def quotient(number: str, divisor: int, below: int = 0) -> str:
    """The quotient of a number that stays below `below` as a text."""
    if divisor == 1:
        return number
    return f"quotient({number}, {divisor})" if below <= NARROW else f"({number} // {divisor})"


def rest(number: str, divisor: int, below: int = 0) -> str:
    """The rest of a number that stays below `below` as a text."""
    if divisor == 1:
        return "0"
    return f"rest({number}, {divisor})" if below <= NARROW else f"({number} % {divisor})"


def indented(lines: Sequence[str]) -> list[str]:
    """Lines one level further in."""
    return [f"    {line}" for line in lines]
