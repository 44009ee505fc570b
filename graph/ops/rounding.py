"""Rounding, and the tests for what is not a number."""

from __future__ import annotations

import math
from typing import Any

from staticgrad.graph.op import ZERO, Interval, elementwise
from staticgrad.graph.ops import numpy_math as vm
from staticgrad.graph.ops.arithmetic import DISCRETE, rejects_dtype

ANY = Interval(-3.0, 3.0)
BETWEEN = Interval(1.55, 1.95)  # where no rounding jumps
SPECIAL = (0.0, -0.0, 0.5, 1.5, -0.5, 1e30, math.inf, -math.inf, math.nan)


def _floor(x: Any) -> Any:
    return vm.floor(x)


def _ceil(x: Any) -> Any:
    return vm.ceil(x)


def _trunc(x: Any) -> Any:
    return vm.trunc(x)


def _round(x: Any) -> Any:
    return vm.round(x)


def _isnan(x: Any) -> Any:
    return vm.isnan(x)


def _isinf(x: Any) -> Any:
    return vm.isinf(x)


def _isfinite(x: Any) -> Any:
    return vm.isfinite(x)


def _rounding(name: str, scalar: Any) -> Any:
    return elementwise(
        name, scalar=scalar, partials=(ZERO,), domain=(BETWEEN,), special=SPECIAL, errors=(rejects_dtype("int32"),)
    )


def _test(name: str, scalar: Any) -> Any:
    return elementwise(
        name,
        scalar=scalar,
        partials=(DISCRETE,),
        result="boolean",
        domain=(ANY,),
        special=SPECIAL,
        errors=(rejects_dtype("int32"),),
    )


floor = _rounding("floor", _floor)
ceil = _rounding("ceil", _ceil)
trunc = _rounding("trunc", _trunc)
round_half_even = _rounding("round", _round)
isnan = _test("isnan", _isnan)
isinf = _test("isinf", _isinf)
isfinite = _test("isfinite", _isfinite)
