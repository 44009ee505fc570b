"""The whole kernel of a product: loops over the batch, over panels of columns and over tiles of rows."""

from __future__ import annotations

from staticgrad.kernels.cpu.gemm.epilogue import Epilogue, apply
from staticgrad.kernels.cpu.gemm.micro_kernel import Stream, accumulate
from staticgrad.kernels.cpu.gemm.panel import pack_transposed
from staticgrad.kernels.cpu.gemm.product import STACK_BYTES, Product, Side, Tiling, check, panel_bytes, tiling
from staticgrad.kernels.cpu.gemm.writer import ZERO, Text

LONG = 8  # instructions of an epilogue beyond which it runs in a loop over the rows of a finished tile


def gemm_ir(product: Product, symbol: str, epilogue: Epilogue | None = None, tile: Tiling | None = None) -> str:
    """LLVM IR of `void symbol(A, B, C, operands..., outputs..., sums..., [scratch,] i64 begin, i64 end)`.

    Args: `epilogue(sum, *operands)` is written for each vector of C before it is stored; it answers with what is
    stored, or with a tuple of that, of what goes to the further outputs and of what is added up over the rows. `tile`
    overrides the choice of tiles.
    The kernel computes rows [begin, end) of C, or matrices [begin, end) of a batch; begin is a multiple of
    `grain(product)`, and so is end where it is not `extent(product)`. The sums are those of the rows in this range. C,
    outputs and matrix operands may be the same memory, element by element; A, B and the sums overlap nothing else.
    Ready for code generation: no optimisation is needed.
    Raises ValueError when the product has no elements, or when the epilogue's results do not fit the outputs.
    """
    check(product)
    return _Kernel(product, symbol, epilogue, tile or tiling(product)).text()


