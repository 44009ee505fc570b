"""`check=True`: every call compared, group by group, with the NumPy meaning of its ops.

The program is compiled once more with a place of its own for every stored value. After a call, each group's ops are
evaluated by their references from the very values that the group read, so that the first difference found is the
fault of the op it names and not of one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from staticgrad.graph.errors import NumericError
from staticgrad.graph.group import Group
from staticgrad.graph.interpret import evaluate
from staticgrad.graph.node import Node
from staticgrad.kernels.cache import default_cache
from staticgrad.kernels.device import device_of
from staticgrad.specialize import Specialization
from staticgrad.tensor import Array

# A stored value may differ from its reference by this much of the largest magnitude that its group handles: a few
# hundred ulp, since sums of thousands of terms are added up in another order.
TOLERANCE = {4: 3e-5, 8: 1e-12}


def run_checked(specialization: Specialization, leaves: Sequence[Any]) -> Any:
    """Call `specialization`, having compared the call with the dynamic meaning of its graph.

    State and gradients change only if the comparison holds.

    Raises:
        NumericError: a stored value differs from what its op gives, or a NaN reaches a result; names op and line.
    """
    program = _keeping(specialization)
    graph = specialization.captured.graph
    device = specialization.device
    inputs = [device.contiguous(array).copy() for array in specialization.inputs(leaves)]
    before = {leaf: np.array(device_of(array).host(array)) for leaf, array in zip(graph.inputs, inputs, strict=True)}
    outputs = [device.empty(node.shape, node.dtype) for node in graph.outputs]
    stored = program.run_and_read(inputs, outputs)
    values: dict[Node, Array] = {**before, **stored}
    for node, array in zip(graph.outputs, outputs, strict=True):
        values.setdefault(node, device.host(array))
    _compare_groups(program.plan.groups, values)
    _find_nan(graph.results, values)
    return specialization.run(leaves)


def _keeping(specialization: Specialization) -> Any:
    """The specialisation's program with every value kept, compiled at the first check."""
    if specialization.keeping is None:
        graph = specialization.captured.graph
        specialization.keeping = specialization.device.compile(graph, reuse=False, cache=default_cache())
    return specialization.keeping


def _compare_groups(groups: Sequence[Group], values: dict[Node, Array]) -> None:
    """Evaluate each group from what it read; values that it did not store are added to `values`."""
    for group in groups:
        members = set(group.nodes)
        expected: dict[Node, Array] = {}
        for node in _with_views(group):
            if node in members or node not in values:
                operands = [_value(operand, members, expected, values) for operand in node.operands]
                expected[node] = evaluate(node, operands)
        scale = _largest([*expected.values(), *(values[node] for node in group.reads if node in values)])
        for node in group.writes:
            _compare(node, values[node], expected[node], scale)
        for node, value in expected.items():
            values.setdefault(node, value)


def _with_views(group: Group) -> list[Node]:
    """The members of a group with the views through which they read, operands first."""
    reads = set(group.reads)
    seen: set[Node] = set()
    pending = list(group.nodes)
    while pending:
        node = pending.pop()
        if node not in seen and node not in reads:
            seen.add(node)
            pending.extend(node.operands)
    return sorted(seen, key=lambda node: node.serial)


def _value(node: Node, members: set[Node], expected: Mapping[Node, Array], values: Mapping[Node, Array]) -> Array:
    if node in expected and (node in members or node not in values):
        return expected[node]
    if node in values:
        return values[node]
    return evaluate(node, [])


def _largest(arrays: Sequence[Array]) -> float:
    """The largest finite magnitude among floating values."""
    largest = 0.0
    for array in arrays:
        if array.dtype.kind == "f" and array.size:
            finite = np.abs(array[np.isfinite(array)])
            largest = max(largest, float(finite.max())) if finite.size else largest
    return largest


def _compare(node: Node, found: Array, expected: Array, scale: float) -> None:
    if node.dtype.kind != "f":
        differs = found != expected
        if np.count_nonzero(differs) > 1e-3 * differs.size:  # a comparison may fall the other way by one rounding
            raise _difference(node, found, expected, differs)
        return
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(found - expected) <= TOLERANCE[node.dtype.itemsize] * np.maximum(np.abs(expected), scale)
    # inf - inf stays inf in a kernel that multiplies and subtracts in one rounding: only one side has overflowed there
    overflow = np.isnan(expected) & ~np.isfinite(found)
    same = close | (found == expected) | overflow
    if not np.all(same):
        raise _difference(node, found, expected, ~same)


def _difference(node: Node, found: Array, expected: Array, differs: Array) -> NumericError:
    place = tuple(int(i) for i in np.argwhere(differs)[0])
    return NumericError(
        f"{node.op.name}: the compiled value differs from the dynamic one at {np.count_nonzero(differs)} of "
        f"{found.size} elements, first at {place}: {found[place]!r}, expected {expected[place]!r}. This is a fault of "
        f"staticgrad; compile with cache=False and report it. Captured at {node.location}"
    )


def _find_nan(results: Sequence[Node], values: Mapping[Node, Array]) -> None:
    """Raise for the op that made the first NaN on the way to a result."""
    for result in results:
        if not _has_nan(result, values):
            continue
        node = result
        while True:
            origin = next((operand for operand in node.operands if _has_nan(operand, values)), None)
            if origin is None:
                break
            node = origin
        if not node.operands:
            name = node.attributes.get("name", node.op.name)
            raise NumericError(f"check: {name} ({node.spec}) holds a NaN on entry. Captured at {node.location}")
        ranges = ", ".join(_range(operand, values) for operand in node.operands)
        scope = f" in {node.scope}" if node.scope else ""
        raise NumericError(
            f"{node.op.name}: made a NaN{scope} out of operands without one ({ranges}); limit them, for example "
            f"by sg.clip or sg.where. Captured at {node.location}"
        )


def _has_nan(node: Node, values: Mapping[Node, Array]) -> bool:
    value = values.get(node)
    return value is not None and value.dtype.kind == "f" and bool(np.isnan(value).any())


def _range(node: Node, values: Mapping[Node, Array]) -> str:
    value = values.get(node)
    if value is None or value.dtype.kind not in "fiu" or not value.size:
        return str(node.spec)
    return f"{node.spec} in [{value.min():.6g}, {value.max():.6g}]"
