"""Capture: run a function once with traced Tensors and keep what it does as a graph.

Whatever the function reads that is not traced is state, found by reference: a tensor's or an array's storage becomes
an input of the graph, and what the function writes to it an update. Host numbers read through `capture_state` become
inputs that are read again at each call; other Python state that it looks at becomes a guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.graph.errors import CaptureError
from staticgrad.graph.location import Location, user_location
from staticgrad.graph.node import DType, Graph, Node, Spec
from staticgrad.graph.op import Op
from staticgrad.graph.ops import leaf
from staticgrad.guards import Guard, attribute, has_no_gradient
from staticgrad.kernels.device import device_of, drawn_to
from staticgrad.tensor import Array, Tensor, escaped_error, traced_value_error


@dataclass(frozen=True)
class Argument:
    """An input bound to the caller's array number `index`."""

    index: int


@dataclass(frozen=True)
class State:
    """An input bound to the storage of `tensor`, or to a plain `array` found by reference."""

    tensor: Tensor
    name: str
    plain: bool = False  # whether it stands for an array of NumPy's, which stays where it is
    others: tuple[Tensor, ...] = ()  # that had the same storage when the function was captured

    def array(self) -> Any:
        """The storage that the tensor has now."""
        return self.tensor._value

    def move(self, array: Any) -> None:
        """Have the tensor, and those that share its storage, live in another array with the same elements."""
        before, self.tensor._value = self.tensor._value, array
        for other in self.others:
            if other._value is before:
                other._value = array


@dataclass(frozen=True)
class GradState:
    """An input bound to the storage of the gradient that `tensor` had on entry."""

    tensor: Tensor
    name: str

    def array(self) -> Any:
        """The storage of the gradient, or None where there is none now."""
        gradient = self.tensor._grad
        return None if gradient is None else gradient._value

    @property
    def plain(self) -> bool:
        """Gradients are tensors."""
        return False

    def move(self, array: Any) -> None:
        """Have the gradient live in another array with the same elements."""
        if self.tensor._grad is not None:
            self.tensor._grad._value = array


@dataclass(frozen=True)
class HostScalar:
    """An input read from `mapping[key]` at each call."""

    mapping: Any
    key: Any
    dtype: DType


Binding = Argument | State | GradState | HostScalar


@dataclass
class _Written:
    tensor: Tensor
    current: Tensor | None
    had_gradient: bool


