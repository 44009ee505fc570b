"""Fusion: which nodes run together as one kernel.

Nodes are met in the order of the graph. Each one joins the kernel of one of its producers, and joins kernels of
several producers into one, where one nest of loops can compute them all (`graph.structure`) and where no value would
leave the kernel and come back. The latter is checked on levels: every kernel has a level above those it reads, so only
kernels between two levels can lie between two kernels. All work at a node is bounded, so fusion is linear.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise

from staticgrad.graph.epilogue import can_follow, is_light, product_of, stand_in
from staticgrad.graph.group import Group
from staticgrad.graph.hoisting import ahead
from staticgrad.graph.lifetimes import aligned
from staticgrad.graph.matrix_layout import matrix_layout
from staticgrad.graph.members import Member, Members
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.sinking import cone
from staticgrad.graph.structure import Structure, analyse, in_place_pairs, picked_owners, place_passes

MAX_NODES = 48  # of one kernel: LLVM's time grows faster than the kernel
MAX_READS = 20
SEARCH_BUDGET = 256  # kernels looked at to find a path, or moved up a level, before a fusion is given up
SIBLINGS = 4  # how many readers of one value are tried as one kernel


def fuse(graph: Graph) -> list[Group]:
    """Divide the graph's work into groups, in an order in which they can run."""
    members = Members()
    copied = _copied(graph, members)
    clusters = _Clusters(members, set(graph.results), {leaf for leaf, _ in graph.updates})
    for node in graph.nodes:
        if node in copied or (node.op.kind not in ("view", "leaf") and node.op.name != "iota"):
            clusters.add(node, reads_of(node, members))
    clusters.hoist()
    clusters.join_siblings()
    clusters.join_numbers()
    clusters.sink()
    clusters.join_products()
    return clusters.groups(graph)


def stored_operand(operand: Node, members: Members) -> Node:
    """The owner whose storage holds `operand` in order, as the kernel of a single op reads it: possibly a copy."""
    found = members.resolve(operand)
    return found.owner if found.contiguous and found.owner.op.name != "iota" else operand


def matrix_operand(operand: Node, members: Members) -> Node:
    """The owner whose storage BLAS reads as `operand`: possibly a copy."""
    found = members.resolve(operand)
    return found.owner if found.owner.op.name != "iota" and matrix_layout(found) else operand


def reads_of(node: Node, members: Members) -> list[Node]:
    """The owners of storage that computing `node` reads, each once."""
    if node.op.name == "matmul":
        return list(dict.fromkeys(matrix_operand(operand, members) for operand in node.operands))
    member = members.member(node)
    if member is None:
        return list(dict.fromkeys(stored_operand(operand, members) for operand in node.operands))
    accesses = member.accesses if member.source is None else (*member.accesses, member.source)
    return list(dict.fromkeys(a.owner for a in accesses if a.owner is not node and a.owner.op.name != "iota"))


def _copied(graph: Graph, members: Members) -> set[Node]:
    """Views and iotas that must be stored: results, and what some kernel can only read in order."""
    copied = {node for node in graph.results if _is_virtual(node)}
    for node in reversed(graph.nodes):
        if node.op.kind == "leaf" or (_is_virtual(node) and node not in copied):
            continue
        copied.update(owner for owner in reads_of(node, members) if _is_virtual(owner))
    return copied


def _is_virtual(node: Node) -> bool:
    return node.op.kind == "view" or node.op.name == "iota"


# ---------------------------------------------------------------- clusters


class _Cluster:
    """A kernel in the making: its members, and the kernels it reads from and is read by.

    `size` is the number of points of its largest loop; 0 for a kernel that is not generated. A flat kernel is one
    loop over elements in which every operand is a single number or lies in order.
    """

    def __init__(self, node: Node, member: Member | None, level: int) -> None:
        self.nodes = [node]
        self.members = None if member is None else [member]
        self.level = level
        self.sources: set[_Cluster] = set()
        self.readers: set[_Cluster] = set()
        self.reads: set[Node] = set()
        self.size = 0 if member is None else member.reach
        self.flat = member is not None and _is_flat(member)


