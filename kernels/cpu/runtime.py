"""The native functions that every program uses: the pool of threads, the call from Python, the loop over many steps.

Their code is the same for all programs, and each program carries it, so that a process that only runs programs needs
no compiler. It is loaded once for a process, with the first program, and stays.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from typing import Any

from staticgrad.kernels.cpu import array_call, loop, threads
from staticgrad.kernels.cpu.machine_code import Code, load
from staticgrad.kernels.cpu.symbols import address_of_symbol

SYMBOLS = (threads.POOL, threads.POOL_RUN, threads.BARRIER, threads.WORKER, array_call.SYMBOL, loop.SYMBOL)

_lock = threading.Lock()
_code: Code | None = None


def start(object_file: bytes) -> Code:
    """The process's own copy of the functions, loaded from `object_file` if there is none yet."""
    global _code
    with _lock:
        if _code is None:
            found = load([object_file], SYMBOLS, address_of_symbol, _outside())
            threads.start(found)
            array_call.use(found)
            loop.use(found)
            _code = found
        return _code


def _forget() -> None:
    global _code
    if _code is not None:
        threads.forget(_code)
        _code = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@cache
def object_file() -> bytes:
    """The functions' object file for this CPU."""
    from staticgrad.kernels.cpu.llvm import llvm_lock

    with llvm_lock() as llvm:
        return _emitted(llvm)


def _emitted(llvm: Any) -> bytes:
    from staticgrad.kernels.cpu.llvm import machine

    module = llvm.parse_assembly("\n".join((threads.pool_ir(), array_call.ir(), loop.IR)))
    module.verify()
    # Straight-line code, atomics and calls: optimising gains nothing, and takes five times as long.
    emitted: bytes = machine(0).emit_object(module)
    return emitted


def _outside() -> list[str]:
    """What the functions call in the C library and in Python."""
    names = [*threads.C_FUNCTIONS, *array_call.PYTHON_FUNCTIONS, "memcpy"]
    return [name for name in names if hasattr(ctypes.pythonapi, name)]
