"""Saved programs: a compiled function with its state in one file, run again with no capture and no Numba.

The file is a safetensors file: the state as tensors, the native code as a tensor of bytes, and everything else (the
graph, the shapes of arguments and results, what is bound to what) as JSON in its metadata, with a SHA-256 over all
of it. It holds native code: load only files from sources that you would run a program from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad._context import context
from staticgrad.bound_call import UNBOUND, BoundCall
from staticgrad.capture import Argument, HostScalar, State
from staticgrad.graph.errors import CaptureError, DTypeError, FileFormatError, ShapeError
from staticgrad.graph.node import Graph
from staticgrad.kernels.device import Device, device_of, find_device
from staticgrad.saving import read_arrays, write_arrays
from staticgrad.specialize import Captured, Gradient, Output, Specialization, is_array, number_dtype
from staticgrad.tensor import Array, Tensor
from staticgrad.tree import LEAF, NONE, TreeDef, tree_flatten

if TYPE_CHECKING:
    from staticgrad.graph.plan import Plan
    from staticgrad.kernels.program import CompiledGraph

log = logging.getLogger("staticgrad")
FORMAT = "staticgrad program 1"
_CODE = "program"


# ---------------------------------------------------------------- writing


def save_program(name: str, structure: TreeDef, specialization: Specialization, path: Any) -> None:
    """Write the program of `specialization`, whose arguments have the given structure, with its state as it is now.

    Raises:
        CaptureError: the function returns objects that a file cannot hold.
        OSError: the file cannot be written; an old one is intact.
    """
    captured = specialization.captured
    arrays: dict[str, Array] = {}
    described = []
    for i, binding in enumerate(captured.bindings):
        if isinstance(binding, Argument):
            described.append({"kind": "argument", "index": binding.index})
        elif isinstance(binding, HostScalar):
            value = np.array(binding.mapping[binding.key], binding.dtype).item()
            described.append({"kind": "scalar", "name": str(binding.key), "value": value})
        else:
            array = binding.array()
            arrays[f"state.{i}"] = np.array(device_of(array).host(array))
            described.append({"kind": "state", "name": binding.name})
    code = specialization.program.to_bytes()
    description = {
        "name": name,
        "device": specialization.device.name.partition(":")[0],
        "arguments": _structure(structure),
        "result": _structure(captured.result),
        "leaves": [_leaf(leaf) for leaf in captured.leaves],
        "bindings": described,
        "gradients": [[_state_index(captured, g.tensor), g.output] for g in captured.gradients if g.tensor is not None],
        "written": [list(pair) for pair in captured.written_arguments],
    }
    text = json.dumps(description)
    metadata = {"format": FORMAT, "description": text, "sha256": _digest(text, code, arrays)}
    arrays[_CODE] = np.frombuffer(code, np.uint8)
    write_arrays(arrays, os.fspath(path), metadata, caller="save")


def _digest(text: str, code: bytes, state: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(text.encode() + b"\0" + code)
    for name in sorted(state):
        array = np.ascontiguousarray(state[name])
        digest.update(f"\0{name} {array.dtype} {state[name].shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _state_index(captured: Captured, tensor: Tensor) -> int | None:
    for i, binding in enumerate(captured.bindings):
        if isinstance(binding, State) and binding.tensor is tensor:
            return i
    return None


def _structure(treedef: TreeDef) -> Any:
    if treedef is LEAF or treedef.kind == LEAF.kind:
        return "*"
    if treedef.kind is type(None):
        return None
    kind = treedef.kind
    children = [_structure(child) for child in treedef.children]
    if kind is tuple or kind is list:
        return [kind.__name__, None, children]
    if issubclass(kind, dict):
        if not all(isinstance(key, str | int) for key in treedef.meta):
            raise CaptureError(f"save: keys of dicts must be text or integers; got {treedef.meta}")
        return ["dict", list(treedef.meta), children]
    return [f"record {kind.__name__}", list(treedef.meta), children]


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, Output):
        return {"output": leaf.position}
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return {"value": leaf}
    raise CaptureError(
        f"save: the function returns a {type(leaf).__name__} that is not computed from its arguments; a program file "
        "holds tensors, numbers and text only"
    )


# ---------------------------------------------------------------- reading


class LoadedProgram:
    """A saved program: called like the function it was made from, on state of its own.

    Attributes:
        state: the tensors it reads and updates, by name; write into them with `copy_`.
        scalars: the host numbers it reads at each call, by name, such as "lr"; set them freely.
        graph: what it computes.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        structure: TreeDef,
        captured: Captured,
        program: CompiledGraph,
        scalars: dict[str, float],
    ) -> None:
        self._name = str(description["name"])
        self._structure = structure
        self._specialization = Specialization(captured, program)
        self._bound: BoundCall | None = None
        self._lock = threading.Lock()
        self.scalars = scalars
        self.state = {b.name: b.tensor for b in captured.bindings if isinstance(b, State)}
        self._expected = {
            b.index: node
            for b, node in zip(captured.bindings, captured.graph.inputs, strict=True)
            if isinstance(b, Argument)
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            ShapeError, DTypeError: the arguments are not of the structure, shapes and dtypes it was compiled for.
        """
        if self._bound is not None and self._bound.function is not None:
            result = self._bound.function(args, kwargs)
            if result is not UNBOUND:
                return result
        leaves, structure = tree_flatten((args, kwargs))
        if not _alike(structure, self._structure):
            raise ShapeError(f"{self._name}: arguments must have the structure {self._structure}; got {structure}")
        for i, node in self._expected.items():
            self._check(leaves[i], node)
        result = self._specialization.run(leaves)
        if self._specialization.calls > 1:
            with self._lock:
                if self._bound is None:
                    self._bound = BoundCall(self._specialization, structure, leaves, context.grad_enabled)
                self._bound.renew()
        return result

    def _check(self, value: Any, node: Any) -> None:
        if not is_array(value):
            raise DTypeError(f"{self._name}: {node.attributes['name']} must be an array; got {type(value).__name__}")
        array = isinstance(value, Tensor | np.ndarray)
        shape = value.shape if array else ()
        dtype = value.dtype if array else number_dtype(value)
        if shape != node.shape or dtype != node.dtype:
            raise ShapeError(
                f"{self._name}: {node.attributes['name']} must be {node.spec}, as compiled; got {dtype}{list(shape)}; "
                "compile and save a program for this shape"
            )

    def __repr__(self) -> str:
        return f"<saved program {self._name}, {len(self.graph.nodes)} nodes>"

    @property
    def graph(self) -> Graph:
        """The graph; prints as readable text."""
        return self._specialization.captured.graph

    @property
    def plan(self) -> Plan:
        """Where every buffer lives."""
        return self._specialization.program.plan

    def source(self) -> str:
        """The generated kernels as Python."""
        return "\n\n".join(self._specialization.program.sources.values())

    def memory(self) -> str:
        """The plan as a table."""
        from staticgrad.graph.plan import format_memory

        return format_memory(self.plan)


def load(path: Any) -> LoadedProgram:
    """Bring back a program saved with `compiled.save(path)`, with no capture and no Numba.

    On a machine with another kind of CPU the stored graph is compiled once more, which needs Numba.

    Raises:
        FileFormatError: the file is damaged, or is no saved program.
        OSError: it cannot be read.
    """
    name = os.fspath(path)
    try:
        arrays, metadata = read_arrays(name, caller="load")
    except ValueError as error:
        raise FileFormatError(f"{error}") from error
    if metadata.get("format") != FORMAT or _CODE not in arrays:
        raise FileFormatError(
            f"load: {name} is not a program saved by this version of staticgrad ({FORMAT!r}); got "
            f"{metadata.get('format', 'no format')!r}; files of tensors are read with sg.load_file"
        )
    code = arrays.pop(_CODE).tobytes()
    text = metadata.get("description", "")
    if metadata.get("sha256") != _digest(text, code, arrays):
        raise FileFormatError(f"load: {name} is damaged: its checksum does not match; save the program again")
    try:
        description = json.loads(text)
        device = find_device(description["device"])
        return _restored(description, arrays, device.load(code), device)
    except FileFormatError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"load: {name} has a description that does not fit its program: {error!r}") from error


def _restored(
    description: Mapping[str, Any], arrays: Mapping[str, Array], program: CompiledGraph, device: Device
) -> LoadedProgram:
    scalars: dict[str, float] = {}
    bindings: list[Any] = []
    for i, (entry, node) in enumerate(zip(description["bindings"], program.graph.inputs, strict=True)):
        if entry["kind"] == "argument":
            bindings.append(Argument(entry["index"]))
        elif entry["kind"] == "scalar":
            key = entry["name"] if entry["name"] not in scalars else f"{entry['name']}.{i}"
            scalars[key] = entry["value"]
            bindings.append(HostScalar(scalars, key, node.dtype))
        else:
            bindings.append(State(Tensor(np.array(arrays[f"state.{i}"])), entry["name"]))
    captured = Captured(
        program.graph,
        bindings,
        guards=[],
        result=_treedef(description["result"]),
        leaves=[Output(leaf["output"]) if "output" in leaf else leaf["value"] for leaf in description["leaves"]],
        gradients=_gradients(description["gradients"], bindings),
        written_arguments=[(argument, output) for argument, output in description["written"]],
        tracked=[""] * len(program.graph.outputs),
        device=device,
    )
    structure = _treedef(description["arguments"])
    _require_fit(captured, structure)
    return LoadedProgram(description, structure, captured, program, scalars)


def _require_fit(captured: Captured, structure: TreeDef) -> None:
    """Raise IndexError or ValueError if the description speaks of arguments, results or state that are not there."""
    arguments, outputs = range(structure.count), range(len(captured.graph.outputs))
    given = [binding.index for binding in captured.bindings if isinstance(binding, Argument)]
    written = [argument for argument, _ in captured.written_arguments]
    results = [leaf.position for leaf in captured.leaves if isinstance(leaf, Output)]
    results += [output for _, output in captured.written_arguments]
    results += [gradient.output for gradient in captured.gradients if gradient.output is not None]
    if not set(given + written) <= set(arguments) or len(set(given)) != len(given):
        raise IndexError(f"arguments {given + written} of {len(arguments)}")
    if not set(results) <= set(outputs):
        raise IndexError(f"results {results} of {len(outputs)}")
    if captured.result.count != len(captured.leaves):
        raise ValueError(f"{len(captured.leaves)} values for a result of {captured.result.count}")
    for binding, node in zip(captured.bindings, captured.graph.inputs, strict=True):
        if isinstance(binding, State) and binding.tensor.spec != node.spec:
            raise ValueError(f"{binding.name} is {binding.tensor.spec}, not {node.spec}")


def _gradients(described: Sequence[Any], bindings: Sequence[Any]) -> list[Gradient]:
    return [Gradient(bindings[state].tensor, -1, output, False) for state, output in described if state is not None]


def _treedef(described: Any) -> TreeDef:
    if described == "*":
        return LEAF
    if described is None:
        return NONE
    kind, meta, children = described
    nested = tuple(_treedef(child) for child in children)
    if kind in ("tuple", "list"):
        return TreeDef({"tuple": tuple, "list": list}[kind], len(nested), nested)
    if len(meta) != len(nested):
        raise ValueError(f"{len(meta)} names for {len(nested)} entries")
    if kind == "dict":
        return TreeDef(dict, tuple(meta), nested)
    record = namedtuple(kind.removeprefix("record "), meta)  # type: ignore[misc]
    return TreeDef(record, tuple(meta), nested)


def _alike(found: TreeDef, expected: TreeDef) -> bool:
    """Whether two structures agree, records of the same field names counting as one kind."""
    same = found.kind is expected.kind or (found.meta == expected.meta and isinstance(expected.meta, tuple))
    return (
        same
        and found.meta == expected.meta
        and len(found.children) == len(expected.children)
        and all(_alike(a, b) for a, b in zip(found.children, expected.children, strict=True))
    )
