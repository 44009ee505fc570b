"""Where each stored value lives, and from when to when: lifetimes on storage, counted in groups.

Time is the position of a group in the order of execution, and a lifetime is half-open: `[lower, upper)` from the
group that writes the value to the one after its last reader. Views own nothing, so a lifetime belongs to the owner
of the storage. After the last group, at time `len(groups)`, the copies run that fill what no group could write
directly; a value that they read lives up to `len(groups) + 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from staticgrad.graph.errors import GraphError
from staticgrad.graph.group import Group
from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.ops.indexing import checked_index

Space = Literal["arena", "input", "output", "constant"]


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of slots."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Place:
    """Where bytes are: a space, which of its arrays (0 in the arena), and the offset in bytes from its start."""

    space: Space
    index: int
    offset: int


@dataclass(eq=False)
class Buffer:
    """A stretch of the arena that is not placed yet: live in `[lower, upper)`, held by `nodes` one after the other.

    A buffer without nodes is working memory: of one group, or of the copies at the end.
    """

    nbytes: int
    lower: int
    upper: int
    nodes: list[Node] = field(default_factory=list)


Home = Buffer | Place


@dataclass(frozen=True)
class Storage:
    """A home for every owner, before the arena is laid out.

    Attributes:
        homes: for each owner its buffer in the arena, or its place in an array of the caller.
        buffers: all buffers, in the order of their first moment.
        scratch: the buffer of each group that asks for working memory.
        constants: the constants that are stored; a place in the space "constant" counts in this order.
        copies: what is copied after the last group, in order: from, to, bytes.
    """

    homes: dict[Node, Home]
    buffers: list[Buffer]
    scratch: dict[Group, Buffer]
    constants: tuple[Node, ...]
    copies: list[tuple[Home, Home, int]]


@dataclass(frozen=True)
class Uses:
    """For each owner when it is written and when it is last read, -1 for never."""

    written: dict[Node, int]
    last_read: dict[Node, int]

    def upper(self, node: Node) -> int:
        """The end of the node's lifetime as far as groups need it; a value that nobody reads lives in its group."""
        return max(self.written[node], self.last_read.get(node, -1)) + 1


def lifetimes(graph: Graph, groups: Sequence[Group]) -> dict[Node, tuple[int, int]]:
    """The lifetime `[lower, upper)` of every owner; inputs, constants and results are pinned to the end.

    Raises:
        GraphError: a value is read before it is written, written twice, or a result is never stored.
    """
    uses = find_uses(graph, groups)
    end = len(groups) + 1
    pinned = set(graph.results)
    found = dict.fromkeys((*graph.inputs, *_constants(graph, uses)), (0, end))
    for node, lower in uses.written.items():
        found[node] = (lower, end if node in pinned else uses.upper(node))
    return found


def find_uses(graph: Graph, groups: Sequence[Group]) -> Uses:
    """When each owner is written and last read; raises GraphError where `groups` break the order of the graph."""
    written: dict[Node, int] = {}
    last_read: dict[Node, int] = {}
    inputs = set(graph.inputs)
    for position, group in enumerate(groups):
        for node in group.reads:
            if node not in written and node not in inputs and not is_constant(node):
                raise GraphError(
                    f"plan: a group must read what is stored before it runs; group {position} reads {node!r}"
                )
            last_read[node] = position
        for node in group.writes:
            if node in written or node in inputs:
                raise GraphError(f"plan: a value must be written by one group only; {node!r} is written twice")
            written[node] = position
    for node in graph.results:
        if node not in written and node not in inputs and not is_constant(node):
            raise GraphError(f"plan: a result must be an input, a constant, or written by a group; {node!r} is not")
    return Uses(written, last_read)


def is_constant(node: Node) -> bool:
    """Whether the node's bytes are part of the program."""
    return node.op.name == "constant"


def _constants(graph: Graph, uses: Uses) -> tuple[Node, ...]:
    """The constants that are read or returned, each once, in the order they are met."""
    met = dict.fromkeys((*uses.last_read, *graph.results))
    return tuple(node for node in met if is_constant(node))


# ---------------------------------------------------------------- homes


def assign_storage(graph: Graph, groups: Sequence[Group], *, reuse: bool = True) -> Storage:
    """Give every owner a home: caller's arrays where the value can be written directly, else buffers of the arena.

    With `reuse`, a written value takes over the buffer of a value that its group reads last, where the group allows
    it, and the new value of a state is written over the old one where nobody reads the old one later. Without it,
    every value has a buffer of its own that stays readable to the end, and state is copied at the end.
    """
    uses = find_uses(graph, groups)
    constants = _constants(graph, uses)
    homes: dict[Node, Home] = {node: Place("input", index, 0) for index, node in enumerate(graph.inputs)}
    homes |= {node: Place("constant", index, 0) for index, node in enumerate(constants)}
    for index, node in enumerate(graph.outputs):
        homes.setdefault(node, Place("output", index, 0))
    if reuse:
        homes |= direct_updates(graph, groups, uses)
    moves = _moves(graph, homes)
    kept = {source for source, _ in moves}
    buffers, scratch = _fill_buffers(groups, uses, homes, kept, reuse)
    copies = _in_sequence([(homes[source], target, source.nbytes) for source, target in moves], buffers, len(groups))
    return Storage(homes, buffers, scratch, constants, copies)


