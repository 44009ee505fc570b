"""How the driver calls BLAS for a matrix product: whole, or each thread its rows or columns of the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from staticgrad.kernels.cpu.blas import GEMM_SYMBOL, GEMV_SYMBOL, GET_THREADS, SET_THREADS
from staticgrad.kernels.cpu.steps import Fill, Gemm
from staticgrad.kernels.products import StoredProduct

if TYPE_CHECKING:
    from staticgrad.kernels.cpu.driver import Writer

__all__ = ["GEMM_SYMBOL", "GET_THREADS", "SET_THREADS"]  # of `blas`; the functions are for the driver

# From here on OpenBLAS's gemv is up to four times faster than its gemm on a vector; below, gemm starts a little faster.
GEMV_FROM = 2**18
GRAIN = 32  # rows or columns of a product that stay with one thread: whole tiles of any BLAS
_BLAS_INT_LIMIT = 2**31
_ITEMSIZE = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class _Part:
    """What of a product is computed: how far into each matrix it begins, in bytes, and how many rows or columns."""

    axis: str = ""  # m, n or batch; "" for the whole
    count: str = ""  # of rows or columns: the address of an int; of the batch: a value
    a: int | str = 0
    b: int | str = 0
    c: int | str = 0


def gemm(writer: Writer, step: Gemm) -> None:
    """The whole product, by the calling thread."""
    product = step.product
    check(product)
    if product.m and product.n and product.batch:
        _product(writer, step, _Part())


def shared_gemm(writer: Writer, step: Gemm) -> None:
    """The calling thread's part of a product that all threads share."""
    product = step.product
    check(product)
    if not (product.m and product.n and product.batch):
        return
    axis = _shared_axis(product)
    extent = getattr(product, axis)
    begin, end = writer.bounds(extent, 1 if axis == "batch" else GRAIN)
    count = writer.emit(f"sub i64 {end}, {begin}")
    some = writer.emit(f"icmp sgt i64 {count}, 0")
    label = some[1:]
    writer.lines += [f"  br i1 {some}, label %some_{label}, label %none_{label}", f"some_{label}:"]
    size = _ITEMSIZE[product.dtype]
    strides = {
        "m": (1 if product.transpose_a else product.lda, 0, product.ldc),
        "n": (0, product.ldb if product.transpose_b else 1, 1),
        "batch": (product.stride_a, product.stride_b, product.stride_c),
    }[axis]
    starts = [writer.emit(f"mul i64 {begin}, {stride * size}") if stride else 0 for stride in strides]
    if axis == "batch":
        _product(writer, step, _Part(axis, count, *starts))
    else:
        narrow = writer.emit(f"trunc i64 {count} to i32")
        writer.lines.append(f"  store i32 {narrow}, ptr %count")
        _product(writer, step, _Part(axis, "%count", *starts))
    writer.lines += [f"  br label %none_{label}", f"none_{label}:"]


def _shared_axis(product: StoredProduct) -> str:
    """The axis along which threads share a product.

    BLAS copies both operands into blocks, and threads that share rows copy all of B, those that share columns all of
    A. The smaller of the two is copied twice; a transposed one costs about double.
    """
    if product.batch > 1:
        return "batch"
    by_rows, by_columns = product.n * (1 + product.transpose_b), product.m * (1 + product.transpose_a)
    return "m" if by_rows < by_columns else "n"


def _product(writer: Writer, step: Gemm, part: _Part) -> None:
    product = step.product
    if product.batch == 1 and product.multiplications >= GEMV_FROM:
        if product.n == 1 and product.ldc == 1:
            _gemv(writer, step, part, rows_of_c=True)
            return
        if product.m == 1:
            _gemv(writer, step, part, rows_of_c=False)
            return
    # Fortran sees each row-major matrix transposed, and C^T = op(B)^T op(A)^T: swap the operands, keep the flags.
    arguments = [
        _flag(writer, product.transpose_b),
        _flag(writer, product.transpose_a),
        part.count if part.axis == "n" else _integer(writer, product.n),
        part.count if part.axis == "m" else _integer(writer, product.m),
        _integer(writer, product.k),
        _scalar(writer, product.dtype, 1.0),
        writer.offset(writer.address(step.b), part.b),
        _integer(writer, max(1, product.ldb)),
        writer.offset(writer.address(step.a), part.a),
        _integer(writer, max(1, product.lda)),
        _scalar(writer, product.dtype, 0.0),
        writer.offset(writer.address(step.c), part.c),
        _integer(writer, product.ldc),
    ]
    blas = writer.declare(GEMM_SYMBOL[product.dtype], len(arguments))
    if product.batch == 1:
        writer.lines.append(f"  call void {blas}({_pointers(arguments)})")
        return
    writer.declare("gemm_batch", 0)
    size = _ITEMSIZE[product.dtype]
    strides = ", ".join(f"i64 {stride * size}" for stride in (product.stride_b, product.stride_a, product.stride_c))
    batch = part.count if part.axis == "batch" else product.batch
    writer.lines.append(f"  call void @gemm_batch(ptr {blas}, {_pointers(arguments)}, i64 {batch}, {strides})")


