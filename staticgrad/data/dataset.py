"""Data sets: what has a length and gives its items by index."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from staticgrad.data.convert import to_array, to_tensor

if TYPE_CHECKING:
    from staticgrad.tensor import Tensor

__all__ = ["Dataset", "Subset", "TensorDataset", "random_split"]

Indices = npt.NDArray[np.int64]


class Dataset(ABC):
    """What a `DataLoader` reads: `len(dataset)` items, `dataset[0]` to `dataset[len(dataset) - 1]`."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of items."""

    @abstractmethod
    def __getitem__(self, index: int) -> Any:
        """The item at `index`."""


class TensorDataset(Dataset):
    """Arrays of one length; item i is the tuple of their i-th entries.

    Args:
        arrays: Tensors or NumPy arrays, each of shape (n, ...). They are kept, not copied.

    Raises:
        ValueError: no arrays, one without axes, or arrays of different lengths.
    """

    def __init__(self, *arrays: Tensor | npt.ArrayLike) -> None:
        if not arrays:
            raise ValueError("TensorDataset: needs at least one array; got none")
        self._arrays = tuple(to_array(array) for array in arrays)
        for position, array in enumerate(self._arrays):
            if array.ndim == 0:
                raise ValueError(f"TensorDataset: every array needs a first axis; array {position} has shape ()")
        lengths = [len(array) for array in self._arrays]
        if len(set(lengths)) > 1:
            raise ValueError(f"TensorDataset: all arrays must have one length; got lengths {lengths}")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arrays as Tensors that share their memory."""
        return tuple(to_tensor(array) for array in self._arrays)

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        position = _checked(index, len(self))
        return tuple(to_tensor(array[position]) for array in self._arrays)

    def take(self, indices: Indices) -> tuple[npt.NDArray[Any], ...]:
        """The items at `indices` (k,), gathered into one new array (k, ...) for each array of the set."""
        return tuple(array[indices] for array in self._arrays)


class Subset(Dataset):
    """The items of another data set at some indices, in their order.

    Args:
        dataset: where the items come from.
        indices: integers (k,), each below `len(dataset)`; negative ones count from the end.

    Raises:
        IndexError: an index outside the data set.
        ValueError: indices that are not one axis of integers.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int] | npt.NDArray[Any]) -> None:
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise ValueError(
                f"Subset: indices must be one axis of integers; got shape {chosen.shape} of {chosen.dtype}"
            )
        count = len(dataset)
        outside = chosen[(chosen < -count) | (chosen >= count)]
        if outside.size:
            raise IndexError(f"Subset: indices must be within the {count} items; got {outside[0]}")
        self.dataset = dataset
        self.indices: Indices = np.where(chosen < 0, chosen + count, chosen).astype(np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[_checked(index, len(self))])]


def random_split(dataset: Dataset, lengths: Sequence[int | float], seed: int = 0) -> list[Subset]:
    """Cut a data set at random into parts that share no item and together hold all.

    Args:
        dataset: what is cut.
        lengths: the size of each part, as integers that sum to `len(dataset)`, or as fractions that sum to 1. With
            fractions each part gets the whole items of its share; those left over go to the first parts, one each.
        seed: which cut; the same seed gives the same parts from run to run.

    Returns:
        One `Subset` for each length.

    Raises:
        ValueError: no lengths, a negative one, or a sum that is neither `len(dataset)` nor 1.
    """
    count = len(dataset)
    sizes = _part_sizes(lengths, count)
    order = np.random.default_rng(seed).permutation(count)
    return [Subset(dataset, part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def _part_sizes(lengths: Sequence[int | float], count: int) -> list[int]:
    if not lengths or not all(length >= 0 for length in lengths):
        raise ValueError(f"random_split: lengths must be numbers from 0 up; got {list(lengths)}")
    if all(isinstance(length, int | np.integer) for length in lengths) and sum(lengths) == count:
        return [int(length) for length in lengths]
    if not math.isclose(sum(lengths), 1):
        raise ValueError(
            f"random_split: lengths must sum to {count}, the items of the data set, or to 1; "
            f"{list(lengths)} sum to {sum(lengths)}"
        )
    sizes = [math.floor(count * length) for length in lengths]
    for part in range(count - sum(sizes)):
        sizes[part % len(sizes)] += 1
    return sizes


def _checked(index: int, count: int) -> int:
    position = operator.index(index)
    if not -count <= position < count:
        raise IndexError(f"index {position} is outside the {count} items of the data set")
    return position % count