class _Clusters:
    def __init__(self, members: Members, results: set[Node], updated: set[Node]) -> None:
        self.members = members
        self.results = results
        self.updated = updated
        self.home: dict[Node, _Cluster] = {}  # of every node that is computed
        self.readers: dict[Node, list[Node]] = {}  # of every owner the computed nodes that read it

    def add(self, node: Node, reads: Sequence[Node]) -> None:
        """Put a node, all of whose producers have been added, into a cluster."""
        for owner in reads:
            self.readers.setdefault(owner, []).append(node)
        sources = list(dict.fromkeys(self.home[owner] for owner in reads if owner in self.home))
        sources.sort(key=_level, reverse=True)
        member = None if node.op.name == "matmul" else self.members.member(node)
        cluster = _Cluster(node, member, 1 + max((source.level for source in sources), default=0))
        cluster.sources.update(sources)
        cluster.reads.update(reads)
        for source in sources:
            source.readers.add(cluster)
        self.home[node] = cluster
        if member is None:
            return
        for source in sources:
            if source.size != 1 or cluster.size == 1:  # a shared number must not tie together all that read it
                self._join(source, cluster)
                cluster = self.home[node]

    def join_numbers(self) -> None:
        """Compute single numbers in the kernel that reads them, if there is only one."""
        for cluster in dict.fromkeys(self.home.values()):
            stands = self.home[cluster.nodes[0]] is cluster  # not yet part of another one
            if stands and cluster.size == 1 and len(cluster.readers) == 1:
                self._join(cluster, next(iter(cluster.readers)))

    def join_siblings(self) -> None:
        """Join clusters that read the same large values and run over the same points."""
        for owner, readers in list(self.readers.items()):
            found = list(dict.fromkeys(self.home[reader] for reader in readers[: 4 * SIBLINGS]))[:SIBLINGS]
            found = [cluster for cluster in found if cluster.members and cluster.size == owner.size > 1]
            for first, second in pairwise(found):
                self._join(self.home[first.nodes[0]], self.home[second.nodes[0]])

    def _join(self, first: _Cluster, second: _Cluster) -> bool:
        """Make one cluster of two if one kernel can do the work of both."""
        if first is second or first.members is None or second.members is None:
            return False
        if len(first.nodes) + len(second.nodes) > MAX_NODES:
            return False
        if first.flat and second.flat and first.size == second.size:
            return self._join_flat(first, second)
        nodes = {*first.nodes, *second.nodes}
        reads = {owner for owner in first.reads | second.reads if owner not in nodes}
        if len(reads) > MAX_READS or _path_between(first, second):
            return False
        together = sorted([*first.members, *second.members], key=_serial)
        if not _may_share(together) or analyse(together) is None:
            return False
        levels = _raised(first, second)
        if levels is None:
            return False
        self._merge(first, second, together, reads, levels)
        return True

    def _join_flat(self, first: _Cluster, second: _Cluster) -> bool:
        """`_join` for the commonest case, two loops over the same elements in order.

        They are one loop if each reads the other's values element by element.
        """
        both, follows = (first, second), _follows(second, first)
        together = [*(first.members or ()), *(second.members or ())]
        whole = ((first.size, 1),) if first.size > 1 else ()
        for member in second.members or () if follows else together:
            for access in member.accesses:
                if self.home.get(access.owner) in both and (access.offset or access.layout != whole):
                    return False
        reads = {owner for owner in first.reads | second.reads if self.home.get(owner) not in both}
        levels = None if len(reads) > MAX_READS or _path_between(first, second) else _raised(first, second)
        if levels is None:
            return False
        if not follows:
            together.sort(key=_serial)
        self._merge(first, second, together, reads, levels)
        return True

    def _merge(
        self,
        first: _Cluster,
        second: _Cluster,
        together: list[Member],
        reads: set[Node],
        levels: dict[_Cluster, int],
    ) -> None:
        if len(first.nodes) < len(second.nodes):
            first, second = second, first
        first.members, first.reads = together, reads
        first.flat = first.flat and second.flat and first.size == second.size
        first.size = max(first.size, second.size)
        first.nodes = [member.node for member in together]
        for node in second.nodes:
            self.home[node] = first
        for source in second.sources:
            source.readers.discard(second)
            source.readers.add(first)
        for reader in second.readers:
            reader.sources.discard(second)
            reader.sources.add(first)
        first.sources = (first.sources | second.sources) - {first, second}
        first.readers = (first.readers | second.readers) - {first, second}
        for cluster, level in levels.items():
            cluster.level = level

    def hoist(self) -> None:
        """Make numbers ahead of the rows, where two kernels over the rows are one kernel then (`graph.hoisting`)."""
        for cluster in dict.fromkeys(self.home.values()):
            for reader in sorted(cluster.readers, key=_first_serial):
                stand = all(self.home[each.nodes[0]] is each for each in (cluster, reader))
                if stand and cluster.size == reader.size > 1:
                    self._hoist(cluster, reader)

    def _hoist(self, cluster: _Cluster, reader: _Cluster) -> None:
        """Give the numbers of `cluster` that `reader` needs a kernel of their own, if the rest joins with it then."""
        members = cluster.members
        shared = (cluster.reads | set(cluster.nodes)) & reader.reads
        if members is None or reader.members is None or all(owner.size < cluster.size for owner in shared):
            return
        first = ahead(members, reader.reads, cluster.size)
        left = [member for member in members if member.node not in first]
        if not first or analyse(sorted([*left, *reader.members], key=_serial)) is None:
            return
        levels = _lifted({cluster: cluster.level + 1})
        number = [member for member in members if member.node in first]
        if levels is None or analyse(number) is None:
            return
        for raised, level in levels.items():
            raised.level = level
        made = _Cluster(number[0].node, number[0], cluster.level - 1)
        self._divide(cluster, made, left, number)
        if not self._join(cluster, reader):
            self._divide(made, cluster, [], members)

    def _divide(self, first: _Cluster, second: _Cluster, firsts: list[Member], seconds: list[Member]) -> None:
        """Give two clusters other members; who reads them finds out."""
        touched = {first, second, *first.readers, *second.readers}
        for cluster, members in ((first, firsts), (second, seconds)):
            self._redistribute(cluster, members, self._outside_reads(members))
            cluster.size = max((member.reach for member in members), default=0)
        for cluster in touched:
            self._link(cluster)

    def sink(self) -> None:
        """Move values to the one kernel that reads them where that saves memory (`graph.sinking`)."""
        for cluster in dict.fromkeys(self.home.values()):
            for node in sorted(cluster.nodes, key=_node_serial, reverse=True):
                targets = {self.home[reader] for reader in self.readers.get(node, ())}
                if len(targets) == 1 and cluster not in targets and node.size > 1 and node not in self.results:
                    self._sink(node, cluster, targets.pop())

    def _sink(self, node: Node, cluster: _Cluster, target: _Cluster) -> None:
        """Move `node` and what only serves it, if it is still in `cluster`, to `target`.

        The target comes after all that the moved nodes read, so no path leads back. Levels are left as they are, since
        no kernels are joined any more.
        """
        if target.members is None or cluster.members is None or self.home[node] is not cluster:
            return
        kernel = {member.node: member.kind == "map" for member in cluster.members}
        moved = cone(node, kernel, self.readers, self._reads, lambda n: self._is_stored(n, kernel), self.updated)
        if moved is None or len(moved) == len(kernel) or len(target.members) + len(moved) > MAX_NODES:
            return
        left = [member for member in cluster.members if member.node not in moved]
        more = sorted([*target.members, *(m for m in cluster.members if m.node in moved)], key=_serial)
        reads = self._outside_reads(more)
        if len(reads) > MAX_READS or analyse(left) is None or analyse(more) is None:
            return
        self._redistribute(cluster, left, self._outside_reads(left))
        self._redistribute(target, more, reads)
        self._link(cluster)
        self._link(target)

    def join_products(self) -> None:
        """Give each matrix product the kernel that only works on its elements and the sums of its columns."""
        for product in [node for node in self.home if node.op.name == "matmul"]:
            cluster = self.home[product]
            for reader in sorted(cluster.readers, key=_first_serial):
                if self._join_product(product, cluster, reader):
                    break

    def _join_product(self, product: Node, cluster: _Cluster, reader: _Cluster) -> bool:
        members = reader.members
        if members is None or product_of(reader.nodes) or not can_follow(product, members):
            return False
        inside = {product, *reader.nodes}
        writes = [node for node in inside if self._is_stored(node, inside)]
        updates = any(owner in self.updated and owner.size == product.size for owner in reader.reads)
        if updates or not is_light(product, members, writes):
            return False
        levels = None if _path_between(cluster, reader) else _raised(cluster, reader)
        if levels is None:
            return False
        self._merge(reader, cluster, members, (reader.reads | cluster.reads) - {product}, levels)
        reader.nodes.append(product)
        return True

    def _reads(self, node: Node) -> list[Node]:
        return reads_of(node, self.members)

    def _outside_reads(self, members: Sequence[Member]) -> set[Node]:
        inside = {member.node for member in members}
        return {owner for node in inside for owner in self._reads(node)} - inside

    def _redistribute(self, cluster: _Cluster, members: list[Member], reads: set[Node]) -> None:
        cluster.members, cluster.reads = members, reads
        cluster.nodes = [member.node for member in members]
        for node in cluster.nodes:
            self.home[node] = cluster

    def _link(self, cluster: _Cluster) -> None:
        """Find the sources of a changed cluster anew."""
        for source in cluster.sources:
            source.readers.discard(cluster)
        cluster.sources = {self.home[owner] for owner in cluster.reads if owner in self.home}
        for source in cluster.sources:
            source.readers.add(cluster)

    def groups(self, graph: Graph) -> list[Group]:
        return [self._group(cluster) for cluster in _in_order(dict.fromkeys(self.home.values()))]

    def _group(self, cluster: _Cluster) -> Group:
        inside = set(cluster.nodes)
        nodes = tuple(sorted(cluster.nodes, key=_node_serial))
        reads = list(dict.fromkeys(owner for node in nodes for owner in reads_of(node, self.members)))
        reads = [owner for owner in reads if owner not in inside and not _is_literal(owner, cluster) and owner.size]
        writes = tuple(node for node in nodes if self._is_stored(node, inside))
        product = product_of(nodes)
        if cluster.members is None:
            return Group("call" if product is None else "matmul", nodes, tuple(reads), nodes)
        structure = _structure_of(nodes, writes, self.members)
        if product is None:
            pairs = in_place_pairs(structure, writes, picked_owners(structure))
            pairs = [(written, read) for written, read in pairs if read in reads]
            return Group("fused", nodes, tuple(reads), writes, tuple(pairs), structure.scratch_bytes, structure)
        scratch_bytes = structure.scratch_bytes
        if stand_in(product, writes) is None:
            scratch_bytes = aligned(scratch_bytes) + product.nbytes
        return Group("matmul", nodes, tuple(reads), writes, (), scratch_bytes, structure)

    def _is_stored(self, node: Node, inside: Container[Node]) -> bool:
        return node in self.results or any(reader not in inside for reader in self.readers.get(node, ()))


