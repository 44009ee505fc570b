"""Generates the kernel of a fused group: readable Python, one nest of loops over raw pointers.

Variables: `t` values of each point, `r` of each row, `s` of the whole; `a` what is loaded, `c` and `u` accumulators of
the innermost loop and of a row or the whole, `at` where a run of elements starts, `i0 i1 …` loop counters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from staticgrad.graph.members import ARGUMENTS, Access, Member
from staticgrad.graph.node import DType, Node
from staticgrad.graph.structure import SCRATCH_ALIGNMENT, Level, Structure
from staticgrad.kernels.cpu.joins import sum_of_parts
from staticgrad.kernels.expressions import BOOL, literal
from staticgrad.kernels.group_text import GroupText, Pattern, index_text, term
from staticgrad.kernels.kernel import Call, Kernel
from staticgrad.kernels.reduction_steps import (
    FLOAT64,
    accumulator_dtype,
    first_value,
    least_value,
    narrowed,
    step,
    stored_value,
)

CHUNK = 4096  # longest run of float additions in one accumulator; partial sums are added in float64
GRAIN = 64  # elements of a flat loop that stay with one thread: whole cache lines


def generate(
    structure: Structure, writes: Sequence[Node], aliases: Mapping[Node, Node], *, shared: bool = False
) -> Call:
    """The call that computes the structure's members and stores `writes`.

    Args: `aliases` gives for a written node the read one whose storage the plan lets it take; both are one pointer.
    With `shared`, threads will each make some of the turns of a loop that can be divided: what is added up over the
    turns each one adds up in memory of its own, and the call's `joins` add up those.
    """
    return _Generator(structure, writes, aliases, shared).call()


def turns(structure: Structure) -> int:
    """How many turns of the outermost loop different threads could make, 0 where they depend on each other."""
    if structure.outer:
        return structure.outer[0]
    return structure.axes[0] if structure.axes and structure.rows is None else 0


@dataclass
class _Pass:
    """One run over the inner loops: what stands before the innermost loop, in it, and after it."""

    number: int
    body: list[str] = field(default_factory=list)
    loads: dict[int, list[str]] = field(default_factory=dict)  # by the number of loops around them
    known: dict[tuple[Node, Pattern], str] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)  # name of a start: its value
    start: list[str] = field(default_factory=list)  # before the innermost loop
    end: list[str] = field(default_factory=list)  # after the innermost loop
    totals: list[str] = field(default_factory=list)  # before all inner loops
    results: list[str] = field(default_factory=list)  # after all inner loops
    sums: bool = False  # whether floats are added in a register


class _Generator(GroupText):
    def __init__(
        self, structure: Structure, writes: Sequence[Node], aliases: Mapping[Node, Node], shared: bool
    ) -> None:
        super().__init__(structure, writes, aliases)
        self.axes = structure.axes
        self.turns = turns(structure)
        level = structure.level
        late = any(
            found == Level.AFTER or (found == Level.BEFORE and node in self.writes) for node, found in level.items()
        )
        self.shared = shared and self.turns > 1
        self.any_length = self.turns > 0 and (self.shared or not late)
        self.joined = self.shared and late  # what is known after the loops is left to a call of its own
        self.hoisted: dict[int, list[str]] = {level: [] for level in range(len(structure.outer) + 1)}
        self.known: dict[tuple[Node, Pattern], str] = {}
        self.loaded = 0
        self.starts: dict[Pattern, str] = {}
        self.temporaries = 0
        self.scratch = structure.scratch_offsets
        self.own_bytes = structure.scratch_bytes if self.shared else 0
        if self.joined:
            self._lay_out_parts()

    def _lay_out_parts(self) -> None:
        """Places in each thread's own memory for what it adds up."""
        for member in self.structure.members:
            node = member.node
            if member.kind == "reduce" and self.structure.level[node] == Level.AFTER and node not in self.wide:
                self.scratch[node] = self.own_bytes
                nbytes = node.size * accumulator_dtype(node, wide=node.size == 1).itemsize
                self.own_bytes += -(-nbytes // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT

    # ------------------------------------------------------------ the whole kernel

    def call(self) -> Call:
        before = self._before()
        passes = [self._pass(number) for number in range(self.structure.count)] if self.axes else []
        rows = [self._row_stage(stage) for stage in range(len(passes) + 1)]
        initial, after = self._accumulators()
        lines = [*self.hoisted[0], *before, *initial]
        indent = ""
        if self.axes:
            for axis, extent in enumerate(self.structure.outer):
                run = "begin, end" if self.any_length and axis == 0 else str(extent)
                lines.append(f"{indent}for i{axis} in range({run}):")
                indent += "    "
                lines += [indent + line for line in self.hoisted[axis + 1]]
            block = list(rows[0])
            for found, row in zip(passes, rows[1:], strict=True):
                block += self._inner_loops(found) + row
            lines += [indent + line for line in block]
        lines += after
        kernel, joins = self._kernel(lines), self._joins() if self.joined else ()
        grain = 1 if self.structure.outer else GRAIN
        return Call(kernel, tuple(self.operands), self.turns if self.any_length else 0, grain, self.own_bytes, joins)

    # ------------------------------------------------------------ what threads leave to be joined

    def _joins(self) -> tuple[Call, ...]:
        """The calls that bring together what the threads have added up, and compute what depends on it."""
        level = self.structure.level
        late = [member for member in self.structure.members if level[member.node] == Level.AFTER]
        before = any(level[node] == Level.BEFORE for node in self.writes)
        used = {access.owner for member in late if member.kind == "map" for access in member.accesses}
        alone = [member.node for member in late if member.kind == "reduce" and member.node not in used]
        calls = [sum_of_parts(node, self.scratch[node], self.own_bytes, wide=node in self.wide) for node in alone]
        if before or len(alone) < len(late):
            other = _Generator(self.structure, [*self.writes], self.aliases, True)
            lines = other._before(last=True) + other._dependent(late, alone)
            calls.append(Call(other._kernel([*other.hoisted[0], *lines]), tuple(other.operands)))
        return tuple(calls)

    def _dependent(self, late: Sequence[Member], alone: Sequence[Node]) -> list[str]:
        """Numbers that others are computed from, and those: `begin` is 0 and `end` the number of threads here."""
        lines = []
        for member in late:
            node, name = member.node, self.names[member.node]
            if node in alone:
                continue
            if member.kind == "map":
                lines.append(f"{name} = {self.value(member, self._operands(member, None), '0')}")
            else:
                dtype = accumulator_dtype(node, wide=True)
                parts = self.pointer("joint", node, dtype, self.scratch[node])
                part = stored_value(f"{parts}[t * {self.own_bytes // dtype.itemsize}]", node)
                lines += [
                    f"u{name[1:]} = {first_value(node, wide=True)}",
                    "for t in range(begin, end):",
                    f"    u{name[1:]} = {step(node, f'u{name[1:]}', part, wide=True)}",
                    f"{name} = {narrowed(node, f'u{name[1:]}')}",
                ]
            if node in self.writes:
                lines.append(f"{self.storage(node)}[0] = {name}")
        return lines

    # ------------------------------------------------------------ the text

    def _kernel(self, lines: Sequence[str]) -> Kernel:
        names = [f"p{position}" for position in range(len(self.operands))]
        about = [
            f"    {name}: {self.about(operand, dtype)}"
            for name, operand, dtype in zip(names, self.operands, self.dtypes, strict=True)
        ]
        text = [
            f"def kernel({', '.join(names + ['begin', 'end'] * self.any_length)}):",
            *self.title(),
            "",
            *about,
            '    """',
            *(f"    {line}" for line in lines),
        ]
        return Kernel("\n".join(text) + "\n", tuple(self.dtypes), 2 if self.any_length else 0)

    def _working(self, node: Node, dtype: DType) -> str:
        """The pointer to the node's working memory."""
        return self.pointer("own" if self.shared else "scratch", node, dtype, self.scratch[node])

    # ------------------------------------------------------------ loads

    def _load(self, access: Access, scope: _Pass | None) -> str:
        """The text of an operand's value; loads are put as far out of the loops as they may stand."""
        owner = access.owner
        if owner in self.members and owner.op.name != "iota":
            return self.names[owner]
        if owner.op.name == "constant" and owner.size == 1:
            return literal(owner.attributes["value"].array().reshape(())[()], owner.dtype)
        pattern = (access.offset, self.structure.strides(access.layout, access.size))
        base = self.base_of(access)
        key = (owner, pattern)
        depth = max((axis + 1 for axis, stride in enumerate(pattern[1]) if stride), default=0)
        outside = depth <= len(self.structure.outer)
        known = self.known if outside or scope is None else scope.known
        if key in known:
            return known[key]
        name = known[key] = f"a{self.loaded}"
        self.loaded += 1
        innermost = depth == len(self.axes) and depth > 0 and not outside
        place = (pattern[0] - base, pattern[1])
        index = self._run(place, scope) if innermost and scope is not None else index_text(place)
        line = f"{name} = {self.element(owner, base, index)}"
        if outside or scope is None:
            self.hoisted[depth].append(line)
        elif innermost:
            scope.body.append(line)
        else:
            scope.loads.setdefault(depth, []).append(line)
        return name

    def _run(self, pattern: Pattern, scope: _Pass) -> str:
        """The index of an element in the innermost loop: where the run starts, plus the counter's share."""
        offset, strides = pattern
        start = index_text((offset, (*strides[:-1], 0)))
        counter = term(f"i{len(strides) - 1}", strides[-1])
        if start == "0":
            return counter
        if not start.isidentifier() and not start.isdigit():
            depth = max(axis + 1 for axis, stride in enumerate(strides[:-1]) if stride)
            new = (offset, strides[:-1]) not in self.starts
            name = self.starts.setdefault((offset, strides[:-1]), f"at{len(self.starts)}")
            if depth > len(self.structure.outer):
                scope.bases[name] = start
            elif new:
                self.hoisted[depth].append(f"{name} = {start}")
            start = name
        return f"{start} + {counter}"

    def _contiguous(self, scope: _Pass) -> str:
        return self._run((0, self.structure.strides(((self.structure.size, 1),), self.structure.size)), scope)

    # ------------------------------------------------------------ values

    def _operands(self, member: Member, scope: _Pass | None) -> list[str]:
        found = [self._load(access, scope) for access in member.accesses]
        if member.node.op.name == "scatter_add_along_axis" and scope is not None:
            name = f"w{self.names[member.node]}"
            scope.start.append(f"{name} = {self.checked(member.node, found[1], member.node.shape[-1])}")
            found[1] = name
        return found

    def _before(self, last: bool = False) -> list[str]:
        """Single values known before the loops. Where threads share the loops, the `last` call stores them."""
        lines = []
        for member in self.structure.members:
            if self.structure.level[member.node] == Level.BEFORE:
                value = self.value(member, self._operands(member, None), "0")
                lines.append(f"{self.names[member.node]} = {value}")
                if member.node in self.writes and (last or not self.joined):
                    lines.append(f"{self.storage(member.node)}[0] = {self.names[member.node]}")
        return lines

    # ------------------------------------------------------------ rows

    def _row_stage(self, stage: int) -> list[str]:
        """Row values that are known after `stage` passes."""
        lines: list[str] = []
        structure = self.structure
        for member in structure.members:
            node = member.node
            if structure.stage[node] != stage:
                continue
            if structure.level[node] == Level.ROW:
                if member.kind == "map":
                    lines.append(f"{self.names[node]} = {self.value(member, self._operands(member, None), '0')}")
                elif member.kind == "pick":
                    lines += self._pick(member)
                if node in self.writes:
                    lines.append(f"{self.storage(node)}[{self._row_index()}] = {self.names[node]}")
            elif member.kind == "reduce" and member.size != structure.size:
                value = self._load(member.accesses[0], None)
                lines.append(self._add_to_result(member, value))
        return lines

    def _row_index(self) -> str:
        rows = self.structure.rows or 1
        return index_text((0, self.structure.strides(((rows, 1),) if rows > 1 else (), rows)))

    def _pick(self, member: Member) -> list[str]:
        (indices,) = member.accesses
        node, source = member.node, member.source
        assert source is not None
        place = f"w{self.names[node]}"
        extent = node.operands[0].shape[-1]
        lines = [f"{place} = {self.checked(node, self._load(indices, None), extent)}"]
        value = self._at_point(source, place, lines, {})
        return [*lines, f"{self.names[node]} = {value}"]

    def _at_point(self, access: Access, place: str, lines: list[str], known: dict[Any, str]) -> str:
        """The value of an access at one position of the row, computed again from what is in memory."""
        owner = access.owner
        if owner in self.members and self.structure.level[owner] != Level.FULL:
            return self.names[owner]
        strides = self.structure.strides(access.layout, access.size)
        if owner not in self.members and not strides[-1]:
            return self._load(access, None)
        key = (owner, access.offset, strides)
        if key in known:
            return known[key]
        if owner not in self.members or owner.op.name == "iota":
            base = self.base_of(access)
            index = index_text((access.offset - base, strides), {len(strides) - 1: place})
            value = self.element(owner, base, index)
        else:
            member = self.members[owner]
            operands = [self._at_point(operand, place, lines, known) for operand in member.accesses]
            if owner.op.name == "scatter_add_along_axis":
                operands[1] = self.checked(owner, operands[1], owner.shape[-1])
            value = self.value(member, operands, place)
        name = known[key] = f"q{self.temporaries}"
        self.temporaries += 1
        lines.append(f"{name} = {value}")
        return name

    # ------------------------------------------------------------ passes over a row

    def _pass(self, number: int) -> _Pass:
        scope = _Pass(number)
        structure = self.structure
        stores = []
        for member in structure.members:
            node = member.node
            wanted = structure.passes.get(node, ())
            if number not in wanted:
                continue
            if member.kind == "reduce":
                self._accumulate(member, scope)
                continue
            name = self.names[node]
            first = number == min(wanted)
            stored = self._stored(node, scope)
            if stored and not first:
                scope.body.append(f"{name} = {'(' + stored + ' != 0)' if node.dtype == BOOL else stored}")
                continue
            position = index_text((0, structure.strides(member.result, member.size))) if member.result else "0"
            scope.body.append(f"{name} = {self.value(member, self._operands(member, scope), position)}")
            if stored:
                stores.append(f"{stored} = {name}")
        scope.body += stores
        return scope

    def _stored(self, node: Node, scope: _Pass) -> str | None:
        """Where a value of each point is stored, if it is."""
        if node in self.writes:
            return f"{self.storage(node)}[{self._contiguous(scope)}]"
        if node in self.scratch:
            pointer = self._working(node, node.dtype)
            strides = self.structure.strides(((self.structure.size, 1),), self.structure.size)
            inner = (0,) * len(self.structure.outer) + strides[len(self.structure.outer) :]
            return f"{pointer}[{self._run((0, inner), scope)}]"
        return None

    def _accumulate(self, member: Member, scope: _Pass) -> None:
        """Add each point of the row to a reduction."""
        value = self._load(member.accesses[0], scope)
        structure, node = self.structure, member.node
        if node.op.name in ARGUMENTS:
            self._accumulate_position(member, value, scope)
            return
        strides = structure.strides(member.result, member.size)
        if structure.level[node] == Level.AFTER and strides[-1]:
            place = f"{self._sums(node)}[{self._run((0, strides), scope)}]"
            scope.body.append(f"{place} = {step(node, stored_value(place, node), value, wide=node in self.wide)}")
            return
        if structure.level[node] == Level.ROW and len(structure.inner) == 1 and structure.inner[0] <= CHUNK:
            name = self.names[node]
            scope.start.append(f"{name} = {first_value(node)}")
            scope.body.append(f"{name} = {step(node, name, value, reorder=True)}")
            return
        register = f"c{self.names[node][1:]}"
        scope.start.append(f"{register} = {first_value(node)}")
        scope.body.append(f"{register} = {step(node, register, value, reorder=True)}")
        scope.sums |= node.op.name == "sum" and node.dtype.kind == "f"
        if structure.level[node] == Level.AFTER:
            scope.end.append(self._add_to_result(member, register))
            return
        total = f"u{self.names[node][1:]}"
        scope.totals.append(f"{total} = {first_value(node, wide=True)}")
        scope.end.append(f"{total} = {step(node, total, register, wide=True)}")
        scope.results.append(f"{self.names[node]} = {narrowed(node, total)}")

    def _accumulate_position(self, member: Member, value: str, scope: _Pass) -> None:
        node = member.node
        name = self.names[node]
        best = f"c{name[1:]}"
        if member.accesses[0].owner not in self.members and len(self.structure.inner) == 1:
            self._find_extreme(member, value, best, scope)
            return
        outer = len(self.structure.outer)
        strides = self.structure.strides(((self.structure.size, 1),), self.structure.size)
        position = index_text((0, (0,) * outer + strides[outer:]))
        sign = ">" if node.op.name == "argmax" else "<"
        floating = node.operands[0].dtype.kind == "f"
        better = f"({value} {sign} {best})" + (f" | (({value} != {value}) & ({best} == {best}))" if floating else "")
        scope.totals += [f"{best} = {least_value(node.op.name, node.operands[0].dtype)}", f"{name} = int64(0)"]
        scope.body += [
            f"b{name} = bool({better})",
            f"{name} = select(b{name}, int64({position}), {name})",
            f"{best} = select(b{name}, {value}, {best})",
        ]

    def _find_extreme(self, member: Member, value: str, best: str, scope: _Pass) -> None:
        """Find the extreme of a row in memory, then the first place where it stands: both loops are vectorised."""
        node, (access,) = member.node, member.accesses
        dtype, name, extent = access.owner.dtype, self.names[member.node], self.structure.inner[0]
        better = "larger" if node.op.name == "argmax" else "smaller"
        scope.totals.append(f"{best} = {least_value(node.op.name, dtype)}")
        scope.body.append(f"{best} = {better}({best}, {value})")
        base = self.base_of(access)
        pattern = (access.offset - base, self.structure.strides(access.layout, access.size))
        counter = f"i{len(self.axes) - 1}"
        element = self.element(access.owner, base, index_text(pattern))
        scope.results += [
            f"{name} = int64({extent})",
            f"for {counter} in range({extent}):",
            f"    b{name} = {element}",
            f"    found{name} = (b{name} == {best}) | (b{name} != b{name})",
            f"    {name} = smaller({name}, select(found{name}, int64({counter}), int64({extent})))",
        ]

    def _add_to_result(self, member: Member, value: str) -> str:
        """Add a finished part to a result that is whole only after the loops."""
        node = member.node
        if node.size == 1:
            total = f"u{self.names[node][1:]}"
            return f"{total} = {step(node, total, value, wide=True)}"
        place = f"{self._sums(node)}[{index_text((0, self.structure.strides(member.result, member.size)))}]"
        return f"{place} = {step(node, stored_value(place, node), value, wide=node in self.wide)}"

    def _sums(self, node: Node) -> str:
        """The pointer to where several results are added up: their own storage, or working memory."""
        if node in self.wide:
            return self._working(node, FLOAT64)
        return self._working(node, node.dtype) if self.joined else self.storage(node)

    def _accumulators(self) -> tuple[list[str], list[str]]:
        """What stands before all loops and after them for results that the loops add up."""
        initial, after = [], []
        for member in self.structure.members:
            node = member.node
            if self.structure.level[node] != Level.AFTER:
                continue
            name = self.names[node]
            if member.kind == "map":
                if not self.joined:
                    after.append(f"{name} = {self.value(member, self._operands(member, None), '0')}")
            elif node.size == 1:
                initial.append(f"u{name[1:]} = {first_value(node, wide=True)}")
                if self.joined:
                    part = self._working(node, accumulator_dtype(node, wide=True))
                    after.append(f"{part}[0] = u{name[1:]}")
                else:
                    after.append(f"{name} = {narrowed(node, f'u{name[1:]}')}")
            else:
                first = first_value(node, wide=node in self.wide)
                initial += [f"for i in range({node.size}):", f"    {self._sums(node)}[i] = {first}"]
                if node in self.wide and not self.joined:
                    value = narrowed(node, f"{self._sums(node)}[i]")
                    after += [f"for i in range({node.size}):", f"    {self.storage(node)}[i] = {value}"]
                continue
            if node in self.writes and not self.joined:
                after.append(f"{self.storage(node)}[0] = {name}")
        return initial, after

    def _inner_loops(self, scope: _Pass) -> list[str]:
        if not scope.body:
            return []
        outer = len(self.structure.outer)
        last = len(self.axes) - 1
        lines = list(scope.totals)
        indent = ""
        for axis in range(outer, last):
            lines.append(f"{indent}for i{axis} in range({self.axes[axis]}):")
            indent += "    "
            lines += [indent + line for line in scope.loads.get(axis + 1, ())]
        lines += [f"{indent}{name} = {value}" for name, value in scope.bases.items()]
        extent = self.axes[last]
        begin, end = ("begin", "end") if self.any_length and last == 0 else ("0", str(extent))
        if scope.sums and extent > CHUNK:
            lines.append(f"{indent}for start in range({begin}, {end}, {CHUNK}):")
            indent += "    "
            counters = f"range(start, min(start + {CHUNK}, {end}))"
        else:
            counters = f"range({begin}, {end})" if begin == "begin" else f"range({end})"
        lines += [indent + line for line in scope.start]
        lines.append(f"{indent}for i{last} in {counters}:")
        lines += [f"{indent}    {line}" for line in scope.body]
        lines += [indent + line for line in scope.end]
        return lines + scope.results
