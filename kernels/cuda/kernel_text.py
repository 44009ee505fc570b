"""The text of one CUDA kernel: loads and values at the points that its threads visit, and what teams of them add up.

Variables: `t` values of each point, `r` of each row, `s` of the whole, with `_0 _1 …` where a thread handles several
points at once; `a` what is loaded, `c` accumulators.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from staticgrad.graph.members import ARGUMENTS, Access, Member
from staticgrad.graph.node import DType, Node
from staticgrad.graph.structure import Level, Structure
from staticgrad.kernels.cuda.points import NARROW, Axes
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.expressions import BOOL, literal
from staticgrad.kernels.group_text import INT64, GroupText, term
from staticgrad.kernels.kernel import Kernel
from staticgrad.kernels.reduction_steps import accumulator_dtype, step, stored_value

Known = dict[Any, list[str]]


class KernelText(GroupText):
    """The lines of one kernel; stages append to `lines`, and what every thread does first stands in `top`.

    Args:
        threads: of a block.
        own: where in the group's working memory values lie that are kept between kernels, in bytes.
    """

    resident = 0  # blocks that a multiprocessor should hold at once, where that limits the registers

    def __init__(
        self,
        structure: Structure,
        writes: Sequence[Node],
        aliases: Mapping[Node, Node],
        target: Target,
        threads: int,
        own: Mapping[Node, int],
    ) -> None:
        super().__init__(structure, writes, aliases)
        self.target = target
        self.threads = threads
        self.own = own
        self.top: list[str] = []
        self.lines: list[str] = []
        self.loaded = 0
        self._shared: dict[tuple[DType, int], str] = {}

    def kernel(self, *, guarded: bool) -> Kernel:
        """The finished kernel; `guarded` if it does nothing after an error."""
        guard = [f"if {self.pointer('status', None, INT64)}[0] != 0:", "    return"] if guarded else []
        names = [f"p{position}" for position in range(len(self.operands))]
        about = [
            f"    {name}: {self.about(operand, dtype)}"
            for name, operand, dtype in zip(names, self.operands, self.dtypes, strict=True)
        ]
        body = [*guard, "thread = int64(cuda.threadIdx.x)", "block = int64(cuda.blockIdx.x)", *self.top, *self.lines]
        text = [f"def kernel({', '.join(names)}):", *self.title(), "", *about, '    """', *(f"    {x}" for x in body)]
        text += [f"\nlaunch_bounds = {self.threads}, {self.resident}"] if self.resident else []
        return Kernel("\n".join(text) + "\n", tuple(self.dtypes))

    def value(self, member: Member, operands: Sequence[str], position: str) -> str:
        """As for every device; places along an axis are compared in 32 bits where they fit, in one instruction."""
        if member.node.op.name == "scatter_add_along_axis" and member.node.shape[-1] < NARROW:
            position, operands = f"int32({position})", [operands[0], f"int32({operands[1]})"]
        return super().value(member, operands, position)

    def shared(self, dtype: DType, count: int) -> str:
        """The name of an array in the block's shared memory."""
        key = (dtype, count)
        if key not in self._shared:
            self._shared[key] = name = f"shared{len(self._shared)}"
            kind = "uint8" if dtype == BOOL else dtype.name
            self.top.append(f"{name} = shared_memory({count}, {kind})")
        return self._shared[key]

    def working(self, node: Node, dtype: DType) -> str:
        """The pointer to where the group keeps `node` between its kernels."""
        return self.pointer("own", node, dtype, self.own[node])

    def held(self, node: Node) -> str:
        """The pointer to a member's value that an earlier stage has stored."""
        return self.storage(node) if node in self.writes else self.working(node, node.dtype)

    # ------------------------------------------------------------ teams of threads

    def together(self, node: Node, register: str, team: int, place: str = "", *, wide: bool = False) -> list[str]:
        """Every thread of a team gets what the team has accumulated, in a `wide` register or one of the node's dtype.

        `place` is the register of an argmax's index.
        """
        dtype = node.operands[0].dtype if place else accumulator_dtype(node, wide)
        lines: list[str] = []
        distance = min(team, self.target.warp) // 2
        while distance:
            others = [f"shuffle_xor({x}, {distance})" for x in (register, place)]
            lines += self._better(node, register, place, others[0], others[1], wide)
            distance //= 2
        warps = team // self.target.warp
        if warps <= 1:
            return lines
        parts = self.shared(dtype, warps)
        places = self.shared(INT64, warps) if place else ""
        lines += [f"if rest(thread, {self.target.warp}) == 0:", f"    {parts}[quotient(thread, {self.target.warp})] = "
                  + (f"uint8({register})" if dtype == BOOL else register)]  # fmt: skip
        if place:
            lines.append(f"    {places}[quotient(thread, {self.target.warp})] = {place}")
        lines += ["cuda.syncthreads()", f"{register} = {stored_value(f'{parts}[0]', node)}"]
        if place:
            lines.append(f"{place} = {places}[0]")
        lines.append(f"for w in range(1, {warps}):")
        other = self._better(node, register, place, stored_value(f"{parts}[w]", node), f"{places}[w]", wide)
        return [*lines, *(f"    {line}" for line in other), "cuda.syncthreads()"]

    def _better(self, node: Node, register: str, place: str, other: str, other_place: str, wide: bool) -> list[str]:
        if not place:
            return [f"{register} = {step(node, register, other, wide=wide)}"]
        sign = ">" if node.op.name == "argmax" else "<"
        better = f"(other {sign} {register}) | ((other == {register}) & (at < {place}))"
        if node.operands[0].dtype.kind == "f":
            better += f" | ((other != other) & (({register} == {register}) | (at < {place})))"
        return [
            f"other = {other}",
            f"at = {other_place}",
            f"better = bool({better})",
            f"{register} = select(better, other, {register})",
            f"{place} = select(better, at, {place})",
        ]


