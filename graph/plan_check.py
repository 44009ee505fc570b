"""A checker of plans that shares nothing with the planner: it replays a plan on memory that remembers who wrote it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from typing import NoReturn

from staticgrad.graph.errors import GraphError
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import Place
from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.plan import Plan

__all__ = ["check_plan"]

_Content = Hashable  # a node, or None for bytes that mean nothing


def check_plan(graph: Graph, plan: Plan) -> None:
    """Run the plan without computing anything and check every byte that is read.

    Checked: each group reads all that it needs, and finds it whole, where the plan says it is; what a group writes
    lies apart from what it reads, from its working memory and from what it writes besides, except for pairs that may
    share; what `frees` names is dead, and all that dies is named; the caller's arrays hold the right values at the
    end, and no other array was touched; offsets are aligned and inside the arena; the totals agree.

    Raises:
        GraphError: at the first fault, naming the group and the value.
    """
    _Replay(graph, plan).run()


class _Memory:
    """One array as disjoint ranges, each with its content."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ranges: dict[int, tuple[int, _Content]] = {}  # start -> (end, content)

    def _first(self, start: int) -> int:
        """The position of the first range that ends after `start`."""
        position = bisect_left(self.starts, start + 1)
        if position and self.ranges[self.starts[position - 1]][0] > start:
            position -= 1
        return position

    def found(self, start: int, end: int) -> list[tuple[int, int, _Content]]:
        """The ranges `(start, end, content)` that share bytes with `[start, end)`."""
        met = []
        for position in range(self._first(start), len(self.starts)):
            begin = self.starts[position]
            if begin >= end:
                break
            met.append((begin, *self.ranges[begin]))
        return met

    def write(self, start: int, end: int, content: _Content) -> None:
        """Fill `[start, end)`; what is overwritten in part is no value any more."""
        if start >= end:
            return
        met = self.found(start, end)
        position = self._first(start)
        del self.starts[position : position + len(met)]
        for begin, _, _ in met:
            del self.ranges[begin]
        pieces: list[tuple[int, int, _Content]] = [(start, end, content)]
        if met and met[0][0] < start:
            pieces.insert(0, (met[0][0], start, None))
        if met and met[-1][1] > end:
            pieces.append((end, met[-1][1], None))
        self.starts[position:position] = [begin for begin, _, _ in pieces]
        for begin, stop, what in pieces:
            self.ranges[begin] = (stop, what)

    def holds(self, start: int, end: int, content: _Content) -> bool:
        return start >= end or self.ranges.get(start) == (end, content)


