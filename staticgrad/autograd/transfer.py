"""Tensors that move between devices: the one op that no graph holds, since a program lives on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from staticgrad._context import context
from staticgrad.autograd.tape import record
from staticgrad.forward import push_forward
from staticgrad.graph.node import Spec
from staticgrad.graph.op import Op
from staticgrad.kernels.device import find_device
from staticgrad.tensor import Tensor


def _unchanged(specs: Sequence[Spec], attributes: Mapping[str, Any]) -> Spec:
    return specs[0]


def _copied(x: Any, *, device: str, source: str) -> Any:
    return find_device(device).place(x)


def _to_source(cotangent: Any, *, source: str) -> Any:
    return cotangent.to(source)


def _to_device(tangent: Any, *, device: str) -> Any:
    return tangent.to(device)


_transfer = Op("to", "structural", ("x",), _unchanged, _copied, vjp=(_to_source,), jvp=(_to_device,))


def transferred(x: Tensor, device: str) -> Tensor:
    """The elements of `x` on another device."""
    attributes = {"device": device, "source": x.device}
    out = Tensor(_copied(x._value, **attributes))
    out._weak = x._weak
    if x.dtype.kind == "f":
        if context.grad_enabled:
            record(_transfer, [x], attributes, out)
        if x._tangents is not None:
            push_forward(_transfer, [x], attributes, out)
    return out