class Points:
    """Values at the points that a thread visits in one stage of a kernel.

    Attributes:
        row: lines for each row, where the axes are in two groups; else for the whole kernel.
        loads: lines that read memory for each point (`lanes` of them) of the innermost loop; they come first, so that
            all are under way before one is waited for.
        point: what is computed there.
    """

    def __init__(self, text: KernelText, groups: Sequence[Axes], lanes: int) -> None:
        self.text = text
        self.groups = tuple(groups)
        self.lanes = lanes
        self.before: list[str] = []
        self.row: list[str] = []
        self.loads: list[str] = []
        self.point: list[str] = []
        self.values: dict[Node, list[str]] = {}  # of each point
        self.common: dict[Node, list[str]] = {}  # of the row and of the whole
        self.suffix = ""  # of the names of each point's values
        self._known: tuple[Known, Known, Known] = ({}, {}, {})

    def beside(self, axes: Axes, suffix: str) -> Points:
        """Other points of the same row, with a counter and names of their own."""
        other = Points(self.text, (*self.groups[:-1], axes), self.lanes)
        other.before, other.row, other.common, other.suffix = self.before, self.row, self.common, suffix
        other._known = (self._known[0], self._known[1], {})
        return other

    def taken(self) -> tuple[list[str], list[str]]:
        """The lines for each point so far, to be put where they belong: loads, and the rest; the values stay known."""
        lines = [*self.groups[-1].lines, *self.loads], self.point
        self.groups[-1].lines.clear()
        self.loads, self.point = [], []
        return lines

    def each(self) -> list[str]:
        """All lines for each point so far, in order."""
        loads, rest = self.taken()
        return [*loads, *rest]

    def value(self, node: Node) -> list[str] | None:
        """The texts of a member's value, if it has been computed."""
        return self.values.get(node) or self.common.get(node)

    # ------------------------------------------------------------ values

    def compute(self, members: Collection[Member]) -> None:
        """Compute members, in order, each where its level belongs."""
        for member in members:
            node = member.node
            level = self.text.structure.level[node]
            lanes = self.lanes if level == Level.FULL else 1
            lines = self.point if level == Level.FULL else self.row if level == Level.ROW else self.before
            operands = self.operands(member, lanes)
            positions = self._positions(member, lanes)
            name = self.text.names[node] + (self.suffix if level == Level.FULL else "")
            found = [f"{name}_{k}" if lanes > 1 else name for k in range(lanes)]
            for name, values, position in zip(found, zip(*operands, strict=True), positions, strict=True):
                lines.append(f"{name} = {self.text.value(member, values, position)}")
            if not operands:
                lines += [f"{name} = {self.text.value(member, (), '0')}" for name in found]
            (self.values if level == Level.FULL else self.common)[node] = found

    def operands(self, member: Member, lanes: int) -> list[list[str]]:
        """The texts of a member's operands, for each of the lanes."""
        found = [self.read(access, lanes) for access in member.accesses]
        if member.node.op.name == "scatter_add_along_axis":
            name = f"w{self.text.names[member.node]}"
            lines = self._lines(self._level(member.accesses[1]))
            lines.append(f"{name} = {self.text.checked(member.node, found[1][0], member.node.shape[-1])}")
            found[1] = [name] * lanes
        return found

    def _positions(self, member: Member, lanes: int) -> list[str]:
        if not member.result or member.kind != "map":
            return ["0"] * lanes
        strides = self.text.structure.strides(member.result, member.size)
        return [self._index(0, strides, k) for k in range(lanes)]

    def read(self, access: Access, lanes: int) -> list[str]:
        """The texts of an operand's values at the points of the lanes."""
        owner = access.owner
        found = self.value(owner)
        if found is not None:
            return found if len(found) == lanes else found * lanes
        if owner.op.name == "constant" and owner.size == 1:
            return [literal(owner.attributes["value"].array().reshape(())[()], owner.dtype)] * lanes
        strides = self.text.structure.strides(access.layout, access.size)
        return self._loaded(owner, self.text.base_of(access), access.offset, strides, lanes)

    # ------------------------------------------------------------ memory

    def _loaded(self, owner: Node, base: int, offset: int, strides: tuple[int, ...], lanes: int) -> list[str]:
        level = self._level_of(strides)
        key = (owner, offset, strides)
        if key not in self._known[level]:
            self._known[level][key] = self._load(owner, base, offset - base, strides, level)
        found = self._known[level][key]
        return found if len(found) == lanes else found * lanes

    def _load(self, owner: Node, base: int, offset: int, strides: tuple[int, ...], level: int) -> list[str]:
        name = f"a{self.text.loaded}"
        self.text.loaded += 1
        lines = self.loads if level == 2 else self._lines(level)
        along = strides[self.groups[-1].axes[-1]] if level == 2 else 0
        if self.lanes == 1 or not along:
            lines.append(f"{name} = {self._element(owner, base, self._index(offset, strides))}")
            return [name]
        if along == 1 and owner.op.name != "iota" and not (base % self.lanes or self._unaligned(offset, strides)):
            pointer = self._pointer(owner, base)
            lines.append(f"{name} = load{self.lanes}({pointer}, {self._index(offset, strides)})")
            return [f"({name}[{k}] != 0)" if owner.dtype == BOOL else f"{name}[{k}]" for k in range(self.lanes)]
        for k in range(self.lanes):
            lines.append(f"{name}_{k} = {self._element(owner, base, self._index(offset, strides, k))}")
        return [f"{name}_{k}" for k in range(self.lanes)]

    def store(self, node: Node, values: Sequence[str]) -> list[str]:
        """The lines that store a value of each point."""
        structure = self.text.structure
        strides = structure.strides(((structure.size, 1),), structure.size)
        pointer = self.text.storage(node)
        values = [f"uint8({value})" if node.dtype == BOOL else value for value in values]
        if self.lanes > 1 and not self._unaligned(0, strides):
            return [f"store{self.lanes}({pointer}, {self._index(0, strides)}, {', '.join(values)})"]
        return [f"{pointer}[{self._index(0, strides, k)}] = {value}" for k, value in enumerate(values)]

    def stored(self, node: Node) -> None:
        """Read a value of each point back from where an earlier pass has stored it."""
        structure = self.text.structure
        strides = structure.strides(((structure.size, 1),), structure.size)
        self.values[node] = self._loaded(node, 0, 0, strides, self.lanes)

    def at(self, access: Access, place: str, lines: list[str]) -> str:
        """The value of an access at one position of the row, computed again from what is in memory."""
        owner, structure = access.owner, self.text.structure
        inside = owner in self.text.members and owner.op.name != "iota"
        if inside and structure.level[owner] != Level.FULL:
            return self.read(access, 1)[0]
        strides = structure.strides(access.layout, access.size)
        if not inside and not strides[-1]:
            return self.read(access, 1)[0]
        name = f"b{self.text.loaded}"
        self.text.loaded += 1
        if not inside or owner.op.name == "iota":
            base = self.text.base_of(access)
            index = self._index(access.offset - base, (*strides[:-1], 0), extra=term(place, strides[-1]))
            value = self._element(owner, base, index)
        else:
            member = self.text.members[owner]
            operands = [self.at(operand, place, lines) for operand in member.accesses]
            if owner.op.name == "scatter_add_along_axis":
                operands[1] = self.text.checked(owner, operands[1], owner.shape[-1])
            value = self.text.value(member, operands, place)
        lines.append(f"{name} = {value}")
        return name

    # ------------------------------------------------------------ indices

    def _element(self, owner: Node, base: int, index: str) -> str:
        if owner in self.text.members and owner.op.name != "iota" and owner not in self.text.writes:
            return stored_value(f"{self.text.held(owner)}[{index}]", owner)
        return self.text.element(owner, base, index)

    def _pointer(self, owner: Node, base: int) -> str:
        if owner in self.text.members:
            return self.text.held(owner)
        return self.text.pointer("storage", owner, owner.dtype, base * owner.dtype.itemsize)

    def _unaligned(self, offset: int, strides: tuple[int, ...]) -> bool:
        last = self.groups[-1].axes[-1]
        others = [stride for axis, stride in enumerate(strides) if axis != last]
        return any(number % self.lanes for number in (offset, *others))

    def _index(self, offset: int, strides: tuple[int, ...], lane: int = 0, extra: str = "") -> str:
        terms = [found for group in self.groups for found in group.terms(strides)]
        along = strides[self.groups[-1].axes[-1]] if self.groups[-1].axes and strides else 0
        offset += lane * along
        if extra:
            terms.append(extra)
        if offset or not terms:
            terms.append(str(offset))
        return " + ".join(terms)

    def _level(self, access: Access) -> int:
        return self._level_of(self.text.structure.strides(access.layout, access.size))

    def _level_of(self, strides: tuple[int, ...]) -> int:
        if self.groups[-1].varies(strides):
            return 2
        return 1 if len(self.groups) > 1 and self.groups[0].varies(strides) else 0

    def _lines(self, level: int) -> list[str]:
        return (self.before, self.row, self.point)[level]


def is_position(member: Member) -> bool:
    """Whether a reduction finds a place rather than a value."""
    return member.node.op.name in ARGUMENTS
