"""`sg.compile`: the same function, captured at its first call and from then on one native call.

A compiled function keeps one specialisation for each signature it is called with: the structure of the arguments, the
shapes and dtypes of arrays, the values of everything else, and the Python state that the capture looked at.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from staticgrad._context import context
from staticgrad.bound_call import UNBOUND, BoundCall, BoundLoop, Call
from staticgrad.collector import collection_paused
from staticgrad.graph.errors import CaptureError, RecompileLimitError
from staticgrad.graph.node import Graph
from staticgrad.graph.timeline import described, recorded
from staticgrad.kernels.device import find_device
from staticgrad.signature import (
    Signature,
    differences,
    kind_of,
    leaf_paths,
    parameters_of,
    static_value,
    unhashable_error,
)
from staticgrad.specialize import Specialization, capture
from staticgrad.tensor import Tensor
from staticgrad.tree import TreeDef, tree_flatten, tree_unflatten

if TYPE_CHECKING:
    from staticgrad.graph.plan import Plan

log = logging.getLogger("staticgrad")


@dataclass(frozen=True)
class CacheInfo:
    """How often calls found a specialisation (`hits`) or had to compile (`misses`), and how many there are."""

    hits: int
    misses: int
    currsize: int
    from_disk: int


class CompiledFunction:
    """A function that runs as a static program; made by `sg.compile` and called like the function itself."""

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        device: str | None = None,
        static_argnames: str | Sequence[str] = (),
        cache: bool = True,
        check: bool = False,
        recompile_limit: int = 8,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"compile: takes a function; got {type(fn).__name__}")
        self._device = None if device is None else find_device(device).name
        if recompile_limit < 1:
            raise ValueError(f"compile: recompile_limit must be at least 1; got {recompile_limit}")
        self.fn = fn
        self._options = {
            "device": device,
            "static_argnames": static_argnames,
            "cache": cache,
            "check": check,
            "recompile_limit": recompile_limit,
        }
        self._static = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
        self._cache = cache
        self._check = check
        self._limit = recompile_limit
        self._found: dict[Signature, list[Specialization]] = {}
        self._history: list[tuple[Signature, str, Specialization]] = []
        self._bindings: dict[Specialization, BoundCall] = {}
        self._bound: tuple[Call, ...] = ()
        self._hits = 0
        self._from_disk = 0
        self._lock = threading.RLock()
        self._derived: dict[str, CompiledFunction] = {}
        self._parameters = parameters_of(fn, self._static)
        functools.update_wrapper(self, fn, updated=())

    # ------------------------------------------------------------ calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program for these arguments, compiling it first if it is new."""
        for call in self._bound:
            result = call(args, kwargs)
            if result is not UNBOUND:
                return result
        return self._ordinary_call(args, kwargs)

    def _ordinary_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if context.capture is not None:
            return self.fn(*args, **kwargs)
        leaves, structure, static = self._flatten(args, kwargs)
        if any(isinstance(leaf, Tensor) and leaf._tangents for leaf in leaves) or context.depth:
            return self.fn(*args, **kwargs)
        specialization = self._specialization(leaves, structure, static)
        if self._check:
            from staticgrad.check import run_checked

            return run_checked(specialization, leaves)
        result = specialization.run(leaves)
        if specialization.calls > 1 and not self._static and not specialization.live:
            with self._lock:
                if self._binding(specialization, leaves, structure).renew():
                    self._offer_bound_calls()
        return result

    def _binding(self, specialization: Specialization, leaves: list[Any], structure: TreeDef) -> BoundCall:
        """How calls like this one can go the short way. The caller holds the lock."""
        if specialization not in self._bindings:
            self._bindings[specialization] = BoundCall(specialization, structure, leaves, context.grad_enabled)
        return self._bindings[specialization]

    def _offer_bound_calls(self) -> None:
        self._bound = tuple(b.function for b in self._bindings.values() if b.function is not None)

    def run(
        self,
        arrays: Any,
        *,
        batch_size: int,
        epochs: int = 1,
        shuffle: int | None = None,
        drop_last: bool = False,
        progress: bool = False,
    ) -> Any:
        """Call the function for every batch of data in memory, `epochs` times over, with no Python between steps.

        State, gradients and results are, bit for bit, those of the same calls one after another: the batches are those
        of `sg.data.DataLoader(sg.data.TensorDataset(*arrays), batch_size, shuffle=True, seed=shuffle)`. What Python
        changes, such as a scheduler the learning rate, changes between runs. Ctrl-C ends a run between two steps.

        Args:
            arrays: a tuple or list of NumPy arrays and Tensors, the arguments of the function, or a dict of them, its
                keyword arguments; all with as many rows along their first axis.
            batch_size: rows of each array in a call, from 1 up to all of them.
            epochs: passes over the rows, from 0 up.
            shuffle: the seed of the orders of the rows, another one in each pass; None takes them as they lie.
            drop_last: leave out a last batch that is not full; else it has a specialisation of its own.
            progress: show how many steps are done, on standard error.

        Returns:
            A tree like the function's result, each leaf a Tensor (steps, *shape) of all steps' results.

        Raises:
            ValueError: no arrays, or of unequal length; a number out of range; results that differ in shape.
            TypeError: data or results that are no arrays.
            CaptureError: the function writes its arguments.
        """
        from staticgrad.epochs import run

        return run(self, arrays, batch_size, epochs, shuffle, drop_last, progress)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A compiled method belongs to its instance."""
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        plural = "" if len(self._history) == 1 else "s"
        return f"<compiled {getattr(self.fn, '__qualname__', self.fn)}, {len(self._history)} specialisation{plural}>"

    def __staticgrad_compiled__(self) -> tuple[Callable[..., Any], Callable[[Callable[..., Any]], Any]]:
        """The Python function below, and how to compile a transform of it with the same options."""
        return self.fn, lambda g: CompiledFunction(g, **self._options)  # type: ignore[arg-type]

    def derived(self, name: str, function: Callable[..., Any]) -> CompiledFunction:
        """The compiled transform `name` of this function, made from `function` at the first call and then kept."""
        if name not in self._derived:
            self._derived[name] = CompiledFunction(function, **self._options)  # type: ignore[arg-type]
        return self._derived[name]

    def specialization_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Specialization:
        """The specialisation that a call with these arguments would run, compiled if it is new."""
        return self._specialization(*self._flatten(args, kwargs))

    def loop_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, BoundLoop | None]:
        """The specialisation for these arguments, and how to run it many times in a row if that is possible."""
        leaves, structure, static = self._flatten(args, kwargs)
        specialization = self._specialization(leaves, structure, static)
        if self._check or self._static:
            return specialization, None
        with self._lock:
            loop = self._binding(specialization, leaves, structure).loop()
            self._offer_bound_calls()
        return specialization, loop

    def _flatten(self, args: Any, kwargs: Any) -> tuple[list[Any], TreeDef, tuple[tuple[str, Any], ...]]:
        if not self._static:
            leaves, structure = tree_flatten((args, kwargs))
            return leaves, structure, ()
        bound = self._parameters.bind(*args, **kwargs)
        given = [name for name in self._static if name in bound.arguments]
        static = [(name, static_value(name, bound.arguments[name])) for name in given]
        rest = {name: value for name, value in bound.arguments.items() if name not in self._static}
        leaves, structure = tree_flatten(((), rest))
        return leaves, structure, tuple(static)

    def _rebuild(self, structure: TreeDef, static: tuple[tuple[str, Any], ...], leaves: list[Any]) -> tuple[Any, Any]:
        args, kwargs = tree_unflatten(structure, leaves)
        if not self._static:
            return args, kwargs
        values = {**kwargs, **{name: held.value for name, held in static}}
        ordered = OrderedDict((name, values[name]) for name in self._parameters.parameters if name in values)
        bound = inspect.BoundArguments(self._parameters, ordered)
        return bound.args, bound.kwargs

    # ------------------------------------------------------------ specialisations

    def _specialization(self, leaves: list[Any], structure: TreeDef, static: Any) -> Specialization:
        signature = Signature(structure, tuple(map(kind_of, leaves)), static, context.grad_enabled)
        try:
            candidates = self._found.get(signature, ())
        except TypeError:
            raise unhashable_error(leaves) from None
        for candidate in candidates:
            if candidate.broken_guard() is None:
                self._hits += 1
                return candidate
        with self._lock:
            return self._compile(signature, leaves, structure, static)

    def _compile(self, signature: Signature, leaves: list[Any], structure: TreeDef, static: Any) -> Specialization:
        for candidate in self._found.get(signature, ()):  # another thread may have been quicker
            if candidate.broken_guard() is None:
                return candidate
        reason = self._reason(signature)
        if len(self._history) >= self._limit:
            raise RecompileLimitError(
                f"compile: {self._name()} was compiled {len(self._history)} times, its limit; this call differs in: "
                f"{reason}. Pad to a common shape, pass numbers as arrays, or raise recompile_limit"
            )
        if self._history:
            log.warning("staticgrad: %s is compiled again: %s", self._name(), reason)
        from staticgrad.kernels.cache import default_cache

        paths = leaf_paths(self._rebuild_names(structure))
        with collection_paused, recorded() as timeline:
            rebuild = functools.partial(self._rebuild, structure, static)
            captured = capture(self.fn, rebuild, leaves, paths, self._device)
            program = captured.device.compile(captured.graph, cache=default_cache() if self._cache else None)
        self._from_disk += program.from_cache
        made = Specialization(captured, program)
        made.timeline = timeline
        log.info("staticgrad: %s is compiled: %s", self._name(), described(timeline))
        self._found.setdefault(signature, []).append(made)
        self._history.append((signature, reason, made))
        return made

    def _name(self) -> str:
        return str(getattr(self.fn, "__qualname__", type(self.fn).__name__))

    def _rebuild_names(self, structure: TreeDef) -> Any:
        """A tree like the arguments with the name of each leaf's place at the leaf."""
        args, kwargs = structure.children
        names = [name for name in self._parameters.parameters if name not in self._static]
        return args, kwargs, names

    def _reason(self, signature: Signature) -> str:
        """What sets `signature` apart from the most similar one compiled before."""
        if not self._history:
            return "first call"
        paths = leaf_paths(self._rebuild_names(signature.structure))
        best: list[str] | None = None
        for old, _, specialization in reversed(self._history):
            found = differences(old, signature, paths)
            if not found:  # compiled for the same arguments: something else that it read has changed
                guard = specialization.broken_guard()
                return f"{guard.what} was {guard.value!r}, is {guard.read()!r}" if guard else "the same signature"
            if best is None or len(found) < len(best):
                best = found
        return "; ".join(best or [])

    # ------------------------------------------------------------ looking inside

    @property
    def last(self) -> Specialization:
        """The specialisation compiled last."""
        if not self._history:
            raise CaptureError(f"compile: {self._name()} has not been compiled yet; call it once first")
        return self._history[-1][2]

    @property
    def graph(self) -> Graph:
        """The captured graph, after rewriting; prints as readable text."""
        return self.last.captured.graph

    @property
    def plan(self) -> Plan:
        """Where every buffer lives: `peak_bytes lower_bound_bytes naive_bytes slots order`."""
        return self.last.program.plan

    def source(self) -> str:
        """The generated kernels as Python."""
        return "\n\n".join(self.last.program.sources.values())

    def memory(self) -> str:
        """The plan as a table: peak, lower bound, naive sum, every slot and who shares it."""
        from staticgrad.graph.plan import format_memory

        return format_memory(self.plan)

    def explain(self) -> str:
        """Why each specialisation was compiled, how often it ran, and what it depends on."""
        from staticgrad.report import explain

        return explain(self._name(), [(reason, made) for _, reason, made in self._history])

    def cost(self) -> Any:
        """Operations and bytes of every kernel; prints as a table."""
        from staticgrad.report import cost

        return cost(self.last)

    def profile(self, *args: Any, repeat: int = 20, **kwargs: Any) -> Any:
        """Time of every kernel over `repeat` calls with these arguments, state put back; prints as a table."""
        from staticgrad.report import profile

        leaves, structure, static = self._flatten(args, kwargs)
        return profile(self._specialization(leaves, structure, static), leaves, repeat)

    def save(self, path: Any) -> None:
        """Write the program compiled last, with its state, to one file that `sg.load` runs without capture or Numba."""
        from staticgrad.saved import save_program

        last = self.last
        signature = self._history[-1][0]
        if signature.static:
            raise CaptureError("save: a program file takes no static arguments; bind them first (functools.partial)")
        save_program(self._name(), signature.structure, last, path)

    def cache_info(self) -> CacheInfo:
        """Hits, misses and specialisations so far, and how many programs came from the disk cache."""
        hits = self._hits + sum(specialization.bound_calls for _, _, specialization in self._history)
        return CacheInfo(hits, len(self._history), len(self._history), self._from_disk)