class _Replay:
    """The state of a replay: what every array holds, and the group at work."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph = graph
        self.plan = plan
        self.arrays: dict[tuple[str, int], _Memory] = {}
        self.sizes = {("arena", 0): plan.peak_bytes}
        self.at = "the start"
        for space, nodes in (("input", graph.inputs), ("constant", plan.constants), ("output", graph.outputs)):
            for index, node in enumerate(nodes):
                self.sizes[space, index] = node.nbytes
        for node in (*graph.inputs, *plan.constants):
            self._write(node, plan.places[node])
        for index, node in enumerate(graph.inputs):
            if plan.places[node] != Place("input", index, 0):
                self._fail(f"{node!r} is an input and must stay in its array; it is at {plan.places[node]}")
        self.last_use = self._last_uses()

    def run(self) -> None:
        plan = self.plan
        if len(plan.frees) != len(plan.groups):
            self._fail(f"frees needs one entry for each of {len(plan.groups)} groups; it has {len(plan.frees)}")
        for position, group in enumerate(plan.groups):
            self.at = f"group {position} ({', '.join(node.op.name for node in group.nodes)})"
            self._run_group(group)
            self._free(position, group)
        self._copy()
        self._check_results()
        self._check_totals()

    def _fail(self, what: str) -> NoReturn:
        raise GraphError(f"plan: {what}; found at {self.at}")

    # ------------------------------------------------ memory

    def _range(self, place: Place, nbytes: int) -> tuple[_Memory, int, int]:
        """The bytes of a place, which must lie inside its array."""
        key = (place.space, place.index)
        if key not in self.sizes or place.offset < 0 or place.offset + nbytes > self.sizes[key]:
            self._fail(f"{nbytes} bytes at {place} are outside the array")
        if place.space == "arena" and place.offset % ALIGNMENT:
            self._fail(f"offsets in the arena must be multiples of {ALIGNMENT}; got {place.offset}")
        return self.arrays.setdefault(key, _Memory()), place.offset, place.offset + nbytes

    def _place(self, node: Node) -> Place:
        place = self.plan.places.get(node)
        if place is None:
            self._fail(f"{node!r} has no place")
        return place

    def _read(self, node: Node) -> None:
        memory, start, end = self._range(self._place(node), node.nbytes)
        if not memory.holds(start, end, node):
            self._fail(f"{node!r} is read at {self._place(node)}, where there is {memory.found(start, end)}")

    def _write(self, content: _Content, place: Place, nbytes: int | None = None) -> None:
        size = content.nbytes if isinstance(content, Node) else nbytes or 0
        memory, start, end = self._range(place, size)
        memory.write(start, end, content)

    # ------------------------------------------------ groups

    def _run_group(self, group: Group) -> None:
        available = {*group.nodes, *group.reads}
        for node in group.nodes:
            for operand in node.operands:
                if not _reaches(operand, available):
                    self._fail(f"{node!r} needs {operand!r}, which the group neither reads nor computes")
        for node in group.reads:
            self._read(node)
        self._check_apart(group)
        if group.scratch_bytes:
            self._write(None, self.plan.scratch[group], group.scratch_bytes)
        for node in group.writes:
            place = self._place(node)
            if place.space == "constant" or (place.space == "input" and node not in self._updates_of(place.index)):
                self._fail(f"{node!r} must not be written to {place}")
            self._write(node, place)

    def _updates_of(self, index: int) -> tuple[Node, ...]:
        leaf = self.graph.inputs[index]
        return tuple(value for state, value in self.graph.updates if state is leaf)

    def _check_apart(self, group: Group) -> None:
        """What is written shares no bytes with other values or working memory of the group, but for allowed pairs."""
        parts: list[tuple[tuple[str, int], int, int, Node | None, bool]] = []  # array, start, end, node, written
        for node in dict.fromkeys((*group.reads, *group.writes)):
            place = self._place(node)
            parts.append(_part(place, node.nbytes, node, node in group.writes))
        if group.scratch_bytes:
            if group not in self.plan.scratch:
                self._fail("the group's working memory has no place")
            place = self.plan.scratch[group]
            self._range(place, group.scratch_bytes)
            parts.append(_part(place, group.scratch_bytes, None, True))
        parts.sort(key=lambda part: part[:3])
        for index, first in enumerate(parts):
            for second in parts[index + 1 :]:
                if second[0] != first[0] or second[1] >= first[2]:
                    break
                if (first[4] or second[4]) and second[1] < second[2] and not _may_share(group, first, second):
                    self._fail(f"{first[3] or 'working memory'!r} and {second[3] or 'working memory'!r} share bytes")

    def _last_uses(self) -> dict[Node, int]:
        """The last group that reads or writes a value; the number of groups for what the end needs."""
        found: dict[Node, int] = {}
        for position, group in enumerate(self.plan.groups):
            found.update(dict.fromkeys((*group.reads, *group.writes), position))
        found.update(dict.fromkeys(self.graph.results, len(self.plan.groups)))
        return found

    def _free(self, position: int, group: Group) -> None:
        """Turn what the plan frees into nothing; nothing else may be left of what died."""
        ranges = self.plan.frees[position]
        if not self.plan.reuse:
            if ranges:
                self._fail("a plan without reuse must free nothing")
            return
        for offset, nbytes in ranges:
            memory, start, end = self._range(Place("arena", 0, offset), nbytes)
            for _, _, content in memory.found(start, end):
                if isinstance(content, Node) and self.last_use[content] > position:
                    self._fail(f"{content!r} is freed while it is still needed")
            memory.write(start, end, _FREED)
        dead = [(self._place(node), node.nbytes, node) for node in (*group.reads, *group.writes)]
        for place, nbytes, node in dead:
            if place.space == "arena" and nbytes and self.last_use[node] == position:
                memory, start, end = self._range(place, nbytes)
                if memory.holds(start, end, node):
                    self._fail(f"{node!r} dies and is not freed")
        if group.scratch_bytes:
            memory, start, end = self._range(self.plan.scratch[group], group.scratch_bytes)
            if any(content is None for _, _, content in memory.found(start, end)):
                self._fail("working memory is not freed")

    # ------------------------------------------------ the end

    def _copy(self) -> None:
        self.at = "the copies at the end"
        for source, target, nbytes in self.plan.copies:
            memory, start, end = self._range(source, nbytes)
            met = memory.found(start, end)
            if nbytes and (len(met) != 1 or met[0][:2] != (start, end)):
                self._fail(f"{nbytes} bytes at {source} are not one value")
            if target.space == "constant":
                self._fail(f"a constant must not be overwritten; {target}")
            if nbytes:
                self._write(met[0][2], target)

    def _check_results(self) -> None:
        self.at = "the end"
        wanted: list[tuple[str, int, Node]] = [("output", index, node) for index, node in enumerate(self.graph.outputs)]
        new = dict(self.graph.updates)
        wanted += [("input", index, new.get(leaf, leaf)) for index, leaf in enumerate(self.graph.inputs)]
        wanted += [("constant", index, node) for index, node in enumerate(self.plan.constants)]
        for space, index, node in wanted:
            memory = self.arrays.setdefault((space, index), _Memory())
            if not memory.holds(0, node.nbytes, node):
                self._fail(f"{space} {index} must hold {node!r}; it holds {memory.found(0, node.nbytes)}")
        if not self.plan.reuse:
            for node in self.last_use:
                if self._place(node).space != "input":
                    self._read(node)

    def _check_totals(self) -> None:
        plan = self.plan
        if not plan.lower_bound_bytes <= plan.peak_bytes <= plan.naive_bytes:
            self._fail(
                "lower bound, peak and naive sum must not fall; "
                f"got {plan.lower_bound_bytes}, {plan.peak_bytes}, {plan.naive_bytes}"
            )
        load = _largest_load(plan)
        if load != plan.lower_bound_bytes:
            self._fail(f"at most {load} bytes are live together; the plan says {plan.lower_bound_bytes}")


_FREED = "freed"

_Part = tuple[tuple[str, int], int, int, Node | None, bool]


def _reaches(node: Node, available: set[Node]) -> bool:
    """Whether a kernel has the node's elements: through views, or because they are known without memory."""
    while node not in available and node.op.kind == "view":
        node = node.operands[0]
    return node in available or node.op.name == "iota" or (node.op.name == "constant" and node.size == 1)


def _part(place: Place, nbytes: int, node: Node | None, written: bool) -> _Part:
    return (place.space, place.index), place.offset, place.offset + nbytes, node, written


def _may_share(group: Group, first: _Part, second: _Part) -> bool:
    """Whether the two are a pair of `in_place`, on exactly the same bytes."""
    pairs: Sequence[tuple[Node | None, Node | None]] = ((first[3], second[3]), (second[3], first[3]))
    return first[:3] == second[:3] and any(pair in group.in_place for pair in pairs)


def _largest_load(plan: Plan) -> int:
    """The largest sum of aligned slots over all moments, counted moment by moment."""
    change = [0] * (len(plan.groups) + 2)
    for slot in plan.slots:
        nbytes = -(-slot.nbytes // ALIGNMENT) * ALIGNMENT
        change[slot.lower] += nbytes
        change[slot.upper] -= nbytes
    load = largest = 0
    for step in change:
        load += step
        largest = max(largest, load)
    return largest
