"""One update for many small parameters: in the dynamic mode, where each op has a cost of its own, they go as one.

The elements of an optimizer's small parameters, of their gradients and of their state are joined into one vector each,
`update` runs on these once, and the results are copied back. That holds only for an `update` that treats all elements
alike, which is what `elementwise` marks: its results are then the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from staticgrad.graph.node import DType
from staticgrad.tensor import Tensor

if TYPE_CHECKING:
    from staticgrad.optim.optimizer import Group, Optimizer

SMALL = 4096  # elements; copying more takes longer than the ops that it saves
F = TypeVar("F", bound=Callable[..., Any])


def elementwise(update: F) -> F:
    """Mark an `Optimizer.update` in which no element's result depends on other elements, or on a parameter's shape."""
    update.elementwise = True  # type: ignore[attr-defined]
    return update


@dataclass(eq=False)
class Pack:
    """`whole` holds the elements of `parts`, one after the other, and has their gradient and state."""

    parts: list[Tensor]
    whole: Tensor
    state: dict[str, Tensor]


def update_packed(optimizer: Optimizer, group: Group, step: Tensor, parameters: Sequence[Tensor]) -> None:
    """Run `optimizer.update` with its small parameters packed."""
    packs = _packs(optimizer, group, step, parameters)
    packed = {id(part) for pack in packs for part in pack.parts}
    alone = [parameter for parameter in parameters if id(parameter) not in packed]
    for pack in packs:
        optimizer.state[pack.whole] = pack.state
    try:
        optimizer.update(group, step, [*alone, *[pack.whole for pack in packs]])
    finally:
        for pack in packs:
            del optimizer.state[pack.whole]
    for pack in packs:
        _unpack(pack.parts, pack.whole)
        for name in optimizer.state_names(group):
            _unpack([optimizer.state[part][name] for part in pack.parts], pack.state[name])


def _packs(optimizer: Optimizer, group: Group, step: Tensor, parameters: Sequence[Tensor]) -> list[Pack]:
    if len(parameters) < 2 or not hasattr(optimizer.update, "elementwise"):
        return []
    names = optimizer.state_names(group)
    found: dict[DType, list[tuple[Any, ...]]] = {}
    for parameter in parameters:
        entries = optimizer.state[parameter]
        row = (parameter, parameter._grad, *[entries[name] for name in names])
        if _is_plain(row):
            found.setdefault(parameter.dtype, []).append(row)
    packs = []
    for rows in found.values():
        if len(rows) > 1 and _apart(rows):
            columns = list(zip(*rows, strict=True))
            whole, grad, *state = [_joined(column) for column in columns]
            whole._grad = grad
            packs.append(Pack(list(columns[0]), whole, {"step": step, **dict(zip(names, state, strict=True))}))
    return packs


def _is_plain(row: Sequence[Any]) -> bool:
    """Whether a parameter, its gradient and its state are small arrays of one type without tangents."""
    first = row[0]._value
    shape, dtype = first.shape, first.dtype
    for tensor in row:
        value = tensor._value
        if type(value) is not np.ndarray or value.shape != shape or value.dtype != dtype:
            return False
        if tensor._tangents is not None:
            return False
    return bool(first.size <= SMALL)


def _apart(rows: Sequence[Sequence[Any]]) -> bool:
    """Whether no two of the tensors share storage: a write into one could then be meant to be seen by the next."""
    values = [tensor._value for row in rows for tensor in row]
    return len({id(value if value.base is None else value.base) for value in values}) == len(values)


def _joined(tensors: Sequence[Any]) -> Tensor:
    return Tensor(np.concatenate([tensor._value for tensor in tensors], axis=None))


def _unpack(parts: Sequence[Tensor], whole: Tensor) -> None:
    joined: Any = whole._value
    start = 0
    for part in parts:
        value: Any = part._value
        stop = start + value.size
        new = joined[start:stop].reshape(value.shape)
        start = stop
        if value.flags.writeable:
            part._version[0] += 1
            value[...] = new
        else:
            part.copy_(Tensor(new))  # says why it cannot
