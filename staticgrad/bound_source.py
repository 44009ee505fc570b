"""The source of a bound call: every check and every effect of a call of one specialisation, in a line of its own.

What the lines name stands in the globals of the function: the same objects for every binding, and the storage of state
and of reused gradients that it is bound to, whose addresses stand in the program's table of pointers already.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.autograd.compiled_call import attach_freed
from staticgrad.capture import Argument, Elements, GradState, HostScalar, State
from staticgrad.guards import Guard, Place
from staticgrad.kernels.device import Device
from staticgrad.read_values import unheld
from staticgrad.specialize import Gradient, Output, Specialization
from staticgrad.tensor import Tensor
from staticgrad.tree import TreeDef, tree_unflatten

UNBOUND = object()  # the answer of a bound call that does not fit
_TYPECODES = {np.dtype(np.float64): "d", np.dtype(np.float32): "f", np.dtype(np.int64): "q"}
_NUMBERS = frozenset((int, float, np.float64))


class NotCoveredError(Exception):
    """The specialisation does something that a bound call leaves to the ordinary one."""


class Source:
    """The source of a bound call and what its names stand for.

    Attributes:
        lines: the source.
        names: what stays the same for every binding.
        repeats: whether a call leaves Python as the next call needs it.
    """

    def __init__(
        self, specialization: Specialization, structure: TreeDef, leaves: Sequence[Any], grad_enabled: bool
    ) -> None:
        captured = specialization.captured
        of_arguments = any(gradient.tensor is None for gradient in captured.gradients)
        self._device = captured.device
        if captured.written_arguments or of_arguments:
            raise NotCoveredError
        self._specialization = specialization
        self.lines: list[str] = []
        self.names: dict[str, Any] = {
            "UNBOUND": UNBOUND,
            "Tensor": Tensor,
            "attach_freed": attach_freed,
            "context": context,
            "empty": self._device.empty,
            "ndarray": np.ndarray,
            "references": sys.getrefcount,
            "specialization": specialization,
            "free": specialization.program.free,
            "new_workspace": specialization.program.new_workspace,
            "fail": specialization.program.fail,
            "held": specialization.held_gradients,
            "NUMBERS": _NUMBERS,
            **self._device.names,
        }
        self._numbered: Counter[str] = Counter()
        self._known: dict[int, str] = {}
        self._states = [(i, b) for i, b in enumerate(captured.bindings) if isinstance(b, State | GradState)]
        graph = captured.graph
        updated = {leaf for leaf, _ in graph.updates}
        self._updated = [graph.inputs[i] in updated for i, _ in self._states]
        absent = {id(guard.gradient_of()) for guard in captured.guards if guard.value is True}
        written = [(g.tensor, g.output) for g in captured.gradients if g.tensor is not None and g.output is not None]
        self._fresh = [(tensor, output) for tensor, output in written if id(tensor) in absent]
        self._reused = [(tensor, output) for tensor, output in written if id(tensor) not in absent]
        repeats = specialization.program.repeats
        self.repeats = repeats and not any(_ends(guard, captured.gradients) for guard in captured.guards)
        self._numbers: dict[int, str] = {}  # by input: the typecode of a number
        self._values: list[str] = []  # the local variables of the numbers, in that order
        self._changing: list[int] = []
        self._passed: list[str] = []  # the local variables of the arrays that change, in that order
        self._write(structure, leaves, grad_enabled)

    # ------------------------------------------------------------ binding

    def arrays(self) -> list[Any]:
        """The storage of state, and of each reused gradient its tensor and storage; None where there is none."""
        found = [binding.array() for _, binding in self._states]
        for tensor, output in self._reused:
            last = self._specialization.held_gradients.get(output)
            found += [None, None] if last is None or tensor._grad is not last else [last, last._value]
        return found

    def globals(self, arrays: Sequence[Any]) -> dict[str, Any] | None:
        """The globals of a call bound to `arrays`; None where they need the ordinary way."""
        states, gradients = arrays[: len(self._states)], arrays[len(self._states) :]
        written = [array for array, updated in zip(states, self._updated, strict=True) if updated]
        if any(g is None for g in gradients):
            return None
        if not all(self._device.binds(a, written=w) for a, w in zip(states, self._updated, strict=True)):
            return None
        inputs = len(self._specialization.captured.bindings)
        fixed = {i: array for (i, _), array in zip(self._states, states, strict=True)}
        for (_, output), array in zip(self._reused, gradients[1::2], strict=True):
            fixed[inputs + output] = array
        prepared = self._device.prepare(self._specialization.program, fixed, self._numbers, self._changing)
        bound = {f"array{k}": array for k, array in enumerate(states)}
        bound |= {f"gradient{k}": tensor for k, tensor in enumerate(gradients[::2])}
        owners = [self._device.owner(array) for array in written]
        return {
            **self.names,
            **bound,
            "KEY": prepared.key,
            "fill": prepared.fill,
            "written": frozenset(map(id, [*written, *owners])),
            "overlaps": _Extents(self._device, written).overlap,
            "alone": tuple(gradients),
            "ALONE": _REFERENCES * len(self._reused),
        }

    # ------------------------------------------------------------ writing

    def _write(self, structure: TreeDef, leaves: Sequence[Any], grad_enabled: bool) -> None:
        self._line("def bound_call(args, kwargs):", 0)
        self._line("try:", 1)
        self._refuse_if(f"context.capture is not None or context.depth or context.grad_enabled is not {grad_enabled!r}")
        self._arguments(structure, leaves)
        self._guards()
        self._state_checks()
        self._host_numbers()
        self._take_workspace()
        checks = self.lines[1:]
        outputs = self._outputs()
        ending = [
            "    except Exception:  # the ordinary call meets it too, and says what is wrong",
            "        return UNBOUND",
        ]
        self.lines += ending
        self._line(f"if workspace.run({', '.join(self._passed)}):", 1)
        self._line("fail(workspace)", 2)
        self._line("free.append(workspace)", 1)
        self._effects(outputs, "1")
        self._result(outputs)
        self.lines += ["", "", "def bound_entry(args, kwargs):", *checks, *ending, "    return workspace"]
        self.lines += ["", "", "def bound_exit(calls):"]
        self._effects({}, "calls")

    def _line(self, text: str, depth: int = 2) -> None:
        self.lines.append("    " * depth + text)

    def _refuse_if(self, condition: str) -> None:
        self._line(f"if {condition}:")
        self._line("return UNBOUND", 3)

    def _refuse_unless_all(self, conditions: Sequence[str]) -> None:
        if conditions:
            self._refuse_if(f"not ({' and '.join(conditions)})")

    def _new(self, kind: str) -> str:
        number = self._numbered[kind]
        self._numbered[kind] += 1
        return f"{kind}_{number}"

    def _name(self, value: Any, kind: str) -> str:
        """What the source calls an object."""
        if value is None or value is True or value is False:
            return repr(value)
        if id(value) not in self._known:
            self._known[id(value)] = self._new(kind)
            self.names[self._known[id(value)]] = value  # which also keeps the id its own
        return self._known[id(value)]

    # ------------------------------------------------------------ arguments

    def _arguments(self, structure: TreeDef, leaves: Sequence[Any]) -> None:
        self._remaining = list(enumerate(leaves))[::-1]
        self._inputs = {
            b.index: i for i, b in enumerate(self._specialization.captured.bindings) if isinstance(b, Argument)
        }
        args, kwargs = structure.children
        self._refuse_if(f"len(args) != {len(args.children)} or len(kwargs) != {len(kwargs.children)}")
        self._sequence("args", args)
        if kwargs.children:
            self._mapping("kwargs", kwargs)

    def _tree(self, name: str, structure: TreeDef) -> None:
        if structure.kind is type(None):
            self._refuse_if(f"{name} is not None")
        elif structure.kind is tuple or structure.kind is list:
            self._refuse_if(f"type({name}) is not {structure.kind.__name__} or len({name}) != {structure.meta}")
            self._sequence(name, structure)
        elif structure.kind is dict:
            self._refuse_if(f"type({name}) is not dict")
            self._mapping(name, structure)
        elif structure.children or structure.count != 1:
            raise NotCoveredError
        else:
            index, leaf = self._remaining.pop()
            self._leaf(name, index, leaf)

    def _sequence(self, name: str, structure: TreeDef) -> None:
        parts = [self._new("part") for _ in structure.children]
        if parts:
            self._line(f"{', '.join(parts)}, = {name}")
        for part, child in zip(parts, structure.children, strict=True):
            self._tree(part, child)

    def _mapping(self, name: str, structure: TreeDef) -> None:
        self._refuse_if(f"tuple({name}) != {self._name(structure.meta, 'keys')}")
        parts = [self._new("part") for _ in structure.children]
        for part, key in zip(parts, structure.meta, strict=True):
            self._line(f"{part} = {name}[{self._name(key, 'key')}]")
        for part, child in zip(parts, structure.children, strict=True):
            self._tree(part, child)

    def _leaf(self, name: str, index: int, leaf: Any) -> None:
        entry = self._inputs.get(index)
        kind = self._name(type(leaf), "type")
        if entry is None:
            value = self._name(leaf, "value")
            self._refuse_if(f"{name} is not {value} and (type({name}) is not {kind} or {name} != {value})")
            return
        self._refuse_if(f"type({name}) is not {kind}")
        if isinstance(leaf, Tensor):
            self._refuse_if(
                f"{name}._requires_grad is not {leaf._requires_grad!r} or {name}._weak is not {leaf._weak!r} "
                f"or {name}._tangents"
            )
            array = self._new("array_of")
            self._line(f"{array} = {name}._value")
            self._array(array, entry)
        elif type(leaf) is np.ndarray:
            self._array(name, entry)
        elif type(leaf) in _NUMBERS:
            self._number(name, entry)
        else:
            raise NotCoveredError

    def _array(self, name: str, entry: int) -> None:
        node = self._specialization.captured.graph.inputs[entry]
        dtype = self._name(node.dtype, "dtype")
        self._refuse_if(f"{name}.shape != {node.shape!r} or ({name}.dtype is not {dtype} and {name}.dtype != {dtype})")
        for condition in self._device.refusals(name, written=any(self._updated)):
            self._refuse_if(condition)
        self._changing.append(entry)
        self._passed.append(name)

    def _number(self, value: str, entry: int) -> None:
        dtype = self._specialization.captured.graph.inputs[entry].dtype
        if dtype not in _TYPECODES:
            raise NotCoveredError
        self._values.append(value)
        self._numbers[entry] = _TYPECODES[dtype]

    # ------------------------------------------------------------ what else must be as it was

    def _guards(self) -> None:
        conditions = []
        for guard in self._specialization.captured.guards:
            again = f"{self._name(guard, 'guard')}.holds()"
            if isinstance(guard.read, Place):
                now = guard.read.form.format(*(self._name(item, "object") for item in guard.read.objects))
                conditions.append(f"({now} is {self._name(unheld(guard.value), 'value')} or {again})")
            else:
                conditions.append(again)
        self._refuse_unless_all(conditions)

    def _state_checks(self) -> None:
        owners = [self._name(binding.tensor, "state") for _, binding in self._states]
        self._owners = [
            f"{owner}._grad" if isinstance(binding, GradState) else owner
            for owner, (_, binding) in zip(owners, self._states, strict=True)
        ]
        self._refuse_unless_all([f"{owner}._value is array{k}" for k, owner in enumerate(self._owners)])
        if self._reused:
            same = [f"{self._name(tensor, 'state')}._grad is gradient{k}" for k, (tensor, _) in enumerate(self._reused)]
            self._refuse_unless_all([*same, "sum(map(references, alone)) == ALONE"])

    def _host_numbers(self) -> None:
        for i, binding in enumerate(self._specialization.captured.bindings):
            if isinstance(binding, HostScalar):
                value = self._new("number")
                mapping, key = self._name(binding.mapping, "object"), self._name(binding.key, "key")
                self._line(f"{value} = {mapping}[{key}]")
                self._refuse_if(f"type({value}) not in NUMBERS")
                if binding.dtype not in _TYPECODES:
                    raise NotCoveredError
                self._numbers[i] = _TYPECODES[binding.dtype]
                self._values.append(value)

    def _take_workspace(self) -> None:
        self._line("try:")
        self._line("workspace = free.pop()", 3)
        self._line("except IndexError:")
        self._line("workspace = new_workspace()", 3)
        self._line("if workspace.prepared is not KEY:")
        self._line("fill(workspace)", 3)
        if self._values:
            self._line("numbers = workspace.numbers")
        for k, value in enumerate(self._values):
            self._line(f"numbers[{k}][0] = {value}")

    # ------------------------------------------------------------ what the call does

    def _outputs(self) -> dict[int, str]:
        """The local variables of the outputs that are made anew, by position."""
        kept = {output for _, output in self._reused}
        inputs = len(self._specialization.captured.bindings)
        made = {}
        for position, node in enumerate(self._specialization.captured.graph.outputs):
            if position in kept:
                continue
            made[position] = f"output_{position}"
            self._line(f"output_{position} = empty({node.shape!r}, {self._name(node.dtype, 'dtype')})")
            self._changing.append(inputs + position)
            self._passed.append(f"output_{position}")
        return made

    def _effects(self, outputs: dict[int, str], calls: str) -> None:
        self._line(f"specialization.bound_calls += {calls}", 1)
        for owner, updated in zip(self._owners, self._updated, strict=True):
            if updated:
                self._line(f"{owner}._version[0] += {calls}", 1)
        for gradient in self._specialization.captured.gradients:
            tensor = self._name(gradient.tensor, "state")
            if gradient.output is None:
                self._line(f"{tensor}._grad = None", 1)
            elif gradient.output in outputs:
                self._line(f"{tensor}._grad = held[{gradient.output}] = Tensor({outputs[gradient.output]})", 1)

    def _result(self, outputs: dict[int, str]) -> None:
        captured = self._specialization.captured
        leaves = []
        for leaf in captured.leaves:
            if not isinstance(leaf, Output):
                leaves.append(self._name(leaf, "value"))
                continue
            name = f"result_{leaf.position}"
            self._line(f"{name} = Tensor({outputs[leaf.position]})", 1)
            if captured.tracked[leaf.position]:
                self._line(f"attach_freed({name})", 1)
            leaves.append(name)
        self._line(f"return {self._expression(captured.result, leaves[::-1])}", 1)

    def _expression(self, structure: TreeDef, leaves: list[str]) -> str:
        """The expression that makes a tree; takes its leaves from the end of `leaves`."""
        if structure.kind is type(None):
            return "None"
        if not structure.children and structure.count == 1:
            return leaves.pop()
        if structure.kind is tuple or structure.kind is list:
            inner = "".join(f"{self._expression(child, leaves)}, " for child in structure.children)
            return f"({inner})" if structure.kind is tuple else f"[{inner}]"
        if structure.kind is dict:
            pairs = zip(structure.meta, structure.children, strict=True)
            return "{" + "".join(f"{self._name(key, 'key')}: {self._expression(c, leaves)}, " for key, c in pairs) + "}"
        self.names["tree_unflatten"] = tree_unflatten
        inner = "".join(f"{leaves.pop()}, " for _ in range(structure.count))
        return f"tree_unflatten({self._name(structure, 'structure')}, ({inner}))"


def _ends(guard: Guard, gradients: Sequence[Gradient]) -> bool:
    """Whether a call may itself end what a guard of it says."""
    if isinstance(guard.value, Elements):
        return True
    tensor = guard.gradient_of()
    return tensor is not None and any(g.tensor is tensor and (g.output is None) != guard.value for g in gradients)


class _Extents:
    """Memory that is written; arrays of state that are written never overlap."""

    def __init__(self, device: Device, arrays: Sequence[Any]) -> None:
        self._bounds = device.bounds
        extents = sorted(map(device.bounds, arrays))
        self._starts = [start for start, _ in extents]
        self._ends = [end for _, end in extents]

    def overlap(self, array: Any) -> bool:
        """Whether a C-contiguous array reaches into it."""
        start, end = self._bounds(array)
        before = bisect_left(self._starts, end)
        return before > 0 and self._ends[before - 1] > start


def _references_of_one_gradient() -> int:
    """`sum(map(references, alone))` for one gradient that nobody but its owner and a bound call holds."""
    owner = Tensor(np.zeros(1))
    owner._grad = Tensor(np.zeros(1))
    held, names, fixed = {0: owner._grad}, {"gradient0": owner._grad}, {0: owner._grad._value}
    remembered = [owner._grad, owner._grad._value]
    alone = tuple(remembered)
    count = sum(map(sys.getrefcount, alone))
    del owner, held, names, fixed
    return count


_REFERENCES = _references_of_one_gradient()
