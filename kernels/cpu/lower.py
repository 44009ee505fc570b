"""From a plan to what the driver runs: for each group its steps, with every address known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from staticgrad.graph.fusion import structure_of
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import last_check
from staticgrad.graph.members import Members
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import ALIGNMENT, Place, Plan
from staticgrad.graph.structure import Structure
from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cpu.contraction import lower_matmul, product_of, symbol_of
from staticgrad.kernels.cpu.costs import BYTE, call_cost, fused_cost, product_cost
from staticgrad.kernels.cpu.fused import generate, turns
from staticgrad.kernels.cpu.gemm import Product, extent, grain, scratch_bytes
from staticgrad.kernels.cpu.gemm_choice import own_is_faster
from staticgrad.kernels.cpu.kernel import Call, Kernel, Operand
from staticgrad.kernels.cpu.phases import PARALLEL_FROM, SHARE_FROM, Range, Task, on_one_thread, on_threads
from staticgrad.kernels.cpu.steps import Address, Arena, Argument, Check, Copy, Fill, Gemm, KernelCall, Step, Work
from staticgrad.kernels.cpu.structural import lower_call
from staticgrad.kernels.cpu.table import STATUS_BYTES, Table
from staticgrad.kernels.cpu.threads import thread_count

POISON = 0xFF  # every float of these bytes is NaN
NOWHERE = Arena(0)  # the address of a value without elements


@dataclass
class Lowered:
    """What runs: kernels and generated matrix products by symbol, the steps, and the nodes that may report an error.

    An error code is the position of its node, from 1. `parallel` says whether the steps are for all threads; each of
    them needs `own_bytes` of memory behind the arena.
    """

    kernels: dict[str, Kernel] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    errors: list[Node] = field(default_factory=list)
    parallel: bool = False
    own_bytes: int = 0


def lower(
    graph: Graph, plan: Plan, *, poison: bool = False, stamp: str = "", cache: DiskCache | None = None
) -> Lowered:
    """The kernels and steps that run `plan`.

    Args:
        poison: fill the arena with NaN before the run, and each slot again when nobody needs it any more.
        stamp: a kernel that writes 16 bytes, to be called twice at first, then after each group and at the end, with
            places in a table entry that follows all others.
        cache: where it is kept which matrix products BLAS computes.
    """
    return _Lowering(graph, plan, cache).run(poison, stamp)


class _Lowering:
    def __init__(self, graph: Graph, plan: Plan, cache: DiskCache | None) -> None:
        self.plan = plan
        self.cache = cache
        self.table = Table(len(graph.inputs), len(graph.outputs), len(plan.constants))
        self.members = Members()
        self.lowered = Lowered()
        self.tasks: list[Task] = []
        self.own_start = -(-plan.peak_bytes // ALIGNMENT) * ALIGNMENT
        self.structures: dict[Group, Structure] = {
            group: structure_of(group.nodes, group.writes, self.members)
            for group in plan.groups
            if group.kind == "fused" and _has_work(group)
        }
        self.costs = {group: self._cost(group) for group in plan.groups}

    def run(self, poison: bool, stamp: str) -> Lowered:
        plan, lowered = self.plan, self.lowered
        lowered.parallel = thread_count() > 1 and self._work_to_share() >= PARALLEL_FROM
        if stamp:
            self._stamp(stamp, 0)
            self._stamp(stamp, 1)
        if poison and plan.peak_bytes:
            self._add(Fill(Arena(0), plan.peak_bytes, POISON), writes=[Range("arena", 0, plan.peak_bytes)])
        may_fail = last_check(plan.groups)
        for position, (group, frees) in enumerate(zip(plan.groups, plan.frees, strict=True)):
            self._group(group)
            if position == may_fail:  # nothing before here has written state
                self.tasks.append(Task(Check(Argument(0))))
            if poison:
                for offset, size in frees:
                    if size:
                        poisoned = Range("arena", offset, offset + size)
                        self._add(Fill(Arena(offset), size, POISON), writes=[poisoned])
            if stamp:
                self._stamp(stamp, position + 2)
        for source, target, size in plan.copies:
            if size:
                copy = Copy(self.table.address(source), self.table.address(target), size)
                self._add(copy, [_range(source, size)], [_range(target, size)], cost=2 * size * BYTE)
        if stamp:
            self._stamp(stamp, len(plan.groups) + 2)
        lowered.steps = on_threads(self.tasks, thread_count()) if lowered.parallel else on_one_thread(self.tasks)
        return lowered

    # ------------------------------------------------------------ what to share

    def _cost(self, group: Group) -> float:
        traffic = sum(node.nbytes for node in (*group.reads, *group.writes))
        if group in self.structures:
            return fused_cost(self.structures[group], traffic)
        if group.kind == "matmul":
            node = group.nodes[0]
            terms = node.operands[0].shape[-2 if node.attributes.get("transpose_x") else -1]
            return product_cost(node.size * terms)
        return call_cost(group.nodes[0])

    def _work_to_share(self) -> float:
        return sum(cost for group, cost in self.costs.items() if cost >= SHARE_FROM and self._can_be_shared(group))

    def _can_be_shared(self, group: Group) -> bool:
        if group in self.structures:
            return turns(self.structures[group]) > 1
        return group.kind == "matmul"

    # ------------------------------------------------------------ tasks

    def _add(self, work: Work, reads: Sequence[Range] = (), writes: Sequence[Range] = (), cost: float = 0.0) -> None:
        self.tasks.append(Task(work, tuple(reads), tuple(writes), cost))

    def _stamp(self, symbol: str, number: int) -> None:
        place = Argument(self.table.size, 16 * number)
        self.tasks.append(Task(KernelCall(symbol, (place,)), alone=True))

    def _group(self, group: Group) -> None:
        places = self.plan.places
        reads = [_range(places[node], node.nbytes) for node in group.reads if node in places]
        writes = [_range(places[node], node.nbytes) for node in group.writes if node in places]
        cost = self.costs[group]
        if group.kind == "matmul":
            found = lower_matmul(group.nodes[0], self.members, self._element)
            for step in found:
                share = step.multiplications if isinstance(step, Gemm) else 0
                own = self._generated(step) if isinstance(step, Gemm) else None
                if own is None:
                    self._add(step, reads, writes, product_cost(share))
                else:
                    scratch_range = [Range("own", 0, 1)] if len(own.addresses) > 3 else []
                    self._add(own, reads, [*writes, *scratch_range], product_cost(share))
        elif _has_work(group):
            call = self._fused(group) if group.kind == "fused" else lower_call(group.nodes[0], self.members)
            scratch = self.plan.scratch.get(group)
            if scratch is not None:
                writes.append(_range(scratch, group.scratch_bytes))
            if call.own_bytes:
                self.lowered.own_bytes = max(self.lowered.own_bytes, call.own_bytes)
                writes.append(Range("own", 0, 1))
            self._add(self._call(call, call, scratch), reads, writes, cost)
            for join in call.joins:
                self._add(self._call(join, call, scratch, joins=True), reads, writes)

    def _generated(self, step: Gemm) -> KernelCall | None:
        """The call of a kernel made for this product, where that is faster than BLAS."""
        product = product_of(step)
        if product is None or not own_is_faster(product, self.cache):
            return None
        symbol = symbol_of(product)
        self.lowered.products[symbol] = product
        addresses = [step.a, step.b, step.c]
        if own_bytes := scratch_bytes(product):
            own_bytes = -(-own_bytes // ALIGNMENT) * ALIGNMENT
            self.lowered.own_bytes = max(self.lowered.own_bytes, own_bytes)
            addresses.append(Arena(self.own_start, own_bytes))
        return KernelCall(symbol, tuple(addresses), extent(product), grain(product))

    def _fused(self, group: Group) -> Call:
        places = self.plan.places
        aliases: Mapping[Node, Node] = {
            written: read for written, read in group.in_place if places[written] == places.get(read)
        }
        shared = self.lowered.parallel and self.costs[group] >= SHARE_FROM
        return generate(self.structures[group], group.writes, aliases, shared=shared)

    def _call(self, call: Call, main: Call, scratch: Place | None, *, joins: bool = False) -> KernelCall:
        kernel = self.lowered.kernels.setdefault(call.kernel.symbol, call.kernel)
        addresses = tuple(self._address(operand, scratch, main.own_bytes) for operand in call.operands)
        return KernelCall(kernel.symbol, addresses, call.extent, call.grain, joins, call.numbers)

    def _address(self, operand: Operand, scratch: Place | None, own_bytes: int) -> Address:
        if operand.kind == "status":
            return Argument(0, 0, STATUS_BYTES)
        if operand.kind == "error":
            assert operand.node is not None
            self.lowered.errors.append(operand.node)
            return Argument(self.table.error_codes, 8 * (len(self.lowered.errors) - 1))
        if operand.kind == "scratch":
            assert scratch is not None
            return self.table.address(scratch, operand.offset)
        if operand.kind in ("own", "joint"):
            return Arena(self.own_start + operand.offset, own_bytes if operand.kind == "own" else 0)
        assert operand.node is not None
        place = self.plan.places.get(operand.node)
        return NOWHERE if place is None else self.table.address(place, operand.offset)

    def _element(self, owner: Node, offset: int) -> Address:
        place = self.plan.places.get(owner)
        return NOWHERE if place is None else self.table.address(place, offset * owner.dtype.itemsize)


def _has_work(group: Group) -> bool:
    return any(node.size for node in group.writes)


def _range(place: Place, nbytes: int) -> Range:
    if place.space == "arena":
        return Range("arena", place.offset, place.offset + nbytes)
    return Range((place.space, place.index), place.offset, place.offset + nbytes)
