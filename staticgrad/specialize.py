"""One specialisation of a compiled function: what it was captured for, its program, and how to call it."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.autograd.compiled_call import attach, attach_freed, inputs_of_call
from staticgrad.capture import Argument, Binding, Capture, GradState, HostScalar, State
from staticgrad.graph.errors import CaptureError, ShapeError
from staticgrad.graph.node import DType, Graph, Node, Shape, Spec
from staticgrad.graph.rewrite import rewrite
from staticgrad.graph.timeline import Timeline, stage
from staticgrad.guards import Guard, Place
from staticgrad.kernels.device import Device, device_of, drawn_to, find_device
from staticgrad.read_values import CONTENT, values_read
from staticgrad.read_values import held as held_value
from staticgrad.side_effects import Variable, Watch
from staticgrad.tensor import Array, Tensor, escaped_error
from staticgrad.tree import TreeDef, tree_flatten, tree_unflatten

if TYPE_CHECKING:
    from staticgrad.kernels.program import CompiledGraph


@dataclass(frozen=True)
class Gradient:
    """What a call does to `tensor.grad`: None clears it, a number is the output that becomes it."""

    tensor: Tensor | None  # None: the caller's argument number `argument`
    argument: int
    output: int | None
    adds: bool


@dataclass
class Captured:
    """A function's graph together with what ties it to the Python world."""

    graph: Graph
    bindings: list[Binding]
    guards: list[Guard]
    result: TreeDef
    leaves: list[Any]  # of the result: an output's position as `Output`, or a value returned as it is
    gradients: list[Gradient]
    written_arguments: list[tuple[int, int]]  # (argument, output copied into it)
    tracked: list[str] = field(default_factory=list)  # per output: "", "live" or "freed", its place on the tape
    device: Device = field(default_factory=lambda: find_device("cpu"))


@dataclass(frozen=True)
class Output:
    """A leaf of the result that the program computes."""

    position: int


def tensors_of(values: Sequence[tuple[str, Any]]) -> tuple[dict[int, str], dict[int, list[Tensor]]]:
    """The tensors that `values` lead to: parameters, buffers, optimizers' state.

    Returns: readable names by the id of the tensor, and all tensors that share an array by the id of the array.
    """
    names: dict[int, str] = {}
    found: list[Tensor] = []
    values = [*values, *((f"{name}.{key}", item) for name, value in values for key, item in _attributes(value))]
    for name, value in values:
        if isinstance(value, Tensor):
            names.setdefault(id(value), name)
            found.append(value)
        for listing in ("named_parameters", "named_buffers"):
            method = getattr(value, listing, None)
            if callable(method) and hasattr(value, "state_dict"):
                for key, tensor in method():
                    names.setdefault(id(tensor), f"{name}.{key}")
                    found.append(tensor)
    for name, value in values:
        if hasattr(value, "param_groups") and isinstance(getattr(value, "state", None), dict):
            for parameter, entries in value.state.items():
                for key, tensor in entries.items():
                    names.setdefault(id(tensor), f"{name}.{names.get(id(parameter), 'parameter')}.{key}")
                    found.append(tensor)
    holders: dict[int, list[Tensor]] = {}
    for tensor in found:
        sharing = holders.setdefault(id(tensor._value), [])
        if not any(tensor is other for other in sharing):
            sharing.append(tensor)
    return names, holders


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """The attributes of an object that is itself neither a tensor nor a module: a trainer's model and optimizer."""
    if isinstance(value, Tensor | type) or hasattr(value, "state_dict") or not hasattr(value, "__dict__"):
        return []
    return list(vars(value).items())


