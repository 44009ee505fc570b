"""What a compiled function says of itself: why it was compiled, what its kernels cost, where its time goes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from staticgrad.capture import Argument, GradState, HostScalar, State
from staticgrad.graph.group import Group
from staticgrad.graph.location import UNKNOWN, Location
from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.graph.plan import describe_group
from staticgrad.graph.structure import COSTS
from staticgrad.graph.timeline import described
from staticgrad.graph.views import Strided, own_storage
from staticgrad.specialize import Captured, Specialization
from staticgrad.table import aligned, count, duration, size
from staticgrad.tensor import Array

# ---------------------------------------------------------------- explain

_LISTED = 12  # inputs or guards of one kind that are listed by name


def explain(name: str, history: Sequence[tuple[str, Specialization]]) -> str:
    """Why each specialisation was compiled, how often it ran, what it depends on and what it runs.

    Args:
        name: of the compiled function.
        history: the reason and the result of each compilation, in order.
    """
    if not history:
        return f"{name}: not compiled yet; it is captured and compiled at its first call"
    plural = "" if len(history) == 1 else "s"
    lines = [f"{name}: {len(history)} specialisation{plural}"]
    for number, (reason, specialization) in enumerate(history, 1):
        lines += ["", f"{number}. compiled because: {reason}"]
        lines += [f"   {line}" for line in _facts(specialization)]
    return "\n".join(lines)


def _facts(specialization: Specialization) -> Iterator[str]:
    captured, program = specialization.captured, specialization.program
    products = sum(node.op.name == "matmul" for node in captured.graph.nodes)
    yield f"calls      {specialization.calls}"
    yield f"program    {'loaded from the disk cache' if program.from_cache else 'compiled in this process'}"
    yield f"stages     {described(specialization.timeline)}"
    yield (
        f"runs       {len(program.calls)} kernels ({len(set(program.calls))} distinct), {products} of them with matrix "
        f"products, for {len(captured.graph.nodes)} nodes"
    )
    yield f"arena      {size(program.arena_bytes)}"
    inputs = list(zip(captured.graph.inputs, captured.bindings, strict=True))
    used = set(captured.graph.nodes)
    arguments = [_argument(node, node in used) for node, binding in inputs if isinstance(binding, Argument)]
    yield from _listed("arguments", arguments)
    state = [
        f"{binding.name} {node.spec}{', updated' if specialization.writes(i) else ''}"
        for i, (node, binding) in enumerate(inputs)
        if isinstance(binding, State | GradState)
    ]
    yield from _listed("state", state)
    yield from _listed("numbers", [f"{b.key} (read at each call)" for _, b in inputs if isinstance(b, HostScalar)])
    yield from _listed("guards", [f"{guard.what} is {guard.value!r}" for guard in captured.guards])
    yield from _listed("gradients", _gradients(captured))


def _argument(node: Node, used: bool) -> str:
    return f"{node.attributes['name']} {node.spec}{'' if used else ', not used'}"


def _gradients(captured: Captured) -> list[str]:
    cleared = sum(gradient.output is None for gradient in captured.gradients)
    filled = len(captured.gradients) - cleared
    found = [f"{filled} set at each call"] if filled else []
    return [*found, *([f"{cleared} cleared at each call"] if cleared else [])]


def _listed(title: str, items: Sequence[str]) -> Iterator[str]:
    shown = list(items[:_LISTED])
    if len(items) > _LISTED:
        shown.append(f"and {len(items) - _LISTED} more")
    for i, item in enumerate(shown):
        yield f"{title if i == 0 else '':<10} {item}"


# ---------------------------------------------------------------- cost


@dataclass(frozen=True)
class CostRow:
    """What one group of the plan does in one call.

    Attributes:
        kernel: the generated function's name, "gemm" for a matrix product.
        ops: the ops in the user's words: scope and names.
        location: the user's line that asked for the value the group stores.
        flops: floating-point operations: 2·m·n·k for a product, one for each element of an elementwise op, one for
            each element that a reduction takes in. Moves, casts, selections and integers count nothing.
        functions: how many of those are evaluations of exp, tanh and the like.
        bytes_read, bytes_written: memory of other groups, inputs and outputs; each element once.
    """

    kernel: str
    ops: str
    location: Location
    flops: int
    functions: int
    bytes_read: int
    bytes_written: int

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte moved."""
        moved = self.bytes_read + self.bytes_written
        return self.flops / moved if moved else 0.0


