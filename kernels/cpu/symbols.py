"""Where the functions are that programs call: BLAS, the C library, and for our own runtime Python."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from staticgrad.kernels.cpu import blas


def address_of_symbol(name: str) -> int:
    """The address of a function.

    Raises:
        KeyError: this process has none of that name.
    """
    if name in blas.BLAS_SYMBOLS:
        return blas.addresses()[name]
    found = _in_process(name)
    if not found:
        raise KeyError(name)
    return found


@cache
def _in_process(name: str) -> int:
    function: Any = getattr(ctypes.pythonapi, name, None) or getattr(_libraries(), name, None)
    return 0 if function is None else int(ctypes.cast(function, ctypes.c_void_p).value or 0)


@cache
def _libraries() -> Any:
    return ctypes.CDLL(None)
