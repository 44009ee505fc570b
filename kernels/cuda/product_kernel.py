"""The kernel of a matrix product by tiles.

A block computes a tile of the result, some terms of the sums at a time: its threads bring what it needs of both
matrices to shared memory, by k and then rows of A or columns of B, and each multiplies a few rows by a few columns in
registers. While they multiply, the next terms are on their way to registers; they go to the other half of the shared
memory, so that one barrier is enough.

The scheme is that of "CUTLASS: fast linear algebra in CUDA C++" (NVIDIA, 2017) for GPUs without matrix instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.product_text import Outcome, ProductText, Spot, added, indented, quotient, rest, times
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.tiles import Division, Tile, lanes_of_product, part_length
from staticgrad.kernels.products import Matrix, MatrixProduct

PAD = 4  # elements behind each line of a tile, so that the threads of a warp write to different banks
SECTOR = 32  # bytes that memory gives at once
UNROLLED = 4  # steps along k written out
GROUP = 8  # rows of tiles that are computed side by side, so that blocks at work share what they read


def tiled_product(
    product: MatrixProduct,
    outcome: Outcome,
    division: Division,
    target: Target,
    *,
    partial: int | None = None,
    guarded: bool = False,
) -> Launch:
    """The launch that computes a product by tiles; its parts if it is divided into several.

    Args:
        partial: where in the working memory the parts lie, in bytes; None if there is one part.
        guarded: do nothing where an earlier kernel has reported an error.
    """
    tile = division.tile
    assert tile is not None
    text = ProductText(product, outcome, target, tile.threads, partial)
    text.resident = 2 if tile.each == 8 and product.dtype.itemsize <= 4 else 0
    _TiledProduct(text, tile, division.parts).write()
    kernel = text.kernel(guarded=guarded)
    return Launch(kernel, tuple(text.operands), tile.count(product) * division.parts, tile.threads)


@dataclass(frozen=True)
class _Digit:
    """A digit of the number of what a thread reads: how many values it has, and how far one of them leads."""

    count: int
    along_line: int = 0
    along_k: int = 0


class _Side:
    """One operand: from memory to registers, and from there to shared memory.

    Its lines are the rows of A or the columns of B. Memory holds either lines, along k, or for each k all lines.

    Args:
        name: "a" or "b".
        extent, tile: lines of the matrix, and of the tile.
    """

    def __init__(self, text: ProductText, name: str, matrix: Matrix, extent: int, tile: int, depth: int) -> None:
        self.text = text
        self.name = name
        self.matrix = matrix
        self.extent, self.tile, self.depth = extent, tile, depth
        self.terms = text.product.k
        self.along_k = matrix.transposed == (name == "b")
        self.pitch = tile + PAD
        self.width = self._width()
        self.digits = self._digits()

    @property
    def count(self) -> int:
        """Elements of the tile in shared memory."""
        return self.depth * self.pitch

    def _width(self) -> int:
        """How many elements are read at once."""
        lanes = lanes_of_product(self.text.dtype.itemsize)
        neighbours = self.terms if self.along_k else self.extent
        numbers = (neighbours, self.matrix.leading, self.matrix.stride, self.matrix.offset)
        return 1 if any(number % lanes for number in numbers) else lanes

    def _digits(self) -> list[_Digit]:
        """What the numbers of the reads mean, the fastest first: a warp reads whole sectors and fills all banks."""
        width = self.width
        if not self.along_k:
            return [_Digit(self.tile // width, along_line=width), _Digit(self.depth, along_k=1)]
        near = min(self.depth // width, SECTOR // (width * self.text.dtype.itemsize))
        far = self.depth // (width * near)
        return [
            _Digit(near, along_k=width),
            _Digit(self.tile, along_line=1),
            _Digit(far, along_k=width * near),
        ]

    def _passes(self) -> list[tuple[int, int]]:
        """For each of a thread's reads how far it lies from the first one, along lines and along k."""
        reads = prod(digit.count for digit in self.digits)
        found = []
        for number in range(0, reads, self.text.threads):
            line, k = 0, 0
            for digit in self.digits:
                line += number % digit.count * digit.along_line
                k += number % digit.count * digit.along_k
                number //= digit.count
            found.append((line, k))
        return found

    def _of_thread(self, along: str) -> str:
        """Where a thread's first read lies along lines or along k, as a text."""
        terms, below = [], 1
        for digit in self.digits:
            weight, count = getattr(digit, along), min(digit.count, max(1, self.text.threads // below))
            if weight and count > 1:
                number = quotient("thread", below)
                number = rest(number, count) if below * count < self.text.threads else number
                terms.append(times(number, weight))
            below *= digit.count
        return added(*terms)

    def prepare(self, first: str) -> list[str]:
        """Lines before the loop; `first` is the tile's first line."""
        name, matrix = self.name, self.matrix
        lines = [f"line_{name} = {self._of_thread('along_line')}", f"k_{name} = {self._of_thread('along_k')}"]
        start = times("batch", matrix.stride) if self.text.product.batch > 1 else "0"
        for number, away in enumerate(self._lines_away()):
            line = added(first, f"line_{name}", away)
            if self.extent % self.tile:
                line = f"min({line}, {self.extent - (1 if self.along_k else self.width)})"
            elif self.along_k:
                line = f"({line})"
            lines.append(f"from_{name}{number} = {added(start, times(line, matrix.leading if self.along_k else 1))}")
        return [*lines, f"to_{name} = line_{name} + k_{name} * {self.pitch}"]

    def _lines_away(self) -> list[int]:
        return list(dict.fromkeys(line for line, _ in self._passes()))

    def _names(self, number: int) -> list[str]:
        return [f"next_{self.name}{number}_{i}" for i in range(self.width)]

    def nothing(self) -> list[str]:
        """Lines that give what is read a value before it is."""
        return [f"{' = '.join(self._names(number))} = {self.text.zero()}" for number in range(len(self._passes()))]

    def read(self) -> list[str]:
        """Lines that read a thread's elements of the terms from `k` on; zeros behind the last one."""
        guarded = self.terms % self.depth != 0
        last = self.terms - (self.width if self.along_k else 1)
        lines: list[str] = []
        places: dict[int, str] = {}
        for away in dict.fromkeys(k for _, k in self._passes()):
            place = f"at_{self.name}{len(places)}"
            lines.append(f"{place} = {added('k', f'k_{self.name}', away)}")
            if guarded:
                lines += [f"in_{place} = {place} < {self.terms}", f"{place} = min({place}, {last})"]
            places[away] = place
        pointer, lines_away = self.text.matrix(self.matrix), self._lines_away()
        for number, (line, k) in enumerate(self._passes()):
            along = times(places[k], 1 if self.along_k else self.matrix.leading)
            index, names = f"from_{self.name}{lines_away.index(line)} + {along}", self._names(number)
            value = f"{pointer}[{index}]" if self.width == 1 else f"load{self.width}({pointer}, {index})"
            lines.append(f"{', '.join(names)} = {value}")
            if guarded:
                lines += [f"{name} = select(in_{places[k]}, {name}, {self.text.zero()})" for name in names]
        return lines

    def write(self, start: str) -> list[str]:
        """Lines that bring what was read to shared memory."""
        lines = []
        for number, (line, k) in enumerate(self._passes()):
            names, place = self._names(number), line + k * self.pitch
            to = added(start, f"to_{self.name}")
            if self.width == 1 or self.along_k:
                lines += [f"tiles[{added(to, place + i * self.pitch)}] = {name}" for i, name in enumerate(names)]
            else:
                lines.append(f"store{self.width}(tiles, {added(to, place)}, {', '.join(names)})")
        return lines


class _TiledProduct:
    def __init__(self, text: ProductText, tile: Tile, parts: int) -> None:
        self.text = text
        self.product = product = text.product
        self.tile = tile
        self.parts = parts
        self.a = _Side(text, "a", product.a, product.m, tile.rows, tile.depth)
        self.b = _Side(text, "b", product.b, product.n, tile.columns, tile.depth)
        self.lanes = min(tile.each, lanes_of_product(text.dtype.itemsize))

    def write(self) -> None:
        """All lines of the kernel."""
        count = self.a.count + self.b.count
        self.text.top.append(f"tiles = shared_memory({2 * count}, {self.text.dtype.name})")
        self.text.lines += [
            *self._which_tile(),
            *self._where_in_tile(),
            *self.a.prepare("first_row"),
            *self.b.prepare("first_column"),
            *(f"{' = '.join(self._sums(i))} = {self.text.zero()}" for i in range(self.tile.each)),
            *self.a.nothing(),
            *self.b.nothing(),
            f"half = int64({count})",
            f"while k < end + {self.tile.depth}:",
            *indented(
                [
                    "if k < end:",
                    *indented([*self.a.read(), *self.b.read()]),
                    "if k > begin:",
                    *indented(self._multiply()),
                    f"half = {count} - half",
                    "if k < end:",
                    *indented([*self.a.write("half"), *self.b.write(f"half + {self.a.count}")]),
                    "cuda.syncthreads()",
                    f"k += {self.tile.depth}",
                ]
            ),
            *self._store(),
        ]

    def _sums(self, row: int) -> list[str]:
        """The registers of a thread's results in one row."""
        return [f"sum{row}_{column}" for column in range(self.tile.each)]

    # ------------------------------------------------------------ which tile

    def _which_tile(self) -> list[str]:
        """What the block computes: its tile, of which matrices, and which terms of the sums."""
        product, tile = self.product, self.tile
        down, right = -(-product.m // tile.rows), -(-product.n // tile.columns)
        group = next(count for count in (GROUP, 4, 2, 1) if down % count == 0)
        down_tiles = added(times(quotient("tile", group * right), group), rest("tile", group))
        lines = [
            f"tile = {rest('block', down * right)}",
            f"first_row = {times(f'({down_tiles})', tile.rows)}",
            f"first_column = {times(rest(quotient('tile', group), right), tile.columns)}",
        ]
        if product.batch > 1:
            lines.append(f"batch = rest({quotient('block', down * right)}, {product.batch})")
        if self.parts == 1:
            return [*lines, "begin = int64(0)", f"end = int64({product.k})", "k = begin"]
        length = part_length(product, tile.depth, self.parts)
        return [
            *lines,
            f"part = {quotient('block', down * right * product.batch)}",
            f"begin = part * {length}",
            f"end = min(begin + {length}, {product.k})",
            "k = begin",
        ]

    def _where_in_tile(self) -> list[str]:
        """The thread's first row and column in the tile."""
        tile, lanes, warp = self.tile, self.lanes, self.text.target.warp
        row = times(quotient("warp", tile.warps[1]), tile.lanes[0] * tile.each)
        column = times(rest("warp", tile.warps[1]), tile.lanes[1] * tile.each)
        return [
            f"warp, lane = {quotient('thread', warp)}, {rest('thread', warp)}",
            f"own_row = {added(row, times(quotient('lane', tile.lanes[1]), lanes))}",
            f"own_column = {added(column, times(rest('lane', tile.lanes[1]), lanes))}",
        ]

    # ------------------------------------------------------------ the product

    def _multiply(self) -> list[str]:
        """Lines that multiply what is in one half of the shared memory."""
        unrolled = min(UNROLLED, self.tile.depth)
        body = [line for step in range(unrolled) for line in self._step(step)]
        return [
            "from_row, from_column = half + own_row, half + own_column",
            f"for step in range({self.tile.depth // unrolled}):",
            *indented(body),
            f"    from_row += {unrolled * self.a.pitch}",
            f"    from_column += {unrolled * self.b.pitch}",
        ]

    def _step(self, step: int) -> list[str]:
        """One term of each sum of a thread."""
        each, text = range(self.tile.each), self.text
        return [
            *self._fragment("x", "from_row", step * self.a.pitch, self.tile.lanes[0]),
            *self._fragment("y", "from_column", step * self.b.pitch + self.a.count, self.tile.lanes[1]),
            *(f"sum{i}_{j} = {text.multiply_add(f'sum{i}_{j}', f'x{i}', f'y{j}')}" for i in each for j in each),
        ]

    def _fragment(self, name: str, start: str, offset: int, threads: int) -> list[str]:
        """Lines that read a thread's rows or columns from shared memory."""
        lines, lanes = [], self.lanes
        for first in range(0, self.tile.each, lanes):
            names = ", ".join(f"{name}{first + i}" for i in range(lanes))
            place = added(start, offset + first * threads)
            lines.append(f"{names} = " + (f"load{lanes}(tiles, {place})" if lanes > 1 else f"tiles[{place}]"))
        return lines

    # ------------------------------------------------------------ the results

    def _store(self) -> list[str]:
        """Lines that store a thread's rows in turn: each is in the first registers when its turn comes."""
        tile, text, product = self.tile, self.text, self.product
        lanes = min(self.lanes, text.lanes())
        columns = self._columns(lanes)
        batch = "batch" if product.batch > 1 else "0"
        lines = [line for _, _, found in columns for line in found]
        for column, _, _ in columns:
            lines += text.ahead(Spot(batch, "", column), lanes)
        stores = text.ahead(Spot(batch, "row", ""), lanes)
        for number, (column, inside, _) in enumerate(columns):
            totals = [f"sum0_{number * lanes + i}" for i in range(lanes)]
            found = text.store(Spot(batch, "row", column), totals)
            stores += [f"if {inside}:", *indented(found)] if inside else found
        if product.m % tile.rows:
            stores = [f"if row < {product.m}:", *indented(stores)]
        apart = self.tile.lanes[0] * self.lanes
        row = added(times(quotient("i", self.lanes), apart), rest("i", self.lanes)) if self.lanes < tile.each else "i"
        moves = [f"{', '.join(self._sums(i - 1))} = {', '.join(self._sums(i))}" for i in range(1, tile.each)]
        return [
            *lines,
            f"for i in range({tile.each}):",
            *indented([f"row = first_row + own_row + {row}", *stores, *moves]),
        ]

    def _columns(self, lanes: int) -> Sequence[tuple[str, str, list[str]]]:
        """For the columns of a thread that are stored together: a name, whether they exist, and the lines for both."""
        found, edge = [], self.product.n % self.tile.columns
        for number, first in enumerate(range(0, self.tile.each, lanes)):
            place = first // self.lanes * self.tile.lanes[1] * self.lanes + first % self.lanes
            name, inside = f"column{number}", f"inside{number}" if edge else ""
            lines = [f"{name} = {added('first_column', 'own_column', place)}"]
            if edge:
                lines += [f"{inside} = {name} < {self.product.n}", f"{name} = min({name}, {self.product.n - lanes})"]
            found.append((name, inside, lines))
        return found
