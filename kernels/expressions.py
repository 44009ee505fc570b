"""From an op's scalar function to the text of an expression: what generated kernels are written with.

The body of a scalar function is one return expression. Its operands are replaced by the kernel's variables, calls
`vm.f(...)` become `f(...)`, a function of the vector maths, and numbers are written in the operands' dtype, since
Numba would compute a float32 times a Python number in float64.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from staticgrad.graph.node import DType, Node
from staticgrad.graph.op import Op

BOOL = np.dtype(np.bool_)


def type_name(dtype: DType) -> str:
    """The dtype's name in kernels."""
    return "bool" if dtype == BOOL else dtype.name


def literal(value: Any, dtype: DType) -> str:
    """A number of `dtype` as the text of an expression."""
    if dtype == BOOL:
        return str(bool(value))
    if dtype.kind in "iu":
        return f"{dtype.name}({int(value)})"
    number = float(value)
    if math.isnan(number):
        return f"{dtype.name}(nan)"
    if math.isinf(number):
        return f"{dtype.name}({'-' if number < 0 else ''}inf)"
    return f"{dtype.name}({number!r})"


def elementwise_expression(node: Node, operands: Sequence[str]) -> str:
    """The value of an elementwise node, in its dtype, from the texts of its operands."""
    if node.op.name == "cast":
        return converted(operands[0], node.operands[0].dtype, node.dtype)
    common = node.operands[1 if node.op.name == "select" else 0].dtype
    text = _template(node.op, common).format(*operands)
    exact = node.dtype.kind == "f" or (node.dtype == BOOL and _is_comparison(node.op))
    return text if exact else f"{type_name(node.dtype)}({text})"


def converted(value: str, source: DType, target: DType) -> str:
    """`value` as another dtype."""
    if source == target:
        return value
    if target == BOOL:
        return f"({value} != {literal(0, source)})"
    return f"{type_name(target)}({value})"


@cache
def _template(op: Op, dtype: DType) -> str:
    """The body of the scalar function with `{0}`, `{1}`, … for the operands."""
    return ast.unparse(_Inlined(op.operands, dtype).visit(_body(op)))


def _body(op: Op) -> ast.expr:
    function = ast.parse(textwrap.dedent(inspect.getsource(op.scalar))).body[0]  # type: ignore[arg-type]
    if isinstance(function, ast.FunctionDef) and isinstance(function.body[-1], ast.Return) and function.body[-1].value:
        return function.body[-1].value
    raise TypeError(f"{op.name}: the scalar function must be a def with one return expression")


@cache
def _is_comparison(op: Op) -> bool:
    return isinstance(_body(op), ast.Compare)


class _Inlined(ast.NodeTransformer):
    """Replaces operands by places to fill, `vm.f` by `f`, and numbers by numbers of the dtype."""

    def __init__(self, operands: Sequence[str], dtype: DType) -> None:
        self._operands = operands
        self._dtype = dtype

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(f"{{{self._operands.index(node.id)}}}")

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Name(node.attr)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.Name(literal(node.value, self._dtype))