def _structure_of(nodes: Sequence[Node], writes: Sequence[Node], members: Members) -> Structure:
    """The nest of loops that computes a group's nodes, its matrix product left out, with its passes decided."""
    found = [member for node in nodes if (member := members.member(node)) is not None]
    structure = analyse(found)
    if structure is None:
        raise ValueError(f"fusion: no nest of loops computes {list(nodes)}")
    place_passes(structure, set(writes))
    return structure


def _follows(second: _Cluster, first: _Cluster) -> bool:
    """Whether `second` is a single node that comes after all of `first` and that nobody reads yet."""
    return len(second.nodes) == 1 and not second.readers and second.nodes[0].serial > first.nodes[-1].serial


def _is_flat(member: Member) -> bool:
    flat = all(len(access.layout) <= 1 for access in member.accesses)
    return member.kind == "map" and member.size > 0 and not member.result and flat


def _is_literal(owner: Node, cluster: _Cluster) -> bool:
    return cluster.members is not None and owner.op.name == "constant" and owner.size == 1


def _may_share(together: Sequence[Member]) -> bool:
    """Whether there is anything to gain: values without elements are left alone."""
    return all(member.size for member in together)


# ---------------------------------------------------------------- levels


def _path_between(first: _Cluster, second: _Cluster) -> bool:
    """Whether a value goes from one cluster through a third to the other (also when that cannot be told soon)."""
    lower, upper = (first, second) if first.level <= second.level else (second, first)
    if lower.readers <= {upper}:
        return False
    pending = [source for source in upper.sources if source is not lower and source.level > lower.level]
    seen = set(pending)
    while pending:
        for source in pending.pop().sources:
            if source is lower:
                return True
            if source.level > lower.level and source not in seen:
                seen.add(source)
                pending.append(source)
        if len(seen) > SEARCH_BUDGET:
            return True
    return False


