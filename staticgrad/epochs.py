"""Epochs of a compiled function over data in memory: `CompiledFunction.run`.

A step whose next call would be a bound call needs no Python between its calls: the machine code of `kernels.cpu.loop`
gathers the rows, runs the step and leaves the results in the arrays that are returned. It is entered for some tens of
milliseconds at a time; in between signals are handled, progress is shown and every check of a call is made again.
Steps that cannot go this way (the first ones, a smaller last batch, a function with `check=True`) are ordinary calls.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad._context import context
from staticgrad.bound_call import UNBOUND, BoundLoop
from staticgrad.capture import Argument
from staticgrad.data.loader import epoch_order
from staticgrad.graph.errors import CaptureError, IndexRangeError
from staticgrad.kernels.device import device_of
from staticgrad.progress import Progress
from staticgrad.specialize import Output, Specialization
from staticgrad.tensor import Array, Tensor
from staticgrad.tree import TreeDef, tree_flatten, tree_unflatten

if TYPE_CHECKING:
    from staticgrad.compile import CompiledFunction

_SECONDS = 0.05  # of native work at a time: Ctrl-C and progress wait no longer
_FIRST = 8  # steps that are run natively to find out how many fit in that time


def run(
    compiled: CompiledFunction,
    arrays: Any,
    batch_size: int,
    epochs: int,
    shuffle: int | None,
    drop_last: bool,
    progress: bool,
) -> Any:
    """See `CompiledFunction.run`."""
    if context.capture is not None:
        raise CaptureError("run: cannot be part of a compiled function; write the loop there with sg.scan")
    data = _Data(arrays, batch_size, shuffle)
    epochs = operator.index(epochs)
    if epochs < 0:
        raise ValueError(f"run: epochs must be at least 0; got {epochs}")
    remainder = 0 if drop_last else data.length % data.batch_size
    running = _Run(compiled, data, epochs, remainder)
    if not progress:
        for _ in running:
            pass
        return running.results()
    with Progress(running.steps, "run") as shown:
        for done in running:
            shown.show(done)
    return running.results()


class _Data:
    """The arrays, and the arguments of one call."""

    def __init__(self, arrays: Any, batch_size: int, shuffle: int | None) -> None:
        self.keys = tuple(arrays) if isinstance(arrays, Mapping) else None
        if not isinstance(arrays, Mapping | tuple | list) or not arrays:
            came = f"an empty {type(arrays).__name__}" if isinstance(arrays, Mapping | tuple | list) else type(arrays)
            raise TypeError(f"run: arrays must be a tuple, list or dict with at least one array; got {came}")
        given = list(arrays.values()) if isinstance(arrays, Mapping) else list(arrays)
        names = [repr(key) for key in self.keys] if self.keys else [f"number {i}" for i in range(len(given))]
        self.tensors = [isinstance(array, Tensor) for array in given]
        self.arrays = [_rows(name, array) for name, array in zip(names, given, strict=True)]
        self.length = len(self.arrays[0])
        if any(len(array) != self.length for array in self.arrays):
            lengths = ", ".join(f"{name} has {len(a)}" for name, a in zip(names, self.arrays, strict=True))
            raise ValueError(f"run: all arrays must have as many rows along the first axis; {lengths}")
        if not self.length:
            raise ValueError("run: the arrays must have at least one row; they are empty")
        self.batch_size = operator.index(batch_size)
        if self.batch_size < 1:
            raise ValueError(f"run: batch_size must be at least 1; got {batch_size}")
        if self.batch_size > self.length:
            raise ValueError(f"run: batch_size must be at most the {self.length} rows; got {batch_size}; lower it")
        self.seed = None if shuffle is None else operator.index(shuffle)
        if isinstance(shuffle, bool) or (self.seed is not None and self.seed < 0):
            raise ValueError(f"run: shuffle must be a seed, at least 0, or None; got {shuffle!r}")
        self.order = np.arange(0)

    def begin(self, epoch: int) -> None:
        """Take up the order of an epoch."""
        if self.seed is not None:
            self.order = np.ascontiguousarray(epoch_order(self.length, self.seed, epoch), np.int64)

    def batch(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of call number `index` of the epoch, as (args, kwargs)."""
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rows: Any = chosen if self.seed is None else self.order[chosen]
        return self.arguments([array[rows] for array in self.arrays])

    def empty_batch(self, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the shapes of a call with so many rows."""
        return self.arguments([np.zeros((rows, *array.shape[1:]), array.dtype) for array in self.arrays])

    def arguments(self, arrays: list[Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, as (args, kwargs)."""
        values = [Tensor(array) if tensor else array for array, tensor in zip(arrays, self.tensors, strict=True)]
        return (tuple(values), {}) if self.keys is None else ((), dict(zip(self.keys, values, strict=True)))


def _rows(name: str, given: Any) -> Array:
    """The array of one argument, C-contiguous and in native byte order."""
    if not isinstance(given, Tensor | np.ndarray):
        raise TypeError(f"run: arrays must be NumPy arrays or Tensors; {name} is a {type(given).__name__}")
    if isinstance(given, Tensor) and given._requires_grad:
        raise ValueError(f"run: data must not require grad; {name} does; pass its detach()")
    array: Any = given._value if isinstance(given, Tensor) else given
    array = device_of(array).host(array)
    if not array.ndim:
        raise ValueError(f"run: arrays must have rows along a first axis; {name} is 0-d")
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


class _Run:
    """The steps of one call of `run`; iterating carries them out and tells how many are done."""

    def __init__(self, compiled: CompiledFunction, data: _Data, epochs: int, remainder: int) -> None:
        self._compiled = compiled
        self._data = data
        self._epochs = epochs
        self._full = data.length // data.batch_size
        self._per_epoch = self._full + (remainder > 0)
        self.steps = epochs * self._per_epoch
        self._staging = data.empty_batch(data.batch_size)
        captured = _checked(compiled.specialization_for(*self._staging))
        self._structure: TreeDef = captured.result
        nodes = [captured.graph.outputs[leaf.position] for leaf in captured.leaves]
        if remainder:
            last = _checked(compiled.specialization_for(*data.empty_batch(remainder)))
            shapes = [last.graph.outputs[leaf.position].shape for leaf in last.leaves]
            if last.result != captured.result or shapes != [node.shape for node in nodes]:
                raise ValueError(
                    f"run: results must have one shape in all steps, to be returned together; those of the last batch, "
                    f"of {remainder} rows, have another; pass drop_last=True, or a batch_size that divides the "
                    f"{data.length} rows"
                )
        self._stacked = [np.empty((self.steps, *node.shape), node.dtype) for node in nodes]
        self._chunk = _FIRST

    def results(self) -> Any:
        """The results of all steps, stacked."""
        return tree_unflatten(self._structure, [Tensor(array) for array in self._stacked])

    def __iter__(self) -> Iterator[int]:
        done = 0
        for epoch in range(self._epochs):
            self._data.begin(epoch)
            index = 0
            while index < self._per_epoch:
                count = self._native_steps(done, index)
                if not count:
                    self._single_step(done, index)
                    count = 1
                index += count
                done += count
                yield done

    def _single_step(self, done: int, index: int) -> None:
        args, kwargs = self._data.batch(index)
        try:
            leaves, structure = tree_flatten(self._compiled(*args, **kwargs))
            values = [device_of(x._value).host(x._value) for x in leaves if isinstance(x, Tensor)]
        except IndexRangeError as error:
            raise _in_step(error, done) from error.__cause__
        if structure != self._structure or any(map(_differs, leaves, self._stacked)):
            raise ValueError(
                f"run: results must have one structure, shape and dtype in all steps; step {done} returned another"
            )
        for array, value in zip(self._stacked, values, strict=True):
            array[done] = value

    def _native_steps(self, done: int, index: int) -> int:
        """Run steps from number `index` of the epoch on; how many there were, 0 where it takes an ordinary call."""
        steps = min(self._chunk, self._full - index)
        if steps <= 0 or context.depth:
            return 0
        specialization, loop = self._compiled.loop_for(*self._staging)
        if loop is None or any(map(loop.overlaps, self._data.arrays)):
            return 0
        workspace = loop.enter(*self._staging)
        if workspace is UNBOUND:
            return 0
        begin = time.perf_counter()
        self._repeat(specialization, loop, workspace, done, index, steps)
        self._chunk = max(1, int(steps * _SECONDS / max(time.perf_counter() - begin, 1e-9)))
        return steps

    def _repeat(
        self, specialization: Specialization, loop: BoundLoop, workspace: Any, done: int, index: int, steps: int
    ) -> None:
        data, program = self._data, specialization.program
        first = index * data.batch_size
        staging = [_value(leaf) for leaf in tree_flatten(self._staging)[0]]
        rows = {}
        for i, binding in enumerate(specialization.captured.bindings):
            if isinstance(binding, Argument):
                source, room = data.arrays[binding.index], staging[binding.index]
                size = room.nbytes // data.batch_size
                if data.seed is None:
                    rows[i] = (_start(source) + first * size, size, 0)
                else:
                    rows[i] = (_start(source), size, _start(room))
        results = {}
        for leaf, array in zip(specialization.captured.leaves, self._stacked, strict=True):
            size = array.nbytes // len(array)
            results[leaf.position] = (_start(array) + done * size, size)
        order = 0 if data.seed is None else _start(data.order) + first * data.order.itemsize
        ran = steps
        try:
            ran = program.repeat(workspace, order, data.batch_size, rows, results, steps)
        finally:  # also when Ctrl-C comes as the native call returns
            loop.leave(ran)
        if ran == steps:
            program.free.append(workspace)
            return
        try:
            program.fail(workspace)
        except IndexRangeError as error:
            raise _in_step(error, done + ran) from error.__cause__


def _checked(specialization: Specialization) -> Any:
    """What was captured, if its results can be stacked."""
    captured = specialization.captured
    if captured.written_arguments:
        raise CaptureError("run: the function must not write its arguments; it does; return the new values instead")
    for leaf in captured.leaves:
        if not isinstance(leaf, Output):
            raise TypeError(
                f"run: results must be arrays computed from the arguments, trees of them, or None; got {leaf!r}; leave "
                "it out of what the function returns"
            )
    return captured


def _differs(leaf: Any, stacked: Array) -> bool:
    return not isinstance(leaf, Tensor) or leaf.shape != stacked.shape[1:] or leaf.dtype != stacked.dtype


def _in_step(error: IndexRangeError, step: int) -> IndexRangeError:
    return IndexRangeError(f"{error}. In step {step} of run, counted from 0")


def _value(leaf: Any) -> Any:
    return leaf._value if isinstance(leaf, Tensor) else leaf


def _start(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