class _Kernel:
    def __init__(self, product: Product, symbol: str, epilogue: Epilogue | None, tile: Tiling) -> None:
        if epilogue is None and (product.operands or product.results > 1):
            raise ValueError(f"gemm: operands and outputs belong to an epilogue; got none with {product}; pass one")
        self.product = product
        self.symbol = symbol
        self.epilogue = epilogue
        self.tile = tile
        self.write = Text(product.dtype, tile.lanes)
        self.operands = [f"%operand{i}" for i in range(len(product.operands))]
        self.outputs = [f"%output{i}" for i in range(len(product.outputs))]
        self.targets = [Side(product.ldc, 1), *product.outputs]
        self.sums = [f"%sum{i}" for i in range(product.sums)]
        self.panel = "%panel"
        self.stack = panel_bytes(product, tile) <= STACK_BYTES
        self.long = self._is_long()

    def text(self) -> str:
        product, write = self.product, self.write
        if self.tile.packed and self.stack:
            size = panel_bytes(product, self.tile)
            write.lines.append(f"  %panel = alloca [{size} x i8], align 64")
        if self.long:
            size = self.tile.rows * self.tile.vectors * self.tile.lanes * write.itemsize
            write.lines.append(f"  %tile = alloca [{size} x i8], align 64")
        for pointer in self.sums:
            self._clear(pointer)
        if product.batch > 1:
            with write.loop("%begin", "%end", 1) as index:
                moved = write.scaled(index, product.stride_c)
                c = [
                    write.offset(pointer, moved, side.boolean)
                    for pointer, side in zip(("%c", *self.outputs), self.targets, strict=True)
                ]
                a = write.offset("%a", write.scaled(index, product.stride_a))
                b = write.offset("%b", write.scaled(index, product.stride_b))
                operands = [
                    write.offset(pointer, moved, side.boolean) if side.is_matrix else pointer
                    for pointer, side in zip(self.operands, product.operands, strict=True)
                ]
                self._matrix(a, b, c, operands, "0", str(product.m))
        else:
            self._matrix("%a", "%b", ["%c", *self.outputs], self.operands, "%begin", "%end")
        pointers = ["noalias readonly %a", "noalias readonly %b", "%c", *self.operands, *self.outputs, *self.sums]
        if self.tile.packed and not self.stack:
            pointers.append("noalias %panel")
        parameters = ", ".join([*(f"ptr {pointer}" for pointer in pointers), "i64 %begin", "i64 %end"])
        bits = self.tile.lanes * write.itemsize * 8
        wide = f'"min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}"'
        head = f'define void @"{self.symbol}"({parameters}) nounwind {wide} {{\nentry:'
        return "\n".join([*write.declarations.values(), head, *write.lines, "  ret void", "}", ""])

    def _matrix(self, a: str, b: str, c: list[str], operands: list[str], begin: str, end: str) -> None:
        width = self.tile.vectors * self.tile.lanes
        whole = self.product.n - self.product.n % width
        if whole == width:
            self._panel(a, b, c, operands, "0", width, begin, end)
        elif whole:
            with self.write.loop("0", str(whole), width) as column:
                self._panel(a, b, c, operands, column, width, begin, end)
        if self.product.n % width:
            self._panel(a, b, c, operands, str(whole), self.product.n % width, begin, end)

    def _panel(
        self, a: str, b: str, c: list[str], operands: list[str], column: str, columns: int, begin: str, end: str
    ) -> None:
        """All rows of some columns."""
        write, product, lanes = self.write, self.product, self.tile.lanes
        counts = [min(lanes, columns - first) for first in range(0, columns, lanes)]
        if self.tile.packed:
            pack_transposed(write, product, write.offset(b, write.scaled(column, product.ldb)), self.panel, columns)
            stream = Stream(self.panel, 0, len(counts) * lanes, aligned=True)
        else:
            stream = Stream(write.offset(b, column), 0, product.ldb)
        rest = product.m % self.tile.rows
        rows = self.tile.rows
        last = write.value(f"sub i64 {end}, {rows - 1}") if rest and rows > 1 else end
        if product.m >= rows:
            with write.loop(begin, last, rows) as row:
                self._tile(a, stream, c, operands, row, column, rows, counts)
        if rest:
            reaches = write.value(f"icmp eq i64 {end}, {product.m}")
            some = write.value(f"icmp slt i64 {begin}, {end}")
            with write.when(write.value(f"and i1 {reaches}, {some}")):
                self._tile(a, stream, c, operands, str(product.m - rest), column, rest, counts)

    def _tile(
        self,
        a: str,
        b: Stream,
        c: list[str],
        operands: list[str],
        row: str,
        column: str,
        rows: int,
        counts: list[int],
    ) -> None:
        write, product = self.write, self.product
        across, along = (1, product.lda) if product.transpose_a else (product.lda, 1)
        start = Stream(write.offset(a, write.scaled(row, across)), across, along)
        sources = [self._at(*array, row, column) for array in zip(operands, product.operands, strict=True)]
        targets = [self._at(*array, row, column) for array in zip(c, self.targets, strict=True)]
        sums = accumulate(write, product.k, start, b, rows, counts)

        def finish(index: str, line: list[str]) -> list[list[str]]:
            """Store the row `index` of the tile; what it adds to the sums."""
            to = [self._at(*array, index, "0") for array in zip(targets, self.targets, strict=True)]
            by = [self._at(*array, index, "0") for array in zip(sources, product.operands, strict=True)]
            return self._row(line, to, by, counts)

        if not self.long:
            self._add_up([finish(str(index), line) for index, line in enumerate(sums)], column, counts)
            return
        width = len(counts) * write.lanes
        for index, line in enumerate(sums):
            for vector, value in enumerate(line):
                write.store(value, write.offset("%tile", index * width + vector * write.lanes))
        with write.loop("0", str(rows), 1) as turn:
            start_of_row = write.offset("%tile", write.scaled(turn, width))
            line = [write.load(write.offset(start_of_row, first * write.lanes)) for first in range(len(counts))]
            self._add_up([finish(turn, line)], column, counts)

    def _at(self, pointer: str, side: Side, row: str, column: str) -> str:
        """The address of an element."""
        write = self.write
        place = write.add(write.scaled(row, side.down), write.scaled(column, side.right))
        return write.offset(pointer, place, side.boolean)

    def _row(self, line: list[str], targets: list[str], sources: list[str], counts: list[int]) -> list[list[str]]:
        """Finish and store the vectors of one row, given where it begins in the results and the operands.

        For each vector the values that are to be added up.
        """
        write = self.write
        added = []
        for vector, (value, count) in enumerate(zip(line, counts, strict=True)):
            first = str(vector * write.lanes)
            places = [self._at(*array, "0", first) for array in zip(targets, self.targets, strict=True)]
            loaded = [
                self._operand(self._at(source, side, "0", first), side, count)
                for source, side in zip(sources, self.product.operands, strict=True)
            ]
            results = self._finished(value, loaded)
            for result, place, side in zip(results, places, self.targets, strict=False):
                if side.boolean:
                    write.store_flags(result, place, count)
                else:
                    write.store(result, place, count)
            added.append(results[len(places) :])
        return added

    def _add_up(self, added: list[list[list[str]]], column: str, counts: list[int]) -> None:
        """Add what some rows leave, for each row and vector a value of each sum, to the sums of these columns."""
        write = self.write
        for number, pointer in enumerate(self.sums):
            for vector, count in enumerate(counts):
                total = self._total([row[vector][number] for row in added])
                place = write.offset(write.offset(pointer, column), vector * write.lanes)
                before = write.load(place, count)
                write.store(write.value(f"fadd {write.vector} {before}, {total}"), place, count)

    def _total(self, values: list[str]) -> str:
        """The sum of some vectors, in pairs."""
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=False)
            rest = values[len(values) - len(values) % 2 :]
            values = [self.write.value(f"fadd {self.write.vector} {x}, {y}") for x, y in pairs] + rest
        return values[0]

    def _clear(self, pointer: str) -> None:
        """Set a row of sums to zero."""
        write, n = self.write, self.product.n
        whole = n - n % write.lanes
        if whole:
            with write.loop("0", str(whole), write.lanes) as column:
                write.store(ZERO, write.offset(pointer, column))
        if n % write.lanes:
            write.store(ZERO, write.offset(pointer, whole), n % write.lanes)

    def _is_long(self) -> bool:
        """Whether the epilogue is too long to be written for each vector of a tile: then it is one of each row."""
        if self.epilogue is None:
            return False
        trial = Text(self.product.dtype, self.tile.lanes)
        apply(trial, self.epilogue, "%total", self.operands, self.product)
        return len(trial.lines) > LONG

    def _operand(self, place: str, side: Side, count: int) -> str:
        if side.boolean:
            return self.write.load_flags(place, count) if side.right else self.write.broadcast_flag(place)
        return self.write.load(place, count) if side.right else self.write.broadcast(place)

    def _finished(self, value: str, operands: list[str]) -> list[str]:
        if self.epilogue is None:
            return [value]
        return apply(self.write, self.epilogue, value, operands, self.product)