@overload
def compile(
    fn: Callable[..., Any],
    *,
    device: str | None = ...,
    static_argnames: str | Sequence[str] = ...,
    memory_budget: float | None = ...,
    cache: bool = ...,
    check: bool = ...,
    recompile_limit: int = ...,
) -> CompiledFunction: ...
@overload
def compile(
    fn: None = ...,
    *,
    device: str | None = ...,
    static_argnames: str | Sequence[str] = ...,
    memory_budget: float | None = ...,
    cache: bool = ...,
    check: bool = ...,
    recompile_limit: int = ...,
) -> Callable[[Callable[..., Any]], CompiledFunction]: ...
def compile(
    fn: Callable[..., Any] | None = None,
    *,
    device: str | None = None,
    static_argnames: str | Sequence[str] = (),
    memory_budget: float | None = None,
    cache: bool = True,
    check: bool = False,
    recompile_limit: int = 8,
) -> Any:
    """Compile a function of arrays, a whole training step above all; also usable as a decorator.

    The function is run once with traced tensors for each new signature of its arguments; forward, backward and
    optimizer become one program whose buffers are all planned beforehand. Tensors that it reads from elsewhere
    (parameters, optimizer state, random state) are found by reference and updated in place.

    Args:
        fn: takes and returns any tree of arrays. Numbers are passed as 0-d values; booleans, strings and other
            objects are part of the signature.
        device: where the program runs: "cpu", "cuda" or "cuda:1"; by default where the arguments and the state are.
            Arguments on another device are copied there at each call; state moves there and stays.
        static_argnames: arguments whose values are part of the signature, for numbers that shapes depend on.
        memory_budget: recomputation within a budget is not part of this release; None.
        cache: keep compiled programs on disk, for later processes.
        check: compare every call, value by value, with the dynamic run, and raise NumericError that names the first
            op that differs or that makes a NaN out of finite operands. Slow.
        recompile_limit: more specialisations than this raise RecompileLimitError.

    Raises:
        CaptureError: what a static graph cannot hold, such as a Python branch on a traced value.

    Example:
        >>> import staticgrad as sg
        >>> double = sg.compile(lambda x: x * 2)
        >>> double(sg.asarray([1.0, 2.0]))
        Tensor([2., 4.])
    """
    if memory_budget is not None:
        raise ValueError("compile: memory_budget is not part of this release; leave it out")
    options: dict[str, Any] = {
        "device": device,
        "static_argnames": static_argnames,
        "cache": cache,
        "check": check,
        "recompile_limit": recompile_limit,
    }
    if fn is None:
        return lambda function: CompiledFunction(function, **options)
    return CompiledFunction(fn, **options)
