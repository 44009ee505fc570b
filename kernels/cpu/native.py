"""From LLVM IR to a native step: link, emit one object, load it, call it.

Nothing here needs Numba. A process that finds its program in the cache goes through `load` alone, which takes llvmlite
and ctypes. The kernels' IR comes from `numba_bridge.kernel_ir` (or from the cache), already optimised for this CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from staticgrad import graph
from staticgrad.kernels.cpu import blas, threads
from staticgrad.kernels.cpu.blas_calls import BLAS_SYMBOLS
from staticgrad.kernels.cpu.driver import ENTRY, driver_ir
from staticgrad.kernels.cpu.steps import KernelCall, Owned, Step

FORMAT_VERSION = 1
_MAGIC = b"SGOBJECT"
_LENGTH = struct.Struct("<I")
_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)  # releases the GIL around the call

# LLVM's one global context is not meant for two threads. Held across a fork, too: a child must not inherit LLVM in the
# middle of its work.
_LLVM_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_LLVM_LOCK.acquire, after_in_parent=_LLVM_LOCK.release, after_in_child=_LLVM_LOCK.release
    )

_compiles = 0
_discarded: list[Any] = []  # engines whose step is gone


def compile_count() -> int:
    """How many kernels Numba has compiled in this process."""
    return _compiles


def record_compile() -> None:
    """Count one Numba compilation (called by the bridge)."""
    global _compiles
    with _LLVM_LOCK:
        _compiles += 1


def build(kernels: Mapping[str, str], steps: Sequence[Step], *, parallel: bool = False) -> bytes:
    """Link the kernels' IR with a driver for the steps and emit one object for this CPU.

    Args: `kernels` maps a symbol to the optimised IR that defines it; `steps` run in order, with `parallel` on all
    threads of the pool.
    Returns bytes for `load`: the object file behind a small header that names the host and the symbols it needs.
    Raises ValueError when a step calls a kernel that is not there, or with a different number of pointers, and
    RuntimeError when a kernel needs a symbol that a fresh process could not find.
    """
    with _llvm() as llvm:
        return _build(llvm, kernels, steps, parallel)


def load(program: bytes) -> Callable[[int, int], None]:
    """Load what `build` made: a function of two addresses, `step(arena, table)`, that releases the GIL.

    The result keeps its machine code alive and frees it when it is itself deleted. Any number may be loaded.
    Raises ValueError when the bytes are no program, or one for another CPU or another version.
    """
    header, objects = _unpack(program)
    with _llvm() as llvm:
        _resolve_all(llvm, header["externals"])
        engine = _engine(llvm, objects)
        step: Callable[[int, int], None] = _SIGNATURE(engine.get_function_address(ENTRY))
        weakref.finalize(step, _discard, engine).atexit = False  # a daemon thread may still be inside at exit
    return step


def optimise(ir: str, symbol: str) -> str:
    """The IR of a module optimised at level 3 for this CPU, every function but `symbol` made internal."""
    with _llvm() as llvm:
        return optimised(llvm, llvm.parse_assembly(ir), symbol)


def optimised(llvm: Any, module: Any, symbol: str) -> str:
    """The text of a parsed module after optimisation, with only `symbol` visible. The caller holds `llvm_lock`."""
    _make_internal(module, keep={symbol})
    module.verify()
    options = llvm.create_pipeline_tuning_options(3)
    options.loop_vectorization = True
    options.slp_vectorization = False  # loops are written to be vectorised whole; packing scalars only costs time
    # LLVM would unroll short loops before it looks for vectors in them: up to six times slower at 10 or 16 elements,
    # and twice the work for long ones. So unroll what is left after vectorising.
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(_machine(3), options)
    passes = builder.getModulePassManager()
    passes.add_loop_unroll_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return str(module)


def _build(llvm: Any, kernels: Mapping[str, str], steps: Sequence[Step], parallel: bool) -> bytes:
    calls = kernel_calls(steps)
    called = {call.symbol for call in calls}
    library = llvm.parse_assembly("")
    for symbol in sorted(called & kernels.keys()):
        library.link_in(llvm.parse_assembly(kernels[symbol]))
    _check_calls(library, calls)
    driver = llvm.parse_assembly(driver_ir(steps, parallel=parallel))
    _make_internal(driver, keep={ENTRY})
    driver.verify()
    externals = sorted(_externals(library) | (_externals(driver) - called))
    _resolve_all(llvm, externals)
    # The driver only moves constants and calls: without optimisation it costs a quarter of the time to emit.
    objects = [_machine(3).emit_object(library), _machine(0).emit_object(driver)]
    header = {"host": host_key(), "externals": externals, "sizes": [len(code) for code in objects]}
    text = json.dumps(header).encode()
    return b"".join((_MAGIC, _LENGTH.pack(len(text)), text, *objects))


def _engine(llvm: Any, objects: Sequence[bytes]) -> Any:
    """An engine that holds the objects' machine code, ready to be called."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _new_machine(0))
    for code in objects:
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _discard(engine: Any) -> None:
    """Free the code of a step that is gone, now or, where another thread is at work, with the next work of LLVM's.

    Called by the garbage collector in the middle of anything, so it must not wait.
    """
    _discarded.append(engine)
    if _LLVM_LOCK.acquire(blocking=False):
        try:
            _free_discarded()
        finally:
            _LLVM_LOCK.release()


