"""The table of ops that have a kernel of their own, and what such a kernel is generated from.

The operands of such a kernel lie in order in memory; the files by family (`indexing`, `shape`, `scan`, `reduction`)
enter a function that writes the kernel's source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from staticgrad.graph.fusion import stored_operand
from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.kernels.expressions import BOOL
from staticgrad.kernels.kernel import Call, Kernel, Operand

INT64 = np.dtype(np.int64)
GRAIN = 16  # turns that stay with one thread: a cache line, where a turn is one element
Lowering = Callable[[Node], Sequence[str]]
Turns = Callable[[Node], int]

_lowerings: dict[str, Lowering] = {}
_checked: set[str] = set()
_turns: dict[str, Turns] = {}


def lowering(name: str, *, checks_index: bool = False, turns: Turns | None = None) -> Callable[[Lowering], Lowering]:
    """Register the function that writes the body of the op's kernel.

    Args: where `turns(node)` is not 0, the body is a loop of that many turns, any of which another thread may make; it
    makes those in `range(begin, end)`.

    The body reads operand k as `x{k}` and writes `out`; with `checks_index` it may use `status` and `code` for
    `checked_index`. Operands without elements have no name.
    """

    def register(function: Lowering) -> Lowering:
        _lowerings[name] = function
        if checks_index:
            _checked.add(name)
        if turns is not None:
            _turns[name] = turns
        return function

    return register


def lowered_ops() -> frozenset[str]:
    """The names of the ops that have a kernel of their own."""
    _load_families()
    return frozenset(_lowerings)


def lower_call(node: Node, members: Members) -> Call:
    """The call of the node's own kernel."""
    _load_families()
    names, operands, dtypes = [], [], []
    seen: dict[tuple[Node, int], str] = {}
    aliases = []
    for position, value in enumerate(node.operands):
        if value.size == 0:
            continue
        owner = stored_operand(value, members)
        offset = 0 if owner is value else members.resolve(value).offset
        if (owner, offset) in seen:
            aliases.append(f"x{position} = {seen[owner, offset]}")
            continue
        seen[owner, offset] = f"x{position}"
        names.append(f"x{position}")
        operands.append(Operand("storage", owner, offset * owner.dtype.itemsize))
        dtypes.append(value.dtype)
    names.append("out")
    operands.append(Operand("storage", node))
    dtypes.append(node.dtype)
    if node.op.name in _checked:
        names += ["status", "code"]
        operands += [Operand("status"), Operand("error", node)]
        dtypes += [INT64, INT64]
    body = [*aliases, *_lowerings[node.op.name](node)]
    extent = _turns[node.op.name](node) if node.op.name in _turns else 0
    names += ["begin", "end"] if extent else []
    text = [f"def kernel({', '.join(names)}):", f'    """{_about(node)}"""', *(f"    {line}" for line in body)]
    return Call(Kernel("\n".join(text) + "\n", tuple(dtypes), 2 if extent else 0), tuple(operands), extent, GRAIN)


def load(name: str, index: str, node: Node) -> str:
    """The text that reads an element, as a boolean where it is one."""
    return f"({name}[{index}] != 0)" if node.dtype == BOOL else f"{name}[{index}]"


def nest(shape: Sequence[int | str], body: Sequence[str]) -> list[str]:
    """Loops with counters `i0 i1 …` over a shape, around the lines of `body`; an extent may be a text: "begin, end"."""
    lines, indent = [], ""
    for axis, extent in enumerate(shape):
        lines.append(f"{indent}for i{axis} in range({extent}):")
        indent += "    "
    return [*lines, *(indent + line for line in body)]


def _about(node: Node) -> str:
    operands = ", ".join(f"{x.dtype}[{', '.join(map(str, x.shape))}]" for x in node.operands)
    return f"{node.op.name}({operands}) -> {node.dtype}[{', '.join(map(str, node.shape))}]"


def _load_families() -> None:
    from staticgrad.kernels.cpu import indexing, reduction, scan, shape

    del indexing, reduction, scan, shape