def capture(
    function: Callable[..., Any],
    rebuild: Callable[[list[Any]], tuple[Any, Any]],
    leaves: Sequence[Any],
    paths: Sequence[str],
    device: str | None = None,
) -> Captured:
    """Run `function` on traced stand-ins for the array `leaves` and return what it did.

    `device` is where the program is to run; None is where the arguments or the state are. `rebuild` makes
    (args, kwargs) from the leaves; leaves that are not arrays or numbers are passed as they are.
    """
    watch = Watch(function, [leaf for leaf in (*leaves, *_bound(function)) if not is_array(leaf)])
    with stage("capture"):
        held, result, stand_ins = _run_traced(function, rebuild, leaves, paths, watch, device)
    with stage("guard"):
        _watch_values(held, function, watch, leaves)
    return _finish(held, result, stand_ins)


def _run_traced(
    function: Callable[..., Any],
    rebuild: Callable[[list[Any]], tuple[Any, Any]],
    leaves: Sequence[Any],
    paths: Sequence[str],
    watch: Watch,
    device: str | None,
) -> tuple[Capture, Any, dict[int, tuple[int, Tensor, Node]]]:
    if device is None:
        device = drawn_to("compile", [leaf._value for leaf in leaves if isinstance(leaf, Tensor)])
    held = Capture(*tensors_of(watch.reached()), device)
    traced, stand_ins = _stand_ins(held, leaves, paths)
    args, kwargs = rebuild(traced)
    structure = tree_flatten((args, kwargs))[1]
    with held:
        result = function(*args, **kwargs)
    watch.check()
    if tree_flatten((args, kwargs))[1] != structure:
        raise CaptureError(
            "compile: the function changes the structure of one of its arguments (appends to a list, adds a key); "
            "return the new value instead"
        )
    return held, result, stand_ins


def _watch_values(held: Capture, function: Any, watch: Watch, leaves: Sequence[Any]) -> None:
    """Have a change of the plain Python values that the function reads compile it again."""
    for variable in watch.variables():
        held.guard(f"the variable {variable.name!r}", _variable(variable), variable, "value")
    arguments = [(type(leaf).__name__, leaf) for leaf in leaves if is_static(leaf)]
    readings = values_read(function, [*watch.reached(), *arguments])
    computed = held.uses_other_arrays([owner for _, _, owner, name in readings if name is CONTENT])
    for what, read, owner, name in readings:
        if name is not CONTENT or computed:  # an array itself is read by reference at each call
            held.guard(what, read, owner, name)


def _variable(variable: Variable) -> Callable[[], Any]:
    read = variable.read
    return read.seen_through(held_value) if isinstance(read, Place) else lambda: held_value(read())