def _gemv(writer: Writer, step: Gemm, part: _Part, *, rows_of_c: bool) -> None:
    """`C = M x`, C contiguous, where C is one column (`rows_of_c`) or one row."""
    product = step.product
    if rows_of_c:
        length, matrix, leading, moved, flip = product.m, step.a, product.lda, part.a, not product.transpose_a
        vector, increment = step.b, 1 if product.transpose_b else product.ldb
    else:
        length, matrix, leading, moved, flip = product.n, step.b, product.ldb, part.b, product.transpose_b
        vector, increment = step.a, product.lda if product.transpose_a else 1
    out = writer.offset(writer.address(step.c), part.c)
    extent = part.count or _integer(writer, length)
    rows, columns = (_integer(writer, product.k), extent) if flip else (extent, _integer(writer, product.k))
    if not part.axis:  # some versions multiply what was there by zero, which keeps NaN
        writer.fill(Fill(step.c, length * _ITEMSIZE[product.dtype]))
    else:
        writer.clear(out, part.count, _ITEMSIZE[product.dtype])
    arguments = [
        _flag(writer, flip),
        rows,
        columns,
        _scalar(writer, product.dtype, 1.0),
        writer.offset(writer.address(matrix), moved),
        _integer(writer, leading),
        writer.address(vector),
        _integer(writer, increment),
        _scalar(writer, product.dtype, 0.0),
        out,
        _integer(writer, 1),
    ]
    blas = writer.declare(GEMV_SYMBOL[product.dtype], len(arguments))
    writer.lines.append(f"  call void {blas}({_pointers(arguments)})")


def _integer(writer: Writer, value: int) -> str:
    return writer.constant("i32", str(value))


def _flag(writer: Writer, transposed: bool) -> str:
    return writer.constant("i8", str(ord("T" if transposed else "N")))


def _scalar(writer: Writer, dtype: str, value: float) -> str:
    return writer.constant({"float32": "float", "float64": "double"}[dtype], str(value))


def _pointers(values: Iterable[str]) -> str:
    return ", ".join(f"ptr {value}" for value in values)


# gemm_batch(blas, 13 pointers as BLAS takes them, batch, byte strides of the three matrices in BLAS's order)
BATCH_LOOP = """\
define internal void @gemm_batch(ptr %blas, ptr %ta, ptr %tb, ptr %m, ptr %n, ptr %k, ptr %alpha, ptr %a, ptr %lda, \
ptr %b, ptr %ldb, ptr %beta, ptr %c, ptr %ldc, i64 %batch, i64 %sa, i64 %sb, i64 %sc) noinline {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %oa = mul i64 %i, %sa
  %ob = mul i64 %i, %sb
  %oc = mul i64 %i, %sc
  %pa = getelementptr i8, ptr %a, i64 %oa
  %pb = getelementptr i8, ptr %b, i64 %ob
  %pc = getelementptr i8, ptr %c, i64 %oc
  call void %blas(ptr %ta, ptr %tb, ptr %m, ptr %n, ptr %k, ptr %alpha, ptr %pa, ptr %lda, ptr %pb, ptr %ldb, \
ptr %beta, ptr %pc, ptr %ldc)
  %next = add i64 %i, 1
  %done = icmp eq i64 %next, %batch
  br i1 %done, label %exit, label %loop
exit:
  ret void
}"""


def check(product: StoredProduct) -> None:
    """Raise ValueError where a product makes no sense."""
    if product.dtype not in GEMM_SYMBOL:
        raise ValueError(f"driver: gemm takes float32 or float64; got {product.dtype}; lower other dtypes to a kernel")
    for what, value in (("m", product.m), ("n", product.n), ("k", product.k), ("batch", product.batch)):
        if value < 0:
            raise ValueError(f"driver: a gemm size {what} must not be negative; got {value}; the plan is wrong")
    product.check_rows("driver")
    if max(product.m, product.n, product.k, product.lda, product.ldb, product.ldc) >= _BLAS_INT_LIMIT:
        raise ValueError(
            f"driver: BLAS takes sizes below 2**31; got {product.m} x {product.n} x {product.k}; split the matmul"
        )
