"""From LLVM IR to a native step: link, emit one object, load it, call it.

Nothing here needs Numba. A process that finds its program in the cache goes through `load` alone, which takes neither
Numba nor LLVM. The kernels' IR comes from `numba_bridge.kernel_ir` (or from the cache), already optimised for this CPU.
"""

from __future__ import annotations

import ctypes
import json
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from staticgrad.kernels.cpu import machine_code, runtime
from staticgrad.kernels.cpu.host import host_key
from staticgrad.kernels.cpu.machine_code import free_with
from staticgrad.kernels.cpu.symbols import address_of_symbol

if TYPE_CHECKING:
    from staticgrad.kernels.cpu.steps import KernelCall, Step

ENTRY = "staticgrad_step"
_MAGIC = b"SGOBJECT"
_LENGTH = struct.Struct("<I")
_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)  # releases the GIL around the call
_counting = threading.Lock()

_compiles = 0


def compile_count() -> int:
    """How many kernels Numba has compiled in this process."""
    return _compiles


def record_compile() -> None:
    """Count one Numba compilation (called by the bridge)."""
    global _compiles
    with _counting:
        _compiles += 1


def build(kernels: Mapping[str, str], steps: Sequence[Step], *, parallel: bool = False) -> bytes:
    """Link the kernels' IR with a driver for the steps and emit one object for this CPU.

    Args: `kernels` maps a symbol to the optimised IR that defines it; `steps` run in order, with `parallel` on all
    threads of the pool.
    Returns bytes for `load`: the object file behind a small header that names the host and the symbols it needs.
    Raises ValueError when a step calls a kernel that is not there, or with a different number of pointers, and
    RuntimeError when a kernel needs a symbol that a fresh process could not find.
    """
    from staticgrad.kernels.cpu.llvm import llvm_lock

    with llvm_lock() as llvm:
        externals, objects = _emitted(llvm, kernels, steps, parallel)
    header = {"host": host_key(), "externals": externals, "sizes": [len(code) for code in objects]}
    text = json.dumps(header).encode()
    return b"".join((_MAGIC, _LENGTH.pack(len(text)), text, *objects))


def _emitted(
    llvm: Any, kernels: Mapping[str, str], steps: Sequence[Step], parallel: bool
) -> tuple[list[str], list[bytes]]:
    """What a program calls outside itself, and its object files: kernels, driver, runtime.

    A function of its own, so that LLVM's modules are gone before its lock is.
    """
    from staticgrad.kernels.cpu.driver import driver_ir
    from staticgrad.kernels.cpu.llvm import externals_of, machine, make_internal

    calls = kernel_calls(steps)
    called = {call.symbol for call in calls}
    library = llvm.parse_assembly("")
    for symbol in sorted(called & kernels.keys()):
        library.link_in(llvm.parse_assembly(kernels[symbol]))
    _check_calls(library, calls)
    driver = llvm.parse_assembly(driver_ir(steps, ENTRY, parallel=parallel))
    make_internal(driver, keep={ENTRY})
    driver.verify()
    externals = sorted(externals_of(library) | (externals_of(driver) - called))
    _check_externals(externals)
    # The driver only moves constants and calls: without optimisation it costs a quarter of the time to emit.
    return externals, [machine(3).emit_object(library), machine(0).emit_object(driver), runtime.object_file()]


def load(program: bytes) -> Callable[[int, int], None]:
    """Load what `build` made: a function of two addresses, `step(arena, table)`, that releases the GIL.

    The result keeps its machine code alive and frees it when it is itself deleted. Any number may be loaded.
    Raises ValueError when the bytes are no program, or one for another CPU or another version.
    """
    header, (library, driver, shared) = _unpack(program)
    own = runtime.start(shared)

    def resolve(name: str) -> int:
        return own.symbols[name] if name in runtime.SYMBOLS else address_of_symbol(name)

    code = machine_code.load([library, driver], [ENTRY], resolve, header["externals"])
    step: Callable[[int, int], None] = _SIGNATURE(code.address(ENTRY))
    free_with(step, code)
    return step


def kernel_calls(steps: Sequence[Step]) -> list[KernelCall]:
    """The calls of kernels among the steps, in order."""
    from staticgrad.kernels.cpu.steps import KernelCall, Owned

    work = (step.work if isinstance(step, Owned) else step for step in steps)
    return [step for step in work if isinstance(step, KernelCall)]


def _check_calls(module: Any, calls: Sequence[KernelCall]) -> None:
    arity = {f.name: sum(1 for _ in f.arguments) for f in module.functions if not f.is_declaration}
    for call in calls:
        parameters = arity.get(call.symbol)
        if parameters is None:
            raise ValueError(f"build: every kernel a step calls must be given; {call.symbol} is not; add its IR")
        given = len(call.addresses) + (2 if call.extent or call.joins else 0) + len(call.numbers)
        if parameters != given:
            raise ValueError(f"build: {call.symbol} takes {parameters} arguments; a step passes {given}")


def _check_externals(names: Sequence[str]) -> None:
    """A program must find all that it calls in any process."""
    for name in names:
        if name in runtime.SYMBOLS:
            continue
        try:
            if name.startswith(("numba", "NRT_", "Py", "_Py")):
                raise KeyError(name)
            address_of_symbol(name)
        except KeyError:
            raise RuntimeError(
                f"native: a kernel may call BLAS and the C library only; one needs the symbol {name!r}; "
                "write the operation with the vector maths instead"
            ) from None


def _unpack(program: bytes) -> tuple[dict[str, Any], list[bytes]]:
    start = len(_MAGIC) + _LENGTH.size
    if len(program) < start or not program.startswith(_MAGIC):
        raise ValueError(
            f"load: expected a compiled program; got {len(program)} bytes of something else; compile again"
        )
    position = start + _LENGTH.unpack_from(program, len(_MAGIC))[0]
    try:
        header = json.loads(program[start:position])
        host, sizes, _ = header["host"], header["sizes"], header["externals"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("load: the header of the compiled program is damaged; compile again") from error
    if host != host_key():
        raise ValueError(f"load: the program was compiled for {host}; this is {host_key()}; compile it again here")
    if position + sum(sizes) != len(program):
        raise ValueError(f"load: expected {position + sum(sizes)} bytes; got {len(program)}; compile again")
    objects = []
    for size in sizes:
        objects.append(program[position : position + size])
        position += size
    return header, objects
