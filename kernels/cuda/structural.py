"""The table of ops that have CUDA kernels of their own, and what such kernels are written with.

The operands of such a kernel lie in order in memory; the files by family (`indexing`, `scatter`, `shape`, `scan`,
`reduction`) enter a function that gives the launches of a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

from staticgrad.graph.fusion import stored_operand
from staticgrad.graph.members import Members
from staticgrad.graph.node import DType, Node
from staticgrad.kernels.cuda.launch import Launch, blocks_for
from staticgrad.kernels.cuda.points import NARROW, lanes_of
from staticgrad.kernels.cuda.target import VECTOR_BYTES, Target
from staticgrad.kernels.expressions import BOOL, literal
from staticgrad.kernels.group_text import INT64, check_of, term
from staticgrad.kernels.kernel import Kernel, Operand

ALIGNMENT = 64  # bytes: values in working memory start at multiples of it
MOST_BLOCKS = 2**20
GRID = "int64(cuda.gridDim.x)"  # the number of blocks
Lowering = Callable[["Call"], list[Launch]]

_lowerings: dict[str, Lowering] = {}


def lowering(name: str) -> Callable[[Lowering], Lowering]:
    """Register the function that gives the launches of the op; operands without elements have no pointer."""

    def register(function: Lowering) -> Lowering:
        _lowerings[name] = function
        return function

    return register


def lowered_ops() -> frozenset[str]:
    """The names of the ops that have kernels of their own."""
    _load_families()
    return frozenset(_lowerings)


def lower_call(node: Node, members: Members, target: Target, *, guarded: bool = False) -> tuple[list[Launch], int]:
    """The launches that compute a node, in order, and the bytes of working memory that they share.

    Args: with `guarded`, they do nothing where an earlier kernel has reported an error.
    """
    _load_families()
    call = Call(node, members, target, guarded)
    return _lowerings[node.op.name](call), call.own_bytes


def _load_families() -> None:
    from staticgrad.kernels.cuda import indexing, reduction, scan, scatter, shape

    del indexing, reduction, scan, scatter, shape


class Call:
    """A node to be lowered: where its operands lie, and what its kernels have in common.

    Attributes:
        operands: for each operand the owner of its storage, and the element of it that the operand begins at.
        own_bytes: working memory that the kernels share.
    """

    def __init__(self, node: Node, members: Members, target: Target, guarded: bool) -> None:
        self.node = node
        self.target = target
        self.guarded = guarded
        self.own_bytes = 0
        self.operands = [_place(operand, members) for operand in node.operands]

    @property
    def is_small(self) -> bool:
        """Whether one block can do all the work, so that it is one launch."""
        return max(self.node.size, *(operand.size for operand in self.node.operands)) <= self.target.small

    def text(self, threads: int) -> CallText:
        """A new kernel of blocks of so many threads."""
        return CallText(self, threads)

    def threads(self, items: int) -> int:
        """Threads of a block, where there are so many things to do."""
        return max(self.target.warp, min(self.target.block, power_of_two(items)))

    def own(self, nbytes: int) -> int:
        """The offset of new working memory."""
        offset = self.own_bytes
        self.own_bytes += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return offset

    def offset(self, position: int) -> int:
        """The element of its storage that an operand begins at."""
        return self.operands[position][1]

    def lanes(self, *numbers: int) -> int:
        """How many elements of the result's dtype are handled at once, where runs begin at multiples of `numbers`."""
        return lanes_of(gcd(*numbers), [self.node.dtype.itemsize], VECTOR_BYTES)


def _place(operand: Node, members: Members) -> tuple[Node, int]:
    owner = stored_operand(operand, members)
    return owner, 0 if owner is operand else members.resolve(operand).offset


