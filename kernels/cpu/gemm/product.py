"""What a generated matrix product computes, and how it is cut into tiles for this CPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

ITEMSIZE = {"float32": 4, "float64": 8}
STACK_BYTES = 2**16  # a panel of B up to this size lies on the stack
_LATENCY = 8  # multiply-adds that must be under way for a CPU with two units of four cycles
_TILE_COST = 12  # cycles to enter and leave a tile, beside its stores


@dataclass(frozen=True, slots=True)
class Product:
    """`C = epilogue(alpha * op(A) @ op(B) + beta * C)` on row-major matrices of constant shape, `batch` times.

    Attributes:
        lda, ldb, ldc: distance between rows as stored, in elements; the strides are those between matrices.
        operands: for each operand of the epilogue the distance between its rows and between its columns, in elements:
            (0, 1) for a row that all rows of C meet, (1, 0) for a column, (ld, 1) for a matrix, (0, 0) for a number.
            They are the same for every matrix of the batch, but matrices, which follow `stride_c`.
        outputs: for each result of the epilogue after the first the distance between its rows, in elements.
    """

    dtype: str
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    lda: int
    ldb: int
    ldc: int
    alpha: float = 1.0
    beta: float = 0.0
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0
    operands: tuple[tuple[int, int], ...] = ()
    outputs: tuple[int, ...] = ()


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
    """The tiles that are expected to take least time.

    A turn of the innermost loop takes a cycle for each multiply-add, or half a cycle for each value of A and one for
    each vector of B, whichever is more.
    """
    cpu = cpu or host()
    lanes = cpu.vector_bytes // ITEMSIZE[product.dtype]
    columns = -(-product.n // lanes)
    best: tuple[float, Tiling] | None = None
    for vectors in range(1, min(4, columns) + 1):
        for rows in range(1, min(product.m, (cpu.registers - 2 - vectors) // vectors) + 1):
            if best is not None and (columns % vectors, product.m % rows) == (1, 1) and vectors * rows < _LATENCY:
                continue
            found = Tiling(lanes, rows, vectors, packed(product, rows))
            cost = _cost(product, found, columns)
            if best is None or cost < best[0]:
                best = cost, found
    if best is None:
        raise ValueError(f"gemm: a generated product has at least one row and column; got {product}; leave it out")
    return best[1]


def _cost(product: Product, tile: Tiling, columns: int) -> float:
    total = 0.0
    for vectors, panels in ((tile.vectors, columns // tile.vectors), (columns % tile.vectors, 1)):
        for rows, tiles in ((tile.rows, product.m // tile.rows), (product.m % tile.rows, 1)):
            if vectors and rows:
                turn = max(rows * vectors, rows / 2 + vectors, _LATENCY)
                total += panels * tiles * (turn * product.k + rows * vectors * 2 + _TILE_COST)
    return total


def packed(product: Product, rows: int) -> bool:
    """Whether a panel of B is worth a copy: it must be where B is transposed."""
    return product.transpose_b


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
