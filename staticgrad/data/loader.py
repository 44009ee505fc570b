"""Cutting a data set into batches."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from staticgrad.data.convert import to_array, to_tensor
from staticgrad.data.dataset import Dataset, Subset, TensorDataset

__all__ = ["DataLoader"]


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The numbers 0 … count-1 in the order of pass number `epoch`, which depends on these three alone."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class DataLoader:
    """Batches of a data set, once through for each `for` loop over the loader.

    With `shuffle` every pass has another order, and the orders depend on `seed` and on the number of the pass alone:
    they are the same from run to run. `epoch` is the number of the next pass; set it to go on where a run stopped.

    Args:
        dataset: a `Dataset`, or anything with `len` and items.
        batch_size: items in a batch, from 1 up; the last batch may be smaller.
        shuffle: draw the items of each pass in random order, each once.
        drop_last: leave out a last batch that is not full.
        seed: chooses the random orders, from 0 up.
        collate_fn: makes a batch from a list of items. Without it, arrays and numbers are stacked to Tensors
            (batch_size, ...), and tuples, lists and mappings are taken apart and stacked entry by entry. Python floats
            become float32, integers int64.

    Raises:
        ValueError: an empty data set, a batch size or a seed out of range, or `drop_last` with less than one batch.

    Example:
        >>> import numpy as np, staticgrad as sg
        >>> loader = sg.data.DataLoader(sg.data.TensorDataset(np.zeros((10, 3)), np.arange(10)), batch_size=4)
        >>> [x.shape for x, y in loader]
        [(4, 3), (4, 3), (2, 3)]
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Any],
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        drop_last: bool = False,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        count = len(dataset)
        batch_size = operator.index(batch_size)
        if count == 0:
            raise ValueError("DataLoader: the data set must hold at least one item; it is empty")
        if batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be at least 1; got {batch_size}")
        if drop_last and batch_size > count:
            raise ValueError(
                f"DataLoader: drop_last leaves no batch, as batch_size {batch_size} is more than the {count} items; "
                f"lower batch_size or keep the last batch"
            )
        if operator.index(seed) < 0:
            raise ValueError(f"DataLoader: seed must be at least 0; got {seed}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.collate_fn = collate_fn
        self.epoch = 0

    def __len__(self) -> int:
        """The number of batches in one pass."""
        count = len(self.dataset)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = self._order(self.epoch)
        self.epoch += 1
        return self._batches(order, len(self))

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        count = len(self.dataset)
        if not self.shuffle:
            return np.arange(count)
        return epoch_order(count, self.seed, epoch)

    def _batches(self, order: npt.NDArray[np.int64], batches: int) -> Iterator[Any]:
        for batch in range(batches):
            yield self._batch(order[batch * self.batch_size : (batch + 1) * self.batch_size])

    def _batch(self, indices: npt.NDArray[np.int64]) -> Any:
        if self.collate_fn is None:
            source, positions = _innermost(self.dataset, indices)
            if type(source) is TensorDataset:  # a subclass may give other items
                return tuple(to_tensor(array) for array in source.take(positions))
        items = [self.dataset[int(index)] for index in indices]
        return _stack(items) if self.collate_fn is None else self.collate_fn(items)


def _innermost(
    dataset: Dataset | Sequence[Any], indices: npt.NDArray[np.int64]
) -> tuple[Dataset | Sequence[Any], npt.NDArray[np.int64]]:
    """The data set below all subsets, and where in it the items are."""
    while isinstance(dataset, Subset) and type(dataset) is Subset:  # a subclass may give other items
        indices = dataset.indices[indices]
        dataset = dataset.dataset
    return dataset, indices


def _stack(items: list[Any]) -> Any:
    """One batch of items of like form, stacked along a new first axis."""
    first = items[0]
    if isinstance(first, Mapping):
        return {key: _stack([item[key] for item in items]) for key in first}
    if isinstance(first, str | bytes):
        return items
    if isinstance(first, list | tuple):
        fields = [_stack(list(entries)) for entries in zip(*items, strict=True)]
        return type(first)(*fields) if hasattr(first, "_fields") else type(first)(fields)
    arrays = [to_array(item) for item in items]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(
            f"DataLoader: items of one batch must have one shape; got {sorted(shapes)}; "
            f"pass a collate_fn that pads or groups them"
        )
    batch = np.stack(arrays)
    return to_tensor(batch.astype(np.float32) if type(first) is float else batch)