def _free_discarded() -> None:
    while _discarded:
        _discarded.pop().close()


@contextlib.contextmanager
def _llvm() -> Iterator[Any]:
    """LLVM, initialised, for this thread alone."""
    import llvmlite.binding as llvm

    with _LLVM_LOCK:
        _initialise()
        _free_discarded()
        yield llvm


llvm_lock = _llvm


@cache
def _initialise() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@cache
def _machine(level: int) -> Any:
    return _new_machine(level)


def _new_machine(level: int) -> Any:
    """The target machine of this host. An engine takes ownership of the one it gets, hence a new one for each."""
    import llvmlite.binding as llvm

    name, features = _host_cpu()
    relocation = "static" if llvm.get_process_triple().startswith("x86") else "default"
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=name, features=features, opt=level, reloc=relocation, codemodel="jitdefault", jit=True
    )


@cache
def _host_cpu() -> tuple[str, str]:
    with _llvm() as llvm:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@cache
def host_key() -> str:
    """What native code depends on: the CPU, the platform, LLVM and our format. Part of every key."""
    import llvmlite
    import llvmlite.binding as llvm

    name, features = _host_cpu()
    version = ".".join(map(str, llvm.llvm_version_info))
    digest = hashlib.sha256(features.encode()).hexdigest()[:16]
    return (
        f"{llvm.get_process_triple()}/{name}/{digest}/llvmlite-{llvmlite.__version__}/llvm-{version}/{FORMAT_VERSION}"
    )


@cache
def toolchain_key() -> str:
    """What compiled kernels depend on beside their graph: the host, Numba, NumPy, Python and our own code generation.

    Reads names of installed folders and the text of this package: asking does not import Numba.
    """
    versions = [f"{name}-{_installed_version(name)}" for name in ("numba", "numpy")]
    python = f"python-{sys.version_info[0]}.{sys.version_info[1]}"
    return "/".join([host_key(), *versions, python, f"source-{_source_digest()}"])


def _installed_version(package: str) -> str:
    """A package's version, from the name of the folder that its installer leaves beside it."""
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        beside = Path(spec.origin).parent.parent.glob(f"{package}-*.dist-info")
        found = sorted(path.name.removesuffix(".dist-info").partition("-")[2] for path in beside)
        if found:
            return "+".join(found)
    from importlib import metadata  # knows every layout, and takes ten times as long to import

    return metadata.version(package)


def _source_digest() -> str:
    """A hash of the code that makes programs: a change to planning, lowering or vector maths changes every key."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(graph.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            text = path.read_bytes()
            digest.update(f"{path.relative_to(folder)} {len(text)}\n".encode())
            digest.update(text)
    return digest.hexdigest()[:16]


def kernel_calls(steps: Sequence[Step]) -> list[KernelCall]:
    """The calls of kernels among the steps, in order."""
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


def _make_internal(module: Any, keep: Collection[str]) -> None:
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name not in keep:
            value.linkage = "internal"


def _externals(module: Any) -> set[str]:
    """The symbols a module takes from outside itself."""
    names = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    return names | {v.name for v in module.global_variables if v.is_declaration}


def _resolve_all(llvm: Any, names: Collection[str]) -> None:
    if not BLAS_SYMBOLS.isdisjoint(names):
        blas.register()
    if not threads.POOL_SYMBOLS.isdisjoint(names):
        threads.start(llvm, _new_machine(2))
    for name in names:
        _resolve(llvm, name)


def _resolve(llvm: Any, name: str) -> None:
    """LLVM ends the process at a symbol it cannot find, so look before it does."""
    needs_python = name.startswith(("numba", "NRT_", "Py", "_Py"))
    if needs_python or not llvm.address_of_symbol(name):
        raise RuntimeError(
            f"native: a kernel may call BLAS and the C library only; one needs the symbol {name!r}; "
            "write the operation with the vector maths instead"
        )


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
