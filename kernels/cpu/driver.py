"""The driver: the native function that runs a whole step by calling its kernels in order.

The plan has fixed every address before anything runs, so the driver is straight-line code: it adds constant offsets to
two base pointers and calls. Its C signature is `void step(void *arena, void **table)`; `arena` holds every planned
slot, `table` one pointer for each buffer that the plan does not own (inputs, state, outputs, constants, status).

A program for several threads is cut into phases at its barriers, and each phase into as many parts as there are
threads: of a shared step each part makes its own turns, and what one part owns the others step over. A phase is a
function of the part's number. Whether every thread does one part or one thread does all of them, the same numbers are
added in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from staticgrad.kernels.addresses import Address, Argument
from staticgrad.kernels.cpu import blas_calls
from staticgrad.kernels.cpu.blas_calls import GET_THREADS, SET_THREADS
from staticgrad.kernels.cpu.steps import Barrier, Check, Copy, Fill, Gemm, KernelCall, Owned, Step, Work
from staticgrad.kernels.cpu.threads import BARRIER, PACE_WORDS, POOL_RUN
from staticgrad.kernels.table import STATUS_BYTES

STEPS_PER_FUNCTION = 256  # one huge basic block makes LLVM's code generation slower than linear


def driver_ir(steps: Sequence[Step], symbol: str = "staticgrad_step", *, parallel: bool = False) -> str:
    """LLVM IR of `void symbol(ptr arena, ptr table)`, which runs the steps in order.

    Args: with `parallel`, on all threads of the pool; a step that is not owned is then shared.
    Long programs are cut into functions of `STEPS_PER_FUNCTION` steps, so that compile time stays linear.
    Raises ValueError when a step makes no sense: a negative offset or size, a matrix larger than BLAS can address.
    """
    writer = Writer(parallel)
    phases: list[str | Check | Barrier] = []
    for chunk in _chunks(steps):
        if isinstance(chunk, Check | Barrier):
            phases.append(chunk)
            continue
        phase = f"{symbol}_phase{len(phases)}"
        writer.phase(phase, chunk)
        phases.append(phase)
    writer.body(f"{symbol}_body", phases)
    uses_blas = any(isinstance(step.work if isinstance(step, Owned) else step, Gemm) for step in steps)
    checks = [phase for phase in phases if isinstance(phase, Check)]
    writer.entry(symbol, uses_blas, checks[0] if checks else None)
    return writer.text()


def _chunks(steps: Sequence[Step]) -> Iterator[list[Work | Owned] | Check | Barrier]:
    """The steps in runs of at most `STEPS_PER_FUNCTION`, and the checks and barriers between them."""
    chunk: list[Work | Owned] = []
    for step in steps:
        meets = isinstance(step, Check | Barrier)
        if chunk and (meets or len(chunk) == STEPS_PER_FUNCTION):
            yield chunk
            chunk = []
        if isinstance(step, Check | Barrier):
            yield step
        else:
            chunk.append(step)
    if chunk:
        yield chunk


class Writer:
    """Collects functions, the constants that BLAS takes by address, and the declarations they need."""

    def __init__(self, parallel: bool) -> None:
        self.lines: list[str] = []
        self._parallel = parallel
        self._constants: dict[tuple[str, str], str] = {}
        self._declarations: dict[str, str] = {}
        self._values = 0

    # ------------------------------------------------------------ functions

    def phase(self, symbol: str, steps: Sequence[Work | Owned]) -> None:
        """A function that runs part number `thread` of `threads` of some steps."""
        self.lines.append(
            f"define internal void @{symbol}(ptr noalias %arena, ptr noalias readonly %table, i64 %thread, "
            "i64 %threads) noinline {"
        )
        if self._parallel:
            self.lines.append("  %count = alloca i32")  # of rows or columns, for BLAS, which takes it by address
        inside: int | None = None  # the thread whose own work is being written
        for step in steps:
            owner = step.thread if isinstance(step, Owned) and self._parallel else None
            if inside != owner:
                self._leave(inside)
                self._enter(owner)
                inside = owner
            self._work(step.work if isinstance(step, Owned) else step, owned=owner is not None)
        self._leave(inside)
        self.lines += ["  ret void", "}"]

    def _enter(self, owner: int | None) -> None:
        if owner is None:
            return
        turn = self.emit(f"urem i64 {owner}, %threads") if owner else "0"
        mine = self.emit(f"icmp eq i64 %thread, {turn}")
        name = self._label()
        self.lines += [f"  br i1 {mine}, label %mine{name}, label %after{name}", f"mine{name}:"]
        self._after = name

    def _leave(self, owner: int | None) -> None:
        if owner is not None:
            self.lines += [f"  br label %after{self._after}", f"after{self._after}:"]

    def _work(self, step: Work, *, owned: bool) -> None:
        shared = self._parallel and not owned
        match step:
            case KernelCall():
                self._kernel_call(step, shared)
            case Gemm() if shared:
                blas_calls.shared_gemm(self, step)
            case Gemm():
                blas_calls.gemm(self, step)
            case Fill():
                self.fill(step)
            case Copy():
                self._copy(step)

    def body(self, symbol: str, phases: Iterable[str | Check | Barrier]) -> None:
        """The function that each of `present` threads runs: it calls the phases and leaves at a check that fails."""
        self.lines += [
            f"define internal void @{symbol}(ptr %arena, ptr %table, i64 %first, i64 %present, i64 %threads) {{",
            "entry:",
        ]
        for number, phase in enumerate(phases):
            if isinstance(phase, str) and self._parallel:
                self._declare("@each_part", "")
                self.lines.append(
                    f"  call void @each_part(ptr @{phase}, ptr %arena, ptr %table, i64 %first, i64 %present, "
                    "i64 %threads)"
                )
                continue
            if isinstance(phase, str):
                self.lines.append(f"  call void @{phase}(ptr %arena, ptr %table, i64 0, i64 1)")
                continue
            if self._parallel:
                self._declare(f"@{BARRIER}", f"declare void @{BARRIER}(i64)")
                self.lines.append(f"  call void @{BARRIER}(i64 %present)")
            if isinstance(phase, Check):
                self._leave_if_failed(phase, number)
        self.lines += ["  br label %exit", "exit:", "  ret void", "}"]

    def _leave_if_failed(self, check: Check, number: int) -> None:
        status = self.address(Argument(check.status.index, check.status.offset))
        if self._parallel:
            self._declare("@first_failed", "")
            failed = self.emit(f"call i64 @first_failed(ptr {status}, i64 %threads)")
            stop = self.emit(f"icmp sge i64 {failed}, 0")
        else:
            word = self.emit(f"load i64, ptr {status}, align 8")
            stop = self.emit(f"icmp ne i64 {word}, 0")
        self.lines += [f"  br i1 {stop}, label %exit, label %next{number}", f"next{number}:"]

    def entry(self, symbol: str, uses_blas: bool, check: Check | None) -> None:
        """The function that is called from outside. BLAS runs on one thread meanwhile: its threads are not ours."""
        self.lines += [f"define void @{symbol}(ptr %arena, ptr %table) {{", "entry:"]
        if uses_blas:
            get, put = f"@{GET_THREADS}", f"@{SET_THREADS}"
            self._declare(get, f"declare i32 {get}()")
            self._declare(put, f"declare void {put}(i32)")
            self.lines += [f"  %before = call i32 {get}()", "  %many = icmp sgt i32 %before, 1"]
            self.lines += ["  br i1 %many, label %one, label %start", "one:", f"  call void {put}(i32 1)"]
            self.lines += ["  br label %start", "start:"]
        if self._parallel:
            self._declare(f"@{POOL_RUN}", f"declare i64 @{POOL_RUN}(ptr, ptr, ptr, ptr)")
            threads = self.emit(f"call i64 @{POOL_RUN}(ptr @{symbol}_body, ptr %arena, ptr %table, ptr @pace)")
            if check is not None:
                self._declare("@move_status", "")
                self.lines.append(f"  call void @move_status(ptr {self.address(check.status)}, i64 {threads})")
        else:
            self.lines.append(f"  call void @{symbol}_body(ptr %arena, ptr %table, i64 0, i64 1, i64 1)")
        if uses_blas:
            self.lines += ["  br i1 %many, label %all, label %end", "all:"]
            self.lines += [f"  call void @{SET_THREADS}(i32 %before)", "  br label %end", "end:"]
        self.lines += ["  ret void", "}"]

    def text(self) -> str:
        """The whole module."""
        constants = [
            f"{name} = private unnamed_addr constant {kind} {value}" for (kind, value), name in self._constants.items()
        ]
        own = {
            "@gemm_batch": blas_calls.BATCH_LOOP,
            "@first_failed": _FIRST_FAILED,
            "@move_status": _MOVE_STATUS,
            "@each_part": _EACH_PART,
        }
        if self._parallel:
            constants.append(f"@pace = internal global [{PACE_WORDS} x i64] zeroinitializer, align 64")
        if "@move_status" in self._declarations:
            self._declare("@first_failed", "")
        helpers = [text for name, text in own.items() if name in self._declarations]
        declarations = [line for line in self._declarations.values() if line]
        return "\n".join([*constants, *declarations, *helpers, *self.lines, "!0 = !{}", ""])

    # ------------------------------------------------------------ values

    def _declare(self, symbol: str, line: str) -> str:
        self._declarations.setdefault(symbol, line)
        return symbol

    def declare(self, symbol: str, arity: int) -> str:
        """Declare a function of `arity` pointers; an arity of 0 stands for one of the driver's own helpers."""
        return self._declare(f"@{symbol}", f"declare void @{symbol}({', '.join(['ptr'] * arity)})" if arity else "")

    def _label(self) -> int:
        self._values += 1
        return self._values

    def emit(self, expression: str) -> str:
        """A new value."""
        name = f"%v{self._label()}"
        self.lines.append(f"  {name} = {expression}")
        return name

    def address(self, address: Address) -> str:
        """An address as a value."""
        base, offset = "%arena", address.offset
        if isinstance(address, Argument):
            slot = self.offset("%table", non_negative("table index", address.index) * 8)
            base = self.emit(f"load ptr, ptr {slot}, align 8, !invariant.load !0")
        base = self.offset(base, non_negative("byte offset", offset))
        if address.stride and self._parallel:
            own = self.emit(f"mul i64 %thread, {address.stride}")
            base = self.emit(f"getelementptr i8, ptr {base}, i64 {own}")
        return base

    def offset(self, base: str, offset: int | str) -> str:
        """An address some bytes further."""
        return self.emit(f"getelementptr i8, ptr {base}, i64 {offset}") if offset else base

    def constant(self, kind: str, value: str) -> str:
        """The address of a constant."""
        return self._constants.setdefault((kind, value), f"@constant{len(self._constants)}")

    def bounds(self, extent: int, grain: int) -> tuple[str, str]:
        """The turns [begin, end) of this thread when all share `extent` turns, `grain` of them at a time."""
        pieces = -(-extent // grain)
        ends = []
        after = self.emit("add i64 %thread, 1")
        for thread in ("%thread", after):
            share = self.emit(f"mul i64 {thread}, {pieces}")
            piece = self.emit(f"udiv i64 {share}, %threads")
            turn = self.emit(f"mul i64 {piece}, {grain}")
            inside = self.emit(f"icmp slt i64 {turn}, {extent}")
            ends.append(self.emit(f"select i1 {inside}, i64 {turn}, i64 {extent}"))
        return ends[0], ends[1]

    # ------------------------------------------------------------ steps

    def _kernel_call(self, step: KernelCall, shared: bool) -> None:
        numbers: tuple[str, ...] = ()
        if step.joins:
            numbers = ("0", "%threads")
        elif step.extent:
            numbers = self.bounds(step.extent, step.grain) if shared else ("0", str(step.extent))
        numbers += tuple(map(str, step.numbers))
        types = ["ptr"] * len(step.addresses) + ["i64"] * len(numbers)
        self._declare(f'@"{step.symbol}"', f'declare void @"{step.symbol}"({", ".join(types)})')
        arguments = [f"ptr {self.address(address)}" for address in step.addresses]
        arguments += [f"i64 {number}" for number in numbers]
        self.lines.append(f'  call void @"{step.symbol}"({", ".join(arguments)})')

    def fill(self, step: Fill) -> None:
        """Set bytes."""
        memset = self._declare("@llvm.memset.p0.i64", "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        size = non_negative("byte count", step.bytes)
        self.lines.append(
            f"  call void {memset}(ptr {self.address(step.address)}, i8 {step.byte & 0xFF}, i64 {size}, i1 false)"
        )

    def clear(self, address: str, count: str, itemsize: int) -> None:
        """Set to zero as many elements as the int at `count` says."""
        memset = self._declare("@llvm.memset.p0.i64", "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        elements = self.emit(f"load i32, ptr {count}")
        wide = self.emit(f"sext i32 {elements} to i64")
        size = self.emit(f"mul i64 {wide}, {itemsize}")
        self.lines.append(f"  call void {memset}(ptr {address}, i8 0, i64 {size}, i1 false)")

    def _copy(self, step: Copy) -> None:
        memcpy = self._declare("@llvm.memcpy.p0.p0.i64", "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        size = non_negative("byte count", step.bytes)
        source, destination = self.address(step.source), self.address(step.destination)
        self.lines.append(f"  call void {memcpy}(ptr {destination}, ptr {source}, i64 {size}, i1 false)")


def non_negative(what: str, value: int) -> int:
    """`value`, if it is not negative."""
    if value < 0:
        raise ValueError(f"driver: a {what} must not be negative; got {value}; the plan that made it is wrong")
    return value


# each_part(phase, arena, table, first, present, threads): the parts of a phase that one of `present` threads does
_EACH_PART = """\
define internal void @each_part(ptr %phase, ptr %arena, ptr %table, i64 %first, i64 %present, i64 %threads) noinline {
entry:
  br label %test
test:
  %i = phi i64 [ %first, %entry ], [ %next, %work ]
  %more = icmp slt i64 %i, %threads
  br i1 %more, label %work, label %exit
work:
  call void %phase(ptr %arena, ptr %table, i64 %i, i64 %threads)
  %next = add i64 %i, %present
  br label %test
exit:
  ret void
}"""

# first_failed(status, threads): the first thread whose status word is not zero, -1 if there is none
_FIRST_FAILED = f"""\
define internal i64 @first_failed(ptr %status, i64 %threads) noinline {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %more ]
  %offset = mul i64 %i, {STATUS_BYTES}
  %place = getelementptr i8, ptr %status, i64 %offset
  %word = load i64, ptr %place, align 8
  %failed = icmp ne i64 %word, 0
  br i1 %failed, label %found, label %more
more:
  %next = add i64 %i, 1
  %done = icmp sge i64 %next, %threads
  br i1 %done, label %none, label %loop
found:
  ret i64 %i
none:
  ret i64 -1
}}"""

# move_status(status, threads): what the first thread that failed has reported goes to where thread 0 reports
_MOVE_STATUS = f"""\
declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)
define internal void @move_status(ptr %status, i64 %threads) noinline {{
entry:
  br label %look
look:
  %first = call i64 @first_failed(ptr %status, i64 %threads)
  %failed = icmp sgt i64 %first, 0
  br i1 %failed, label %move, label %exit
move:
  %offset = mul i64 %first, {STATUS_BYTES}
  %place = getelementptr i8, ptr %status, i64 %offset
  call void @llvm.memmove.p0.p0.i64(ptr %status, ptr %place, i64 {STATUS_BYTES}, i1 false)
  br label %exit
exit:
  ret void
}}"""