class CallText:
    """The lines of one kernel of a call, and its pointers.

    Pointers: `x0 x1 …` operands, `out`, `own0 …` working memory, `status` and `code` for what is reported.
    """

    def __init__(self, call: Call, threads: int) -> None:
        self.call = call
        self.threads = threads
        self.lines: list[str] = []
        self.top: list[str] = []
        self.grid = 1
        self._pointers: dict[str, tuple[Operand, DType]] = {}
        self._names: dict[Operand, str] = {}

    # ------------------------------------------------------------ pointers

    def operand(self, position: int) -> str:
        """The pointer to an operand; equal operands have one."""
        owner, offset = self.call.operands[position]
        place = Operand("storage", owner, offset * owner.dtype.itemsize)
        return self._pointer(f"x{position}", place, owner.dtype)

    def out(self) -> str:
        """The pointer to the result."""
        return self._pointer("out", Operand("storage", self.call.node), self.call.node.dtype)

    def own(self, offset: int, dtype: DType) -> str:
        """The pointer to working memory."""
        return self._pointer(f"own{offset // ALIGNMENT}", Operand("own", self.call.node, offset), dtype)

    def checked(self, index: str, extent: int) -> str:
        """An index that is reported and replaced by 0 where it is out of range."""
        return f"{check_of(self.call.node)}({index}, {extent}, {self.status()}, {self.code()})"

    def status(self) -> str:
        """The pointer to where errors are reported."""
        return self._pointer("status", Operand("status"), INT64)

    def code(self) -> str:
        """The pointer to what is reported as the node's error."""
        return self._pointer("code", Operand("error", self.call.node), INT64)

    def _pointer(self, name: str, place: Operand, dtype: DType) -> str:
        found = self._names.setdefault(place, name)
        self._pointers.setdefault(found, (place, dtype))
        return found

    # ------------------------------------------------------------ lines

    def shared(self, name: str, count: int, dtype: DType) -> str:
        """An array in the block's shared memory."""
        line = f"{name} = shared_memory({count}, {'uint8' if dtype == BOOL else dtype.name})"
        if line not in self.top:
            self.top.append(line)
        return name

    def barrier(self) -> None:
        """Have all threads of the block wait for each other."""
        self.lines.append("cuda.syncthreads()")

    def every(self, counter: str, size: int, body: Sequence[str], lanes: int = 1) -> None:
        """Do `body` for every one of `size` elements, `lanes` of them at once, by all threads of the grid."""
        thread = f"block * {self.threads} + thread"
        self.lines += [
            f"{counter} = {thread if lanes == 1 else f'({thread}) * {lanes}'}",
            f"while {counter} < {size}:",
            *indented([*body, f"{counter} += {GRID} * {self.threads * lanes}"]),
        ]
        self.grid = max(self.grid, blocks_for(size // lanes, self.threads, MOST_BLOCKS))

    def clear(self, pointer: str, size: int) -> None:
        """Set the first elements behind an aligned pointer to zero."""
        lanes = self.call.lanes(size)
        self.every("e", size, stored(pointer, "e", [zero(self.call.node.dtype)] * lanes), lanes)

    def launch(self, *, one_block: bool = False) -> Launch:
        """The finished kernel, and how it is launched."""
        guard = [f"if {self.status()}[0] != 0:", "    return"] if self.call.guarded else []
        body = [*guard, "thread = int64(cuda.threadIdx.x)", "block = int64(cuda.blockIdx.x)", *self.top, *self.lines]
        text = [f"def kernel({', '.join(self._pointers)}):", f'    """{about(self.call.node)}"""', *indented(body)]
        operands, dtypes = zip(*self._pointers.values(), strict=True)
        kernel = Kernel("\n".join(text) + "\n", dtypes)
        return Launch(kernel, operands, 1 if one_block else self.grid, self.threads)


def about(node: Node) -> str:
    """A node's op and types, for the docstring of its kernels."""
    operands = ", ".join(f"{x.dtype}[{', '.join(map(str, x.shape))}]" for x in node.operands)
    return f"{node.op.name}({operands}) -> {node.dtype}[{', '.join(map(str, node.shape))}]"


# ---------------------------------------------------------------- text


def indented(lines: Sequence[str]) -> list[str]:
    """Lines one level deeper."""
    return [f"    {line}" for line in lines]


def index(*terms: tuple[str, int], offset: int = 0) -> str:
    """The text of a sum of counters times strides."""
    found = [term(counter, stride) for counter, stride in terms if counter != "0"]
    return " + ".join([*found, str(offset)] if offset or not found else found)


def quotient(number: str, divisor: int, bound: int) -> str:
    """The text of a quotient; the number lies in [0, bound)."""
    if divisor == 1:
        return number
    if divisor >= bound:
        return "0"
    return f"quotient({number}, {divisor})" if bound <= NARROW else f"({number} // {divisor})"


def rest(number: str, divisor: int, bound: int) -> str:
    """The text of the rest of a division; the number lies in [0, bound)."""
    if divisor >= bound:
        return number
    if divisor == 1:
        return "0"
    return f"rest({number}, {divisor})" if bound <= NARROW else f"({number} % {divisor})"


def zero(dtype: DType) -> str:
    """Zero, as it is stored."""
    return "uint8(0)" if dtype == BOOL else literal(0, dtype)


def neutral(dtype: DType) -> str:
    """What can be added to any number without changing it, be it -0."""
    return literal(-0.0, dtype)


def added(x: str, y: str, dtype: DType) -> str:
    """The text of a sum in `dtype`."""
    return f"{x} + {y}" if dtype.kind == "f" else f"{dtype.name}({x} + {y})"


def loaded(pointer: str, place: str, lanes: int, name: str) -> tuple[list[str], list[str]]:
    """The lines that load elements from `place` on, and the text of each."""
    if lanes == 1:
        return [f"{name} = {pointer}[{place}]"], [name]
    return [f"{name} = load{lanes}({pointer}, {place})"], [f"{name}[{k}]" for k in range(lanes)]


def stored(pointer: str, place: str, values: Sequence[str]) -> list[str]:
    """The lines that store elements from `place` on."""
    if len(values) == 1:
        return [f"{pointer}[{place}] = {values[0]}"]
    return [f"store{len(values)}({pointer}, {place}, {', '.join(values)})"]


def moved(source: str, place: str, target: str, to: str, lanes: int) -> list[str]:
    """The lines that copy elements."""
    lines, values = loaded(source, place, lanes, "v")
    return [*lines, *stored(target, to, values)]


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
