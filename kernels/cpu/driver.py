"""The driver: the native function that runs a whole step by calling its kernels in order.

The plan has fixed every address before anything runs, so the driver is straight-line code: it adds constant offsets to
two base pointers and calls. Its C signature is `void step(void *arena, void **table)`; `arena` holds every planned
slot, `table` one pointer for each buffer that the plan does not own (inputs, state, outputs, constants, status).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

ENTRY = "staticgrad_step"
GEMM_SYMBOL = {"float32": "staticgrad_sgemm", "float64": "staticgrad_dgemm"}
GEMV_SYMBOL = {"float32": "staticgrad_sgemv", "float64": "staticgrad_dgemv"}
GET_THREADS, SET_THREADS = "staticgrad_get_threads", "staticgrad_set_threads"
BLAS_SYMBOLS = frozenset((*GEMM_SYMBOL.values(), *GEMV_SYMBOL.values(), GET_THREADS, SET_THREADS))
# OpenBLAS takes all its threads from 2**19 multiplications on, which last 6 µs on one core: less than it takes to wake
# the others. Below this many, 50 µs, a product runs on one thread.
THREADS_FROM = 2**22
# From here on OpenBLAS's gemv is up to four times faster than its gemm on a vector; below, gemm starts a little faster.
GEMV_FROM = 2**18
STEPS_PER_FUNCTION = 256  # one huge basic block makes LLVM's code generation slower than linear
_BLAS_INT_LIMIT = 2**31
_ITEMSIZE = {"float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class Arena:
    """The address `arena + offset`, offset in bytes."""

    offset: int


@dataclass(frozen=True, slots=True)
class Argument:
    """The address `table[index] + offset`, offset in bytes."""

    index: int
    offset: int = 0


Address = Arena | Argument


@dataclass(frozen=True, slots=True)
class KernelCall:
    """Call `void symbol(void *, ...)` with the given addresses."""

    symbol: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Gemm:
    """`C = alpha * op(A) @ op(B) + beta * C` on row-major matrices, `batch` times.

    `op(A)` is (m, k), `op(B)` is (k, n), `C` is (m, n). A leading dimension is the distance between rows as stored, in
    elements; a stride is the distance between matrices of the batch, in elements. With `beta == 0`, C is written only.
    """

    dtype: str
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    a: Address
    b: Address
    c: Address
    lda: int
    ldb: int
    ldc: int
    alpha: float = 1.0
    beta: float = 0.0
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0


@dataclass(frozen=True, slots=True)
class Fill:
    """Set `bytes` bytes to `byte`: 0 clears an accumulator, 0xFF poisons a freed slot with NaN."""

    address: Address
    bytes: int
    byte: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `bytes` bytes between two buffers that do not overlap."""

    source: Address
    destination: Address
    bytes: int


@dataclass(frozen=True, slots=True)
class Check:
    """End the run here if the 64-bit status word is not zero."""

    status: Address


Step = KernelCall | Gemm | Fill | Copy | Check


def driver_ir(steps: Sequence[Step], symbol: str = ENTRY) -> str:
    """LLVM IR of `void symbol(ptr arena, ptr table)`, which runs the steps in order.

    Long programs are cut into functions of `STEPS_PER_FUNCTION` steps, so that compile time stays linear.
    Raises ValueError when a step makes no sense: a negative offset or size, a matrix larger than BLAS can address.
    """
    writer = _Writer(threads=any(isinstance(step, Gemm) and not _is_large(step) for step in steps))
    parts: list[str | Check] = []
    for chunk in _chunks(steps):
        if isinstance(chunk, Check):
            parts.append(chunk)
            continue
        part = f"{symbol}_part{len(parts)}"
        writer.function(part, "internal ", chunk)
        parts.append(part)
    writer.entry(symbol, parts)
    return writer.text()


def _chunks(steps: Sequence[Step]) -> Iterator[list[Step] | Check]:
    """The steps in runs of at most `STEPS_PER_FUNCTION`, and the checks between them."""
    chunk: list[Step] = []
    for step in steps:
        if chunk and (isinstance(step, Check) or len(chunk) == STEPS_PER_FUNCTION):
            yield chunk
            chunk = []
        if isinstance(step, Check):
            yield step
        else:
            chunk.append(step)
    if chunk:
        yield chunk


