"""Division and powers: the operators that choose among ops by the dtypes and values they are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from staticgrad.binding import bind
from staticgrad.graph.errors import DTypeError
from staticgrad.graph.ops import arithmetic, transcendental
from staticgrad.operands import operands_of
from staticgrad.tensor import DEFAULT_FLOAT, DEFAULT_INT, Tensor


def divide(x: Any, y: Any) -> Tensor:
    """x / y; integers are converted to the default floating dtype first."""
    if _integral(x) and _integral(y):
        x = x.astype(DEFAULT_FLOAT) if isinstance(x, Tensor | np.ndarray) else float(x)
        y = y.astype(DEFAULT_FLOAT) if isinstance(y, Tensor | np.ndarray) else float(y)
    return bind(arithmetic.div, (x, y), {})


def _integral(x: Any) -> bool:
    return x.dtype.kind in "iub" if isinstance(x, Tensor | np.ndarray | np.generic) else isinstance(x, int)


def power(x: Any, y: Any) -> Tensor:
    """x ** y. Python exponents from 2 to 8 are repeated multiplications, 0.5 and -1 the cheaper op of the same value.

    Integers to the power of integers stay integers, modulo the range of their dtype.
    """
    if isinstance(x, Tensor) and type(y) in (int, float):
        if x.dtype.kind == "f":
            return _floating_power(x, y)
        if type(y) is int:
            return _integer_power(x.astype(DEFAULT_INT) if x.dtype.kind == "b" else x, y)
    if _integral(x) and _integral(y):
        base, exponent = operands_of(arithmetic.mul, (x, y))
        return _power_of_integers(base, exponent)
    return bind(transcendental.power, (x, y), {})


def _floating_power(x: Tensor, y: float) -> Tensor:
    if y == 1:
        return x
    if 2 <= y <= 8 and y == int(y):
        return _repeated(x, int(y))
    if y == -1:
        return bind(transcendental.reciprocal, (x,), {})
    if y == 0.5:
        return bind(transcendental.sqrt, (x,), {})
    return bind(transcendental.power, (x, y), {})


def _integer_power(x: Tensor, n: int) -> Tensor:
    if n < 0:
        raise DTypeError(
            f"pow: integers have no negative powers; got {x.spec} ** {n}; convert to a floating dtype first"
        )
    if n == 0:
        from staticgrad.array.creation import ones_like

        return ones_like(x)
    return _repeated(x, n)


def _repeated(x: Tensor, n: int) -> Tensor:
    """xⁿ for n ≥ 1 by squaring, the highest bit of n first: exact where the products are."""
    out = x
    for bit in bin(n)[3:]:
        out = bind(transcendental.square, (out,), {})
        if bit == "1":
            out = out * x
    return out


def _power_of_integers(x: Tensor, y: Tensor) -> Tensor:
    """xʸ of one integer dtype, bit by bit of y. A negative y gives the integer part: 0, but for x = ±1."""
    one, odd = x * 0 + 1, (y & 1) == 1
    out, square = one, x
    for bit in range(8 * x.dtype.itemsize - (x.dtype.kind == "i")):
        out = bind(arithmetic.select, (((y >> bit) & 1) == 1, out * square, out), {})
        square = square * square
    if x.dtype.kind == "u":
        return out
    sign = bind(arithmetic.select, (odd, x, one), {})
    unit = bind(arithmetic.select, ((x == 1) | (x == -1), sign, one * 0), {})
    return bind(arithmetic.select, (y < 0, unit, out), {})
