"""Leaves: what a graph starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from staticgrad.graph.node import DType, Shape, Spec
from staticgrad.graph.op import structural


@dataclass(frozen=True)
class Value:
    """The bytes of a constant, hashable so that equal constants are one."""

    dtype: DType
    shape: Shape
    data: bytes

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> Value:
        """The value of an array."""
        return cls(array.dtype, array.shape, array.tobytes())

    def array(self) -> np.ndarray[Any, Any]:
        """The constant as a read-only array."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)

    def __repr__(self) -> str:
        return f"{self.array()!r}" if len(self.data) > 8 else str(self.array())


def _input_spec(*, index: int, role: str, name: str, shape: Shape, dtype: DType) -> Spec:
    return Spec(shape, dtype)


def _input_reference(**attributes: Any) -> Any:
    raise TypeError("input: a leaf has no value until the graph is bound")


def _constant_spec(*, value: Value) -> Spec:
    return Spec(value.shape, value.dtype)


def _iota_spec(*, size: int, dtype: DType) -> Spec:
    return Spec((size,), np.dtype(dtype))


_LEAF = {"suite": "a leaf: it computes nothing"}

# Roles: "argument" (an array the caller passes), "state" (a tensor or array found by reference; may be updated),
# "scalar" (a host number read again at each call, such as a learning rate).
graph_input = structural(
    "input", operands=(), infer=_input_spec, reference=_input_reference, vjp=(), kind="leaf", exempt=_LEAF
)

constant = structural(
    "constant",
    operands=(),
    infer=_constant_spec,
    reference=lambda *, value: value.array(),
    vjp=(),
    kind="leaf",
    exempt=_LEAF,
)

# 0, 1, … size-1. An elementwise op of no operands: fused kernels compute it from the position.
iota = structural(
    "iota",
    operands=(),
    infer=_iota_spec,
    reference=lambda *, size, dtype: np.arange(size, dtype=dtype),
    vjp=(),
    exempt=_LEAF,
)
