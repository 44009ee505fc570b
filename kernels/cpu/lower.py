"""From a plan to what the driver runs: for each group its steps, with every address known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from staticgrad.graph.epilogue import product_of, stand_in
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import aligned, last_check
from staticgrad.graph.members import Members
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import ALIGNMENT, Place, Plan
from staticgrad.graph.structure import Structure
from staticgrad.kernels.addresses import Address, Arena, Argument
from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cpu.contraction import generated_product, lower_matmul
from staticgrad.kernels.cpu.costs import BYTE, call_cost, fused_cost, product_cost
from staticgrad.kernels.cpu.fused import generate, turns
from staticgrad.kernels.cpu.gemm import extent, grain, scratch_bytes
from staticgrad.kernels.cpu.gemm_choice import own_is_faster
from staticgrad.kernels.cpu.joins import sum_of_parts
from staticgrad.kernels.cpu.phases import PARALLEL_FROM, SHARE_FROM, Range, Task, on_one_thread, on_threads
from staticgrad.kernels.cpu.product_kernel import ProductCall, ProductKernel, with_epilogue
from staticgrad.kernels.cpu.steps import Check, Copy, Fill, Gemm, KernelCall, Step, Work
from staticgrad.kernels.cpu.structural import lower_call
from staticgrad.kernels.cpu.threads import thread_count
from staticgrad.kernels.kernel import Call, Kernel, Operand
from staticgrad.kernels.table import STATUS_BYTES, Table

POISON = 0xFF  # every float of these bytes is NaN
NOWHERE = Arena(0)  # the address of a value without elements


@dataclass
class Lowered:
    """What runs: kernels and generated matrix products by symbol, the steps, and the nodes that may report an error.

    `names` tells for each group what computes it: "gemm" is BLAS. An error code is the position of its node, from 1.
    `parallel` says whether the steps are for all threads; each of them needs `own_bytes` of memory behind the arena.
    """

    kernels: dict[str, Kernel] = field(default_factory=dict)
    products: dict[str, ProductKernel] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    errors: list[Node] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
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
            group: group.structure for group in plan.groups if group.structure is not None and _has_work(group)
        }
        self.places = dict(plan.places)
        for group in plan.groups:
            if group.kind == "matmul":
                self._place_product(group)
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

    def _place_product(self, group: Group) -> None:
        """Give a product that is not stored for itself a place, for where BLAS computes it."""
        product = product_of(group.nodes)
        assert product is not None
        lent = stand_in(product, group.writes)
        if lent is not None:
            self.places[product] = self.places[lent]
        else:
            scratch = self.plan.scratch[group]
            self.places[product] = replace(scratch, offset=scratch.offset + group.scratch_bytes - product.nbytes)

    # ------------------------------------------------------------ what to share

    def _cost(self, group: Group) -> float:
        if group.kind == "call":
            return call_cost(group.nodes[0])
        return self._cost_of_loops(group) + self._cost_of_product(group)

    def _cost_of_loops(self, group: Group) -> float:
        if group not in self.structures:
            return 0.0
        return fused_cost(self.structures[group], sum(node.nbytes for node in (*group.reads, *group.writes)))

    def _cost_of_product(self, group: Group) -> float:
        node = product_of(group.nodes)
        if node is None:
            return 0.0
        return product_cost(node.size * node.operands[0].shape[-2 if node.attributes.get("transpose_x") else -1])

    def _work_to_share(self) -> float:
        return sum(cost for group, cost in self.costs.items() if cost >= SHARE_FROM and self._can_be_shared(group))

    def _can_be_shared(self, group: Group) -> bool:
        if group.kind == "fused" and group in self.structures:
            return turns(self.structures[group]) > 1
        return group.kind == "matmul"

    # ------------------------------------------------------------ tasks

    def _add(self, work: Work, reads: Sequence[Range] = (), writes: Sequence[Range] = (), cost: float = 0.0) -> None:
        self.tasks.append(Task(work, tuple(reads), tuple(writes), cost))

    def _stamp(self, symbol: str, number: int) -> None:
        place = Argument(self.table.size, 16 * number)
        self.tasks.append(Task(KernelCall(symbol, (place,)), alone=True))

    def _group(self, group: Group) -> None:
        reads = [_range(self.places[node], node.nbytes) for node in group.reads if node in self.places]
        writes = [_range(self.places[node], node.nbytes) for node in group.writes if node in self.places]
        scratch = self.plan.scratch.get(group)
        if scratch is not None:
            writes.append(_range(scratch, group.scratch_bytes))
        if not _has_work(group):
            self.lowered.names.append("")
        elif group.kind == "matmul":
            self.lowered.names.append(self._product(group, reads, writes))
        elif group.kind == "fused":
            self.lowered.names.append(self._loops(group, reads, writes))
        else:
            call = lower_call(group.nodes[0], self.members)
            self.lowered.names.append(self._kernel(group, call, reads, writes, self.costs[group]))

    def _loops(self, group: Group, reads: Sequence[Range], writes: Sequence[Range], product: Node | None = None) -> str:
        """The kernel of a group; of all but its matrix product, which lies where its stand-in will lie."""
        places = self.places
        aliases = {written: read for written, read in group.in_place if places[written] == places.get(read)}
        if product is not None and product not in group.writes:
            aliases |= {node: product for node in group.writes if places[node] == places[product]}
        cost = self._cost_of_loops(group)
        stored = [node for node in group.writes if node is not product]
        shared = self.lowered.parallel and cost >= SHARE_FROM
        call = generate(self.structures[group], stored, aliases, shared=shared)
        return self._kernel(group, call, reads, writes, cost)

    def _kernel(self, group: Group, call: Call, reads: Sequence[Range], writes: Sequence[Range], cost: float) -> str:
        scratch = self.plan.scratch.get(group)
        if call.own_bytes:
            self.lowered.own_bytes = max(self.lowered.own_bytes, call.own_bytes)
            writes = [*writes, Range("own", 0, 1)]
        self._add(self._call(call, scratch, call.own_bytes), reads, writes, cost)
        for join in call.joins:
            self._add(self._call(join, scratch, joins=True), reads, writes)
        return call.kernel.symbol

    def _product(self, group: Group, reads: Sequence[Range], writes: Sequence[Range]) -> str:
        """The steps of a matrix product and its epilogue: one kernel, or BLAS and a kernel."""
        product = product_of(group.nodes)
        assert product is not None
        steps = lower_matmul(product, self.members, self._element)
        names = []
        for step in steps:
            own = self._generated(step, product, group) if group not in self.structures or len(steps) == 1 else None
            if own is not None:
                names.append(self._add_product(own, step, group, reads, writes))
            else:
                cost = product_cost(step.product.multiplications) if isinstance(step, Gemm) else 0.0
                self._add(step, reads, writes, cost)
                names.append("gemm")
        if group in self.structures and names == ["gemm"] * len(steps):
            names.append(self._loops(group, [*reads, *writes], writes, product))
        return "+".join(dict.fromkeys(names))

    def _generated(self, step: Work, product: Node, group: Group) -> ProductCall | None:
        """The call of a kernel made for this product, where that is faster than BLAS."""
        found = generated_product(step.product) if isinstance(step, Gemm) else None
        if found is None or not own_is_faster(found, self.cache):
            return None
        if group in self.structures:
            return with_epilogue(found, product, group, self.members)
        return ProductCall(ProductKernel(found))

    def _add_product(
        self, call: ProductCall, step: Work, group: Group, reads: Sequence[Range], writes: Sequence[Range]
    ) -> str:
        assert isinstance(step, Gemm)
        product, symbol = call.kernel.product, call.kernel.symbol
        self.lowered.products[symbol] = call.kernel
        cost = self.costs[group] if group in self.structures else product_cost(step.product.multiplications)
        shared = self.lowered.parallel and cost >= SHARE_FROM and extent(product) > grain(product)
        panel = aligned(scratch_bytes(product))
        sums = [aligned(node.nbytes) for node in call.sums] if shared else []
        own_bytes = panel + sum(sums)
        addresses = [step.a, step.b, *(map(self._address, call.operands) if call.operands else [step.c])]
        joins = []
        for index, node in enumerate(call.sums):
            if shared:
                offset = panel + sum(sums[:index])
                addresses.append(Arena(self.own_start + offset, own_bytes))
                joins.append(sum_of_parts(node, offset, own_bytes, wide=False))
            else:
                addresses.append(self._element(node, 0))
        if panel:
            addresses.append(Arena(self.own_start, own_bytes))
        if own_bytes:
            self.lowered.own_bytes = max(self.lowered.own_bytes, own_bytes)
            writes = [*writes, Range("own", 0, 1)]
        kernel_call = KernelCall(symbol, tuple(addresses), extent(product), grain(product))
        self._add(kernel_call, reads, writes, cost)
        for join in joins:
            self._add(self._call(join, joins=True), reads, writes)
        return symbol

    def _call(self, call: Call, scratch: Place | None = None, own_bytes: int = 0, *, joins: bool = False) -> KernelCall:
        kernel = self.lowered.kernels.setdefault(call.kernel.symbol, call.kernel)
        addresses = tuple(self._address(operand, scratch, own_bytes) for operand in call.operands)
        return KernelCall(kernel.symbol, addresses, call.extent, call.grain, joins, call.numbers)

    def _address(self, operand: Operand, scratch: Place | None = None, own_bytes: int = 0) -> Address:
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
        place = self.places.get(operand.node)
        return NOWHERE if place is None else self.table.address(place, operand.offset)

    def _element(self, owner: Node, offset: int) -> Address:
        place = self.places.get(owner)
        return NOWHERE if place is None else self.table.address(place, offset * owner.dtype.itemsize)


def _has_work(group: Group) -> bool:
    return any(node.size for node in group.writes)


def _range(place: Place, nbytes: int) -> Range:
    if place.space == "arena":
        return Range("arena", place.offset, place.offset + nbytes)
    return Range((place.space, place.index), place.offset, place.offset + nbytes)