@dataclass(frozen=True)
class Cost:
    """The rows of a program in the order in which it runs, and their sums. Prints as a table."""

    rows: tuple[CostRow, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations of one call."""
        return sum(row.flops for row in self.rows)

    @property
    def bytes_read(self) -> int:
        """Bytes that the groups read in one call."""
        return sum(row.bytes_read for row in self.rows)

    @property
    def bytes_written(self) -> int:
        """Bytes that the groups write in one call."""
        return sum(row.bytes_written for row in self.rows)

    def __str__(self) -> str:
        functions = sum(row.functions for row in self.rows)
        total = CostRow("total", "", UNKNOWN, self.flops, functions, self.bytes_read, self.bytes_written)
        header = ("kernel", "flop", "functions", "read", "written", "flop/byte", "ops", "line")
        return aligned(header, [_cost_cells(row) for row in (*self.rows, total)], left=(0, 6, 7))

    __repr__ = __str__


def _cost_cells(row: CostRow) -> tuple[str, ...]:
    return (
        row.kernel,
        count(row.flops),
        count(row.functions),
        size(row.bytes_read),
        size(row.bytes_written),
        f"{row.intensity:.2f}",
        row.ops,
        _line(row.location),
    )


def _line(location: Location) -> str:
    """A location as short as it can be told from where the user stands."""
    if not location.line:
        return ""
    try:
        relative = os.path.relpath(location.file)
    except ValueError:  # on another drive
        relative = location.file
    return f"{os.path.basename(location.file) if relative.startswith('..') else relative}:{location.line}"


def cost(specialization: Specialization) -> Cost:
    """Operations and bytes of every group of the program's plan, counted from the graph."""
    program = specialization.program
    members = Members()
    named = zip(program.calls, program.plan.groups, strict=True)
    return Cost(tuple(_cost_row(kernel or "(empty)", group, members) for kernel, group in named))


def _cost_row(kernel: str, group: Group, members: Members) -> CostRow:
    counted = [(node, _operations(node)) for node in group.nodes]
    return CostRow(
        kernel,
        describe_group(group),
        group.writes[-1].location if group.writes else UNKNOWN,
        sum(flops for _, flops in counted),
        sum(flops for node, flops in counted if node.op.kind == "elementwise" and COSTS.get(node.op.name, 1) > 5),
        _bytes_read(group, members),
        sum(node.nbytes for node in group.writes),
    )


_MOVES = ("cast", "select")


def _operations(node: Node) -> int:
    op = node.op
    if not any(operand.dtype.kind == "f" for operand in node.operands):
        return 0
    if op.name == "matmul":
        return 2 * node.size * node.operands[0].shape[-2 if node.attributes.get("transpose_x") else -1]
    if op.kind == "elementwise":
        return 0 if op.name in _MOVES else node.size
    if op.kind == "reduction" or op.name == "cumulative_sum":
        return node.operands[0].size
    return node.operands[-1].size if op.name.startswith("scatter_add") else 0


def _bytes_read(group: Group, members: Members) -> int:
    """Bytes of storage outside the group that its nodes read, each view of a storage once, none more than whole."""
    outside = set(group.reads)
    written = set(group.writes)
    seen: set[tuple[Node, int, tuple[int, ...], tuple[int, ...]]] = set()
    read: dict[Node, int] = {}
    for node in group.nodes:
        if node.op.kind == "view" and node not in written:
            continue  # read through by the nodes that use it
        for i, operand in enumerate(node.operands):
            view = own_storage(operand) if operand in outside else members.resolve(operand)
            key = (view.owner, view.offset, view.strides, view.shape)
            if view.owner in outside and key not in seen:
                seen.add(key)
                elements = _touched(view)
                if i == 0 and node.op.name in ("take", "take_along_axis"):
                    elements = min(elements, node.size)
                read[view.owner] = read.get(view.owner, 0) + elements * view.owner.dtype.itemsize
    return sum(min(nbytes, owner.nbytes) for owner, nbytes in read.items())


def _touched(view: Strided) -> int:
    return math.prod(extent for extent, stride in zip(view.shape, view.strides, strict=True) if stride or not extent)


# ---------------------------------------------------------------- profile


@dataclass(frozen=True)
class ProfileRow:
    """The time of one group: `seconds` is the median over the calls, `share` its part of all groups' time."""

    cost: CostRow
    seconds: float
    share: float

    @property
    def gigaflops(self) -> float:
        """Floating-point operations in billions for each second."""
        return self.cost.flops / self.seconds * 1e-9 if self.seconds else 0.0

    @property
    def gigabytes(self) -> float:
        """Bytes read and written in billions for each second."""
        moved = self.cost.bytes_read + self.cost.bytes_written
        return moved / self.seconds * 1e-9 if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """Times of the groups, the longest first. Prints as a table.

    Attributes:
        rows: one for each group, and one for the copies at the end where there are any.
        seconds: the sum of the rows: the native call without the Python around it.
        repeat: how many calls were measured.
    """

    rows: tuple[ProfileRow, ...]
    seconds: float
    repeat: int

    def __str__(self) -> str:
        header = ("time", "share", "GFLOP/s", "GB/s", "kernel", "ops", "line")
        cells = [
            (
                duration(row.seconds),
                f"{row.share:.1%}",
                f"{row.gigaflops:.2f}",
                f"{row.gigabytes:.2f}",
                row.cost.kernel,
                row.cost.ops,
                _line(row.cost.location),
            )
            for row in self.rows
        ]
        total = f"{duration(self.seconds)} in {len(self.rows)} groups, medians of {self.repeat} calls"
        return f"{aligned(header, cells, left=(4, 5, 6))}\n{total}"

    __repr__ = __str__


_WARM_UP = 2


def profile(specialization: Specialization, leaves: Sequence[Any], repeat: int) -> Profile:
    """The time of every group over `repeat` calls with the arrays among `leaves`.

    The program runs on copies of the state that it updates, so nothing of the user's changes; results are dropped. Its
    kernels run at the planned addresses, with a clock read between them.

    Raises:
        ValueError: `repeat` is below 1.
    """
    if repeat < 1:
        raise ValueError(f"profile: repeat must be at least 1; got {repeat}")
    from staticgrad.kernels.cache import default_cache

    program = specialization.program
    given, outputs = rehearsal(specialization, leaves)
    timed = program.timed_by_group(default_cache())
    times = np.array([timed.run(given, outputs) for _ in range(repeat + _WARM_UP)][_WARM_UP:])
    medians = np.median(times, axis=0).tolist()
    costs = list(cost(specialization).rows)
    if program.plan.copies:
        moved = sum(nbytes for _, _, nbytes in program.plan.copies)
        costs.append(CostRow("memcpy", "copies at the end", UNKNOWN, 0, 0, moved, moved))
    else:
        medians.pop()
    total = sum(medians)
    rows = [
        ProfileRow(row, seconds, seconds / total if total else 0.0) for row, seconds in zip(costs, medians, strict=True)
    ]
    rows.sort(key=lambda row: -row.seconds)
    return Profile(tuple(rows), total, repeat)


def rehearsal(specialization: Specialization, leaves: Sequence[Any]) -> tuple[list[Array], list[Array]]:
    """Inputs and outputs with which the program can run and change nothing: state that it writes is copied."""
    device = specialization.device
    given = []
    for i, array in enumerate(specialization.inputs(leaves)):
        ordered = device.contiguous(array)
        given.append(ordered.copy() if specialization.writes(i) and ordered is array else ordered)
    return given, [device.empty(node.shape, node.dtype) for node in specialization.captured.graph.outputs]
