"""Products with epilogues: one kernel, or BLAS and a kernel, on one thread or more, give what the ops give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.graph.epilogue import OPS
from staticgrad.graph.op import registry
from staticgrad.kernels.cpu import lower
from staticgrad.kernels.cpu.gemm import Product
from staticgrad.kernels.cpu.product_kernel import ProductKernel

RANDOM = np.random.default_rng(0)


def values(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(dtype)


def bias_and_relu(x: Any, weight: Any, bias: Any) -> Any:
    return sg.maximum(x @ weight + bias, 0.0)


def relu_with_mask(x: Any, weight: Any, bias: Any) -> Any:
    total = x @ weight + bias
    negative = total <= 0
    return sg.where(negative, 0.0, total), negative


def mask_only(x: Any, weight: Any, bias: Any) -> Any:
    return (x @ weight) > bias


def mask_as_number(x: Any, weight: Any, bias: Any) -> Any:
    total = x @ weight
    return total * sg.astype(total < bias, total.dtype)


def sums_of_columns(x: Any, weight: Any, bias: Any) -> Any:
    total = (x @ weight) * bias
    return total, sg.sum(total, axis=0), sg.sum(sg.square(total), axis=0)


def sums_only(x: Any, weight: Any, bias: Any) -> Any:
    return sg.sum((x @ weight) * bias, axis=0)


def kept_before(x: Any, weight: Any, bias: Any) -> Any:
    total = x @ weight
    return sg.tanh(total + bias), sg.sum(total, axis=1)


def layer_and_gradient(x: Any, weight: Any, bias: Any) -> Any:
    def loss(x: Any, weight: Any, bias: Any) -> Any:
        hidden = sg.tanh(x @ weight + bias)
        return sg.sum(sg.square(sg.tanh(hidden @ weight.T @ weight + bias)))

    return sg.grad(loss, argnums=(0, 1, 2))(x, weight, bias)


FUNCTIONS = [
    bias_and_relu, relu_with_mask, mask_only, mask_as_number, sums_of_columns, sums_only, kept_before,
    layer_and_gradient,
]  # fmt: skip


def agree(found: Any, expected: Any, dtype: str) -> None:
    tolerance = 3e-5 if dtype == "float32" else 1e-12
    for one, other in zip(sg.tree_flatten(found)[0], sg.tree_flatten(expected)[0], strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype
        scale = 1.0 if other.dtype == bool else max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("own", [True, False], ids=["generated", "BLAS"])
@pytest.mark.parametrize("shared", [True, False], ids=["threads", "alone"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_static_and_dynamic_agree(
    function: Any, dtype: str, shared: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower, "own_is_faster", lambda product, cache: own)
    rows, columns, terms = (150, 130, 40) if shared else (13, 21, 9)
    x, weight = values(rows, terms, dtype=dtype), 0.1 * values(terms, columns, dtype=dtype)
    bias = values(columns, dtype=dtype)
    compiled = sg.compile(function, cache=False)
    found = compiled(x, weight, bias)
    agree(found, function(*map(sg.asarray, (x, weight, bias))), dtype)
    agree(compiled(x, weight, bias), found, dtype)
    names = compiled.last.program.calls
    assert any("product" in name for name in names) is own
    assert any("gemm" in name for name in names) is not own


@pytest.mark.parametrize("own", [True, False], ids=["generated", "BLAS"])
def test_a_stack_of_products(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "own_is_faster", lambda product, cache: own)
    x, y, bias, other = values(5, 12, 9), values(5, 9, 20), values(20), values(5, 12, 20)

    def function(x: Any, y: Any, bias: Any, other: Any) -> Any:
        total = (x @ y + bias) * other
        return total, sg.sum(total, axis=(0, 1)), total < 0

    found = sg.compile(function, cache=False)(x, y, bias, other)
    agree(found, function(*map(sg.asarray, (x, y, bias, other))), "float32")


def test_a_stack_in_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """No single stride serves both operands over the whole stack: each piece is a product of its own."""
    monkeypatch.setattr(lower, "own_is_faster", lambda product, cache: True)
    x, y = values(3, 1, 12, 16), values(1, 4, 16, 10)
    for function in (lambda x, y: x @ y, lambda x, y: sg.tanh(x @ y)):
        compiled = sg.compile(function, cache=False)
        agree(compiled(x, y), function(sg.asarray(x), sg.asarray(y)), "float32")


def test_equal_layers_share_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "own_is_faster", lambda product, cache: True)
    weights, x = values(6, 16, 16), values(8, 16)

    def function(x: Any, weights: Any) -> Any:
        for i in range(6):
            x = sg.tanh(x @ weights[i])
        return x

    compiled = sg.compile(function, cache=False)
    compiled(x, weights)
    assert len(compiled.last.program.calls) == 6
    assert len(set(compiled.last.program.calls)) == 1


def test_the_epilogue_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "own_is_faster", lambda product, cache: True)
    compiled = sg.compile(bias_and_relu, cache=False)
    compiled(values(8, 16), values(16, 6), values(6))
    (source,) = compiled.last.program.sources.values()
    assert source == (
        "def epilogue(total, a0):\n"
        "    t0 = total + a0\n"
        "    t1 = maximum(t0, float32(0.0))\n"
        "    return t1\n"
    )  # fmt: skip


def test_another_epilogue_is_another_kernel() -> None:
    product = Product("float32", 8, 6, 4, False, False, 4, 6, 6)
    sources = ["", "def epilogue(total):\n    return -total\n", "def epilogue(total):\n    return total\n"]
    kernels = [ProductKernel(product, source) for source in sources]
    assert len({kernel.symbol for kernel in kernels}) == 3
    assert all(kernel.symbol in kernel.llvm() for kernel in kernels)


@pytest.mark.parametrize("name", sorted(OPS - {"cast", "select"}))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_op_of_an_epilogue(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "own_is_faster", lambda product, cache: True)
    op = registry[name]
    x, y, other = np.abs(values(9, 7, dtype=dtype)), np.abs(values(7, 19, dtype=dtype)), values(9, 19, dtype=dtype)

    def function(x: Any, y: Any, other: Any) -> Any:
        total = x @ y
        return op(total, other) if len(op.operands) == 2 else op(total)

    compiled = sg.compile(function, cache=False)
    with np.errstate(invalid="ignore"):
        agree(compiled(x, y, other), function(*map(sg.asarray, (x, y, other))), dtype)
    assert len(compiled.last.program.calls) == 1
    assert "product" in compiled.last.program.calls[0]
