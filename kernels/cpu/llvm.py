"""LLVM through llvmlite: one thread at a time, the target of this host, optimising, and loading as a last way."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from staticgrad.kernels.cpu.machine_code import Code

# LLVM's one global context is not meant for two threads. Held across a fork, too: a child must not inherit LLVM in the
# middle of its work.
_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)

_discarded: list[Any] = []  # engines whose code nobody needs any more


@contextlib.contextmanager
def llvm_lock() -> Iterator[Any]:
    """LLVM, initialised, for this thread alone."""
    import llvmlite.binding as llvm

    with _LOCK:
        _initialise()
        _free_discarded()
        yield llvm


@cache
def _initialise() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@cache
def machine(level: int) -> Any:
    """The target machine of this host; the caller holds the lock. Code may lie anywhere, and calls reach 2 GiB."""
    import llvmlite.binding as llvm

    name, features = host_cpu()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=name, features=features, opt=level, reloc="pic", codemodel="small"
    )


@cache
def host_cpu() -> tuple[str, str]:
    """LLVM's name for this CPU and its features."""
    with llvm_lock() as llvm:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


_LABEL = re.compile(r'"?([\w.$-]+)"?:')
_BRANCH = re.compile(r'  br label %"?([\w.$-]+)"?$')
_WIDTH = 1_000_000  # numbers of metadata that nothing else has
_FIRST_LOOP = _WIDTH + 1


def make_internal(module: Any, keep: Collection[str]) -> None:
    """Hide all that a module defines but the symbols in `keep`."""
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name not in keep:
            value.linkage = "internal"


def externals_of(module: Any) -> set[str]:
    """The symbols a module takes from outside itself."""
    names = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    return names | {v.name for v in module.global_variables if v.is_declaration}


def optimised(llvm: Any, module: Any, symbol: str) -> str:
    """The text of a parsed module after optimisation, with only `symbol` visible. The caller holds the lock."""
    make_internal(module, keep={symbol})
    module.verify()
    options = llvm.create_pipeline_tuning_options(3)
    options.loop_vectorization = True
    options.slp_vectorization = False  # loops are written to be vectorised whole; packing scalars only costs time
    # LLVM would unroll short loops before it looks for vectors in them: up to six times slower at 10 or 16 elements,
    # and twice the work for long ones. So unroll what is left after vectorising.
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine(3), options)
    passes = builder.getModulePassManager()
    passes.add_loop_unroll_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return str(module)


def with_lanes(text: str, lanes: int) -> str:
    """A function's IR whose loops ask for vectors of so many lanes: each branch back to an earlier block says so."""
    lines, met = [], set()
    count = 0
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            met.add(label[1])
        back = _BRANCH.match(line)
        if back and back[1] in met:
            line += f", !llvm.loop !{_FIRST_LOOP + count}"
            count += 1
        lines.append(line)
    loops = [f"!{n} = distinct !{{!{n}, !{_WIDTH}}}" for n in range(_FIRST_LOOP, _FIRST_LOOP + count)]
    width = f'!{_WIDTH} = !{{!"llvm.loop.vectorize.width", i32 {lanes}}}'
    return "\n".join([*lines, width, *loops, ""])


# ---------------------------------------------------------------- loading


def load_with_llvm(objects: Sequence[bytes], symbols: Sequence[str], outside: Mapping[str, int]) -> Code:
    """Objects made runnable by LLVM, on any platform; `outside` gives the addresses of what they call."""
    import llvmlite.binding as llvm

    with llvm_lock():
        for name, address in outside.items():
            llvm.add_symbol(name, address)
        name, features = host_cpu()
        target = llvm.Target.from_triple(llvm.get_process_triple())
        own = target.create_target_machine(cpu=name, features=features, opt=0, codemodel="jitdefault", jit=True)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), own)  # which owns the machine from now on
        for code in objects:
            engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        found = {symbol: engine.get_function_address(symbol) for symbol in symbols}
    return Code(found, lambda: _discard(engine))


def _discard(engine: Any) -> None:
    """Free the code of an engine, now or, where another thread is at work, with the next work of LLVM's.

    Called by the garbage collector in the middle of anything, so it must not wait.
    """
    _discarded.append(engine)
    if _LOCK.acquire(blocking=False):
        try:
            _free_discarded()
        finally:
            _LOCK.release()


def _free_discarded() -> None:
    while _discarded:
        _discarded.pop().close()