class _Writer:
    """Collects functions, the constants that BLAS takes by address, and the declarations they need."""

    def __init__(self, *, threads: bool) -> None:
        self.lines: list[str] = []
        self._threads = threads  # BLAS runs on one thread, but for large products
        self._constants: dict[tuple[str, str], str] = {}
        self._declarations: dict[str, str] = {}
        self._values = 0

    def function(self, symbol: str, linkage: str, steps: Iterable[Step]) -> None:
        self.lines.append(
            f"define {linkage}void @{symbol}(ptr noalias %arena, ptr noalias readonly %table, i32 %threads) noinline {{"
        )
        for step in steps:
            match step:
                case KernelCall():
                    self._kernel_call(step)
                case Gemm() if self._threads and _is_large(step):
                    self.lines.append(f"  call void @{SET_THREADS}(i32 %threads)")
                    self._gemm(step)
                    self.lines.append(f"  call void @{SET_THREADS}(i32 1)")
                case Gemm():
                    self._gemm(step)
                case Fill():
                    self._fill(step)
                case Copy():
                    self._copy(step)
        self.lines += ["  ret void", "}"]

    def entry(self, symbol: str, parts: Iterable[str | Check]) -> None:
        """The function that calls the parts in order and leaves at the first check that fails."""
        self.lines += [f"define void @{symbol}(ptr %arena, ptr %table) {{", "entry:"]
        if self._threads:
            get, put = f"@{GET_THREADS}", f"@{SET_THREADS}"
            self._declare(get, f"declare i32 {get}()")
            self._declare(put, f"declare void {put}(i32)")
            self.lines += [f"  %threads = call i32 {get}()", "  %many = icmp sgt i32 %threads, 1"]
            self.lines += ["  br i1 %many, label %one, label %start", "one:", f"  call void {put}(i32 1)"]
            self.lines += ["  br label %start", "start:"]
        threads = "%threads" if self._threads else "0"
        for number, part in enumerate(parts):
            if isinstance(part, str):
                self.lines.append(f"  call void @{part}(ptr %arena, ptr %table, i32 {threads})")
                continue
            status = self._emit(f"load i64, ptr {self._address(part.status)}, align 8")
            failed = self._emit(f"icmp ne i64 {status}, 0")
            self.lines += [f"  br i1 {failed}, label %exit, label %next{number}", f"next{number}:"]
        self.lines += ["  br label %exit", "exit:"]
        if self._threads:
            self.lines += ["  br i1 %many, label %all, label %end", "all:"]
            self.lines += [f"  call void @{SET_THREADS}(i32 %threads)", "  br label %end", "end:"]
        self.lines += ["  ret void", "}"]

    def text(self) -> str:
        constants = [
            f"{name} = private unnamed_addr constant {kind} {value}" for (kind, value), name in self._constants.items()
        ]
        loop = [_BATCH_LOOP] if "@gemm_batch" in self._declarations else []
        declarations = [line for line in self._declarations.values() if line]
        return "\n".join([*constants, *declarations, *loop, *self.lines, "!0 = !{}", ""])

    def _declare(self, symbol: str, line: str) -> str:
        self._declarations.setdefault(symbol, line)
        return symbol

    def _fresh(self) -> str:
        self._values += 1
        return f"%v{self._values}"

    def _emit(self, expression: str) -> str:
        name = self._fresh()
        self.lines.append(f"  {name} = {expression}")
        return name

    def _address(self, address: Address) -> str:
        base, offset = "%arena", address.offset
        if isinstance(address, Argument):
            slot = self._offset("%table", _non_negative("table index", address.index) * 8)
            base = self._emit(f"load ptr, ptr {slot}, align 8, !invariant.load !0")
        return self._offset(base, _non_negative("byte offset", offset))

    def _offset(self, base: str, offset: int) -> str:
        return self._emit(f"getelementptr i8, ptr {base}, i64 {offset}") if offset else base

    def _constant(self, kind: str, value: str) -> str:
        return self._constants.setdefault((kind, value), f"@constant{len(self._constants)}")

    def _kernel_call(self, step: KernelCall) -> None:
        types = ", ".join(["ptr"] * len(step.addresses))
        self._declare(f'@"{step.symbol}"', f'declare void @"{step.symbol}"({types})')
        arguments = [self._address(address) for address in step.addresses]
        self.lines.append(f'  call void @"{step.symbol}"({_pointers(arguments)})')

    def _fill(self, step: Fill) -> None:
        memset = self._declare("@llvm.memset.p0.i64", "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        size = _non_negative("byte count", step.bytes)
        self.lines.append(
            f"  call void {memset}(ptr {self._address(step.address)}, i8 {step.byte & 0xFF}, i64 {size}, i1 false)"
        )

    def _copy(self, step: Copy) -> None:
        memcpy = self._declare("@llvm.memcpy.p0.p0.i64", "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        size = _non_negative("byte count", step.bytes)
        source, destination = self._address(step.source), self._address(step.destination)
        self.lines.append(f"  call void {memcpy}(ptr {destination}, ptr {source}, i64 {size}, i1 false)")

    def _gemm(self, step: Gemm) -> None:
        _check_gemm(step)
        if step.m == 0 or step.n == 0 or step.batch == 0:
            return
        if step.batch == 1 and step.m * step.n * step.k >= GEMV_FROM:
            if step.n == 1 and step.ldc == 1:
                increment = 1 if step.transpose_b else step.ldb
                self._gemv(step, step.m, step.a, step.lda, not step.transpose_a, step.b, increment)
                return
            if step.m == 1:
                increment = step.lda if step.transpose_a else 1
                self._gemv(step, step.n, step.b, step.ldb, step.transpose_b, step.a, increment)
                return
        # Fortran sees each row-major matrix transposed, and C^T = op(B)^T op(A)^T: swap the operands, keep the flags.
        arguments = [
            self._flag(step.transpose_b),
            self._flag(step.transpose_a),
            self._integer(step.n),
            self._integer(step.m),
            self._integer(step.k),
            self._scalar(step.dtype, step.alpha),
            self._address(step.b),
            self._integer(max(1, step.ldb)),
            self._address(step.a),
            self._integer(max(1, step.lda)),
            self._scalar(step.dtype, step.beta),
            self._address(step.c),
            self._integer(step.ldc),
        ]
        if step.batch == 1:
            self._blas(GEMM_SYMBOL[step.dtype], arguments)
            return
        blas = self._declare_blas(GEMM_SYMBOL[step.dtype], len(arguments))
        self._declare("@gemm_batch", "")
        size = _ITEMSIZE[step.dtype]
        strides = ", ".join(f"i64 {stride * size}" for stride in (step.stride_b, step.stride_a, step.stride_c))
        self.lines.append(f"  call void @gemm_batch(ptr {blas}, {_pointers(arguments)}, i64 {step.batch}, {strides})")

    def _gemv(
        self, step: Gemm, length: int, matrix: Address, leading: int, flip: bool, vector: Address, increment: int
    ) -> None:
        """`C = alpha * M x + beta * C`, C contiguous; `flip` where M is what Fortran sees, transposed."""
        rows, columns = (step.k, length) if flip else (length, step.k)
        if step.beta == 0.0:  # some versions multiply what was there by zero, which keeps NaN
            self._fill(Fill(step.c, length * _ITEMSIZE[step.dtype]))
        arguments = [
            self._flag(flip),
            self._integer(rows),
            self._integer(columns),
            self._scalar(step.dtype, step.alpha),
            self._address(matrix),
            self._integer(leading),
            self._address(vector),
            self._integer(increment),
            self._scalar(step.dtype, step.beta),
            self._address(step.c),
            self._integer(1),
        ]
        self._blas(GEMV_SYMBOL[step.dtype], arguments)

    def _blas(self, symbol: str, arguments: Sequence[str]) -> None:
        blas = self._declare_blas(symbol, len(arguments))
        self.lines.append(f"  call void {blas}({_pointers(arguments)})")

    def _declare_blas(self, symbol: str, arity: int) -> str:
        return self._declare(f"@{symbol}", f"declare void @{symbol}({', '.join(['ptr'] * arity)})")

    def _integer(self, value: int) -> str:
        return self._constant("i32", str(value))

    def _flag(self, transposed: bool) -> str:
        return self._constant("i8", str(ord("T" if transposed else "N")))

    def _scalar(self, dtype: str, value: float) -> str:
        if dtype == "float32":
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        return self._constant({"float32": "float", "float64": "double"}[dtype], _hexadecimal(value))


def _is_large(step: Gemm) -> bool:
    return step.m * step.n * step.k >= THREADS_FROM


def _pointers(values: Iterable[str]) -> str:
    return ", ".join(f"ptr {value}" for value in values)


# gemm_batch(blas, 13 pointers as BLAS takes them, batch, byte strides of the three matrices in BLAS's order)
_BATCH_LOOP = """\
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


def _non_negative(what: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"driver: a {what} must not be negative; got {value}; the plan that made it is wrong")
    return value


def _check_gemm(step: Gemm) -> None:
    if step.dtype not in GEMM_SYMBOL:
        raise ValueError(f"driver: gemm takes float32 or float64; got {step.dtype}; lower other dtypes to a kernel")
    for what, value in (("m", step.m), ("n", step.n), ("k", step.k), ("batch", step.batch)):
        _non_negative(f"gemm size {what}", value)
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
