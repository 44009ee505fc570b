"""The plan: a place for every stored value, made before anything runs.

Outputs are written straight into the caller's arrays and new values of state straight over the old ones, where that
is safe; everything else shares one arena, laid out by `plan_offsets` from lifetimes on storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import Buffer, Home, Place, Storage, aligned, assign_storage
from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.offsets import lower_bound, plan_offsets

__all__ = ["ALIGNMENT", "Place", "Plan", "Slot", "describe_group", "format_memory", "make_plan"]


@dataclass(frozen=True)
class Slot:
    """Bytes `[offset, offset + nbytes)` of the arena, taken during the groups `lower <= position < upper`.

    `nodes` are the values that hold it one after the other, each written over the one before. A slot without nodes
    is working memory of the group at `lower`, or of the copies at the end.
    """

    offset: int
    nbytes: int
    lower: int
    upper: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Plan:
    """Where everything is while a program runs.

    Attributes:
        groups: the groups in the order of execution.
        places: for every owner of storage its place. The new value of a state has the place of the state itself
            when it is written directly.
        scratch: the place of a group's working memory.
        copies: `(from, to, bytes)` after the last group, in this order.
        slots: the arena, by first moment.
        constants: the stored constants; places in the space "constant" count in this order.
        peak_bytes: the size of the arena.
        lower_bound_bytes: the largest number of bytes live at any one time, in this order of groups.
        naive_bytes: the arena if no two values shared a byte.
        frees: for each group the ranges `(offset, bytes)` of the arena that nobody needs once it has run.
        reuse: False if every value keeps its bytes to the end.
    """

    groups: tuple[Group, ...]
    places: Mapping[Node, Place]
    scratch: Mapping[Group, Place]
    copies: tuple[tuple[Place, Place, int], ...]
    slots: tuple[Slot, ...]
    constants: tuple[Node, ...]
    peak_bytes: int
    lower_bound_bytes: int
    naive_bytes: int
    frees: tuple[tuple[tuple[int, int], ...], ...]
    reuse: bool = True

    @cached_property
    def order(self) -> tuple[str, ...]:
        """What runs, in order, one name for each group."""
        return tuple(describe_group(group) for group in self.groups)


def make_plan(graph: Graph, groups: Sequence[Group], *, reuse: bool = True) -> Plan:
    """Place every value that `groups`, run in the given order, store.

    Args:
        graph: whose results are wanted.
        groups: in an order in which they can run; `schedule.order` finds one that needs little memory.
        reuse: False gives every value bytes of its own that stay readable after the run, and copies state at the end.

    Raises:
        GraphError: a value is read before it is written, written twice, or a result is never stored.
    """
    storage = assign_storage(graph, groups, reuse=reuse)
    offsets = _lay_out(storage.buffers, reuse)

    def place(home: Home) -> Place:
        return Place("arena", 0, offsets[home]) if isinstance(home, Buffer) else home

    slots = _slots(storage.buffers, offsets)
    intervals = [(slot.lower, slot.upper, slot.nbytes) for slot in slots]
    return Plan(
        groups=tuple(groups),
        places={node: place(home) for node, home in storage.homes.items()},
        scratch={group: place(buffer) for group, buffer in storage.scratch.items()},
        copies=tuple((place(source), place(target), nbytes) for source, target, nbytes in storage.copies),
        slots=slots,
        constants=storage.constants,
        peak_bytes=max((slot.offset + aligned(slot.nbytes) for slot in slots), default=0),
        lower_bound_bytes=lower_bound(intervals, alignment=ALIGNMENT),
        naive_bytes=_naive(storage),
        frees=_frees(slots, len(groups)) if reuse else ((),) * len(groups),
        reuse=reuse,
    )


def _naive(storage: Storage) -> int:
    """The bytes of all that groups write, but for what outputs hold, and of all working memory."""
    written = (
        node.nbytes
        for node, home in storage.homes.items()
        if node.op.kind != "leaf" and (isinstance(home, Buffer) or home.space != "output")
    )
    working = (buffer.nbytes for buffer in storage.buffers if not buffer.nodes)
    return sum(map(aligned, written)) + sum(map(aligned, working))


def _lay_out(buffers: Sequence[Buffer], reuse: bool) -> dict[Buffer, int]:
    """The offset of each buffer."""
    if reuse:
        intervals = [(buffer.lower, buffer.upper, buffer.nbytes) for buffer in buffers]
        return dict(zip(buffers, plan_offsets(intervals, alignment=ALIGNMENT), strict=True))
    offsets: dict[Buffer, int] = {}
    end = 0
    for buffer in buffers:
        offsets[buffer] = end
        end += aligned(buffer.nbytes)
    return offsets


def _slots(buffers: Sequence[Buffer], offsets: Mapping[Buffer, int]) -> tuple[Slot, ...]:
    return tuple(
        Slot(offsets[buffer], buffer.nbytes, buffer.lower, buffer.upper, tuple(buffer.nodes))
        for buffer in buffers
        if buffer.nbytes
    )


def _frees(slots: Sequence[Slot], count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The slots that end with each group; those that the copies at the end read never do."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for slot in slots:
        if slot.upper <= count:
            found[slot.upper - 1].append((slot.offset, slot.nbytes))
    return tuple(tuple(sorted(ranges)) for ranges in found)


# ---------------------------------------------------------------- as text

_NAMED_OPS = 4  # ops of a fused group that its description lists


def describe_group(group: Group) -> str:
    """The ops of a group that do work, under the scope of the value it stores: `Linear/matmul`, `add+tanh`."""
    names = [node.op.name for node in group.nodes if node.op.kind not in ("view", "leaf")]
    names = names or [node.op.name for node in group.nodes]
    text = "+".join(names[:_NAMED_OPS])
    if len(names) > _NAMED_OPS:
        text += f"+{len(names) - _NAMED_OPS} more"
    scope = group.writes[-1].scope if group.writes else ""
    return f"{scope}/{text}" if scope else text


def format_memory(plan: Plan) -> str:
    """The plan's memory as a table: the totals, then each slot with its bytes, its lifetime and who shares it."""
    lines = [
        f"peak         {_readable(plan.peak_bytes):>12}",
        f"lower bound  {_readable(plan.lower_bound_bytes):>12}  {_ratio(plan.peak_bytes, plan.lower_bound_bytes)}",
        f"naive        {_readable(plan.naive_bytes):>12}  {_ratio(plan.naive_bytes, plan.peak_bytes)}",
        "",
        f"{'offset':>12} {'bytes':>12} {'groups':>13}  values",
    ]
    for slot in sorted(plan.slots, key=lambda slot: (slot.offset, slot.lower)):
        shown = [_describe_node(node) for node in slot.nodes] or [_describe_working(slot, plan)]
        span = f"[{slot.lower}, {slot.upper})"
        lines.append(f"{slot.offset:>12,} {slot.nbytes:>12,} {span:>13}  {shown[0]}")
        lines += [f"{'':>39}  then {text}" for text in shown[1:]]
    return "\n".join(lines)


def _describe_node(node: Node) -> str:
    name = f"{node.scope}/{node.op.name}" if node.scope else node.op.name
    return f"{name} {node.spec} at {node.location}"


def _describe_working(slot: Slot, plan: Plan) -> str:
    if slot.lower == len(plan.groups):
        return "working memory of the copies at the end"
    return f"working memory of {describe_group(plan.groups[slot.lower])}"


def _readable(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _ratio(larger: int, smaller: int) -> str:
    return f"({larger / smaller:.3f}x)" if smaller else ""
