"""What the generators of fused kernels have in common on every device: names, pointers, and the text of values."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from staticgrad.graph.members import ARGUMENTS, Access, Member
from staticgrad.graph.node import DType, Node
from staticgrad.graph.structure import Structure
from staticgrad.kernels.expressions import BOOL, elementwise_expression, literal
from staticgrad.kernels.kernel import Operand

INT64 = np.dtype(np.int64)
Pattern = tuple[int, tuple[int, ...]]  # offset, and strides along the axes


class GroupText:
    """The names and pointers of one kernel that computes members of a structure.

    Names: `t` values of each point, `r` of each row, `s` of the whole.
    """

    any_length = False  # whether the kernel serves operands of any length

    def __init__(self, structure: Structure, writes: Sequence[Node], aliases: Mapping[Node, Node]) -> None:
        self.structure = structure
        self.writes = set(writes)
        self.aliases = aliases
        self.members = {member.node: member for member in structure.members}
        self.names = {
            member.node: f"{'srts'[structure.level[member.node]]}{position}"
            for position, member in enumerate(structure.members)
        }
        self.pointers: dict[tuple[str, Node | None, int], str] = {}
        self.operands: list[Operand] = []
        self.dtypes: list[DType] = []
        self.wide = set(structure.wide)

    def title(self) -> list[str]:
        """The docstring's opening: the ops of the group."""
        ops = " ".join(member.node.op.name for member in self.structure.members)
        return textwrap.wrap(f'"""{ops}', 100, initial_indent="    ", subsequent_indent="    ")

    def about(self, operand: Operand, dtype: DType) -> str:
        """What a pointer of the kernel is, for its docstring."""
        if operand.kind == "own":
            return f"{dtype}, working memory that the kernels of a group share"
        if operand.kind in ("scratch", "joint") and operand.node is not None:
            elements = operand.node.size if operand.node in self.wide else self.structure.row_size
            return f"{dtype}, working memory of {elements} elements"
        if operand.kind != "storage" or operand.node is None:
            return f"{dtype}, where errors are reported"
        in_place = operand.node in self.aliases or operand.node in self.aliases.values()
        how = "read and written in place" if in_place else "written" if operand.node in self.writes else "read"
        return f"{dtype}, {how}" if self.any_length else f"{dtype}[{operand.node.size}], {how}"

    def pointer(self, kind: str, node: Node | None, dtype: DType, offset: int = 0) -> str:
        """The name of the pointer to a value's storage or to memory of another kind."""
        key = (kind, self.aliases.get(node, node) if kind == "storage" and node is not None else node, offset)
        if key not in self.pointers:
            self.pointers[key] = f"p{len(self.operands)}"
            self.operands.append(Operand(kind, node, offset))  # type: ignore[arg-type]
            self.dtypes.append(dtype)
        return self.pointers[key]

    def storage(self, node: Node) -> str:
        """The pointer to where a value is stored."""
        return self.pointer("storage", node, node.dtype)

    def base_of(self, access: Access) -> int:
        """The element that an access's pointer points to.

        Where a view starts goes into the address, so that reads of one shape at different places, such as the steps
        of a sequence, are one kernel. Storage that is also written has one pointer only.
        """
        fixed = access.owner.op.name == "iota" or access.owner in self.aliases.values()
        return 0 if fixed else access.offset

    def element(self, owner: Node, base: int, index: str) -> str:
        """The text of the element at `index`, counted from the element `base` of the owner's storage."""
        if owner.op.name == "iota":
            return f"{owner.dtype.name}({index})"
        text = f"{self.pointer('storage', owner, owner.dtype, base * owner.dtype.itemsize)}[{index}]"
        return f"({text} != 0)" if owner.dtype == BOOL else text

    def value(self, member: Member, operands: Sequence[str], position: str) -> str:
        """A member's value from the texts of its operands; `position` is its place along a scatter's axis."""
        node = member.node
        if node.op.kind == "elementwise":
            return elementwise_expression(node, operands)
        if node.op.name in ARGUMENTS:
            return literal(0, node.dtype)
        if node.op.name == "scatter_add_along_axis":
            return f"select({position} == {operands[1]}, {operands[0]}, {literal(0, node.dtype)})"
        return operands[0]

    def checked(self, node: Node, index: str, extent: int) -> str:
        """An index that is reported and replaced by 0 where it is out of range."""
        status = self.pointer("status", None, INT64)
        code = self.pointer("error", node, INT64)
        return f"{check_of(node)}({index}, {extent}, {status}, {code})"


def check_of(node: Node) -> str:
    """The function that checks the indices of `node` inside its kernel."""
    return "checked_position" if node.attributes.get("what") else "checked_index"


def term(counter: str, stride: int) -> str:
    """A counter times a stride."""
    if stride == 1:
        return counter
    return f"{counter} * {stride}" if stride >= 0 else f"{counter} * ({stride})"


def index_text(pattern: Pattern, counters: Mapping[int, str] | None = None) -> str:
    """The index of an element in terms of the loop counters."""
    offset, strides = pattern
    terms = [term((counters or {}).get(axis, f"i{axis}"), stride) for axis, stride in enumerate(strides) if stride]
    if offset or not terms:
        terms.insert(0, str(offset))
    return " + ".join(terms)