class Capture:
    """A graph under construction. `with capture:` makes it the thread's; ops then append to it."""

    def __init__(
        self,
        names: Mapping[int, str] | None = None,
        holders: Mapping[int, Sequence[Tensor]] | None = None,
        device: str | None = None,
    ) -> None:
        self._holders = holders or {}
        self._device = device
        self.inputs: list[Node] = []
        self.bindings: list[Binding] = []
        self.guards: dict[tuple[Any, ...], Guard] = {}
        self.last_location: Location = Location("<unknown>", 0, "<unknown>")
        self.scope = ""
        self._names = names or {}
        self._states: dict[int, tuple[Node, Any]] = {}  # id of an array -> its leaf, and the array to keep it alive
        self._current: dict[int, Node] = {}  # id of an array -> what it holds at this point of the function
        self._gradients: dict[int, _Written] = {}
        self._entry_gradients: dict[int, Tensor] = {}  # id of a gradient's array -> the tensor it belongs to
        self._scalars: dict[tuple[int, Any, DType], Node] = {}
        self._wrapped: list[Tensor] = []  # made of plain arrays while the function ran
        self._constants: dict[tuple[DType, tuple[int, ...], bytes], Node] = {}
        self._backward: list[tuple[Location, str]] = []
        self._first = self._leaf_serial()
        self._outer: Capture | None = None

    @staticmethod
    def _leaf_serial() -> int:
        empty = leaf.Value(np.dtype(np.bool_), (0,), b"")
        return Node(leaf.constant, (), {"value": empty}, (0,), empty.dtype).serial

    def __enter__(self) -> Capture:
        self._outer, context.capture = context.capture, self
        return self

    def __exit__(self, *_: object) -> None:
        context.capture = self._outer

    @property
    def device(self) -> str:
        """Where the program will run: where it was asked to, or where what the function uses lives."""
        return self._device or "cpu"

    def require_device(self, device: str) -> None:
        """Inside a program everything lives on its device: what is moved there stays as it is.

        Raises:
            CaptureError: the captured function asks for another device.
        """
        if device != self.device:
            raise CaptureError(
                f"to({device!r}): a compiled function runs on one device, here {self.device!r}; move the tensor "
                f"outside of it, or compile with device={device!r}. Captured at {user_location()}"
            )

    # ------------------------------------------------------------ nodes

    def append(self, op: Op, tensors: Sequence[Tensor], attributes: Mapping[str, Any], spec: Spec) -> Node:
        """Append the node for `op` applied to `tensors`."""
        location = self._backward[-1][0] if self._backward else user_location()
        self.last_location = location
        first, operands = self._first, []
        for tensor in tensors:
            value: Any = tensor._value
            known = type(value) is Node and value.serial >= first
            operands.append(value if known else self.node_of(tensor))
        return Node(op, tuple(operands), attributes, spec.shape, spec.dtype, self.scope, location)

    def node_of(self, tensor: Tensor) -> Node:
        """The node of a traced tensor; for a concrete one its state leaf, or what was last written to it."""
        value = tensor._value
        if isinstance(value, Node):
            if value.serial < self._first:
                raise escaped_error(value)
            return value
        current = self._current.get(id(value))
        return current if current is not None else self._state(tensor, value)

    def _state(self, tensor: Tensor, value: Any) -> Node:
        name = self._names.get(id(tensor)) or self._names.get(id(value)) or f"state{len(self._states)}"
        owner = self._entry_gradients.get(id(value))
        plain = self.is_plain_array(tensor)
        holders = () if plain else tuple(self._holders.get(id(value), ()))
        # Not a detached tensor made inside the function: that would not follow when the storage is replaced.
        tensor = holders[0] if holders else tensor
        binding: Binding = State(tensor, name, plain, holders[1:])
        if owner is not None:
            name = f"{self._names.get(id(owner), 'tensor')}.grad"
            binding = GradState(owner, name)
        if self._device is None:
            self._device = drawn_to("compile", [value])
        node = self._input(binding, "state", name, value.shape, value.dtype)
        self._states[id(value)] = (node, tensor)
        self._current[id(value)] = node
        if context.grad_enabled and value.dtype.kind == "f":  # a parameter that is frozen later must not go on moving
            self.guard(f"{name}.requires_grad", attribute(tensor, "_requires_grad"), tensor, "requires_grad")
        return node

    def _input(self, binding: Binding, role: str, name: str, shape: tuple[int, ...], dtype: DType) -> Node:
        attributes = {"index": len(self.inputs), "role": role, "name": name, "shape": shape, "dtype": dtype}
        node = Node(leaf.graph_input, (), attributes, shape, dtype, self.scope, user_location())
        self.inputs.append(node)
        self.bindings.append(binding)
        return node

    def argument(self, index: int, spec: Spec, name: str) -> Node:
        """The input for the caller's array number `index`."""
        return self._input(Argument(index), "argument", name, spec.shape, spec.dtype)

    def constant(self, value: Array) -> Node:
        """The node of a constant; equal constants are one."""
        key = (value.dtype, value.shape, value.tobytes())
        node = self._constants.get(key)
        if node is None:
            held = leaf.Value.of(value)
            node = Node(leaf.constant, (), {"value": held}, value.shape, value.dtype, self.scope, user_location())
            self._constants[key] = node
        return node

    def scalar(self, mapping: Any, key: Any, dtype: DType) -> Tensor:
        """A 0-d tensor that stands for the number `mapping[key]`, read again at each call."""
        known = (id(mapping), key, dtype)
        node = self._scalars.get(known)
        if node is None:
            node = self._scalars[known] = self._input(HostScalar(mapping, key, dtype), "scalar", str(key), (), dtype)
        return Tensor(node)

    def guard(self, what: str, read: Callable[[], Any], owner: object, name: object) -> Any:
        """The value of `read()`, on which the capture now depends."""
        key = (id(owner), name)
        if key not in self.guards:
            self.guards[key] = Guard(what, read, read())
        return self.guards[key].value

    def wrap(self, array: Array) -> Tensor:
        """A tensor of a plain array that the captured function uses."""
        tensor = Tensor(array)
        self._wrapped.append(tensor)
        return tensor

    def is_plain_array(self, tensor: Tensor) -> bool:
        """Whether a tensor stands for an array of NumPy's that the captured function uses."""
        return any(tensor is other for other in self._wrapped)

    def uses_other_arrays(self, known: Sequence[Array]) -> bool:
        """Whether it used an array that is no view of a `known` one: NumPy has computed it while the function ran."""
        owners = {id(_owner(array)) for array in known}
        used = (tensor._value for tensor in self._wrapped if id(tensor._value) in self._states)
        return any(id(_owner(array)) not in owners for array in used)

    def read_elements(self, tensor: Tensor, asked: str) -> None:
        """Python is given the elements of a concrete tensor: the capture depends on them.

        Raises:
            TracedValueError: the captured function has written the tensor, so that they are not known yet.
        """
        value = tensor._value
        current = self._current.get(id(value))
        if isinstance(current, Node) and current is not self._states[id(value)][0]:
            raise traced_value_error(asked, current)
        name = self._names.get(id(tensor), "a tensor")
        self.guard(f"the content of {name}, read by {asked},", lambda: Elements(tensor._value), tensor, "elements")

    # ------------------------------------------------------------ backward's place in the code

    def enter_backward(self, node: Any) -> None:
        """Until `leave_backward`, nodes carry the line and the scope of the op whose derivative they are."""
        self._backward.append((node.location, self.scope))
        self.scope = f"backward/{node.scope}" if node.scope else "backward"

    def leave_backward(self) -> None:
        """Back to the scope that was left with `enter_backward`."""
        self.scope = self._backward.pop()[1]

    # ------------------------------------------------------------ writes and gradients

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """`tensor` holds `value` from here on; for a concrete tensor that is an update of state."""
        new = self.node_of(value)
        if isinstance(tensor._value, Node):
            tensor._value = new
            return
        self.node_of(tensor)  # the state must be an input of the graph, read or not
        self._current[id(tensor._value)] = new

    def read_grad(self, tensor: Tensor) -> Tensor | None:
        """`tensor.grad` as the captured function sees it."""
        known = self._gradients.get(id(tensor))
        if known is not None:
            return known.current
        real = tensor._grad
        name = self._names.get(id(tensor), "a tensor")
        self.guard(f"whether {name}.grad is None", has_no_gradient(tensor), tensor, "grad")
        if real is not None:
            self._entry_gradients[id(real._value)] = tensor
        self._gradients[id(tensor)] = _Written(tensor, real, real is not None)
        return real

    def write_grad(self, tensor: Tensor, value: Tensor | None) -> None:
        """`tensor.grad` is `value` from here on."""
        known = self._gradients.get(id(tensor))
        if known is None:
            self._gradients[id(tensor)] = _Written(tensor, value, False)
        else:
            known.current = value

    # ------------------------------------------------------------ the result

    def written_gradients(self) -> list[tuple[Tensor, Tensor | None, bool]]:
        """(tensor, its gradient at the end, whether the gradient found on entry was read) for all touched."""
        return [(w.tensor, w.current, w.had_gradient) for w in self._gradients.values()]

    def updates(self) -> list[tuple[Node, Node]]:
        """(leaf, new value) of every state that ends with another value than it began with."""
        found = []
        for key, (node, _) in self._states.items():
            if self._current[key] is not node:
                found.append((node, self._current[key]))
        return found

    def state_leaf(self, tensor: Tensor) -> Node | None:
        """The leaf that stands for the storage of `tensor`, if the function touched it."""
        known = self._states.get(id(tensor._value))
        return None if known is None else known[0]

    def graph(self, outputs: Sequence[Node], updates: Sequence[tuple[Node, Node]]) -> Graph:
        """The captured graph."""
        self._check_overlaps(updates)
        return Graph(tuple(self.inputs), tuple(outputs), tuple(updates))

    def _check_overlaps(self, updates: Sequence[tuple[Node, Node]]) -> None:
        """State that is written must not share memory with other state: the graph would not see the change."""
        extents = []
        for node, binding in zip(self.inputs, self.bindings, strict=True):
            if isinstance(binding, State | GradState):
                array = binding.array()
                low, high = device_of(array).bounds(array)
                extents.append((low, high, node))
        written = {node for node, _ in updates}
        reach, owner = 0, None
        for low, high, node in sorted(extents, key=lambda extent: extent[:2]):
            if owner is not None and low < reach and (node in written or owner in written):
                raise CaptureError(
                    f"compile: {owner.attributes['name']} and {node.attributes['name']} share memory and one of them "
                    "is written; give each its own storage (copy one of them)"
                )
            if high > reach:
                reach, owner = high, node


class Elements:
    """The elements of an array at one moment."""

    def __init__(self, array: Any) -> None:
        self.array: Array = np.array(array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Elements) and self.array.tobytes() == other.array.tobytes()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return np.array2string(self.array, threshold=8)


def _owner(array: Any) -> Any:
    """The array whose memory a view looks at."""
    while isinstance(getattr(array, "base", None), np.ndarray):
        array = array.base
    return array


class suspended:  # noqa: N801  (used as `with suspended():`)
    """Leave the capture for a while: ops inside the block run at once."""

    def __enter__(self) -> None:
        self._capture, context.capture = context.capture, None

    def __exit__(self, *_: object) -> None:
        context.capture = self._capture


__all__ = ["Argument", "Binding", "Capture", "GradState", "HostScalar", "State", "suspended"]
