"""From a plan to what the driver runs: for each group its steps, with every address known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from staticgrad.graph.fusion import structure_of
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import last_check
from staticgrad.graph.members import Members
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import Place, Plan
from staticgrad.kernels.cpu.contraction import lower_matmul
from staticgrad.kernels.cpu.driver import Address, Arena, Argument, Check, Copy, Fill, KernelCall, Step
from staticgrad.kernels.cpu.fused import generate
from staticgrad.kernels.cpu.kernel import Call, Kernel, Operand
from staticgrad.kernels.cpu.structural import lower_call

POISON = 0xFF  # every float of these bytes is NaN
NOWHERE = Arena(0)  # the address of a value without elements


@dataclass
class Lowered:
    """What runs: kernels by symbol, steps in order, and the nodes that may report an error, by error code.

    `starts` gives the first step of each group of the plan, and after those the first of the copies at the end.
    """

    kernels: dict[str, Kernel] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    errors: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """Which entry of the pointer table is what: status, inputs, outputs, constants, error codes, in this order."""

    inputs: int
    outputs: int
    constants: int

    @property
    def size(self) -> int:
        return 2 + self.inputs + self.outputs + self.constants

    @property
    def error_codes(self) -> int:
        return self.size - 1

    def entry(self, place: Place) -> int:
        """The position of an input, an output or a constant among the program's pointers."""
        before = {"input": 1, "output": 1 + self.inputs, "constant": 1 + self.inputs + self.outputs}
        return before[place.space] + place.index

    def address(self, place: Place, offset: int = 0) -> Address:
        """Where a kernel finds the bytes at `offset` from the place."""
        if place.space == "arena":
            return Arena(place.offset + offset)
        return Argument(self.entry(place), place.offset + offset)


def lower(graph: Graph, plan: Plan, *, poison: bool = False) -> Lowered:
    """The kernels and steps that run `plan`.

    Args: with `poison`, the arena is filled with NaN before the run, and each slot again when nobody needs it any more.
    """
    return _Lowering(graph, plan).run(poison)


class _Lowering:
    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.plan = plan
        self.table = Table(len(graph.inputs), len(graph.outputs), len(plan.constants))
        self.members = Members()
        self.lowered = Lowered()

    def run(self, poison: bool) -> Lowered:
        plan, steps = self.plan, self.lowered.steps
        if poison and plan.peak_bytes:
            steps.append(Fill(Arena(0), plan.peak_bytes, POISON))
        may_fail = last_check(plan.groups)
        for position, (group, frees) in enumerate(zip(plan.groups, plan.frees, strict=True)):
            self.lowered.starts.append(len(steps))
            self._group(group)
            if position == may_fail:  # nothing before here has written state
                steps.append(Check(Argument(0)))
            if poison:
                steps += [Fill(Arena(offset), size, POISON) for offset, size in frees if size]
        self.lowered.starts.append(len(steps))
        for source, target, size in plan.copies:
            if size:
                steps.append(Copy(self.table.address(source), self.table.address(target), size))
        return self.lowered

    def _group(self, group: Group) -> None:
        if group.kind == "matmul":
            self.lowered.steps += lower_matmul(group.nodes[0], self.members, self._element)
        elif any(node.size for node in group.writes):
            call = self._fused(group) if group.kind == "fused" else lower_call(group.nodes[0], self.members)
            self._call(call, self.plan.scratch.get(group))

    def _fused(self, group: Group) -> Call:
        places = self.plan.places
        shared: Mapping[Node, Node] = {
            written: read for written, read in group.in_place if places[written] == places.get(read)
        }
        return generate(structure_of(group.nodes, group.writes, self.members), group.writes, shared)

    def _call(self, call: Call, scratch: Place | None) -> None:
        kernel = self.lowered.kernels.setdefault(call.kernel.symbol, call.kernel)
        addresses = tuple(self._address(operand, scratch) for operand in call.operands)
        self.lowered.steps.append(KernelCall(kernel.symbol, addresses))

    def _address(self, operand: Operand, scratch: Place | None) -> Address:
        if operand.kind == "status":
            return Argument(0)
        if operand.kind == "error":
            assert operand.node is not None
            self.lowered.errors.append(operand.node)
            return Argument(self.table.error_codes, 8 * (len(self.lowered.errors) - 1))
        if operand.kind == "scratch":
            assert scratch is not None
            return self.table.address(scratch, operand.offset)
        assert operand.node is not None
        place = self.plan.places.get(operand.node)
        return NOWHERE if place is None else self.table.address(place, operand.offset)

    def _element(self, owner: Node, offset: int) -> Address:
        place = self.plan.places.get(owner)
        return NOWHERE if place is None else self.table.address(place, offset * owner.dtype.itemsize)
