"""The place on the tape of a compiled call whose results still want derivatives.

The backward pass of such a call is a program of its own: the call's graph is captured again with its reverse behind
it, from the inputs as they were at the call. Nothing but those inputs is kept alive.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad._context import context
from staticgrad.array.creation import zeros, zeros_like
from staticgrad.autograd import engine
from staticgrad.autograd.modes import enable_grad
from staticgrad.autograd.tape import TapeNode
from staticgrad.capture import Argument, State
from staticgrad.graph.errors import DerivativeError
from staticgrad.graph.op import Op
from staticgrad.replay import replay
from staticgrad.tensor import Array, Tensor, alias

if TYPE_CHECKING:
    from staticgrad.specialize import Specialization


def _no_reference(*_: Any, **__: Any) -> Any:
    raise TypeError("compiled: a compiled call is not an op of the graph")


_COMPILED = Op("compiled", "structural", (), _no_reference, _no_reference, (), ())


class _Parts:
    """Cotangents of some of a call's outputs, by position."""

    def __init__(self, values: dict[int, Tensor]) -> None:
        self.values = values

    def __add__(self, other: _Parts) -> _Parts:
        merged = dict(self.values)
        for position, value in other.values.items():
            merged[position] = merged[position] + value if position in merged else value
        return _Parts(merged)


class _OutputNode(TapeNode):
    """One output of a compiled call: hands its cotangent on to the call."""

    __slots__ = ("position",)

    def __init__(self, call: CompiledCall, position: int) -> None:
        super().__init__(_COMPILED, {}, [call], ())
        self.position = position

    def pull(self, cotangent: Tensor, useful: Collection[int] | None = None) -> Iterator[tuple[Any, Any]]:
        yield self.edges[0], _Parts({self.position: cotangent})


class CompiledCall(TapeNode):
    """A call whose graph can be differentiated: `inputs` are the tensors it was called with."""

    __slots__ = ("inputs", "seen", "specialization", "wanted")

    def __init__(self, specialization: Specialization, inputs: Sequence[Tensor], wanted: Sequence[int]) -> None:
        edges = [inputs[i].gradient_edge() for i in wanted]
        super().__init__(_COMPILED, {}, edges, [inputs[i].spec for i in wanted])
        self.specialization = specialization
        self.inputs = list(inputs)
        self.seen = [x._version[0] for x in inputs]
        self.wanted = list(wanted)

    def free(self) -> None:
        super().free()
        self.inputs = []

    def pull(self, cotangent: Any, useful: Collection[int] | None = None) -> Iterator[tuple[Any, Tensor]]:
        if self.freed:
            raise DerivativeError(
                "backward: what the compiled call saved was freed by an earlier backward; pass retain_graph=True to "
                "the first one to go through it again"
            )
        for x, version in zip(self.inputs, self.seen, strict=True):
            if x._version[0] != version:
                raise DerivativeError(
                    f"backward: an input of the compiled call ({x.spec}) was changed in place after the call; call "
                    "backward before changing it, or work on a copy"
                )
        specs = [node.spec for node in self.specialization.captured.graph.outputs]
        live = [i for i, place in enumerate(self.specialization.captured.tracked) if place == "live"]
        given = cotangent.values
        device = self.specialization.device.name
        cotangents = [
            given[i] if i in given else zeros(specs[i].shape, dtype=specs[i].dtype, device=device) for i in live
        ]
        yield from zip(self.edges, self._cotangents(live, cotangents), strict=True)

    def _cotangents(self, live: list[int], cotangents: list[Tensor]) -> list[Tensor]:
        if context.grad_enabled:
            again: list[Tensor] = pullback(self.specialization, live, self.wanted, True)(self.inputs, cotangents)
            return again
        programs = self.specialization.pullbacks
        key = tuple(self.wanted)
        if key not in programs:
            from staticgrad.compile import CompiledFunction

            programs[key] = CompiledFunction(pullback(self.specialization, live, self.wanted, False))
        plain = [x.detach() for x in self.inputs]
        result: list[Tensor] = programs[key](plain, [ct.detach() for ct in cotangents])
        return result


def pullback(specialization: Specialization, live: Sequence[int], wanted: Sequence[int], again: bool) -> Any:
    """The function from a call's inputs and the cotangents of its `live` outputs to the cotangents of `wanted`."""
    graph = specialization.captured.graph

    def pulled_back(inputs: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
        places = [alias(x) if again else x.detach() for x in inputs]
        for i in wanted:
            places[i]._requires_grad = True
        with enable_grad():
            outputs = replay(graph, places)
            roots = [outputs[i] for i in live]
            found = engine.run(roots, cotangents, again, again, [places[i] for i in wanted])
        return [zeros_like(places[i].detach()) if g is None else g for i, g in zip(wanted, found, strict=True)]

    return pulled_back


def inputs_of_call(specialization: Specialization, leaves: Sequence[Any], arrays: Sequence[Array]) -> list[Tensor]:
    """The call's inputs as tensors, those that it will write as copies of what they held."""
    found = []
    for i, (binding, array) in enumerate(zip(specialization.captured.bindings, arrays, strict=True)):
        source: Any = None
        if isinstance(binding, Argument):
            source = leaves[binding.index]
        elif isinstance(binding, State):
            source = binding.tensor
        if specialization.writes(i) or not isinstance(source, Tensor):
            held = Tensor(np.array(array))
            if isinstance(source, Tensor) and source._requires_grad:
                held._requires_grad = True
                held._edge = source.gradient_edge()
            found.append(held)
        else:
            found.append(source)
    return found


def attach(specialization: Specialization, inputs: Sequence[Tensor], outputs: dict[int, Tensor]) -> None:
    """Put the results of a call on the tape: `outputs` are those that were on it when captured."""
    wanted = [i for i, x in enumerate(inputs) if x._requires_grad]
    if not wanted:
        return
    call = CompiledCall(specialization, inputs, wanted)
    for position, tensor in outputs.items():
        tensor._edge = _OutputNode(call, position)
        tensor._requires_grad = True


def attach_freed(tensor: Tensor) -> None:
    """Mark a result whose backward pass ran inside the compiled function: another one is an error, as it is there."""
    node = TapeNode(_COMPILED, {}, (), ())
    node.free()
    tensor._edge = node
    tensor._requires_grad = True
