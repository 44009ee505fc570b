"""Kernels that add to the places that indices choose, always in the same order, so that no sum depends on chance.

Every run of the result belongs to one team of threads, and every column of it to one thread, which adds to it in the
order of the indices:

    a block has a tile of runs; it reads the indices in chunks, and keeps in shared memory, in order, which of them
    choose its runs; each of its teams then adds what belongs to its own runs

Where runs are few and indices many, the indices are cut into parts with a result each, which are added up in order.
Where each column has indices of its own and columns are many, every thread has a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from staticgrad.graph.node import DType
from staticgrad.kernels.cuda.launch import Launch, blocks_for
from staticgrad.kernels.cuda.running_total import in_block
from staticgrad.kernels.cuda.structural import (
    Call,
    CallText,
    added,
    indented,
    index,
    loaded,
    neutral,
    power_of_two,
    quotient,
    rest,
    stored,
    zero,
)

INT32, FLOAT64 = np.dtype(np.int32), np.dtype(np.float64)
EACH = 4  # indices that a thread reads at once
FEW = 16  # indices that one thread adds to its column faster than a block would
OVER = 4  # a part has so many times more indices than there are runs, so that all its results are less than it reads


@dataclass(frozen=True)
class Scatter:
    """out[a, indices[i], b] += x[a, i, b]; with `along`, each (a, b) has indices of its own: indices[a, i, b].

    Attributes:
        before, count, after: the extents of a, i and b.
        extent: the runs that an index chooses from.
    """

    call: Call
    before: int
    count: int
    extent: int
    after: int
    along: bool

    def launches(self) -> list[Launch]:
        """The kernels in order."""
        if self.along and (self.count <= FEW or 4 * self.columns >= self.call.target.blocks * self.call.target.block):
            return self._by_column()
        if self.parts == 1:
            return [self._tiles(0)]
        own = self.call.own(self.parts * self.call.node.nbytes)
        return [self._tiles(own), self._join(own)]

    # ------------------------------------------------------------ who does what

    @property
    def columns(self) -> int:
        """Columns of a run, or lists of indices."""
        return self.before * self.after

    @cached_property
    def lanes(self) -> int:
        """Columns that a thread handles at once."""
        return 1 if self.along else self.call.lanes(self.after, self.call.offset(0))

    @cached_property
    def threads(self) -> int:
        """Threads of a block."""
        return self.call.threads(self.count * (1 if self.along else self.columns // self.lanes))

    @cached_property
    def team(self) -> int:
        """Threads for the columns of a run."""
        return 1 if self.along else min(self.threads, power_of_two(self.columns // self.lanes))

    @property
    def teams(self) -> int:
        """Teams of a block."""
        return self.threads // self.team

    @property
    def strip(self) -> int:
        """Columns that a block has in hand."""
        return self.team * self.lanes

    @property
    def strips(self) -> int:
        """Strips of columns."""
        return -(-self.columns // self.strip)

    @cached_property
    def parts(self) -> int:
        """Into how many parts the indices are cut."""
        most = min(self._blocks // self.strips, self.count // (OVER * self.extent), self.count // self.threads)
        return max(1, most)

    @property
    def part(self) -> int:
        """Indices of a part."""
        return -(-self.count // self.parts)

    @cached_property
    def runs(self) -> int:
        """Runs of a tile."""
        tiles = max(1, min(self._blocks // (self.strips * self.parts), -(-self.extent // self.teams)))
        return -(-self.extent // tiles)

    @property
    def tiles(self) -> int:
        """Tiles of runs."""
        return -(-self.extent // self.runs)

    @property
    def _blocks(self) -> int:
        """How many blocks have enough to do, with reading, adding and clearing."""
        items = (self.count + self.extent) * self.columns // self.lanes
        return blocks_for(items, self.threads, self.call.target.blocks)

    # ------------------------------------------------------------ tiles of runs

    def _tiles(self, own: int) -> Launch:
        """Each block adds to a tile of runs, in a strip of columns, what the indices of one part choose."""
        text = self.call.text(self.threads)
        units = self.tiles * self.strips * self.parts
        result = text.own(own, self.call.node.dtype) if self.parts > 1 else text.out()
        strip = rest(quotient("block", self.tiles, units), self.strips, self.strips * self.parts)
        text.lines += [
            f"first = {index((rest('block', self.tiles, units), self.runs))}",
            f"part = {quotient('block', self.tiles * self.strips, units)}",
            *self._column(strip),
            *self._clear(result),
            f"at = {index(('part', self.part))}",
            f"end = min(at + {self.part}, {self.count})",
            "while at < end:",
            *indented(self._chunk(text, result)),
        ]
        text.grid = units
        return text.launch()

    def _column(self, strip: str) -> list[str]:
        """Which column a thread has, where it begins in x and in the result, and which team the thread is of."""
        lane = rest("thread", self.team, self.threads)
        outside = self.strips * self.strip > self.columns
        return [
            f"column = {index((strip, self.strip), (lane, self.lanes)) if not self.along else strip}",
            f"team = {quotient('thread', self.team, self.threads)}",
            *([f"team = select(column < {self.columns}, team, int64(-1))"] if outside else []),
            *self._begin(),
            *([f"target += part * {self.call.node.size}"] if self.parts > 1 else []),
        ]

    def _begin(self) -> list[str]:
        """Where `column` begins in x and in the result."""
        outer, inner = (part("column", self.after, self.columns) for part in (quotient, rest))
        return [
            f"source = {index((outer, self.count * self.after), (inner, 1))}",
            f"target = {index((outer, self.extent * self.after), (inner, 1))}",
        ]

    def _clear(self, result: str) -> list[str]:
        """Every thread clears what it will add to."""
        inside = f"(run < {self.runs})"
        if self.tiles * self.runs > self.extent:
            inside += f" & (first + run < {self.extent})"
        place = index(("target", 1), ("(first + run)", self.after))
        return [
            "run = team",
            f"while (run >= 0) & {inside}:",
            *indented(stored(result, place, [zero(self.call.node.dtype)] * self.lanes)),
            f"    run += {self.teams}",
        ]

    def _chunk(self, text: CallText, result: str) -> list[str]:
        """Keep the indices that choose runs of this tile, in order, and add what they stand for."""
        each = min(EACH, -(-self.part // self.threads))
        positions = text.shared("positions", self.threads * each, INT32)
        chosen = text.shared("chosen", self.threads * each, INT32)
        lines, keep = ["hits = int32(0)"], ["rank = int64(hits_before)"]
        for k in range(each):
            place = index(("thread", each), offset=k)
            lines += self._choice(text, k, f"at + {place}")
            keep += [f"if hit{k}:", f"    {positions}[rank] = {place}", f"    {chosen}[rank] = run{k}", "    rank += 1"]
        walk = [
            f"run = int64({chosen}[k])",
            f"if {rest('run', self.teams, self.runs)} == team:",
            f"    i = at + int64({positions}[k])",
            *indented(self._add(text, result)),
            "k += 1",
        ]
        found = [*in_block(text, "hits", INT32), *keep, "cuda.syncthreads()", "k = int64(0)"]
        return [
            *lines,
            "if cuda.syncthreads_count(hits) > 0:",
            *indented([*found, "while k < hits_all:", *indented(walk)]),
            f"at += {self.threads * each}",
        ]

    def _choice(self, text: CallText, k: int, place: str) -> list[str]:
        """Which run of the tile a thread's k-th index chooses, if any."""
        at = index(("source", 1), (f"({place})", self.after)) if self.along else place
        return [
            f"hit{k} = False",
            f"run{k} = int32(0)",
            f"if {place} < end:",
            f"    run = {text.checked(f'{text.operand(1)}[{at}]', self.extent)} - first",
            f"    hit{k} = (run >= 0) & (run < {self.runs})",
            f"    run{k} = int32(run)",
            f"hits = int32(hits + int32(hit{k}))",
        ]

    def _add(self, text: CallText, result: str) -> list[str]:
        """Add the i-th row of x to a run."""
        row, place = index(("source", 1), ("i", self.after)), index(("target", 1), ("(first + run)", self.after))
        load, values = loaded(text.operand(0), row, self.lanes, "v")
        again, totals = loaded(result, "place", self.lanes, "s")
        sums = [added(total, value, self.call.node.dtype) for total, value in zip(totals, values, strict=True)]
        return [f"place = {place}", *load, *again, *stored(result, "place", sums)]

    # ------------------------------------------------------------ one thread for each column

    def _by_column(self) -> list[Launch]:
        """Zeros, and then every thread adds what the indices of its column choose."""
        node, small = self.call.node, self.call.is_small
        text = clearing = self.call.text(self.call.threads(node.size if small else self.columns))
        if not small:
            clearing = self.call.text(self.call.target.block)
        clearing.clear(clearing.out(), node.size)
        if small:
            text.barrier()
        x, indices, out = text.operand(0), text.operand(1), text.out()
        body = [
            f"i = {index(('source', 1), ('k', self.after))}",
            f"place = {text.checked(f'{indices}[i]', self.extent)}",
            f"place = {index(('target', 1), ('place', self.after))}",
            f"{out}[place] = {added(f'{out}[place]', f'{x}[i]', node.dtype)}",
        ]
        body = [*self._begin(), f"for k in range({self.count}):", *indented(body)]
        text.every("column", self.columns, body)
        return [text.launch(one_block=True)] if small else [clearing.launch(), text.launch()]

    # ------------------------------------------------------------ parts

    def _join(self, own: int) -> Launch:
        """Add up the results of the parts, in order: shares of them by a thread each, and then the shares."""
        node, target = self.call.node, self.call.target
        text = self.call.text(target.block)
        across = min(text.threads, power_of_two(node.size))
        if 4 * node.size < target.blocks * text.threads:
            across = min(target.warp, across)
        shares = text.threads // across
        length = -(-self.parts // shares)
        dtype = FLOAT64 if node.dtype.kind == "f" else node.dtype
        part = f"{dtype.name}({text.own(own, node.dtype)}[part * {node.size} + m])"
        text.lines += [
            f"m = {index(('block', across), (rest('thread', across, text.threads), 1))}",
            f"inside = m < {node.size}",
            f"m = select(inside, m, int64({node.size - 1}))",
            f"part = {index((quotient('thread', across, text.threads), length))}",
            f"end = min(part + {length}, {self.parts})",
            f"total = {neutral(dtype)}",
            "while part < end:",
            f"    total = {added('total', part, dtype)}",
            "    part += 1",
            *self._shares_joined(text, shares, across, dtype),
        ]
        text.grid = -(-node.size // across)
        return text.launch()

    def _shares_joined(self, text: CallText, shares: int, across: int, dtype: DType) -> list[str]:
        store = f"    {text.out()}[m] = {self.call.node.dtype.name}(total)"
        if shares == 1:
            return ["if inside:", store]
        totals = text.shared("totals", text.threads, dtype)
        return [
            f"{totals}[thread] = total",
            "cuda.syncthreads()",
            f"if inside & (thread < {across}):",
            f"    for share in range(1, {shares}):",
            f"        total = {added('total', f'{totals}[share * {across} + thread]', dtype)}",
            store,
        ]
