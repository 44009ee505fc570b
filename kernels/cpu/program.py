"""A program: a graph compiled to one native call, with the arrays it needs while it runs."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import addressof, c_char
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.serialize import graph_key
from staticgrad.graph.timeline import stage
from staticgrad.kernels.cache import DiskCache, content_key
from staticgrad.kernels.cpu import native
from staticgrad.kernels.cpu.array_call import array_call
from staticgrad.kernels.cpu.host import host_key, toolchain_key
from staticgrad.kernels.cpu.loop import Results, Rows, run_steps
from staticgrad.kernels.cpu.threads import thread_count
from staticgrad.kernels.program import CompiledGraph, PreparedRuns, Workspace, unprepared
from staticgrad.kernels.table import ERROR_WORDS, STATUS_BYTES, Table

if TYPE_CHECKING:
    from staticgrad.graph.plan import Plan
    from staticgrad.kernels.cpu.profile import TimedProgram


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


class _Workspace(Workspace):
    """The arena, the status block and the table of pointers of one run at a time."""

    def __init__(self, arena_bytes: int, own_bytes: int, table: Table, constants: Sequence[Any], errors: int) -> None:
        super().__init__()
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

    def take_report(self) -> array[int]:
        """What a run that failed has reported; the status of every thread is cleared."""
        report = self.status[:ERROR_WORDS]
        for word in range(len(self.status)):
            self.status[word] = 0
        return report


class Prepared(PreparedRuns):
    """Runs with most of their arrays in common: these are put into the table of pointers once."""

    _program: Program

    def fill(self, workspace: _Workspace) -> None:
        workspace.prepared = None
        workspace.bound = [None] * len(workspace.bound)
        table = workspace.table
        for entry, value in self._fixed.items():
            table[entry] = address_of(value)
        workspace.numbers = [array(code, [0]) for code in self._numbers.values()]
        for entry, number in zip(self._numbers, workspace.numbers, strict=True):
            table[entry] = number.buffer_info()[0]
        keep = (self._fixed, workspace.numbers, workspace.memory, workspace.codes, workspace.constants)
        step = self._program.loaded
        workspace.run = array_call(step, workspace.arena, table, workspace.status, self._changing, keep)
        workspace.prepared = self.key


class Program(CompiledGraph):
    """A graph compiled to one native call."""

    magic, made_for = b"SGPROGRM", "a CPU"
    repeats = True
    free: list[_Workspace]

    def __init__(self, graph: Graph, facts: Mapping[str, Any], code: bytes) -> None:
        self.loaded = native.load(code)  # first: code of another version may have other facts
        super().__init__(graph, facts, code)
        self._step = self.loaded
        self._states = [leaf.attributes["role"] == "state" for leaf in graph.inputs]

    @cached_property
    def plan(self) -> Plan:
        from staticgrad.kernels.planning import planned

        return planned(self.graph, reuse=self._facts["reuse"])

    def run(self, inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[np.ndarray[Any, Any]]) -> None:
        self.free.append(self._run(inputs, outputs))

    def run_and_read(
        self, inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[np.ndarray[Any, Any]]
    ) -> dict[Node, np.ndarray[Any, Any]]:
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
            workspace.prepared, workspace.run = None, unprepared
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
        from staticgrad.kernels.cpu.profile import TimedProgram

        return TimedProgram(self, cache)

    def fail(self, workspace: _Workspace) -> NoReturn:
        error = self._error(workspace.take_report())
        self.free.append(workspace)
        raise error

    def new_workspace(self) -> _Workspace:
        constants = [self._nodes[number].attributes["value"].array() for number in self._facts["constants"]]
        return _Workspace(self.arena_bytes, self._facts["own"], self._table, constants, len(self._facts["errors"]))

    @classmethod
    def from_bytes(cls, data: bytes, graph: Graph | None = None) -> Program:
        """The program that `to_bytes` made; no compiler runs.

        Args: `graph` is the same graph if it is at hand.
        Raises:
            FileFormatError: the bytes are no program.
            ValueError: the program was compiled for another CPU or by another version.
        """
        return cls(*cls.unpacked(data, graph))


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