def direct_updates(graph: Graph, groups: Sequence[Group], uses: Uses) -> dict[Node, Place]:
    """The update values that can be written straight into the array of their state, with the place of each.

    Nobody may need the old content from then on: no later group, no copy at the end (an output or another state that
    takes the old content), and the writing group itself only element by element. No later group may fail either: a
    step that finds an index out of range leaves all state as it was.
    """
    safe = last_check(groups)
    index_of = {leaf: index for index, leaf in enumerate(graph.inputs)}
    found: dict[Node, Place] = {}
    for leaf, value in replaceable_states(graph, uses):
        position = uses.written[value]
        last = uses.last_read.get(leaf, -1)
        in_turn = last < position or (last == position and (value, leaf) in groups[position].in_place)
        if in_turn and position > safe and value not in found:
            found[value] = Place("input", index_of[leaf], 0)
    return found


def first_checks(groups: Sequence[Group]) -> list[int]:
    """The positions of the groups that are the first to check some indices against some extent."""
    seen: set[tuple[Node, int, str]] = set()
    found = []
    for position, group in enumerate(groups):
        checked = {check for node in group.nodes if (check := checked_index(node)) is not None}
        if not checked <= seen:
            found.append(position)
            seen |= checked
    return found


def last_check(groups: Sequence[Group]) -> int:
    """The position of the last group that can fail, -1 if none can."""
    return max(first_checks(groups), default=-1)


def replaceable_states(graph: Graph, uses: Uses) -> list[tuple[Node, Node]]:
    """The updates `(leaf, value)` that some order of the groups might allow to write directly.

    Not those whose value an output holds already, and not those whose old content is an output or the new content
    of another state.
    """
    outputs = set(graph.outputs)
    kept = outputs | {value for leaf, value in graph.updates if value is not leaf}
    return [
        (leaf, value)
        for leaf, value in graph.updates
        if value in uses.written and value not in outputs and leaf not in kept
    ]


def _moves(graph: Graph, homes: dict[Node, Home]) -> list[tuple[Node, Place]]:
    """What the end still has to fill: the node and the place that must hold its value."""
    index_of = {leaf: index for index, leaf in enumerate(graph.inputs)}
    targets = [(node, Place("output", index, 0)) for index, node in enumerate(graph.outputs)]
    targets += [(value, Place("input", index_of[leaf], 0)) for leaf, value in graph.updates]
    return [(node, place) for node, place in targets if homes.get(node) != place]


def _fill_buffers(
    groups: Sequence[Group], uses: Uses, homes: dict[Node, Home], kept: set[Node], reuse: bool
) -> tuple[list[Buffer], dict[Group, Buffer]]:
    """Buffers for all that has no home yet; fills in `homes`."""
    end = len(groups) + 1
    buffers: list[Buffer] = []
    scratch: dict[Group, Buffer] = {}
    for position, group in enumerate(groups):
        for node in group.writes:
            if node in homes:
                continue
            upper = uses.upper(node) if reuse and node not in kept else end
            buffer = _taken_over(group, node, position, homes) if reuse else None
            if buffer is None:
                buffer = Buffer(node.nbytes, position, upper)
                buffers.append(buffer)
            buffer.upper = upper
            buffer.nodes.append(node)
            homes[node] = buffer
        if group.scratch_bytes:
            scratch[group] = Buffer(group.scratch_bytes, position, position + 1 if reuse else end)
            buffers.append(scratch[group])
    return buffers, scratch


def _taken_over(group: Group, written: Node, position: int, homes: dict[Node, Home]) -> Buffer | None:
    """The buffer of a value that dies in this group and whose bytes `written` may take, if there is one."""
    for target, read in group.in_place:
        if target is not written or read.nbytes != written.nbytes:
            continue
        home = homes.get(read)
        if isinstance(home, Buffer) and home.upper == position + 1 and home.nodes[-1] is read:
            return home
    return None


# ---------------------------------------------------------------- copies at the end


def _in_sequence(moves: list[tuple[Home, Home, int]], buffers: list[Buffer], time: int) -> list[tuple[Home, Home, int]]:
    """Order moves that are meant to happen at once, so that no source is overwritten before it is read.

    A move waits for those that read its target. What waits for itself is a cycle (two states that trade places):
    one of its targets is first saved in a buffer of its own, which is added to `buffers`.
    """
    into = {target: (source, target, nbytes) for source, target, nbytes in moves}
    waiting = dict.fromkeys(into, 0)
    for source, _, _ in moves:
        if source in waiting:
            waiting[source] += 1
    ready = [target for target, count in waiting.items() if count == 0]
    sequence: list[tuple[Home, Home, int]] = []
    while into:
        while ready:
            source, target, nbytes = into.pop(ready.pop())
            sequence.append((source, target, nbytes))
            if source in into:
                waiting[source] -= 1
                if waiting[source] == 0:
                    ready.append(source)
        if into:
            saved, (_, _, nbytes) = next(iter(into.items()))
            spare = Buffer(nbytes, time, time + 1)
            buffers.append(spare)
            sequence.append((saved, spare, nbytes))
            reader = next(target for target, move in into.items() if move[0] == saved)
            into[reader] = (spare, reader, nbytes)
            ready.append(saved)
    return sequence
