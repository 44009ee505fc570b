"""`sg.compare`: one function, run dynamically and compiled from the same state, side by side."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.capture import GradState, State
from staticgrad.comparison import Comparison, Difference, Memory, difference
from staticgrad.compile import CompiledFunction
from staticgrad.graph.errors import CaptureError
from staticgrad.kernels.device import device_of
from staticgrad.observe import Clock, LiveMemory, observed
from staticgrad.signature import leaf_paths, paths_below
from staticgrad.snapshot import Snapshot
from staticgrad.specialize import Specialization
from staticgrad.tensor import Array, Tensor
from staticgrad.tree import tree_flatten, tree_unflatten

_BLOCKS = 5  # the two modes take turns this often, so that a busy moment of the machine falls on both
# Seconds between the modes where both multiply matrices: NumPy and the programs bring a BLAS each, whose threads spin
# for some tens of milliseconds after their last product, on cores that the other mode needs.
_SETTLE = 0.06
_LIMIT = 64  # recompiles: a function that accumulates gradients is compiled once without and once with them


def compare(fn: Callable[..., Any], /, *args: Any, repeat: int = 20, **kwargs: Any) -> Comparison:
    """Run `fn` dynamically and compiled, from the same state, and report how the two differ.

    Results, new state, gradients and written arguments of one call are compared element by element. Then both modes
    take turns: each time from the same state and after a short pause, a few calls in a row, the first of which is not
    counted. Parameters,
    gradients, optimizer state, random state and arguments are afterwards as they were, bit for bit.

    Args:
        fn: any function that `sg.compile` takes, compiled or not.
        args, kwargs: its arguments.
        repeat: how many calls of each mode are timed.

    Returns:
        A `Comparison`: prints as a table; `save(path)` writes a picture or a page, `to_dict()` gives the numbers.

    Raises:
        CaptureError: `fn` cannot be captured, or is being captured.
        ValueError: `repeat` is below 1.

    >>> import staticgrad as sg
    >>> report = sg.compare(lambda x: sg.sum(sg.tanh(x)), sg.ones(1000), repeat=3)
    >>> report.ops, report.kernels
    (2, 1)
    """
    if not callable(fn):
        raise TypeError(f"compare: takes a function and its arguments; got {type(fn).__name__}")
    if repeat < 1:
        raise ValueError(f"compare: repeat must be at least 1; got {repeat}")
    if context.capture is not None:
        raise CaptureError("compare: runs and times its function, which a capture cannot hold; call it outside")
    options: dict[str, Any] = {}
    if isinstance(fn, CompiledFunction):
        options = {name: fn._options[name] for name in ("device", "static_argnames", "cache")}
        fn = fn.fn
    before = Snapshot(fn, tree_flatten((args, kwargs))[0])
    try:
        comparing = _Comparing(fn, options, args, kwargs)
        try:
            return comparing.run(repeat)
        finally:
            comparing.snapshot.restore()
    finally:
        before.restore()


class _Comparing:
    def __init__(self, fn: Callable[..., Any], options: Mapping[str, Any], args: Any, kwargs: Any) -> None:
        self.fn = fn
        self.compiled = CompiledFunction(fn, recompile_limit=_LIMIT, **options)
        self.leaves, structure, static = self.compiled._flatten(args, kwargs)
        self.paths = leaf_paths(self.compiled._rebuild_names(structure))
        begin = time.perf_counter()
        self.specialization = self.compiled._specialization(self.leaves, structure, static)
        self.compile_seconds = time.perf_counter() - begin
        self.specialization.inputs(self.leaves)  # brings the state to where the program runs: both modes run there
        given, whole = tree_flatten((args, kwargs))
        placed = [self._placed(leaf) for leaf in given]
        self.args, self.kwargs = tree_unflatten(whole, placed)
        if any(one is not other for one, other in zip(given, placed, strict=True)):
            self.compiled = CompiledFunction(fn, recompile_limit=_LIMIT, **options)
            self.leaves, structure, static = self.compiled._flatten(self.args, self.kwargs)
            self.specialization = self.compiled._specialization(self.leaves, structure, static)
        self.snapshot = Snapshot(fn, tree_flatten((self.args, self.kwargs))[0])
        self.snapshot.include(tensor for tensor, _ in _bound(self.specialization))

    def _placed(self, leaf: Any) -> Any:
        """An argument where the program runs."""
        if isinstance(leaf, Tensor):
            return leaf.to(self.specialization.device.name)
        if not isinstance(leaf, np.ndarray) or not leaf.ndim:
            return leaf
        placed = self.specialization.device.place(leaf)
        return leaf if placed is leaf else Tensor(placed)

    def dynamic(self) -> Any:
        return self.fn(*self.args, **self.kwargs)

    def static(self) -> Any:
        return self.compiled(*self.args, **self.kwargs)

    def run(self, repeat: int) -> Comparison:
        differences = self.differences()
        memory = self.memory()
        ops = self.count_ops()
        times = self.times(repeat)
        program = self.specialization.program
        return Comparison(
            name=self.compiled._name(),
            differences=tuple(differences),
            dynamic_times=tuple(times["dynamic"]),
            static_times=tuple(times["static"]),
            arithmetic_seconds=_median(times["arithmetic"]),
            native_seconds=_median(times["native"]),
            dynamic_outside_seconds=_median(times["dynamic outside"]),
            static_outside_seconds=_median(times["static outside"]),
            ops=ops,
            kernels=len(program.plan.groups),
            distinct_kernels=len(program.sources),
            compile_seconds=self.compile_seconds,
            from_cache=program.from_cache,
            memory=memory,
        )

    # ------------------------------------------------------------ results

    def differences(self) -> list[Difference]:
        """Everything that a call gives or changes, of both modes."""
        found = []
        for mode in (self.dynamic, self.static):
            self.snapshot.restore()
            found.append(dict(self.effects(mode())))
        first, second = found
        return [
            difference(kind, name, first.get((kind, name)), second.get((kind, name)))
            for kind, name in dict.fromkeys([*first, *second])
        ]

    def effects(self, result: Any) -> Iterator[tuple[tuple[str, str], Array]]:
        """A copy of each array that the call made or wrote, by kind and name."""
        leaves, structure = tree_flatten(result)
        for path, leaf in zip(paths_below(structure, "result"), leaves, strict=True):
            if isinstance(leaf, Tensor | np.ndarray):
                yield ("result", path), _copy(leaf)
        names: dict[int, str] = {}
        for i, (binding, node) in enumerate(
            zip(self.specialization.captured.bindings, self.specialization.captured.graph.inputs, strict=True)
        ):
            if isinstance(binding, State):
                names[id(binding.tensor)] = binding.name
                if self.specialization.writes(i):
                    yield ("state", str(node.attributes["name"])), _copy(binding.tensor)
        for tensor, name in _bound(self.specialization):
            if tensor._grad is not None:
                yield ("gradient", f"{names.get(id(tensor), name)}.grad"), _copy(tensor._grad)
        for path, leaf in zip(self.paths, self.leaves, strict=True):
            if isinstance(leaf, Tensor) and leaf._grad is not None:
                yield ("gradient", f"{path}.grad"), _copy(leaf._grad)
        for index, _ in self.specialization.captured.written_arguments:
            yield ("argument", self.paths[index]), _copy(self.leaves[index])

    # ------------------------------------------------------------ measures

    def memory(self) -> Memory:
        self.snapshot.restore(everything=False)
        specialization = self.specialization
        before = specialization.inputs(self.leaves)
        before += [leaf for leaf in self.leaves if isinstance(leaf, np.ndarray)]
        before += [tensor._grad._value for tensor, _ in _bound(specialization) if tensor._grad is not None]  # type: ignore[misc]
        live = LiveMemory(before)
        gc.collect()
        with observed(live):
            result = self.dynamic()
        del result
        plan = specialization.program.plan
        outputs = sum(node.nbytes for node in specialization.captured.graph.outputs)
        return Memory(live.peak_bytes, plan.peak_bytes, outputs, plan.lower_bound_bytes, plan.naive_bytes)

    def count_ops(self) -> int:
        """Ops of a dynamic call."""
        self.snapshot.restore(everything=False)
        clock = Clock()
        with observed(clock):
            self.dynamic()
        return clock.ops

    def times(self, repeat: int) -> dict[str, list[float]]:
        """Seconds of calls in turns: plain calls of both modes, and watched ones, split into inside and outside."""
        found: dict[str, list[float]] = {
            name: [] for name in ("dynamic", "static", "arithmetic", "native", "dynamic outside", "static outside")
        }
        products = any(group.kind == "matmul" for group in self.specialization.program.plan.groups)
        blocks = min(_BLOCKS, repeat)
        for block in range(blocks):
            calls = repeat // blocks + (block < repeat % blocks)
            for mode, call, inside, watched in (
                ("dynamic", self.dynamic, "arithmetic", self.watched_dynamic),
                ("static", self.static, "native", self.watched_static),
            ):
                self.snapshot.restore(everything=False)
                time.sleep(_SETTLE if products else 0)
                call()  # not counted: caches are cold, and a first call may have to compile
                found[mode] += [_timed(call) for _ in range(calls)]
                for _ in range(calls):
                    whole, within = watched()
                    found[inside].append(within)
                    found[f"{mode} outside"].append(max(0.0, whole - within))
        return found

    def watched_dynamic(self) -> tuple[float, float]:
        """Seconds of a dynamic call without what the watching costs, and of it inside NumPy."""
        clock = Clock()
        with observed(clock):
            whole = _timed(self.dynamic)
        return whole - clock.cost, clock.seconds

    def watched_static(self) -> tuple[float, float]:
        """Seconds of a compiled call, and of it inside the native call."""
        with ExitStack() as stack:
            native = [stack.enter_context(made.program.timed()) for _, _, made in self.compiled._history]
            whole = _timed(self.static)
        return whole, sum(map(sum, native))


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _bound(specialization: Specialization) -> list[tuple[Tensor, str]]:
    """The tensors that the program is tied to beside its arguments, with names: state, and owners of gradients."""
    captured = specialization.captured
    found = {id(b.tensor): (b.tensor, b.name) for b in captured.bindings if isinstance(b, State)}
    for b in captured.bindings:
        if isinstance(b, GradState):
            found.setdefault(id(b.tensor), (b.tensor, b.name.removesuffix(".grad")))
    for gradient in captured.gradients:
        if gradient.tensor is not None:
            found.setdefault(id(gradient.tensor), (gradient.tensor, f"tensor{len(found)}"))
    return list(found.values())


def _copy(value: Tensor | Array) -> Array:
    array: Any = value._value if isinstance(value, Tensor) else value
    return np.array(device_of(array).host(array))


__all__: Sequence[str] = ["compare"]
