"""Graphs run on the CPU and on the GPU, and how far apart values are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from staticgrad.graph.interpret import interpret
from staticgrad.graph.node import Graph
from staticgrad.graph.rewrite import rewrite
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.program import Program
from staticgrad.kernels.device import find_device

Array = np.ndarray[Any, Any]


def program_of(graph: Graph, **options: Any) -> Program:
    """A graph compiled for the GPU."""
    made: Program = find_device("cuda").compile(graph, **options)
    return made


def run(program: Program, arrays: Sequence[Array]) -> list[Array]:
    """Outputs, then all inputs as a run leaves them; arguments lie on the host, state on the GPU."""
    gpu = program.hardware
    states = [leaf.attributes["role"] == "state" for leaf in program.graph.inputs]
    inputs = [DeviceArray.from_host(gpu, x) if state else x.copy() for x, state in zip(arrays, states, strict=True)]
    outputs = [DeviceArray.from_host(gpu, np.full(n.shape, 7).astype(n.dtype)) for n in program.graph.outputs]
    program.run(inputs, outputs)
    return [x.to_host() if isinstance(x, DeviceArray) else x for x in [*outputs, *inputs]]


def on_gpu(graph: Graph, arrays: Sequence[Array], **options: Any) -> list[Array]:
    """What the GPU makes of a graph, after the rewrites that any program goes through."""
    return run(program_of(rewrite(graph), **options), arrays)


def on_cpu(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    """The same of the CPU."""
    graph = rewrite(graph)
    inputs = [array.copy() for array in arrays]
    outputs = [np.full(node.shape, 7).astype(node.dtype) for node in graph.outputs]
    find_device("cpu").compile(graph).run(inputs, outputs)
    return [*outputs, *inputs]


def by_reference(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    """The same of the interpreter, that is of NumPy."""
    outputs, updates = interpret(graph, [array.copy() for array in arrays])
    final = {leaf: value for (leaf, _), value in zip(graph.updates, updates, strict=True)}
    return [*outputs, *(final.get(leaf, array) for leaf, array in zip(graph.inputs, arrays, strict=True))]


# ---------------------------------------------------------------- how far apart


def check_same(found: Array, wanted: Array, what: str = "") -> None:
    """Equal bits, but that any NaN is as good as another."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), what
    np.testing.assert_array_equal(found, wanted, err_msg=what)
    if found.dtype.kind == "f":
        number = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(found)[number], np.signbit(wanted)[number], err_msg=f"{what}: signs")


def check_all_same(found: Sequence[Array], wanted: Sequence[Array]) -> None:
    """`check_same` of several."""
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        check_same(one, other, f"value {index}")


def check_units(found: Array, wanted: Array, units: float, given: Sequence[Array] = (), least: float = 0.0) -> None:
    """At most `units` units in the last place apart; infinities and NaN in the same places.

    Args:
        given: what the values were computed from, for the message.
        least: where values are smaller than this, the units are those of this number.
    """
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    if found.dtype.kind != "f":
        check_same(found, wanted)
        return
    with np.errstate(all="ignore"):
        unit = np.spacing(np.maximum(np.abs(wanted), np.asarray(least, wanted.dtype)))
        apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64)) / unit
        apart = np.where((found == wanted) | (np.isnan(found) & np.isnan(wanted)), 0.0, apart)
    wrong = ~(apart <= units)
    if wrong.any():
        worst = np.unravel_index(np.argmax(np.where(wrong, np.nan_to_num(apart, nan=np.inf), 0)), apart.shape)
        operands = [np.broadcast_to(array, apart.shape)[worst] for array in given]
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} values are more than {units} units apart; the worst by {apart[worst]:.3g}: "
            f"{found[worst]!r} against {wanted[worst]!r} at {tuple(map(int, worst))}, of {operands}"
        )


def check_sums(found: Array, exact: Array, sizes: Array, units: float) -> None:
    """Sums against their float64 values: apart by `units` of roundoff of `sizes`, the sums of the terms' sizes."""
    allowed = units * float(np.finfo(found.dtype).eps) * sizes + float(np.finfo(found.dtype).tiny)
    wrong = ~(np.abs(found.astype(np.float64) - exact) <= allowed)
    if wrong.any():
        worst = np.unravel_index(np.argmax(np.where(wrong, np.abs(found - exact) / allowed, 0)), wrong.shape)
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} sums are wrong; the worst: {found[worst]!r} against {exact[worst]!r} at "
            f"{tuple(map(int, worst))}, where {allowed[worst]:.3g} is allowed"
        )
