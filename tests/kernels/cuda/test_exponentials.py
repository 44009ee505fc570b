"""Exponentials around the GPU's instruction for 2^x: what surrounds it adds next to no error, over the whole range.

The code is compiled for this machine, with an exact 2^x in place of the instruction, whose error NVIDIA states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from llvmlite import binding, ir

from staticgrad.kernels.vector_math import exponential
from staticgrad.kernels.vector_math.primitives import Value

Array = np.ndarray[Any, Any]
SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": exponential.exp.__wrapped__,  # type: ignore[attr-defined]
    "exp2": exponential.exp2.__wrapped__,  # type: ignore[attr-defined]
    "exp_of_sum": lambda x: exponential.exp_of_sum(x, x * 1e-7),
    "normal_exp": exponential.normal_exp,
}
WANTED: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "exp_of_sum": lambda x: np.exp(x + (x.astype("float32") * np.float32(1e-7)).astype("float64")),
    "normal_exp": np.exp,
}


class WithInstruction:
    """A builder with `exp2`, as the one for CUDA has it; subnormal results are flushed."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self._builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def exp2(self, x: Any) -> Any:
        builder, kind = self._builder, ir.FunctionType(DOUBLE, [DOUBLE])
        name = "exp2"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        found = builder.call(function, [builder.fpext(x, DOUBLE)])
        normal = builder.fcmp_unordered(">=", found, ir.Constant(DOUBLE, float(np.finfo("float32").tiny)))
        return builder.fptrunc(builder.select(normal, found, ir.Constant(DOUBLE, 0.0)), SINGLE)


@cache
def compiled(name: str) -> tuple[Any, Any]:
    """A function from a float32 to a float32, and what must be kept alive for it."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(SINGLE, [SINGLE]), "function")
    builder = ir.IRBuilder(function.append_basic_block())
    result = FUNCTIONS[name](Value(WithInstruction(builder), function.args[0]))
    builder.ret(result.code)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten()
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_float)
    return kind(engine.get_function_address("function")), engine


def results(name: str, x: Array) -> Array:
    function, _ = compiled(name)
    return np.array([function(value) for value in x.tolist()], "float32")


@pytest.mark.parametrize(("name", "low", "high"), [
    ("exp", -103.9, 88.7), ("exp2", -148.9, 127.9), ("exp_of_sum", -103.9, 88.7), ("normal_exp", -86, 87),
])  # fmt: skip
def test_error(name: str, low: float, high: float) -> None:
    x = np.linspace(low, high, 20_001).astype("float32")
    found, wanted = results(name, x), WANTED[name](x.astype("float64"))
    unit = np.spacing(np.maximum(wanted, np.finfo("float32").tiny).astype("float32")).astype("float64")
    assert np.max(np.abs(found - wanted) / unit) < 1.1


@pytest.mark.parametrize("name", ["exp", "exp2"])
def test_special_values(name: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 200, -200], "float32")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(results(name, x), WANTED[name](x))


def test_two_to_an_integer_is_exact() -> None:
    x = np.arange(-149, 128, dtype="float32")
    np.testing.assert_array_equal(results("exp2", x), np.ldexp(np.float32(1), x.astype(int)))
