"""A program: a graph compiled to one native call, with the arrays it needs while it runs."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import addressof, c_char
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from staticgrad.graph.errors import FileFormatError, IndexRangeError
from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.ops.indexing import range_error
from staticgrad.graph.serialize import canonical_order, from_json, graph_key, to_json
from staticgrad.graph.timeline import stage
from staticgrad.kernels.cache import DiskCache, content_key
from staticgrad.kernels.cpu import native
from staticgrad.kernels.cpu.array_call import ArrayCall, array_call
from staticgrad.kernels.cpu.host import host_key, toolchain_key
from staticgrad.kernels.cpu.loop import Results, Rows, run_steps
from staticgrad.kernels.cpu.threads import thread_count
from staticgrad.kernels.table import ERROR_WORDS, STATUS_BYTES, Table

if TYPE_CHECKING:
    from staticgrad.graph.plan import Plan
    from staticgrad.kernels.cpu.profile import TimedProgram

_MAGIC = b"SGPROGRM"
_LENGTH = struct.Struct("<Q")


def compile_graph(graph: Graph, *, reuse: bool = True, poison: bool = False, cache: DiskCache | None = None) -> Program:
    """Compile a graph for this CPU, or load the program from `cache` if it has been compiled before.

    Args:
        reuse: False gives every value bytes of its own, and copies state at the end.
        poison: fill memory with NaN before each run, and each slot when its value is dead.
        cache: where programs and kernels are kept on disk; None keeps nothing.
    """
    with stage("look up"):
        # The number of threads decides whether steps are shared at all, and how.
        key = content_key(graph_key(graph), host_key(), toolchain_key(), f"{reuse} {poison} {thread_count()}")
        found = cache.get("program", key) if cache is not None else None
    if found is not None:
        with stage("load"):
            program = Program.from_bytes(found, graph)
        program.from_cache = True
        return program
    from staticgrad.kernels.cpu.compiler import compiled  # a process that finds its programs loads no compiler

    facts, code, plan = compiled(graph, reuse=reuse, poison=poison, cache=cache)
    with stage("load"):
        program = Program(graph, facts, code)
    program.__dict__["plan"] = plan
    if cache is not None:
        with stage("store"):
            cache.put("program", key, program._packed(with_graph=False))
    return program


class _Workspace:
    """What one run at a time needs: the arena, the status block and the table of pointers."""

    def __init__(self, arena_bytes: int, own_bytes: int, table: Table, constants: Sequence[Any], errors: int) -> None:
        own_bytes = -(-own_bytes // ALIGNMENT) * ALIGNMENT * thread_count()
        self.memory = np.empty(-(-arena_bytes // ALIGNMENT) * ALIGNMENT + own_bytes + ALIGNMENT, np.uint8)
        start = address_of(self.memory)
        self.arena = start + -start % ALIGNMENT
        self.status = array("q", [0] * (STATUS_BYTES // 8 * thread_count()))
        self.codes = np.arange(1, errors + 1, dtype=np.int64)
        self.constants = constants
        self.table = array("Q", [0] * table.size)
        self.table[0] = addressof(c_char.from_buffer(self.status))
        self.table[table.error_codes] = address_of(self.codes)
        for index, constant in enumerate(constants):
            self.table[1 + table.inputs + table.outputs + index] = address_of(constant)
        self.entries = addressof(c_char.from_buffer(self.table))
        self.bound: list[Any] = [None] * table.inputs  # the state arrays whose addresses stand in the table
        self.prepared: object = None  # the key of the `Prepared` that the table was filled for
        self.numbers: list[Any] = []  # one element each, for the numbers among the inputs of a prepared run
        self.run: ArrayCall = _unprepared

    def take_report(self) -> array[int]:
        """What a run that failed has reported; the status of every thread is cleared."""
        report = self.status[:ERROR_WORDS]
        for word in range(len(self.status)):
            self.status[word] = 0
        return report


def _unprepared(*_: Any) -> int:
    raise RuntimeError("program: the workspace is not prepared for arrays; call Prepared.fill first")


class Prepared:
    """Runs of a program that have most of their arrays in common: these are put into the table of pointers once.

    `program.free` holds workspaces; one that was taken from it, or `new_workspace()`, is made ready by `fill`, unless
    its `prepared` is this `key`. Then `workspace.numbers[i][0] = value`, `failed = workspace.run(*arrays)`, and either
    `program.free.append(workspace)` or `program.fail(workspace)`.

    Args:
        fixed: arrays by the number of the input, or of the output behind all inputs.
        numbers: inputs that are numbers, as typecodes of Python's `array`.
        changing: the numbers of the arrays that `run` takes, in its order.
    """

    def __init__(
        self,
        program: Program,
        fixed: Mapping[int, np.ndarray[Any, Any]],
        numbers: Mapping[int, str],
        changing: Sequence[int],
    ) -> None:
        self._program = program
        self._fixed = fixed
        self._numbers = numbers
        self._entries = [1 + index for index in changing]
        self.key = object()

    def fill(self, workspace: _Workspace) -> None:
        """Make a workspace ready for these runs."""
        workspace.prepared = None
        workspace.bound = [None] * len(workspace.bound)
        table = workspace.table
        for index, value in self._fixed.items():
            table[1 + index] = address_of(value)
        workspace.numbers = [array(code, [0]) for code in self._numbers.values()]
        for index, number in zip(self._numbers, workspace.numbers, strict=True):
            table[1 + index] = number.buffer_info()[0]
        keep = (self._fixed, workspace.numbers, workspace.memory, workspace.codes, workspace.constants)
        step = self._program.loaded
        workspace.run = array_call(step, workspace.arena, table, workspace.status, self._entries, keep)
        workspace.prepared = self.key


class Program:
    """A compiled graph.

    Attributes:
        graph: what it computes.
        arena_bytes: working memory of one run.
        sources: the generated kernels as Python source, by name.
        from_cache: whether it was loaded from disk rather than compiled.
        early_outputs: the outputs that a run may have written although it failed.
        calls: what computes each group of the plan, in order: a kernel, "gemm" for BLAS, or both.
        repeats: whether `repeat` runs many steps in one native call.
    """

    repeats = True

    def __init__(self, graph: Graph, facts: Mapping[str, Any], code: bytes) -> None:
        self.graph = graph
        self.from_cache = False
        self._facts = facts
        self._code = code
        self.loaded = native.load(code)
        self._step = self.loaded
        self.arena_bytes: int = facts["arena"]
        self.sources: Mapping[str, str] = facts["sources"]
        self.calls: tuple[str, ...] = tuple(facts["kernels"])
        self.early_outputs: frozenset[int] = frozenset(facts["early"])
        self._states = [leaf.attributes["role"] == "state" for leaf in graph.inputs]
        self._table = Table(len(graph.inputs), len(graph.outputs), len(facts["constants"]))
        self.free: list[_Workspace] = []

    @cached_property
    def plan(self) -> Plan:
        """The plan of the memory; made again where the program came from disk."""
        from staticgrad.graph.fusion import fuse
        from staticgrad.graph.plan import make_plan
        from staticgrad.graph.schedule import order

        return make_plan(self.graph, order(self.graph, fuse(self.graph)), reuse=self._facts["reuse"])

    @cached_property
    def _nodes(self) -> list[Node]:
        return canonical_order(self.graph)

    def run(self, inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[np.ndarray[Any, Any]]) -> None:
        """Run once: read `inputs`, update those that are state in place, and write `outputs`.

        Args: C-contiguous arrays with the shapes and dtypes of `graph.inputs` and `graph.outputs`; no output may
            overlap another array. Any number of threads may run the program, each with arrays of its own.
        Raises:
            IndexRangeError: an index lay outside the axis it selects from. State is as it was, outputs are not.
        """
        self.free.append(self._run(inputs, outputs))

    def run_and_read(
        self, inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[np.ndarray[Any, Any]]
    ) -> dict[Node, np.ndarray[Any, Any]]:
        """`run`, and a copy of every value that was stored in the arena; of a program compiled without reuse."""
        workspace = self._run(inputs, outputs)
        found = {}
        for node, place in self.plan.places.items():
            if place.space == "arena":
                start = workspace.arena - address_of(workspace.memory) + place.offset
                stored = workspace.memory[start : start + node.nbytes]
                found[node] = stored.view(node.dtype).reshape(node.shape).copy()
        self.free.append(workspace)
        return found

    def _run(self, inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[np.ndarray[Any, Any]]) -> _Workspace:
        try:
            workspace = self.free.pop()
        except IndexError:
            workspace = self.new_workspace()
        if workspace.prepared is not None:
            workspace.prepared, workspace.run = None, _unprepared
        table, bound, states = workspace.table, workspace.bound, self._states
        entry = 0
        for value in inputs:
            if bound[entry] is not value:
                table[entry + 1] = address_of(value)
                if states[entry]:
                    bound[entry] = value
            entry += 1
        for value in outputs:
            entry += 1
            table[entry] = address_of(value)
        self._step(workspace.arena, workspace.entries)
        if workspace.status[0]:
            self.fail(workspace)
        return workspace

    def repeat(
        self,
        workspace: _Workspace,
        order: int,
        batch: int,
        rows: Mapping[int, tuple[int, int, int]],
        results: Mapping[int, tuple[int, int]],
        steps: int,
    ) -> int:
        """Run `steps` times in a prepared workspace; how many runs there were before one that failed.

        Args:
            order, batch: see `loop.run_steps`.
            rows: for inputs by number: source, bytes of a row, staging.
            results: for outputs by number: where that of the first step goes, and its bytes.
        """
        inputs = [Rows(*row, 1 + index) for index, row in rows.items()]
        outputs = [Results(*result, 1 + len(self.graph.inputs) + index) for index, result in results.items()]
        table, status = workspace.table, workspace.status
        return run_steps(self.loaded, workspace.arena, table, status, order, batch, inputs, outputs, steps)

    @contextmanager
    def timed(self) -> Iterator[list[float]]:
        """The seconds of every native call inside the block; for calls of one thread."""
        seconds: list[float] = []
        prepared = [(workspace, workspace.run, _timed(workspace.run, seconds)) for workspace in self.free]
        self._step = _timed(self.loaded, seconds)
        for workspace, _, timed in prepared:
            workspace.run = timed
        try:
            yield seconds
        finally:
            self._step = self.loaded
            for workspace, run, timed in prepared:
                if workspace.run is timed:
                    workspace.run = run

    def timed_by_group(self, cache: DiskCache | None = None) -> TimedProgram:
        """The same program, which tells how long each group of its plan takes."""
        from staticgrad.kernels.cpu.profile import TimedProgram

        return TimedProgram(self, cache)

    def fail(self, workspace: _Workspace) -> NoReturn:
        """Raise what a run has reported, and have its workspace serve again."""
        error = self._error(*workspace.take_report())
        self.free.append(workspace)
        raise error

    def new_workspace(self) -> _Workspace:
        """What one run at a time needs."""
        constants = [self._nodes[number].attributes["value"].array() for number in self._facts["constants"]]
        return _Workspace(self.arena_bytes, self._facts["own"], self._table, constants, len(self._facts["errors"]))

    def _error(self, code: int, index: int, extent: int) -> IndexRangeError:
        node = self._nodes[self._facts["errors"][code - 1]]
        return IndexRangeError(
            f"{range_error(node.op.name, node.attributes.get('what', ''), index, extent)}. Captured at {node.location}"
        )

    # ------------------------------------------------------------ as bytes

    def to_bytes(self) -> bytes:
        """The program with its graph, for `from_bytes` in any process on a machine like this one."""
        return self._packed(with_graph=True)

    def _packed(self, with_graph: bool) -> bytes:
        facts = {**self._facts, "graph": to_json(self.graph) if with_graph else None}
        text = json.dumps(facts).encode()
        return b"".join((_MAGIC, _LENGTH.pack(len(text)), text, self._code))

    @staticmethod
    def graph_of(data: bytes) -> Graph:
        """The graph stored with a program by `to_bytes`, to compile it for another CPU."""
        start = len(_MAGIC) + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, len(_MAGIC))[0]
        return from_json(json.loads(data[start:end])["graph"])

    @classmethod
    def from_bytes(cls, data: bytes, graph: Graph | None = None) -> Program:
        """The program that `to_bytes` made; no compiler runs.

        Args: `graph` is the same graph if it is at hand.
        Raises:
            FileFormatError: the bytes are no program.
            ValueError: the program was compiled for another CPU or by another version.
        """
        start = len(_MAGIC) + _LENGTH.size
        if len(data) < start or not data.startswith(_MAGIC):
            raise FileFormatError(f"program: expected a compiled program; got {len(data)} bytes of something else")
        end = start + _LENGTH.unpack_from(data, len(_MAGIC))[0]
        try:
            facts = json.loads(data[start:end])
            stored = facts.pop("graph")
        except (ValueError, KeyError, AttributeError) as error:
            raise FileFormatError("program: the description of the program is damaged; compile it again") from error
        if graph is None:
            if stored is None:
                raise FileFormatError("program: the bytes hold no graph; they belong to the cache")
            graph = from_json(stored)
        return cls(graph, facts, data[end:])


def _timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        begin = perf_counter()
        result = call(*arguments)
        seconds.append(perf_counter() - begin)
        return result

    return timed


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Where a C-contiguous array's first element is."""
    try:
        return addressof(c_char.from_buffer(array))  # type: ignore[arg-type]  # a third of the general way's time
    except (TypeError, ValueError):  # read-only, or without elements
        address: int = array.__array_interface__["data"][0]
        return address
