"""An order of the groups that lowers the peak.

Finding the best order is NP-hard (it is register allocation by Sethi, SIAM J. Computing 4, 1975), so a few orders
are made, each in near-linear time, and the one that needs least is kept; the given order is among them.

1. As demanded: results in turn, each group just before its first reader, the operand with the highest peak above its
   own size first. Sethi and Ullman, J. ACM 17 (1970); Liu, "An application of generalized tree pebbling to sparse
   matrix factorization" (SIAM J. Algebraic Discrete Methods 8, 1987).
2. List scheduling on the given order and on the demanded one: a group that, with what it makes possible, frees at
   least what it takes runs at once, the greatest gain first; otherwise the next in line.
3. List scheduling by the change of live memory alone, forwards, and backwards from the results.

A training step gains from 2: each gradient is consumed by its optimizer update as soon as it is there, instead of all
gradients waiting for the end. Steiner et al., "OLLA: Optimizing the Lifetime and Location of Arrays"
(arXiv:2210.12924) solve the same problem as an integer program and report a third less memory.

A state can be overwritten in place only after the last reader of its old content. Such readers are put before the
group that writes the new content, by an edge like that of an operand, unless that would close a cycle. So are the
groups that check indices, for a step that fails must leave state as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import (
    Uses,
    aligned,
    assign_storage,
    find_uses,
    first_checks,
    replaceable_states,
)
from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.offsets import lower_bound

__all__ = ["memory_need", "order"]

_MANY_GROUPS = 20_000  # beyond this many only the first of the orders is made
_LOOKAHEAD = 8  # successors that are looked at before a group is judged

Key = tuple[int, int, int]


def order(graph: Graph, groups: Sequence[Group]) -> list[Group]:
    """The groups in an order in which they can run and that needs little memory; never more than the given order.

    Args:
        graph: whose results are wanted.
        groups: in an order in which they can run.

    Raises:
        GraphError: `groups` cannot run in the given order, or do not compute every result.
    """
    problem = _Problem.of(graph, groups)
    given = list(range(len(groups)))
    best = list(groups)
    least = memory_need(graph, best)
    makers: list[Callable[[], list[int]]] = [
        lambda: _forwards(problem, given),
        lambda: _forwards(problem, _ranks(_as_demanded(problem))),
        lambda: _as_demanded(problem),
        lambda: _forwards(problem, None),
        lambda: _backwards(problem),
    ]
    for make in makers if len(groups) <= _MANY_GROUPS else makers[:1]:
        candidate = [groups[index] for index in make()]
        need = memory_need(graph, candidate)
        if need < least:
            best, least = candidate, need
    return best


def memory_need(graph: Graph, groups: Sequence[Group]) -> tuple[int, int]:
    """For groups run in this order, the most bytes of the arena live at one time, and the bytes copied at the end."""
    storage = assign_storage(graph, groups)
    intervals = [(buffer.lower, buffer.upper, buffer.nbytes) for buffer in storage.buffers]
    return lower_bound(intervals, alignment=ALIGNMENT), sum(nbytes for _, _, nbytes in storage.copies)


# ---------------------------------------------------------------- groups and values as numbers


@dataclass(frozen=True)
class _Problem:
    """The groups by number, with the values that take space in the arena.

    `reads[g]` and `writes[g]` are values; `readers[v]` are groups. A value that is `kept` lives to the end. The
    predecessors of a group are those that it reads from and those that must have read what it overwrites.
    """

    predecessors: list[list[int]]
    successors: list[list[int]]
    reads: list[list[int]]
    writes: list[list[int]]
    readers: list[list[int]]
    sizes: list[int]
    kept: list[bool]

    @classmethod
    def of(cls, graph: Graph, groups: Sequence[Group]) -> _Problem:
        uses = find_uses(graph, groups)
        before: list[set[int]] = [
            {uses.written[node] for node in group.reads if node in uses.written} for group in groups
        ]
        direct = _order_updates(graph, groups, uses, before)
        outputs = set(graph.outputs)
        stored = [node for node in uses.written if node not in outputs and node not in direct]
        number = {node: index for index, node in enumerate(stored)}
        reads = [[number[node] for node in group.reads if node in number] for group in groups]
        writes = [[number[node] for node in group.writes if node in number] for group in groups]
        readers: list[list[int]] = [[] for _ in stored]
        for index, values in enumerate(reads):
            for value in values:
                readers[value].append(index)
        results = set(graph.results)
        return cls(
            predecessors=[sorted(found) for found in before],
            successors=_reversed_edges(before),
            reads=reads,
            writes=writes,
            readers=readers,
            sizes=[aligned(node.nbytes) for node in stored],
            kept=[node in results for node in stored],
        )

    def grown(self, group: int) -> int:
        """The bytes that stay live after the group because it wrote them."""
        return sum(self.sizes[value] for value in self.writes[group] if self.readers[value] or self.kept[value])


def _reversed_edges(before: Sequence[set[int]]) -> list[list[int]]:
    after: list[list[int]] = [[] for _ in before]
    for index, found in enumerate(before):
        for other in found:
            after[other].append(index)
    return after


def _order_updates(graph: Graph, groups: Sequence[Group], uses: Uses, before: list[set[int]]) -> set[Node]:
    """Put the readers of a state, and whatever may fail, before the group that overwrites it.

    Returns the values that are so written.

    Adds to `before`. Of updates that would close a cycle the cheaper half is given up, as often as needed.
    """
    states = {leaf for leaf, _ in graph.updates}
    readers: dict[Node, list[int]] = {leaf: [] for leaf in states}
    for index, group in enumerate(groups):
        for node in group.reads:
            if node in states:
                readers[node].append(index)
    checks = first_checks(groups)
    wanted: list[tuple[Node, int, list[int]]] = []  # (value, the group that writes it, the groups to run before)
    for leaf, value in replaceable_states(graph, uses):
        writer = uses.written[value]
        if writer not in readers[leaf] or (value, leaf) in groups[writer].in_place:
            wanted.append((value, writer, sorted({*readers[leaf], *checks} - {writer})))
    wanted.sort(key=lambda update: (-update[0].nbytes, update[0].serial))
    while wanted:
        trial = [set(found) for found in before]
        for _, writer, earlier in wanted:
            trial[writer].update(earlier)
        cyclic = _cyclic(trial)
        if not cyclic:
            break
        involved = [u for u in wanted if u[1] in cyclic and not cyclic.isdisjoint(u[2])]
        given_up = {u[0] for u in involved[len(involved) // 2 :]}
        wanted = [u for u in wanted if u[0] not in given_up]
    if wanted:
        before[:] = trial
    return {value for value, _, _ in wanted}


def _cyclic(before: Sequence[set[int]]) -> set[int]:
    """The groups on cycles or on paths between cycles: what is left when all that can run, from either end, has."""
    after = _reversed_edges(before)
    left = set(range(len(before)))
    for forward, backward in ((before, after), (after, before)):
        waiting = {index: sum(other in left for other in forward[index]) for index in left}
        ready = [index for index, count in waiting.items() if count == 0]
        while ready:
            done = ready.pop()
            left.discard(done)
            for index in backward[done]:
                if index in waiting:
                    waiting[index] -= 1
                    if waiting[index] == 0:
                        ready.append(index)
    return left


def _ranks(sequence: Sequence[int]) -> list[int]:
    ranks = [0] * len(sequence)
    for rank, index in enumerate(sequence):
        ranks[index] = rank
    return ranks


# ---------------------------------------------------------------- the orders


def _as_demanded(problem: _Problem) -> list[int]:
    """Each group just before the first one that needs it, what needs most above its own size first."""
    count = len(problem.predecessors)
    operands = _operands_by_need(problem)
    done = [False] * count
    sequence: list[int] = []
    for root in range(count):
        if problem.successors[root]:
            continue
        path = [(root, iter(operands[root]))]
        while path:
            index, rest = path[-1]
            following = next((other for other in rest if not done[other]), None)
            if following is not None:
                path.append((following, iter(operands[following])))
                continue
            path.pop()
            if not done[index]:
                done[index] = True
                sequence.append(index)
    return sequence


def _operands_by_need(problem: _Problem) -> list[list[int]]:
    """For each group its predecessors, sorted by peak minus what stays, as if the graph were a tree."""
    count = len(problem.predecessors)
    stays = [problem.grown(group) for group in range(count)]
    need = [0] * count
    operands: list[list[int]] = [[] for _ in range(count)]
    for group in _topological(problem):
        chosen = sorted(problem.predecessors[group], key=lambda other: (stays[other] - need[other], other))
        held = highest = 0
        for other in chosen:
            highest = max(highest, held + need[other])
            held += stays[other]
        need[group] = max(highest, held + stays[group])
        operands[group] = chosen
    return operands


def _topological(problem: _Problem) -> list[int]:
    waiting = [len(found) for found in problem.predecessors]
    sequence = [index for index, count in enumerate(waiting) if count == 0]
    for index in sequence:
        for other in problem.successors[index]:
            waiting[other] -= 1
            if waiting[other] == 0:
                sequence.append(other)
    return sequence


class _Forwards:
    """List scheduling from the start. Sums of what is left name the last one as soon as only one is left."""

    def __init__(self, problem: _Problem, ranks: Sequence[int] | None) -> None:
        self.problem = problem
        self.ranks = ranks
        self.waiting = [len(found) for found in problem.predecessors]
        self.missing = [sum(found) for found in problem.predecessors]
        self.unread = [len(found) for found in problem.readers]
        self.unread_sum = [sum(found) for found in problem.readers]
        self.grown = [problem.grown(group) for group in range(len(self.waiting))]
        self.keys: dict[int, Key] = {index: self.key(index) for index, count in enumerate(self.waiting) if count == 0}
        self.heap = [(key, index) for index, key in self.keys.items()]
        heapify(self.heap)

    def run(self) -> list[int]:
        sequence: list[int] = []
        while self.heap:
            key, index = heappop(self.heap)
            if self.keys.get(index) == key:
                del self.keys[index]
                sequence.append(index)
                self.finish(index)
        return sequence

    def change(self, group: int, after: Sequence[int] = ()) -> int:
        """The growth of live memory by running a group now, or once the reader of the values `after` has run."""
        problem = self.problem
        freed = 0
        for value in problem.reads[group]:
            if self.unread[value] - (value in after) == 1 and not problem.kept[value]:
                freed += problem.sizes[value]
        return self.grown[group] - freed

    def key(self, group: int) -> Key:
        """What runs first: the greatest gain, together with what the group makes possible; then the next in line."""
        gain = self.change(group)
        for following in self.problem.successors[group][:_LOOKAHEAD]:
            if self.waiting[following] == 1:
                gain += min(0, self.change(following, self.problem.reads[group]))
        if self.ranks is None:
            return (0, gain, group)
        return (0, gain, self.ranks[group]) if gain <= 0 else (1, self.ranks[group], 0)

    def finish(self, group: int) -> None:
        """Count the group as done, and judge again whom that concerns."""
        problem = self.problem
        concerned: list[int] = []
        for following in problem.successors[group]:
            self.waiting[following] -= 1
            self.missing[following] -= group
            if self.waiting[following] == 0:
                concerned.append(following)
                self.keys[following] = (2, 0, 0)
            elif self.waiting[following] == 1:
                concerned.append(self.missing[following])
        for value in problem.reads[group]:
            self.unread[value] -= 1
            self.unread_sum[value] -= group
            if self.unread[value] == 1:
                last = self.unread_sum[value]
                concerned.append(self.missing[last] if self.waiting[last] == 1 else last)
        for index in concerned:
            if index in self.keys:
                key = self.key(index)
                if key != self.keys[index]:
                    self.keys[index] = key
                    heappush(self.heap, (key, index))


def _forwards(problem: _Problem, ranks: Sequence[int] | None) -> list[int]:
    return _Forwards(problem, ranks).run()


def _backwards(problem: _Problem) -> list[int]:
    """List scheduling from the end: of the groups whose readers are placed, the one that needs least before it."""
    waiting = [len(found) for found in problem.successors]
    live = list(problem.kept)

    def key(group: int) -> Key:
        needed = sum(problem.sizes[value] for value in problem.reads[group] if not live[value])
        made = sum(problem.sizes[value] for value in problem.writes[group] if live[value])
        return (0, needed - made, -group)

    keys = {index: key(index) for index, count in enumerate(waiting) if count == 0}
    heap = [(found, index) for index, found in keys.items()]
    heapify(heap)
    sequence: list[int] = []
    while heap:
        found, index = heappop(heap)
        if keys.get(index) != found:
            continue
        del keys[index]
        sequence.append(index)
        concerned = []
        for value in problem.reads[index]:
            if not live[value]:
                live[value] = True
                concerned += [reader for reader in problem.readers[value] if reader in keys]
        for before in problem.predecessors[index]:
            waiting[before] -= 1
            if waiting[before] == 0:
                keys[before] = (2, 0, 0)
                concerned.append(before)
        for other in concerned:
            if (fresh := key(other)) != keys[other]:
                keys[other] = fresh
                heappush(heap, (fresh, other))
    sequence.reverse()
    return sequence
