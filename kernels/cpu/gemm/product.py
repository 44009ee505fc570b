"""What a generated matrix product computes, and how it is cut into tiles for this CPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from math import gcd

from staticgrad.kernels.products import StoredProduct

ITEMSIZE = {"float32": 4, "float64": 8}
STACK_BYTES = 2**16  # a panel of B up to this size lies on the stack
_LATENCY = 12  # multiply-adds that must be under way: two units of up to five cycles, and some to spare
_TILE_COST = 24  # to enter and leave a tile, beside its stores, in multiply-adds
_TOLERANCE = 1.03
_CACHE_WAY, _SAFE_WAYS = 4096, 6  # bytes; of eight, or more in CPUs of today


@dataclass(frozen=True, slots=True)
class Side:
    """An array that an epilogue reads or writes beside C: the distance between its rows and between its columns.

    In elements: (0, 1) for a row that all rows of C meet, (1, 0) for a column, (ld, 1) for a matrix, (0, 0) for a
    number. An array is the same for every matrix of a batch, but a matrix, which follows `stride_c`. Its elements are
    of the product's dtype, or `boolean`: bytes that are 0 or 1.
    """

    down: int
    right: int
    boolean: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether it has an element for each one of C."""
        return self.down != 0 and self.right != 0


@dataclass(frozen=True, slots=True)
class Product(StoredProduct):
    """`C = epilogue(op(A) @ op(B))`.

    Attributes:
        operands: what the epilogue reads.
        outputs: the matrices that take the epilogue's results after the first.
        sums: how many further results are added up over the rows: each gives one row of n elements.
    """

    operands: tuple[Side, ...] = ()
    outputs: tuple[Side, ...] = ()
    sums: int = 0

    @property
    def results(self) -> int:
        """How many values an epilogue answers with."""
        return 1 + len(self.outputs) + self.sums


@dataclass(frozen=True, slots=True)
class Host:
    """What a CPU offers: lanes of a vector register for each item size, how many registers, as the tiles use them."""

    vector_bytes: int
    registers: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut: tiles of `rows` rows and panels of `vectors` vectors of `lanes` columns.

    The last tile and the last panel may be smaller. `packed`: each panel of B is copied before it is used.
    """

    lanes: int
    rows: int
    vectors: int
    packed: bool


@cache
def host() -> Host:
    """The vector registers of this CPU."""
    import llvmlite.binding as llvm

    features = {name for name, present in llvm.get_host_cpu_features().items() if present}
    if "avx512f" in features:
        return Host(64, 32)
    if "avx" in features:
        return Host(32, 16)
    arm = llvm.get_process_triple().startswith(("aarch64", "arm64"))
    return Host(16, 32 if arm else 16)


def tiling(product: Product, cpu: Host | None = None) -> Tiling:
    """The tiles with the least code among those that are expected to take hardly more than the least time."""
    cpu = cpu or host()
    lanes = cpu.vector_bytes // ITEMSIZE[product.dtype]
    columns = -(-product.n // lanes)
    found = [
        Tiling(lanes, rows, vectors, product.transpose_b)
        for vectors in range(1, min(4, columns) + 1)
        for rows in range(1, min(product.m, _most_rows(product, vectors, cpu)) + 1)
    ]
    times = [_time(product, tile, columns) for tile in found]
    limit = min(times) * _TOLERANCE
    return min((tile for tile, time in zip(found, times, strict=True) if time <= limit), key=partial(_code, product))


def _most_rows(product: Product, vectors: int, cpu: Host) -> int:
    """How many rows a tile may have.

    Its sums lie in registers, with a row of B, half of the next one and a value of A; and rows of A whose distance is
    a large power of two meet in the same few lines of the first-level cache.
    """
    rows = (cpu.registers - 1 - vectors - vectors // 2) // vectors
    if not product.transpose_a:
        distance = product.lda * ITEMSIZE[product.dtype]
        rows = min(rows, _SAFE_WAYS * (_CACHE_WAY // gcd(_CACHE_WAY, distance)))
    return max(1, rows)


def _shapes(product: Product, tile: Tiling, columns: int) -> list[tuple[int, int, int]]:
    """The rows and vectors of each kind of tile, and how many there are of it."""
    return [
        (rows, vectors, tiles * panels)
        for vectors, panels in ((tile.vectors, columns // tile.vectors), (columns % tile.vectors, 1))
        for rows, tiles in ((tile.rows, product.m // tile.rows), (product.m % tile.rows, 1))
        if rows and vectors and tiles and panels
    ]


def _time(product: Product, tile: Tiling, columns: int) -> float:
    """A figure for the time, in units of a multiply-add: as many loads take as long."""
    return sum(
        count * (product.k * max(rows * vectors, rows + vectors, _LATENCY) + 2 * rows * vectors + _TILE_COST)
        for rows, vectors, count in _shapes(product, tile, columns)
    )


def _code(product: Product, tile: Tiling) -> int:
    """A figure for the amount of code."""
    columns = -(-product.n // tile.lanes)
    return sum(rows * vectors + 8 for rows, vectors, _ in _shapes(product, tile, columns))


def grain(product: Product) -> int:
    """How many rows (matrices, of a batch) a range given to the kernel is a multiple of."""
    return 1 if product.batch > 1 else tiling(product).rows


def extent(product: Product) -> int:
    """What a range given to the kernel counts up to: rows, or matrices of a batch."""
    return product.batch if product.batch > 1 else product.m


def scratch_bytes(product: Product) -> int:
    """Bytes of memory, aligned to a cache line, that each thread must pass to the kernel; 0 where none is passed."""
    size = panel_bytes(product, tiling(product))
    return size if size > STACK_BYTES else 0


def panel_bytes(product: Product, tile: Tiling) -> int:
    """Bytes of a packed panel of B."""
    return product.k * tile.vectors * tile.lanes * ITEMSIZE[product.dtype] if tile.packed else 0


def check(product: Product) -> None:
    """Raise ValueError where a product makes no sense."""
    if product.dtype not in ITEMSIZE:
        raise ValueError(f"gemm: a product is of float32 or float64; got {product.dtype}; write another kernel")
    if min(product.m, product.n, product.k, product.batch) < 1:
        raise ValueError(f"gemm: a generated product has sizes from 1 on; got {product}; clear C instead")
    product.check_rows("gemm")
