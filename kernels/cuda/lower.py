"""From a plan to what a GPU runs: the launches of each group, with every address known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from staticgrad.graph.epilogue import product_of
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import aligned, last_check
from staticgrad.graph.members import Members
from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.plan import Place, Plan
from staticgrad.graph.structure import Level
from staticgrad.kernels.addresses import Address, Arena, Argument
from staticgrad.kernels.cuda import moves
from staticgrad.kernels.cuda.contraction import product_launches
from staticgrad.kernels.cuda.dependencies import Touched, written_pointers
from staticgrad.kernels.cuda.fused import generate, read_late
from staticgrad.kernels.cuda.library import LibraryLaunch
from staticgrad.kernels.cuda.library_product import AnyLaunch, library_launches
from staticgrad.kernels.cuda.merge import arranged
from staticgrad.kernels.cuda.product_choice import ProductChoice
from staticgrad.kernels.cuda.step import Step
from staticgrad.kernels.cuda.structural import lower_call
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Kernel, Operand
from staticgrad.kernels.table import STATUS_BYTES, Table

POISON = 0xFF  # every float of these bytes is NaN
LITTLE = 64 * 1024  # bytes of working memory that a group has for itself
ALL_LITTLE = 2**20  # bytes of all such groups


@dataclass
class Lowered:
    """What runs: kernels by symbol, the steps in order, and the nodes that may report an error.

    An error code is the position of its node, from 1. `after` tells for each step which ones it must wait for, and
    `names` for each group the kernels that compute it, with the library's name for its product; `own_bytes` is memory
    behind the arena that groups work in.
    """

    kernels: dict[str, Kernel] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    errors: list[Node] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    own_bytes: int = 0


def for_device(groups: Sequence[Group]) -> list[Group]:
    """The groups as a GPU can run them: threads read and write in no order, so that less can be done in place.

    What stays is an element that the thread which reads it replaces, where nobody reads it later, and a single value
    that is replaced after all else. Values are computed again rather than kept in working memory.
    """
    return [_for_device(group) for group in groups]


def _for_device(group: Group) -> Group:
    if group.structure is None or group.kind != "fused":
        return replace(group, scratch_bytes=0)
    level, late = group.structure.level, read_late(group.structure, group.writes)
    pairs = [
        (written, read)
        for written, read in group.in_place
        if (level[written] == Level.FULL and read not in late) or level[written] in (Level.BEFORE, Level.AFTER)
    ]
    return replace(group, in_place=tuple(pairs), scratch_bytes=0)


def lower(
    graph: Graph, plan: Plan, target: Target, *, poison: bool = False, choice: ProductChoice | None = None
) -> Lowered:
    """The kernels and launches that run `plan`.

    Args:
        poison: fill the arena with NaN before the run, and each slot again when nobody needs it any more.
        choice: decides which matrix products are left to a library; None where there is none.
    """
    return _Lowering(graph, plan, target, choice).run(poison)


def writes_state(group: Group, plan: Plan) -> bool:
    """Whether a group writes what outlives the run: then it must not run after an error."""
    return any(node in plan.places and plan.places[node].space == "input" for node in group.writes)


class _Lowering:
    def __init__(self, graph: Graph, plan: Plan, target: Target, choice: ProductChoice | None) -> None:
        self.plan = plan
        self.choice = choice
        self.target = target
        self.table = Table(len(graph.inputs), len(graph.outputs), len(plan.constants))
        self.members = Members()
        self.steps: list[Step] = []
        self.errors: list[Node] = []
        self.own_start = -(-plan.peak_bytes // ALIGNMENT) * ALIGNMENT

    def run(self, poison: bool) -> Lowered:
        plan = self.plan
        may_fail = last_check(plan.groups)
        found = [
            self._launches(group, guarded=0 <= may_fail < position and writes_state(group, plan))
            for position, group in enumerate(plan.groups)
        ]
        regions, own_bytes = _regions([nbytes for _, nbytes in found])
        if poison and plan.peak_bytes:
            self._fill(0, plan.peak_bytes, 0)
        for position, ((launches, nbytes), region, frees) in enumerate(zip(found, regions, plan.frees, strict=True)):
            for launch in launches:
                self._add(launch, position, _Region(self.own_start + region, nbytes))
            for offset, size in frees if poison else ():
                self._fill(offset, size, position)
        for source, target, size in plan.copies:
            if size:
                self._copy(source, target, size, guarded=may_fail >= 0)
        if self.errors:
            self._report()
        in_order = arranged(self.steps, self.target)
        kernels = {step.symbol: step.kernel for step in in_order.steps if step.kernel is not None}
        names = [
            "+".join(dict.fromkeys(step.name for step in in_order.steps if position in step.blocks))
            for position in range(len(plan.groups))
        ]
        return Lowered(kernels, in_order.steps, in_order.after, self.errors, names, own_bytes)

    def _launches(self, group: Group, *, guarded: bool) -> tuple[Sequence[AnyLaunch], int]:
        """The launches of a group, and the working memory that they share."""
        if not any(node.size for node in group.writes):
            return (), 0
        product = product_of(group.nodes)
        if product is not None:
            return self._product(product, group, guarded=guarded)
        if group.kind == "fused":
            assert group.structure is not None
            places = self.plan.places
            aliases = {written: read for written, read in group.in_place if places[written] == places.get(read)}
            return generate(group.structure, group.writes, aliases, self.target, guarded=guarded)
        return lower_call(group.nodes[0], self.members, self.target, guarded=guarded)

    def _product(self, product: Node, group: Group, *, guarded: bool) -> tuple[Sequence[AnyLaunch], int]:
        """The launches of a group around a matrix product: our own kernels, or a library where it is faster."""
        own, own_bytes = product_launches(product, group, self.members, self.target, guarded=guarded)
        if self.choice is None:
            return own, own_bytes
        precision = self.choice.precision
        found = library_launches(product, group, self.members, self.target, precision, guarded=guarded)
        if found is None or not self.choice.library_is_faster(own, found[0], max(own_bytes, found[1])):
            return own, own_bytes
        return found

    # ------------------------------------------------------------ steps

    def _add(self, launch: AnyLaunch, group: int, region: _Region) -> None:
        addresses = tuple(self._address(operand, region) for operand in launch.operands)
        if isinstance(launch, LibraryLaunch):
            assert self.choice is not None
            touched = [self._touched(operand, region, i == 2) for i, operand in enumerate(launch.operands)]
            touched.append([Touched("library", 0, 1, True)])  # its products work in the same memory
            step = Step(self.choice.library.name, addresses, _joined(touched), {group: 1}, product=launch.call)
        else:
            kernel, written = launch.kernel, written_pointers(launch.kernel)
            touched = [self._touched(operand, region, i in written) for i, operand in enumerate(launch.operands)]
            blocks = {group: launch.grid}
            step = Step(kernel.symbol, addresses, _joined(touched), blocks, kernel, launch.grid, launch.block)
        self.steps.append(step)

    def _fill(self, offset: int, size: int, group: int) -> None:
        if size:
            kernel, grid = moves.fill(size, self.target)
            self._move(kernel, grid, (Arena(offset),), (Touched(None, offset, offset + size, True),), group)

    def _copy(self, source: Place, target: Place, size: int, *, guarded: bool) -> None:
        kernel, grid = moves.copy(size, self.target, guarded=guarded)
        addresses: tuple[Address, ...] = (self.table.address(source), self.table.address(target))
        touched = [self._bytes(source, size, written=False), self._bytes(target, size, written=True)]
        if guarded:
            addresses = (*addresses, Argument(0))
            touched.append(Touched(0, 0, STATUS_BYTES, False))
        self._move(kernel, grid, addresses, tuple(touched), len(self.plan.groups))

    def _report(self) -> None:
        """Tell the host of an error, behind all launches that may have met one."""
        addresses = (Argument(0), Argument(self.table.report))
        touched = (Touched(0, 0, STATUS_BYTES, False), Touched("report", 0, 1, True))
        self._move(moves.report(), 1, addresses, touched, len(self.plan.groups))

    def _move(
        self, kernel: Kernel, grid: int, addresses: tuple[Address, ...], touched: tuple[Touched, ...], group: int
    ) -> None:
        self.steps.append(Step(kernel.symbol, addresses, touched, {group: grid}, kernel, grid, self.target.block))

    # ------------------------------------------------------------ memory

    def _address(self, operand: Operand, region: _Region) -> Address:
        if operand.kind == "status":
            return Argument(0)
        if operand.kind == "error":
            assert operand.node is not None
            self.errors.append(operand.node)
            return Argument(self.table.error_codes, 8 * (len(self.errors) - 1))
        if operand.kind == "own":
            return Arena(region.offset + operand.offset)
        assert operand.node is not None
        return self.table.address(self.plan.places[operand.node], operand.offset)

    def _touched(self, operand: Operand, region: _Region, written: bool) -> list[Touched]:
        """The bytes that a launch may reach through an operand: all of a value's storage."""
        if operand.kind == "error":
            return []
        if operand.kind == "status":
            return [Touched(0, 0, STATUS_BYTES, written)]
        if operand.kind == "own":
            return [Touched(None, region.offset, region.offset + region.nbytes, written)]
        assert operand.node is not None
        return [self._bytes(self.plan.places[operand.node], operand.node.nbytes, written=written)]

    def _bytes(self, place: Place, nbytes: int, *, written: bool) -> Touched:
        space = None if place.space == "arena" else self.table.entry(place)
        return Touched(space, place.offset, place.offset + nbytes, written)


class _Region(NamedTuple):
    """Working memory of a group."""

    offset: int
    nbytes: int


def _regions(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each group's working memory begins, and the bytes of all: groups that need little do not wait for others.

    The others use the memory behind theirs one after the other.
    """
    apart = 0
    found = []
    for nbytes in sizes:
        little = nbytes <= LITTLE and apart + nbytes <= ALL_LITTLE
        found.append(apart if little else -1)
        apart += aligned(nbytes) if little else 0
    most = max((nbytes for nbytes, place in zip(sizes, found, strict=True) if place < 0), default=0)
    return [apart if place < 0 else place for place in found], apart + most


def _joined(touched: Sequence[Sequence[Touched]]) -> tuple[Touched, ...]:
    return tuple(dict.fromkeys(one for found in touched for one in found))
