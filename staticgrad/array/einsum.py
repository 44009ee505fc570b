"""Einstein summation, as products of matrices."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from staticgrad.array.creation import eye
from staticgrad.array.elementwise import where
from staticgrad.array.linear import matmul
from staticgrad.array.manipulation import _tensor, permute_dims, reshape
from staticgrad.array.reduction import sum as total
from staticgrad.capture_state import composite
from staticgrad.graph.errors import ShapeError
from staticgrad.tensor import Tensor


@dataclass(frozen=True)
class _Labelled:
    """A tensor with one label for each axis."""

    tensor: Tensor
    labels: str

    def extent(self, label: str) -> int:
        return self.tensor.shape[self.labels.index(label)]

    def arranged(self, labels: str) -> Tensor:
        """The tensor with its axes in the order of `labels`, which are its own."""
        if labels == self.labels:
            return self.tensor
        return permute_dims(self.tensor, [self.labels.index(label) for label in labels])


@composite("einsum")
def einsum(subscripts: str, /, *operands: Any) -> Tensor:
    """Σ of the product of `operands` over the labels that the result does not have, as `numpy.einsum`.

    Args:
        subscripts: one letter for each axis of each operand, "ij,jk->ik"; "..." stands for axes without a name. Without
            an arrow the result has the letters that occur once, in alphabetical order. A letter that an operand has
            twice takes its diagonal.
        operands: tensors of a numeric dtype; joined from left to right, two at a time.

    Raises:
        ShapeError: subscripts that do not fit the operands, or one letter for axes of different extents.
    """
    tensors = [_tensor(x) for x in operands]
    labels, result = _parsed(subscripts, tensors)
    found = [_diagonal(_Labelled(x, names)) for x, names in zip(tensors, labels, strict=True)]
    joined = found[0]
    for i, operand in enumerate(found[1:], 1):
        wanted = set(result).union(*(later.labels for later in found[i + 1 :]))
        joined = _joined(
            _summed(joined, wanted | set(operand.labels)), _summed(operand, wanted | set(joined.labels)), wanted
        )
    return _summed(joined, set(result)).arranged(result)


def _parsed(subscripts: str, tensors: Sequence[Tensor]) -> tuple[list[str], str]:
    """The labels of each operand and of the result, with letters of their own for "..."."""
    given, arrow, result = subscripts.replace(" ", "").partition("->")
    terms = given.split(",")
    if len(terms) != len(tensors):
        raise ShapeError(f"einsum: one term for each operand; got {subscripts!r} for {len(tensors)} operands")
    unused = [letter for letter in string.ascii_letters if letter not in subscripts]
    unnamed = [x.ndim - len(term.replace("...", "")) for x, term in zip(tensors, terms, strict=True)]
    most = max((n for n, term in zip(unnamed, terms, strict=True) if "..." in term), default=0)
    spare = "".join(unused[: max(most, 0)])
    labels = [_expanded(term, spare, n) for term, n in zip(terms, unnamed, strict=True)]
    for x, names, term in zip(tensors, labels, terms, strict=True):
        if len(names) != x.ndim or (not names.isalpha() and names):
            raise ShapeError(f"einsum: the term {term!r} does not fit an operand of shape {x.shape}")
    if not arrow:
        every = "".join(labels)
        result = spare + "".join(sorted(c for c in set(every) if every.count(c) == 1 and c not in spare))
    else:
        result = _expanded(result, spare, len(spare))
    if len(set(result)) != len(result) or not set(result) <= set("".join(labels)):
        raise ShapeError(f"einsum: the result's letters must be distinct and occur in an operand; got {subscripts!r}")
    _check_extents(subscripts, tensors, labels)
    return labels, result


def _expanded(term: str, spare: str, count: int) -> str:
    return term.replace("...", spare[len(spare) - count :] if count > 0 else "", 1)


def _check_extents(subscripts: str, tensors: Sequence[Tensor], labels: Sequence[str]) -> None:
    extents: dict[str, int] = {}
    for x, names in zip(tensors, labels, strict=True):
        for label, extent in zip(names, x.shape, strict=True):
            if extents.setdefault(label, extent) != extent:
                shapes = ", ".join(str(t.shape) for t in tensors)
                raise ShapeError(
                    f"einsum: axes of one letter must have one extent; {label!r} of {subscripts!r} is both "
                    f"{extents[label]} and {extent}; got shapes {shapes}"
                )


def _diagonal(x: _Labelled) -> _Labelled:
    """Letters that occur twice brought down to one axis."""
    tensor, labels = x.tensor, x.labels
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            extent = tensor.shape[first]
            shape = tuple(extent if i in (first, second) else 1 for i in range(tensor.ndim))
            inside = reshape(eye(extent, dtype="bool", device=tensor.device), shape)
            tensor = total(where(inside, tensor, 0), axis=second, dtype=tensor.dtype)
            labels = labels[:second] + labels[second + 1 :]
    return _Labelled(tensor, labels)


def _summed(x: _Labelled, wanted: set[str]) -> _Labelled:
    """Summed over the labels that nobody wants."""
    axes = tuple(i for i, label in enumerate(x.labels) if label not in wanted)
    if not axes:
        return x
    kept = "".join(label for label in x.labels if label in wanted)
    return _Labelled(total(x.tensor, axis=axes, dtype=x.tensor.dtype), kept)


def _joined(x: _Labelled, y: _Labelled, wanted: set[str]) -> _Labelled:
    """The product of two, summed over their common labels that are not `wanted`."""
    batch = "".join(label for label in x.labels if label in y.labels and label in wanted)
    inner = "".join(label for label in x.labels if label in y.labels and label not in wanted)
    rows = "".join(label for label in x.labels if label not in y.labels)
    columns = "".join(label for label in y.labels if label not in x.labels)
    outer = tuple(x.extent(c) for c in batch)
    left, right = tuple(x.extent(c) for c in rows), tuple(y.extent(c) for c in columns)
    count, height, width = (math.prod(found) for found in ([x.extent(c) for c in inner], left, right))
    first = reshape(x.arranged(batch + rows + inner), (*outer, height, count))
    second = reshape(y.arranged(batch + inner + columns), (*outer, count, width))
    if inner and x.tensor.dtype.kind == "f" and y.tensor.dtype.kind == "f":
        product = matmul(first, second)
    else:
        spread = reshape(first, (*outer, height, count, 1)) * reshape(second, (*outer, 1, count, width))
        product = total(spread, axis=-2, dtype=spread.dtype)
    return _Labelled(reshape(product, (*outer, *left, *right)), batch + rows + columns)
