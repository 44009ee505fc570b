"""How the driver calls BLAS for a matrix product: whole, or each thread its rows or columns of the result."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from staticgrad.kernels.cpu.blas import GEMM_SYMBOL, GEMV_SYMBOL, GET_THREADS, SET_THREADS
from staticgrad.kernels.cpu.steps import Fill, Gemm

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
    check(step)
    if step.m and step.n and step.batch:
        _product(writer, step, _Part())


def shared_gemm(writer: Writer, step: Gemm) -> None:
    """The calling thread's part of a product that all threads share."""
    check(step)
    if not (step.m and step.n and step.batch):
        return
    axis = _shared_axis(step)
    extent = getattr(step, axis)
    begin, end = writer.bounds(extent, 1 if axis == "batch" else GRAIN)
    count = writer.emit(f"sub i64 {end}, {begin}")
    some = writer.emit(f"icmp sgt i64 {count}, 0")
    label = some[1:]
    writer.lines += [f"  br i1 {some}, label %some_{label}, label %none_{label}", f"some_{label}:"]
    size = _ITEMSIZE[step.dtype]
    strides = {
        "m": (1 if step.transpose_a else step.lda, 0, step.ldc),
        "n": (0, step.ldb if step.transpose_b else 1, 1),
        "batch": (step.stride_a, step.stride_b, step.stride_c),
    }[axis]
    starts = [writer.emit(f"mul i64 {begin}, {stride * size}") if stride else 0 for stride in strides]
    if axis == "batch":
        _product(writer, step, _Part(axis, count, *starts))
    else:
        narrow = writer.emit(f"trunc i64 {count} to i32")
        writer.lines.append(f"  store i32 {narrow}, ptr %count")
        _product(writer, step, _Part(axis, "%count", *starts))
    writer.lines += [f"  br label %none_{label}", f"none_{label}:"]


def _shared_axis(step: Gemm) -> str:
    """The axis along which threads share a product.

    BLAS copies both operands into blocks, and threads that share rows copy all of B, those that share columns all of
    A. The smaller of the two is copied twice; a transposed one costs about double.
    """
    if step.batch > 1:
        return "batch"
    by_rows, by_columns = step.n * (1 + step.transpose_b), step.m * (1 + step.transpose_a)
    return "m" if by_rows < by_columns else "n"


def _product(writer: Writer, step: Gemm, part: _Part) -> None:
    if step.batch == 1 and step.multiplications >= GEMV_FROM:
        if step.n == 1 and step.ldc == 1:
            _gemv(writer, step, part, rows_of_c=True)
            return
        if step.m == 1:
            _gemv(writer, step, part, rows_of_c=False)
            return
    # Fortran sees each row-major matrix transposed, and C^T = op(B)^T op(A)^T: swap the operands, keep the flags.
    arguments = [
        _flag(writer, step.transpose_b),
        _flag(writer, step.transpose_a),
        part.count if part.axis == "n" else _integer(writer, step.n),
        part.count if part.axis == "m" else _integer(writer, step.m),
        _integer(writer, step.k),
        _scalar(writer, step.dtype, step.alpha),
        writer.offset(writer.address(step.b), part.b),
        _integer(writer, max(1, step.ldb)),
        writer.offset(writer.address(step.a), part.a),
        _integer(writer, max(1, step.lda)),
        _scalar(writer, step.dtype, step.beta),
        writer.offset(writer.address(step.c), part.c),
        _integer(writer, step.ldc),
    ]
    blas = writer.declare(GEMM_SYMBOL[step.dtype], len(arguments))
    if step.batch == 1:
        writer.lines.append(f"  call void {blas}({_pointers(arguments)})")
        return
    writer.declare("gemm_batch", 0)
    size = _ITEMSIZE[step.dtype]
    strides = ", ".join(f"i64 {stride * size}" for stride in (step.stride_b, step.stride_a, step.stride_c))
    batch = part.count if part.axis == "batch" else step.batch
    writer.lines.append(f"  call void @gemm_batch(ptr {blas}, {_pointers(arguments)}, i64 {batch}, {strides})")


def _gemv(writer: Writer, step: Gemm, part: _Part, *, rows_of_c: bool) -> None:
    """`C = alpha * M x + beta * C`, C contiguous, where C is one column (`rows_of_c`) or one row."""
    if rows_of_c:
        length, matrix, leading, moved, flip = step.m, step.a, step.lda, part.a, not step.transpose_a
        vector, increment = step.b, 1 if step.transpose_b else step.ldb
    else:
        length, matrix, leading, moved, flip = step.n, step.b, step.ldb, part.b, step.transpose_b
        vector, increment = step.a, step.lda if step.transpose_a else 1
    out = writer.offset(writer.address(step.c), part.c)
    extent = part.count or _integer(writer, length)
    rows, columns = (_integer(writer, step.k), extent) if flip else (extent, _integer(writer, step.k))
    beta = step.beta
    if beta == 0.0 and not part.axis:  # some versions multiply what was there by zero, which keeps NaN
        writer.fill(Fill(step.c, length * _ITEMSIZE[step.dtype]))
    elif beta == 0.0:
        writer.clear(out, part.count, _ITEMSIZE[step.dtype])
    arguments = [
        _flag(writer, flip),
        rows,
        columns,
        _scalar(writer, step.dtype, step.alpha),
        writer.offset(writer.address(matrix), moved),
        _integer(writer, leading),
        writer.address(vector),
        _integer(writer, increment),
        _scalar(writer, step.dtype, beta),
        out,
        _integer(writer, 1),
    ]
    blas = writer.declare(GEMV_SYMBOL[step.dtype], len(arguments))
    writer.lines.append(f"  call void {blas}({_pointers(arguments)})")


def _integer(writer: Writer, value: int) -> str:
    return writer.constant("i32", str(value))


def _flag(writer: Writer, transposed: bool) -> str:
    return writer.constant("i8", str(ord("T" if transposed else "N")))


def _scalar(writer: Writer, dtype: str, value: float) -> str:
    if dtype == "float32":
        value = struct.unpack("<f", struct.pack("<f", value))[0]
    return writer.constant({"float32": "float", "float64": "double"}[dtype], _hexadecimal(value))


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


def _hexadecimal(value: float) -> str:
    """A floating constant as LLVM writes it exactly: the bits of the value in double precision."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def check(step: Gemm) -> None:
    """Raise ValueError where a product makes no sense."""
    if step.dtype not in GEMM_SYMBOL:
        raise ValueError(f"driver: gemm takes float32 or float64; got {step.dtype}; lower other dtypes to a kernel")
    for what, value in (("m", step.m), ("n", step.n), ("k", step.k), ("batch", step.batch)):
        if value < 0:
            raise ValueError(f"driver: a gemm size {what} must not be negative; got {value}; the plan is wrong")
    rows = {
        "lda": (step.lda, step.m if step.transpose_a else step.k),
        "ldb": (step.ldb, step.k if step.transpose_b else step.n),
        "ldc": (step.ldc, step.n),
    }
    for what, (leading, length) in rows.items():
        if leading < length:
            raise ValueError(f"driver: {what} must reach over a row of {length} elements; got {leading}")
    if max(step.m, step.n, step.k, step.lda, step.ldb, step.ldc) >= _BLAS_INT_LIMIT:
        raise ValueError(f"driver: BLAS takes sizes below 2**31; got {step.m} x {step.n} x {step.k}; split the matmul")
