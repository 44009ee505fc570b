"""From a plan to what a GPU runs: the launches of each group, with every address known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from staticgrad.graph.epilogue import product_of
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import last_check
from staticgrad.graph.members import Members
from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.plan import Place, Plan
from staticgrad.graph.structure import Level
from staticgrad.kernels.addresses import Address, Arena, Argument
from staticgrad.kernels.cuda import moves
from staticgrad.kernels.cuda.contraction import product_launches
from staticgrad.kernels.cuda.fused import generate, read_late
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.library import LibraryLaunch, ProductCall
from staticgrad.kernels.cuda.library_product import AnyLaunch, library_launches
from staticgrad.kernels.cuda.product_choice import ProductChoice
from staticgrad.kernels.cuda.structural import lower_call
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Kernel, Operand
from staticgrad.kernels.table import Table

POISON = 0xFF  # every float of these bytes is NaN


@dataclass(frozen=True)
class Step:
    """One launch with its addresses, by the symbol of its kernel; or a product of a library, which has no kernel."""

    symbol: str
    addresses: tuple[Address, ...]
    grid: int = 0
    block: int = 0
    product: ProductCall | None = None


@dataclass
class Lowered:
    """What runs: kernels by symbol, the steps in order, and the nodes that may report an error.

    An error code is the position of its node, from 1. `names` tells for each group the kernels that compute it, with
    the library's name for its product, and `ends` how many steps there are up to its end; `own_bytes` is memory behind
    the arena that groups use one after the other.
    """

    kernels: dict[str, Kernel] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    errors: list[Node] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
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


class _Lowering:
    def __init__(self, graph: Graph, plan: Plan, target: Target, choice: ProductChoice | None) -> None:
        self.plan = plan
        self.choice = choice
        self.target = target
        self.table = Table(len(graph.inputs), len(graph.outputs), len(plan.constants))
        self.members = Members()
        self.lowered = Lowered()
        self.own_start = -(-plan.peak_bytes // ALIGNMENT) * ALIGNMENT

    def run(self, poison: bool) -> Lowered:
        plan = self.plan
        may_fail = last_check(plan.groups)
        if poison and plan.peak_bytes:
            self._fill(0, plan.peak_bytes)
        for position, (group, frees) in enumerate(zip(plan.groups, plan.frees, strict=True)):
            self._group(group, guarded=may_fail >= 0 and position > may_fail and self._writes_state(group))
            if poison:
                for offset, size in frees:
                    self._fill(offset, size)
            self.lowered.ends.append(len(self.lowered.steps))
        for source, target, size in plan.copies:
            if size:
                self._copy(source, target, size, guarded=may_fail >= 0)
        return self.lowered

    def _writes_state(self, group: Group) -> bool:
        """Whether a group writes what outlives the run: then it must not run after an error."""
        return any(node in self.plan.places and self.plan.places[node].space == "input" for node in group.writes)

    def _group(self, group: Group, *, guarded: bool) -> None:
        if not any(node.size for node in group.writes):
            self.lowered.names.append("")
            return
        product = product_of(group.nodes)
        launches: Sequence[AnyLaunch]
        if product is not None:
            launches, own_bytes = self._product(product, group, guarded=guarded)
        elif group.kind == "fused":
            assert group.structure is not None
            places = self.plan.places
            aliases = {written: read for written, read in group.in_place if places[written] == places.get(read)}
            launches, own_bytes = generate(group.structure, group.writes, aliases, self.target, guarded=guarded)
        else:
            launches, own_bytes = lower_call(group.nodes[0], self.members, self.target, guarded=guarded)
        self.lowered.own_bytes = max(self.lowered.own_bytes, own_bytes)
        self.lowered.names.append("+".join(dict.fromkeys(map(self._name, launches))))
        for launch in launches:
            self._add(launch)

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

    def _name(self, launch: AnyLaunch) -> str:
        if isinstance(launch, Launch):
            return launch.kernel.symbol
        assert self.choice is not None
        return self.choice.library.name

    def _add(self, launch: AnyLaunch) -> None:
        addresses = tuple(self._address(operand) for operand in launch.operands)
        if isinstance(launch, LibraryLaunch):
            self.lowered.steps.append(Step("", addresses, product=launch.call))
            return
        self.lowered.kernels.setdefault(launch.kernel.symbol, launch.kernel)
        self.lowered.steps.append(Step(launch.kernel.symbol, addresses, launch.grid, launch.block))

    def _fill(self, offset: int, size: int) -> None:
        if size:
            kernel, grid = moves.fill(size, self.target)
            self._move(kernel, grid, (Arena(offset),))

    def _copy(self, source: Place, target: Place, size: int, *, guarded: bool) -> None:
        kernel, grid = moves.copy(size, self.target, guarded=guarded)
        addresses: tuple[Address, ...] = (self.table.address(source), self.table.address(target))
        self._move(kernel, grid, (*addresses, Argument(0)) if guarded else addresses)

    def _move(self, kernel: Kernel, grid: int, addresses: tuple[Address, ...]) -> None:
        self.lowered.kernels.setdefault(kernel.symbol, kernel)
        self.lowered.steps.append(Step(kernel.symbol, addresses, grid, self.target.block))

    def _address(self, operand: Operand) -> Address:
        if operand.kind == "status":
            return Argument(0)
        if operand.kind == "error":
            assert operand.node is not None
            self.lowered.errors.append(operand.node)
            return Argument(self.table.error_codes, 8 * (len(self.lowered.errors) - 1))
        if operand.kind == "own":
            return Arena(self.own_start + operand.offset)
        assert operand.node is not None
        return self.table.address(self.plan.places[operand.node], operand.offset)