def _raised(first: _Cluster, second: _Cluster) -> dict[_Cluster, int] | None:
    """New levels when two clusters become one: readers of the lower one move up. None if too many would."""
    sources = (first.sources | second.sources) - {first, second}
    level = max(1 + max((source.level for source in sources), default=0), min(first.level, second.level))
    return _lifted({first: level, second: level})


def _lifted(changed: Mapping[_Cluster, int]) -> dict[_Cluster, int] | None:
    """New levels when some clusters get other ones: their readers stay above them. None if too many would move."""
    levels = dict(changed)
    pending = list(changed)
    while pending:
        cluster = pending.pop()
        for reader in cluster.readers:
            if reader in changed:
                continue
            if levels.get(reader, reader.level) <= levels[cluster]:
                levels[reader] = levels[cluster] + 1
                pending.append(reader)
        if len(levels) > SEARCH_BUDGET:
            return None
    return levels


def _in_order(clusters: Iterable[_Cluster]) -> list[_Cluster]:
    """Clusters after all that they read from, otherwise in the order of the graph."""
    waiting = {cluster: len(cluster.sources) for cluster in clusters}
    ready = [(cluster.nodes[0].serial, id(cluster), cluster) for cluster, count in waiting.items() if not count]
    heapq.heapify(ready)
    ordered = []
    while ready:
        *_, cluster = heapq.heappop(ready)
        ordered.append(cluster)
        for reader in cluster.readers:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (reader.nodes[0].serial, id(reader), reader))
    return ordered


def _level(cluster: _Cluster) -> int:
    return cluster.level


def _first_serial(cluster: _Cluster) -> int:
    return cluster.nodes[0].serial


def _serial(member: Member) -> int:
    return member.node.serial


def _node_serial(node: Node) -> int:
    return node.serial
