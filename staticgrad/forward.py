"""Forward mode: a tensor carries a tangent for each active level, and every op carries them on.

Levels are numbered in the order in which `jvp` calls nest. The tangent of one level is computed from operands that
keep only the tangents of lower levels, so mixed derivatives come out once and levels cannot be confused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from staticgrad.autograd.tape import attribute
from staticgrad.graph.errors import DerivativeError
from staticgrad.graph.node import Shape
from staticgrad.graph.op import Need, NotImplementedRule, Op
from staticgrad.graph.ops.shape import broadcast_to
from staticgrad.tensor import Tensor, alias


def below(x: Tensor, level: int) -> Tensor:
    """`x` with only the tangents of levels lower than `level`."""
    if x._tangents is None:
        return x
    out = alias(x)
    kept = {key: value for key, value in x._tangents.items() if key < level}
    out._tangents = kept or None
    return out


def push_forward(op: Op, operands: Sequence[Tensor], attributes: Mapping[str, Any], out: Tensor) -> None:
    """Give `out` the tangents that follow from its operands' tangents, lowest level first."""
    levels = sorted({level for x in operands if x._tangents is not None for level in x._tangents})
    for level in levels:
        tangents = [x._tangents.get(level) if x._tangents is not None else None for x in operands]
        primals = [below(x, level) for x in operands]
        tangent = _tangent(op, primals, tangents, attributes, out)
        if tangent is not None:
            out._tangents = {**(out._tangents or {}), level: _stretched(tangent, out.shape)}
    node = out.grad_fn
    if node is not None and node.result is not None:  # the tape saved the result before it had its tangents
        node.result._tangents = out._tangents


def _stretched(tangent: Tensor, shape: Shape) -> Tensor:
    result: Tensor = tangent if tangent.shape == shape else broadcast_to(tangent, shape=shape)
    return result


def _tangent(
    op: Op, primals: list[Tensor], tangents: list[Tensor | None], attributes: Mapping[str, Any], out: Tensor
) -> Tensor | None:
    if op.linear == "joint":
        from staticgrad.array.creation import zeros_like

        filled = [t if t is not None else zeros_like(x.detach()) for x, t in zip(primals, tangents, strict=True)]
        joint: Tensor = op(*filled, **attributes)
        return joint
    total: Tensor | None = None
    for i, tangent in enumerate(tangents):
        part = None if tangent is None else _part(op, primals, tangent, i, attributes, out)
        if part is not None:
            total = part if total is None else total + part
    return total


def _part(
    op: Op, primals: list[Tensor], tangent: Tensor, i: int, attributes: Mapping[str, Any], out: Tensor
) -> Tensor | None:
    position = op.position(i)
    rule = op.vjp[position] if op.linear == "each" else op.jvp[position]
    if isinstance(rule, NotImplementedRule):
        raise DerivativeError(f"{op.name}: this derivative is not implemented: {rule.reason}")
    if not callable(rule):
        return None
    if op.linear == "each":
        moved: Tensor = op(*[tangent if k == i else x for k, x in enumerate(primals)], **attributes)
        return moved
    needs = op.jvp_needs[position]
    value: Tensor = rule(tangent, **{need.name: _argument(need, primals, attributes, out, i) for need in needs})
    return value


def _argument(need: Need, primals: list[Tensor], attributes: Mapping[str, Any], out: Tensor, i: int) -> Any:
    if need.kind == "operand":
        return primals[need.position]
    if need.kind == "out":
        return alias(out)
    if need.kind == "shape":
        return primals[need.position].shape
    if need.kind == "dtype":
        return primals[need.position].dtype
    return attribute(need.name, attributes, i, [x.spec for x in primals])
