"""Calling a native step from Python for the price of a built-in function.

A ctypes call costs 0.2 µs, and asking an array for its address 0.3 µs more. So there is one built-in function of a few
machine instructions: it is called with arrays, reads their addresses out of them, puts these into
the table of pointers, lets go of the GIL and calls the step. Only Python's stable ABI is used, and of NumPy that an
array begins with the pointer to its elements, which its public headers fix. Both are checked at the first use; where
they do not hold, a Python function does the same.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from staticgrad.kernels.cpu.machine_code import Code

ArrayCall = Callable[..., int]
_POINTER = object.__basicsize__  # of an array: right behind what every object has
SYMBOL = "staticgrad_array_call"
PYTHON_FUNCTIONS = ("PyEval_SaveThread", "PyEval_RestoreThread", "PyLong_FromLongLong")
_FASTCALL = 0x80  # METH_FASTCALL: the function takes (self, arguments, how many)


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def array_call(step: Any, arena: int, table: Any, status: Any, entries: Sequence[int], keep: Any) -> ArrayCall:
    """A function of C-contiguous arrays: runs `step(arena, table)` with their addresses at `entries` of the table.

    Args:
        step: from `native.load`.
        arena: an address.
        table: array("Q") of addresses; status: array("q"), whose first word the function returns.
        entries: where in the table the arrays given stand, in their order.
        keep: whatever must stay alive as long as the function.
    """
    maker = _maker()
    if maker is None:
        return _in_python(step, arena, table, status, entries, keep)
    addresses = [ctypes.cast(step, ctypes.c_void_p).value, arena, table.buffer_info()[0], status.buffer_info()[0]]
    header = np.array([*addresses, len(entries), *entries], np.uint64)
    made: ArrayCall = maker(header, (step, table, status, keep))
    return made


def _in_python(step: Any, arena: int, table: Any, status: Any, entries: Sequence[int], keep: Any) -> ArrayCall:
    start = table.buffer_info()[0]

    def call(*arrays: Any, keep: Any = keep) -> int:
        for entry, array in zip(entries, arrays, strict=True):
            table[entry] = array.__array_interface__["data"][0]
        step(arena, start)
        failed: int = status[0]
        return failed

    return call


@cache
def _maker() -> Callable[[Any, Any], ArrayCall] | None:
    """Makes the built-in function for a header, as a method of it; None where arrays or Python are not as expected."""
    if (
        _code is None
        or platform.python_implementation() != "CPython"
        or struct.calcsize("P") != 8
        or not _pointers_are_first()
    ):
        return None
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.py_object)
    described = _MethodDef(b"step", _code.address(SYMBOL), _FASTCALL, b"Run a step with the arrays given; its status.")
    _alive.append(described)
    return lambda header, keep: make(ctypes.addressof(described), header, keep)


def _pointers_are_first() -> bool:
    whole = np.arange(24.0).reshape(4, 6)
    return all(
        ctypes.c_void_p.from_address(id(array) + _POINTER).value == array.__array_interface__["data"][0]
        for array in (whole, whole[1:, 2:], np.empty((), np.int64), np.empty((2, 3, 4, 5), np.float32), whole[::-1])
    )


_alive: list[Any] = []  # the descriptions of the function, for as long as the process lives


def use(code: Code) -> None:
    """Take the built-in function's machine code from the runtime of this process."""
    global _code
    _code = code
    _maker.cache_clear()


_code: Code | None = None


def ir() -> str:
    """`PyObject *call(header array, arrays, how many)`: -1 for another number of arrays than the header says."""
    return f"""\
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare ptr @PyLong_FromLongLong(i64)
define ptr @{SYMBOL}(ptr %self, ptr %arrays, i64 %count) {{
entry:
  %inside = getelementptr i8, ptr %self, i64 {_POINTER}
  %header = load ptr, ptr %inside
  %step = load ptr, ptr %header
  %arena.at = getelementptr i64, ptr %header, i64 1
  %arena = load ptr, ptr %arena.at
  %table.at = getelementptr i64, ptr %header, i64 2
  %table = load ptr, ptr %table.at
  %status.at = getelementptr i64, ptr %header, i64 3
  %status = load ptr, ptr %status.at
  %expected.at = getelementptr i64, ptr %header, i64 4
  %expected = load i64, ptr %expected.at
  %entries = getelementptr i64, ptr %header, i64 5
  %fits = icmp eq i64 %count, %expected
  br i1 %fits, label %next, label %wrong
wrong:
  %refused = call ptr @PyLong_FromLongLong(i64 -1)
  ret ptr %refused
next:
  %i = phi i64 [ 0, %entry ], [ %after, %put ]
  %done = icmp eq i64 %i, %count
  br i1 %done, label %run, label %put
put:
  %array.at = getelementptr ptr, ptr %arrays, i64 %i
  %array = load ptr, ptr %array.at
  %data.at = getelementptr i8, ptr %array, i64 {_POINTER}
  %data = load ptr, ptr %data.at
  %entry.at = getelementptr i64, ptr %entries, i64 %i
  %index = load i64, ptr %entry.at
  %place = getelementptr ptr, ptr %table, i64 %index
  store ptr %data, ptr %place
  %after = add i64 %i, 1
  br label %next
run:
  %thread = call ptr @PyEval_SaveThread()
  call void %step(ptr %arena, ptr %table)
  call void @PyEval_RestoreThread(ptr %thread)
  %word = load i64, ptr %status
  %result = call ptr @PyLong_FromLongLong(i64 %word)
  ret ptr %result
}}
"""
