"""The whole kernel of a product: loops over the batch, over panels of columns and over tiles of rows."""

from __future__ import annotations

from staticgrad.kernels.cpu.gemm.epilogue import Epilogue, apply
from staticgrad.kernels.cpu.gemm.micro_kernel import Stream, accumulate
from staticgrad.kernels.cpu.gemm.panel import pack_transposed
from staticgrad.kernels.cpu.gemm.product import STACK_BYTES, Product, Tiling, check, panel_bytes, tiling
from staticgrad.kernels.cpu.gemm.writer import Text

LONG = 8  # instructions of an epilogue beyond which it runs in a loop over the rows of a finished tile


def gemm_ir(product: Product, symbol: str, epilogue: Epilogue | None = None, tile: Tiling | None = None) -> str:
    """LLVM IR of `void symbol(A, B, C, operands..., outputs..., [scratch,] i64 begin, i64 end)`.

    Args: `epilogue(sum, *operands)` is written for each vector of C before it is stored; it answers with what is
    stored, or with a tuple of that and of what goes to the further outputs. `tile` overrides the choice of tiles.
    The kernel computes rows [begin, end) of C, or matrices [begin, end) of a batch; begin is a multiple of
    `grain(product)`, and so is end where it is not `extent(product)`. C, outputs and matrix operands may be the same
    memory, element by element; A and B overlap none of them. Ready for code generation: no optimisation is needed.
    Raises ValueError when the product has no elements, or when the epilogue's results do not fit the outputs.
    """
    check(product)
    return _Kernel(product, symbol, epilogue, tile or tiling(product)).text()


class _Kernel:
    def __init__(self, product: Product, symbol: str, epilogue: Epilogue | None, tile: Tiling) -> None:
        if epilogue is None and (product.operands or product.outputs):
            raise ValueError(f"gemm: operands and outputs belong to an epilogue; got none with {product}; pass one")
        self.product = product
        self.symbol = symbol
        self.epilogue = epilogue
        self.tile = tile
        self.write = Text(product.dtype, tile.lanes)
        self.operands = [f"%operand{i}" for i in range(len(product.operands))]
        self.outputs = [f"%output{i}" for i in range(len(product.outputs))]
        self.panel = "%panel"
        self.stack = panel_bytes(product, tile) <= STACK_BYTES

    def text(self) -> str:
        product, write = self.product, self.write
        if self.tile.packed and self.stack:
            size = panel_bytes(product, self.tile)
            write.lines.append(f"  %panel = alloca [{size} x i8], align 64")
        if self._long_epilogue():
            size = self.tile.rows * self.tile.vectors * self.tile.lanes * write.itemsize
            write.lines.append(f"  %tile = alloca [{size} x i8], align 64")
        if product.batch > 1:
            with write.loop("%begin", "%end", 1) as index:
                moved = write.scaled(index, product.stride_c)
                c = [write.offset(pointer, moved) for pointer in ("%c", *self.outputs)]
                a = write.offset("%a", write.scaled(index, product.stride_a))
                b = write.offset("%b", write.scaled(index, product.stride_b))
                operands = [
                    write.offset(pointer, moved) if strides[0] and strides[1] else pointer
                    for pointer, strides in zip(self.operands, product.operands, strict=True)
                ]
                self._matrix(a, b, c, operands, "0", str(product.m))
        else:
            self._matrix("%a", "%b", ["%c", *self.outputs], self.operands, "%begin", "%end")
        pointers = ["noalias readonly %a", "noalias readonly %b", "%c", *self.operands, *self.outputs]
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
        sums = accumulate(write, product.k, start, b, rows, counts)
        leading = [product.ldc, *product.outputs]
        targets = [
            write.offset(pointer, write.add(write.scaled(row, distance), column))
            for pointer, distance in zip(c, leading, strict=True)
        ]
        sources = [
            write.offset(pointer, write.add(write.scaled(row, down), write.scaled(column, right)))
            for pointer, (down, right) in zip(operands, product.operands, strict=True)
        ]
        downs = [down for down, _ in product.operands]

        def finish(index: int | str, line: list[str]) -> None:
            """Store the row `index` of the tile."""
            moved = [self._moved(target, index, distance) for target, distance in zip(targets, leading, strict=True)]
            loaded = [self._moved(source, index, down) for source, down in zip(sources, downs, strict=True)]
            self._row(line, moved, loaded, counts)

        if not self._long_epilogue():
            for index, line in enumerate(sums):
                finish(index, line)
            return
        width = len(counts) * write.lanes
        for index, line in enumerate(sums):
            for vector, value in enumerate(line):
                write.store(value, write.offset("%tile", index * width + vector * write.lanes))
        with write.loop("0", str(rows), 1) as turn:
            start_of_row = write.offset("%tile", write.scaled(turn, width))
            finish(turn, [write.load(write.offset(start_of_row, first * write.lanes)) for first in range(len(counts))])

    def _moved(self, pointer: str, row: int | str, distance: int) -> str:
        """The address some rows further."""
        by = row * distance if isinstance(row, int) else self.write.scaled(row, distance)
        return self.write.offset(pointer, by)

    def _row(self, line: list[str], targets: list[str], sources: list[str], counts: list[int]) -> None:
        """Finish and store the vectors of one row, given where it begins in the results and the operands."""
        write, product = self.write, self.product
        for vector, (value, count) in enumerate(zip(line, counts, strict=True)):
            first = vector * write.lanes
            places = [write.offset(target, first) for target in targets]
            loaded = [
                self._operand(write.offset(source, first * right), right, count)
                for source, (_, right) in zip(sources, product.operands, strict=True)
            ]
            for result, place in zip(self._finished(value, places[0], count, loaded), places, strict=True):
                write.store(result, place, count)

    def _long_epilogue(self) -> bool:
        """Whether the epilogue is too long to be written for each vector of a tile: then it is one of each row."""
        if self.epilogue is None:
            return False
        trial = Text(self.product.dtype, self.tile.lanes)
        apply(trial, self.epilogue, "%sum", self.operands, 1 + len(self.outputs))
        return len(trial.lines) > LONG

    def _operand(self, place: str, right: int, count: int) -> str:
        return self.write.load(place, count) if right else self.write.broadcast(place)

    def _finished(self, value: str, place: str, count: int, operands: list[str]) -> list[str]:
        write, product = self.write, self.product
        if product.alpha != 1.0:
            value = write.value(f"fmul {write.vector} {value}, {write.number(product.alpha)}")
        if product.beta != 0.0:
            before = write.load(place, count)
            value = write.intrinsic("llvm.fmuladd", before, write.number(product.beta), value)
        if self.epilogue is None:
            return [value]
        return apply(write, self.epilogue, value, operands, 1 + len(product.outputs))
