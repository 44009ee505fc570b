"""Runs programs in the simulator, and the launches of a node on memory of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from builder import Builder

from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.kernels.cuda import merge
from staticgrad.kernels.cuda import simulator as sim
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.program import Program
from staticgrad.kernels.cuda.structural import lower_call
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Operand

Array = np.ndarray[Any, Any]
CODE = 7  # what the kernels are told to report


def node_of(name: str, operands: Sequence[Any], attributes: Any, shift: int = 0) -> tuple[Node, dict[Node, Array]]:
    """A node of some arrays; each is the end of an input that has `shift` elements before it."""
    b = Builder()
    nodes, arrays = [], {}
    for array in map(np.asarray, operands):
        leaf = b.argument((array.size + shift,), array.dtype)
        view = b("slice", leaf, start=(shift,), stop=(array.size + shift,), step=(1,)) if shift else leaf
        nodes.append(b("reshape", view, shape=array.shape))
        arrays[leaf] = np.concatenate([np.ones(shift, array.dtype), array.reshape(-1)])
    return b(name, *nodes, **attributes), arrays


def run(
    node: Node, arrays: dict[Node, Array], target: Target, status: Sequence[int] = (0, 0, 0), *, guarded: bool = False
) -> tuple[Array, Array]:
    """The node's value, and the status block after its launches."""
    launches, own_bytes = lower_call(node, Members(), target, guarded=guarded)
    memory = sim.Memory()
    places = {leaf: memory.allocate(array.nbytes) for leaf, array in arrays.items()}
    for leaf, array in arrays.items():
        memory.at(places[leaf])[:] = array.view(np.uint8)
    places[node] = memory.allocate(node.nbytes)
    own, report, code = memory.allocate(own_bytes), memory.allocate(24), memory.allocate(8)
    memory.at(report).view(np.int64)[:] = status
    memory.at(code).view(np.int64)[:] = CODE

    def address(operand: Operand) -> int:
        if operand.kind == "storage":
            assert operand.node is not None
            return places[operand.node] + operand.offset
        return {"own": own, "status": report, "error": code}[operand.kind] + operand.offset

    for one in launches:
        _launch(one, memory, [address(operand) for operand in one.operands])
    found = memory.at(places[node]).view(node.dtype).reshape(node.shape)
    return found.copy(), memory.at(report).view(np.int64).copy()


def launches_of(node: Node, target: Target) -> list[Launch]:
    """The launches of a node on its own."""
    return lower_call(node, Members(), target)[0]


def _launch(one: Launch, memory: sim.Memory, addresses: Sequence[int]) -> None:
    sim.launch(sim.build(one.kernel), one.kernel.dtypes, memory, addresses, one.grid, one.block)


def run_program(program: Program, arrays: Sequence[Array]) -> list[Array]:
    """Outputs, then all inputs as the run leaves them."""
    gpu = program.hardware
    states = [leaf.attributes["role"] == "state" for leaf in program.graph.inputs]
    inputs = [DeviceArray.from_host(gpu, x) if state else x.copy() for x, state in zip(arrays, states, strict=True)]
    outputs = [DeviceArray.from_host(gpu, np.full(n.shape, 7).astype(n.dtype)) for n in program.graph.outputs]
    program.run(inputs, outputs)
    return [x.to_host() if isinstance(x, DeviceArray) else x for x in [*outputs, *inputs]]


@contextmanager
def unmerged() -> Iterator[None]:
    """Programs that are compiled inside the block keep their launches apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "_is_small", lambda step, target: False)
        patch.setattr(merge, "_can_follow", lambda chain, step: False)
        yield