def _bound(function: Any) -> list[Any]:
    """The arguments that `functools.partial` has bound."""
    return [*function.args, *function.keywords.values()] if isinstance(function, functools.partial) else []


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is traced: arrays, tensors and numbers are; booleans and the rest are static."""
    return isinstance(leaf, Tensor | np.ndarray) or (isinstance(leaf, int | float | np.generic) and not is_static(leaf))


def is_static(leaf: Any) -> bool:
    """Whether the leaf is part of the program, not data: a bool, or neither array nor number."""
    return isinstance(leaf, bool) or not isinstance(leaf, Tensor | np.ndarray | int | float | np.generic)


def number_dtype(leaf: Any) -> DType:
    """The dtype in which a number is passed: numbers adapt to the tensors they meet."""
    return np.dtype(np.int64 if isinstance(leaf, int | np.integer) else np.float64)


def _stand_ins(
    held: Capture, leaves: Sequence[Any], paths: Sequence[str]
) -> tuple[list[Any], dict[int, tuple[int, Tensor, Node]]]:
    traced: list[Any] = []
    stand_ins: dict[int, tuple[int, Tensor, Node]] = {}
    for i, (value, path) in enumerate(zip(leaves, paths, strict=True)):
        if not is_array(value):
            traced.append(value)
            continue
        weak = not isinstance(value, Tensor | np.ndarray)
        spec = Spec((), number_dtype(value)) if weak else Spec(value.shape, value.dtype.newbyteorder("="))
        node = held.argument(i, spec, path)
        tensor = Tensor(node)
        tensor._weak = weak or (isinstance(value, Tensor) and value._weak)
        tensor._requires_grad = isinstance(value, Tensor) and value._requires_grad
        traced.append(tensor)
        stand_ins[id(tensor)] = (i, tensor, node)
    return traced, stand_ins


def _finish(held: Capture, result: Any, stand_ins: Mapping[int, tuple[int, Tensor, Node]]) -> Captured:
    outputs: list[Node] = []
    leaves, structure = tree_flatten(result)
    tracked: list[str] = []
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and isinstance(leaf._value, Node):
            leaves[i] = Output(len(outputs))
            tracked.append(_place_on_tape(leaf))
            outputs.append(held.node_of(leaf))
    updates = held.updates()
    gradients = _gradients(held, stand_ins, outputs, updates)
    written = []
    for i, tensor, node in stand_ins.values():
        if tensor._value is not node:
            written.append((i, len(outputs)))
            outputs.append(held.node_of(tensor))
    with stage("rewrite"):
        graph = rewrite(held.graph(outputs, updates))
    guards = list(held.guards.values())
    where = find_device(held.device)
    captured = Captured(graph, held.bindings, guards, structure, leaves, gradients, written, tracked, where)
    _require_tensors(captured)
    return captured


def _require_tensors(captured: Captured) -> None:
    """State that the program writes must be able to live where it runs."""
    written = {leaf for leaf, _ in captured.graph.updates}
    for leaf, binding in zip(captured.graph.inputs, captured.bindings, strict=True):
        if not isinstance(binding, State) or not binding.plain or leaf not in written:
            continue
        if not captured.device.holds(binding.array()):
            raise CaptureError(
                f"compile: {binding.name} is an array of NumPy's, which lives on the CPU, and the function writes it "
                f"on {captured.device.name}; make it a Tensor (sg.asarray)"
            )


def _place_on_tape(tensor: Tensor) -> str:
    if not tensor._requires_grad:
        return ""
    node = tensor.grad_fn
    return "freed" if node is not None and node.freed else "live"


def _gradients(
    held: Capture,
    stand_ins: Mapping[int, tuple[int, Tensor, Node]],
    outputs: list[Node],
    updates: list[tuple[Node, Node]],
) -> list[Gradient]:
    """What happens to gradients: those on storage that existed on entry are updated there, others are outputs."""
    found = []
    for tensor, current, had in held.written_gradients():
        argument = stand_ins.get(id(tensor))
        owner = None if argument else tensor
        index = argument[0] if argument else -1
        if current is None:
            found.append(Gradient(owner, index, None, False))
            continue
        if not isinstance(current._value, Node):
            if current is not tensor._grad:
                raise CaptureError("compile: a gradient was set to a tensor made outside of the compiled function")
            continue
        node = held.node_of(current)
        entry = held.state_leaf(tensor._grad) if had and tensor._grad is not None else None
        if entry is not None:
            updates.append((entry, node))
            continue
        found.append(Gradient(owner, index, len(outputs), False))
        outputs.append(node)
    return found


def _references(held: Mapping[int, Tensor], output: int) -> tuple[int, int]:
    """How many references there are to the tensor `held[output]` and to its array."""
    tensor = held[output]
    array = tensor._value
    return sys.getrefcount(tensor), sys.getrefcount(array)


def _references_when_alone() -> tuple[int, int]:
    """The same for a gradient that nobody but its owner holds; how this counts depends on the Python version."""
    owner, held = Tensor(np.zeros(1)), {0: Tensor(np.zeros(1))}
    owner._grad = held[0]
    return _references(held, 0)


_ALONE = _references_when_alone()


def _may_spread(captured: Captured) -> bool:
    """Whether others could write state with what a failed call has computed, before anybody knows that it has failed.

    A step that itself updates the parameters whose gradients it leaves, and returns single numbers, is whole: it keeps
    its state after an error, and what it gives is looked at before it is used.
    """
    graph = captured.graph
    written = {leaf for leaf, _ in graph.updates}
    states = zip(graph.inputs, captured.bindings, strict=True)
    updated = {id(binding.tensor) for leaf, binding in states if leaf in written and isinstance(binding, State)}
    own = {gradient.output for gradient in captured.gradients if id(gradient.tensor) in updated}
    numbers = all(node.size == 1 for position, node in enumerate(graph.outputs) if position not in own)
    return not numbers or bool(captured.written_arguments) or "live" in captured.tracked


def _while_it_lives(method: Callable[[], None]) -> Callable[[], None]:
    """A method to be called as long as somebody else holds its object."""
    held = weakref.WeakMethod(method)

    def call() -> None:
        found = held()
        if found is not None:
            found()

    return call


class Specialization:
    """A captured graph with its program, ready to be called for arguments of one signature."""

    def __init__(self, captured: Captured, program: CompiledGraph) -> None:
        self.captured = captured
        self.program = program
        program.on_failure = _while_it_lives(self._drop_gradients)
        program.waits = _may_spread(captured)
        self.device = captured.device
        graph = captured.graph
        self._specs: list[tuple[Shape, DType]] = [(node.shape, node.dtype) for node in graph.outputs]
        updated = {leaf for leaf, _ in graph.updates}
        self._updated = {i for i, node in enumerate(graph.inputs) if node in updated}
        self._arguments = [(i, b.index) for i, b in enumerate(captured.bindings) if isinstance(b, Argument)]
        self._states = [(i, b) for i, b in enumerate(captured.bindings) if isinstance(b, State | GradState)]
        self._scalars = [(i, b) for i, b in enumerate(captured.bindings) if isinstance(b, HostScalar)]
        self.held_gradients: dict[int, Tensor] = {}  # gradient outputs given away by the last call
        self.live = "live" in captured.tracked
        self.pullbacks: dict[tuple[int, ...], Callable[..., Any]] = {}
        self.keeping: CompiledGraph | None = None  # the same program with every value kept, for check=True
        self.timeline: Timeline = {}  # of its compilation
        self.bound_calls = 0  # those that went through a bound call
        self.ordinary_calls = 0

    @property
    def calls(self) -> int:
        """How often the program has run to its end."""
        return self.ordinary_calls + self.bound_calls

    def broken_guard(self) -> Guard | None:
        """The first guard that no longer holds."""
        for guard in self.captured.guards:
            if not guard.holds():
                return guard
        return None

    def inputs(self, leaves: Sequence[Any]) -> list[Array]:
        """Arrays for the graph's inputs in order; state is the very storage of its tensors."""
        arrays: list[Any] = [None] * len(self.captured.bindings)
        nodes = self.captured.graph.inputs
        for i, index in self._arguments:
            arrays[i] = _as_array(leaves[index], nodes[i].dtype)
        for i, binding in self._states:
            arrays[i] = self._state(nodes[i], binding)
        for i, scalar in self._scalars:
            arrays[i] = np.array(scalar.mapping[scalar.key], scalar.dtype)
        return arrays

    def _state(self, node: Node, binding: State | GradState) -> Array:
        """The storage of a state; it follows the program that uses it to another device."""
        array = binding.array()
        if isinstance(array, Node):
            raise escaped_error(array)
        if array is None or array.shape != node.shape or array.dtype != node.dtype:
            came = "None" if array is None else f"{array.dtype}{list(array.shape)}"
            raise ShapeError(f"compile: {binding.name} was captured as {node.spec} and is now {came}; compile again")
        if not (binding.plain or self.device.holds(array)):
            array = self.device.place(array)
            binding.move(array)
        result: Array = array
        return result

    def run(self, leaves: Sequence[Any]) -> Any:
        """Call the program and give the results back as the function would."""
        arrays = self.inputs(leaves)
        inputs = inputs_of_call(self, leaves, arrays) if self.live else None
        given = self._contiguous(arrays)
        outputs = self._outputs()
        try:
            self.program.run(given, outputs)
        finally:  # also when Ctrl-C comes as the native call returns: a step is whole or has not been
            for i in self._updated:
                if given[i] is not arrays[i]:
                    self.device.assign(arrays[i], given[i])
        self.ordinary_calls += 1
        return self.commit(leaves, outputs, inputs)

    def _drop_gradients(self) -> None:
        """Clear the gradients of the last call: a call that failed may have written over them."""
        for gradient in self.captured.gradients:
            if gradient.output not in self.program.early_outputs:
                continue
            last = self.held_gradients.pop(gradient.output, None) if gradient.output is not None else None
            if last is not None and gradient.tensor is not None and gradient.tensor._grad is last:
                gradient.tensor._grad = None

    def writes(self, index: int) -> bool:
        """Whether the program writes its input number `index`."""
        return index in self._updated

    def _contiguous(self, arrays: list[Array]) -> list[Array]:
        """C-contiguous arrays, none of which shares memory with state that is written."""
        given = [self.device.contiguous(array) for array in arrays]
        if self._updated:
            written = [given[i] for i in self._updated]
            for i, _ in self._arguments:
                if self.device.overlaps(given[i], written):
                    given[i] = given[i].copy()
        return given

    def _outputs(self) -> list[Array]:
        outputs = [self.device.empty(shape, dtype) for shape, dtype in self._specs]
        for gradient in self.captured.gradients:
            if gradient.tensor is not None and gradient.output is not None:
                reusable = self._reusable(gradient.tensor, gradient.output)
                if reusable is not None:
                    outputs[gradient.output] = reusable
        return outputs

    def _reusable(self, tensor: Tensor, output: int) -> Array | None:
        """The last call's gradient storage, if nobody but the tensor itself still holds it."""
        last = tensor._grad
        if last is None or last is not self.held_gradients.get(output):
            return None
        del last
        if _references(self.held_gradients, output) != _ALONE:
            return None
        array: Array = self.held_gradients[output]._value  # type: ignore[assignment]
        return array

    def commit(self, leaves: Sequence[Any], outputs: list[Array], inputs: list[Tensor] | None = None) -> Any:
        """Carry out what the call does to gradients, arguments and versions, and build its result."""
        captured = self.captured
        for i, binding in self._states:
            if i in self._updated:
                tensor = binding.tensor if isinstance(binding, State) else binding.tensor._grad
                if tensor is not None:
                    tensor._version[0] += 1
        for gradient in captured.gradients:
            self._set_gradient(gradient, leaves, outputs)
        for argument, position in captured.written_arguments:
            target: Any = leaves[argument]
            if isinstance(target, Tensor):
                target._version[0] += 1
                target = target._value
            device_of(target).assign(target, outputs[position])
        return self._result(outputs, inputs)

    def _set_gradient(self, gradient: Gradient, leaves: Sequence[Any], outputs: list[Array]) -> None:
        tensor = leaves[gradient.argument] if gradient.tensor is None else gradient.tensor
        if gradient.output is None:
            tensor._grad = None
            return
        value = outputs[gradient.output]
        last = self.held_gradients.get(gradient.output)
        if last is not None and last._value is value:
            return
        made = Tensor(value)
        if gradient.tensor is None:
            tensor._grad = made if tensor._grad is None else tensor._grad + made
            return
        tensor._grad = self.held_gradients[gradient.output] = made

    def _result(self, outputs: list[Array], inputs: list[Tensor] | None) -> Any:
        leaves = list(self.captured.leaves)
        live: dict[int, Tensor] = {}
        for i, leaf in enumerate(leaves):
            if type(leaf) is Output:
                leaves[i] = tensor = Tensor(outputs[leaf.position])
                place = self.captured.tracked[leaf.position]
                if place == "live":
                    live[leaf.position] = tensor
                elif place:
                    attach_freed(tensor)
        if live and inputs is not None:
            attach(self, inputs, live)
        return tree_unflatten(self.captured.result, leaves)


def _as_array(value: Any, dtype: DType) -> Array:
    if isinstance(value, Tensor):
        array = value._value
        if isinstance(array, Node):
            raise escaped_error(array)
        return array
    if isinstance(value, np.ndarray):
        return value if value.dtype.isnative else value.astype(dtype)
    return np.array(value, dtype)
