"""A graph compiled for a GPU: one sequence of launches, with the memory they need."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from staticgrad.graph.errors import DeviceError, OutOfMemoryError
from staticgrad.graph.node import ALIGNMENT, Graph, Node
from staticgrad.graph.serialize import graph_key
from staticgrad.graph.timeline import stage
from staticgrad.kernels.cache import DiskCache, content_key
from staticgrad.kernels.cuda.array import Array, Buffer, DeviceArray
from staticgrad.kernels.cuda.hardware import Bound, BoundLaunch, Hardware, Start, Words
from staticgrad.kernels.cuda.library import BoundProduct, ProductCall
from staticgrad.kernels.cuda.product_choice import ProductChoice
from staticgrad.kernels.program import CompiledGraph, PreparedRuns, Workspace
from staticgrad.kernels.table import ERROR_WORDS, STATUS_BYTES

if TYPE_CHECKING:
    from staticgrad.graph.plan import Plan

APART = 256  # bytes: arrays begin at multiples of it
FEW = 4  # launches that are started one by one as quickly as a graph with new addresses


def compile_graph(
    graph: Graph, hardware: Hardware, *, reuse: bool = True, poison: bool = False, cache: DiskCache | None = None
) -> Program:
    """Compile a graph for a GPU, or load the program from `cache` if it has been compiled before.

    Args:
        reuse: False gives every value bytes of its own, and copies state at the end.
        poison: fill memory with NaN before each run, and each slot when its value is dead.
        cache: where programs are kept on disk; None keeps nothing.
    """
    key, choice = "", ProductChoice.of(graph, hardware, cache)
    if cache is not None and hardware.identity:
        with stage("look up"):
            products = choice.key if choice is not None else ""
            key = content_key("cuda", graph_key(graph), hardware.identity, f"{reuse} {poison}", products)
            found = cache.get("program", key)
        if found is not None:
            with stage("load"):
                program = Program.from_bytes(found, hardware, graph)
            program.from_cache = True
            return program
    from staticgrad.kernels.cuda.compiler import compiled

    facts, code, plan = compiled(graph, hardware, choice, reuse=reuse, poison=poison)
    with stage("load"):
        program = Program(graph, facts, code, hardware)
    program.__dict__["plan"] = plan
    if cache is not None and key:
        with stage("store"):
            cache.put("program", key, program._packed(with_graph=False))
    return program


class Program(CompiledGraph):
    """A compiled graph on a GPU.

    One run at a time uses its memory: runs of several Python threads take turns, and follow each other on the device.
    """

    magic, made_for = b"SGCUDAPR", "a GPU"

    def __init__(self, graph: Graph, facts: Mapping[str, Any], code: bytes, hardware: Hardware) -> None:
        super().__init__(graph, facts, code)
        self.hardware = hardware
        if any(product is not None for *_, product in facts["steps"]) and hardware.library is None:
            raise DeviceError(f"program: it was compiled to use a library; {hardware.library_trouble}")
        self._lock = threading.RLock()  # what waits for the device may raise what this program has reported
        self._seconds: list[float] | None = None
        self._failures: dict[int, tuple[list[int], str]] = {}  # what runs have reported, by Python thread
        self._bound_to: object = None  # the key of the `Prepared` whose arrays are bound
        self._known_numbers: dict[int, bytes] = {}  # that are on the device already
        self._entries: list[int] = [0] * (self._table.report + 1)
        self._staging: dict[int, Buffer] = {}

    @cached_property
    def plan(self) -> Plan:
        from staticgrad.kernels.cuda.compiler import planned

        return planned(self.graph, reuse=self._facts["reuse"])

    # ------------------------------------------------------------ runs

    def run(self, inputs: Sequence[Array | DeviceArray], outputs: Sequence[DeviceArray]) -> None:
        """Run once: read `inputs`, update those that are state in place, and write `outputs`; does not wait.

        Args: arrays with the shapes and dtypes of `graph.inputs` and `graph.outputs`, state and outputs on the device.
            Inputs may be on the host; they are copied, and may be changed as soon as this returns.
        Raises:
            IndexRangeError: an index lay outside the axis it selects from. State is as it was, outputs are not. Where
                the device is not waited for, an earlier run has met it: no run since then has written state.
            OutOfMemoryError: the first run did not find the memory that the plan needs.
        """
        with self._lock:
            self._bind_all(inputs, outputs)
            failed = self._start()
        if failed:
            self.fail()

    def _start(self) -> bool:
        """Start the launches; whether they, or those of an earlier run, have reported an error."""
        begin, may_fail = perf_counter(), self._told is not None
        if may_fail and self._has_failed("; an earlier call met it, and no call since then has changed state"):
            return True
        self._sequence.run()
        failed = False
        if may_fail and (self.waits or self.hardware.blocking):
            self.hardware.finish(everywhere=False)
            failed = self._has_failed()
        elif may_fail:
            self.hardware.watch(self)
        if self._seconds is not None:
            self.hardware.finish()
            self._seconds.append(perf_counter() - begin)
        return failed

    def _has_failed(self, when: str = "") -> bool:
        """Whether a run has reported an error: kept for `fail` in this Python thread; the program can run again."""
        if self._told is None or not self._told.values[0]:
            return False
        self.hardware.finish()  # runs that follow the one that failed report the same once more
        self._failures[threading.get_ident()] = [*map(int, self._told.values)], when
        self._told.values[:] = [0] * ERROR_WORDS
        self.hardware.write(self._entries[0], np.zeros(STATUS_BYTES // 8, np.int64))
        self.hardware.finish()  # the next run may go to another stream
        return True

    def raise_reported(self) -> None:
        """Raise what a run has reported that was waited for."""
        with self._lock:
            failed = self._has_failed("; the state is as it was before the call that met it")
        if failed:
            self.fail()

    def single_launches(self) -> list[SingleLaunch] | None:
        """Its launches, to be started one by one by somebody else; None where a run is more than a few of them."""
        facts = self._facts
        if facts["errors"] or facts["constants"] or len(facts["steps"]) > FEW:
            return None
        if any(product is not None for *_, product in facts["steps"]):
            return None
        from staticgrad.kernels.cuda.compiler import kernels_of

        kernels = kernels_of(facts)
        functions = self.hardware.load(self._code, kernels)
        found = []
        for symbol, addresses, grid, block, _ in facts["steps"]:
            where = [(entry or 0, offset) for entry, offset in addresses]
            found.append(SingleLaunch(self.hardware.starter(functions[symbol], kernels[symbol], block), grid, where))
        return found

    @property
    def working_bytes(self) -> int:
        """The memory that the launches of a run need beside the arrays."""
        return _apart(self.arena_bytes) + int(self._facts["own"])

    @contextmanager
    def timed(self) -> Iterator[list[float]]:
        """The seconds of every run inside the block, until the device is done."""
        seconds: list[float] = []
        self._seconds = seconds
        try:
            yield seconds
        finally:
            self._seconds = None

    def timed_by_group(self, cache: DiskCache | None = None) -> TimedProgram:
        return TimedProgram(self)

    def _bind_all(self, inputs: Sequence[Array | DeviceArray], outputs: Sequence[DeviceArray]) -> None:
        """Have the launches work on these arrays."""
        _ = self._sequence  # so that it is there, whole, before anything is bound
        self._bound_to = None
        if self.hardware.several:
            self.hardware.use(self._buffers([*inputs, *outputs]))
        for entry, value in enumerate([*inputs, *outputs], 1):
            self._bind_value(entry, value)

    def _buffers(self, values: Sequence[Array | DeviceArray]) -> list[Buffer]:
        arrays = (value.buffer for value in values if isinstance(value, DeviceArray))
        return [self._memory, *self._staging.values(), *arrays]

    def _bind_value(self, entry: int, value: Array | DeviceArray) -> None:
        """Have the launches find an array where it is, or where it is copied to."""
        if isinstance(value, DeviceArray):
            address = value.address
        else:
            address = self._staged(entry, value.nbytes)
            self.hardware.write(address, value)
            self._known_numbers.pop(entry, None)
        if self._entries[entry] != address:
            self._bind(entry, address)

    def _stage_number(self, entry: int, number: array[Any]) -> None:
        """Copy a number to the device, if it is not there already."""
        staged = self._staged(entry, 8)
        value = number.tobytes()  # as bytes, 0.0 is not -0.0
        if self._known_numbers.get(entry) != value:
            self.hardware.write(staged, np.frombuffer(value, number.typecode))
            self._known_numbers[entry] = value
        if self._entries[entry] != staged:
            self._bind(entry, staged)

    def run_and_read(self, inputs: Sequence[Array | DeviceArray], outputs: Sequence[DeviceArray]) -> dict[Node, Array]:
        self.run(inputs, outputs)
        found = {}
        for node, place in self.plan.places.items():
            if place.space == "arena":
                found[node] = np.empty(node.shape, node.dtype)
                self.hardware.read(found[node], self._arena + place.offset)
        return found

    def _bind(self, entry: int, address: int) -> None:
        """Have every launch that works on an entry of the table find it at this address."""
        self._entries[entry] = address
        for number, position, offset in self._users[entry]:
            self._sequence.set_address(number, position, address + offset)

    def new_workspace(self) -> Workspace:
        """What a bound call hands its arrays to; the memory is the program's."""
        return Workspace()

    def fail(self, workspace: Workspace | None = None) -> NoReturn:
        """Raise what the last run of this Python thread has reported."""
        words, when = self._failures.pop(threading.get_ident())
        if workspace is not None:
            self.free.append(workspace)
        raise self._error(words, when)

    # ------------------------------------------------------------ memory

    @cached_property
    def _told(self) -> Words | None:
        """Where runs tell the host of an error; None where they can meet none."""
        return self.hardware.report_words() if self._facts["errors"] else None

    @cached_property
    def _memory(self) -> Buffer:
        """The arena, and behind it what groups work with, the status, the error codes and the constants."""
        sizes = [self.arena_bytes, self._facts["own"], STATUS_BYTES, 8 * len(self._facts["errors"])]
        sizes += [self._nodes[number].nbytes for number in self._facts["constants"]]
        nbytes = sum(map(_apart, sizes))
        try:
            return Buffer(self.hardware, nbytes)
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{error}. The plan needs {self.arena_bytes:,} bytes while it runs ({self.plan.naive_bytes:,} without "
                "reuse of slots); a memory budget, once there is one, would compute values again instead"
            ) from None

    @cached_property
    def _arena(self) -> int:
        return self._memory.address

    def _staged(self, entry: int, nbytes: int) -> int:
        """Where an input from the host is copied to, the same place at each run."""
        if entry not in self._staging:
            self._staging[entry] = Buffer(self.hardware, max(1, nbytes))
        return self._staging[entry].address

    @cached_property
    def _users(self) -> dict[int, list[tuple[int, int, int]]]:
        """For each entry of the table the launches that use it: number, position of the address, offset."""
        found: dict[int, list[tuple[int, int, int]]] = {entry: [] for entry in range(len(self._entries))}
        for number, (_, addresses, *_) in enumerate(self._facts["steps"]):
            for position, (entry, offset) in enumerate(addresses):
                if entry is not None:
                    found[entry].append((number, position, offset))
        return found

    @cached_property
    def _sequence(self) -> Any:
        """The launches, bound to the memory of this process."""
        with stage("bind"):
            from staticgrad.kernels.cuda.compiler import kernels_of

            functions = self.hardware.load(self._code, kernels_of(self._facts))
            bound = [self._bound(functions, *step) for step in self._facts["steps"]]
            sequence = self.hardware.sequence(bound, self._facts["after"])
            self.__dict__["_sequence"] = sequence  # `_bind` needs it
            try:
                self._place_constants()
            except BaseException:
                del self.__dict__["_sequence"]
                raise
            return sequence

    def _bound(
        self, functions: Mapping[str, Any], symbol: str, where: Any, grid: int, block: int, product: Any
    ) -> Bound:
        """One step, with what is in the arena at its addresses; the others come when they are known."""
        addresses = [0 if entry is not None else self._arena + offset for entry, offset in where]
        if product is not None:
            return BoundProduct(ProductCall(**product), addresses)
        return BoundLaunch(functions[symbol], addresses, grid, block)

    def _place_constants(self) -> None:
        """Write what never changes behind the arena, and bind it."""
        place = self._arena + _apart(self.arena_bytes) + _apart(self._facts["own"])
        self.hardware.write(place, np.zeros(STATUS_BYTES // 8, np.int64))
        self._bind(0, place)
        if self._told is not None:
            self._bind(self._table.report, self._told.address)
        place += _apart(STATUS_BYTES)
        codes = np.arange(1, len(self._facts["errors"]) + 1, dtype=np.int64)
        self.hardware.write(place, codes)
        self._bind(self._table.error_codes, place)
        place += _apart(codes.nbytes)
        for index, number in enumerate(self._facts["constants"]):
            values = np.ascontiguousarray(self._nodes[number].attributes["value"].array())
            self.hardware.write(place, values)
            self._bind(1 + self._table.inputs + self._table.outputs + index, place)
            place += _apart(values.nbytes)

    # ------------------------------------------------------------ as bytes

    @classmethod
    def from_bytes(cls, data: bytes, hardware: Hardware, graph: Graph | None = None) -> Program:
        """The program that `to_bytes` made; no compiler runs.

        Raises:
            FileFormatError: the bytes are no program for a GPU.
            ValueError: it was compiled for another GPU or by another version.
            DeviceError: it leaves products to a library that is not here.
        """
        graph, facts, code = cls.unpacked(data, graph)
        if facts["identity"] != hardware.identity:
            raise ValueError(f"program: compiled for {facts['identity']}; this is {hardware.identity}")
        return cls(graph, facts, code, hardware)


class SingleLaunch(NamedTuple):
    """One launch of a program by itself.

    Attributes:
        addresses: for each argument an offset in what has this number: inputs and then outputs from 1, and 0 for
            working memory.
    """

    start: Start
    grid: int
    addresses: list[tuple[int, int]]


class Prepared(PreparedRuns):
    """Runs that take turns in the program's one memory: their arrays are bound again where others were between."""

    _program: Program

    def fill(self, workspace: Workspace) -> None:
        workspace.prepared = self.key
        workspace.numbers = [array(code, [0]) for code in self._numbers.values()]
        workspace.run = partial(self._run, list(zip(self._numbers, workspace.numbers, strict=True)))

    def _run(self, numbers: Sequence[tuple[int, array[Any]]], *arrays: Any) -> bool:
        program = self._program
        with program._lock:
            _ = program._sequence
            if program.hardware.several:
                program.hardware.use(program._buffers([*arrays, *self._fixed.values()]))
            if program._bound_to is not self.key:
                program._bound_to = None
                for entry, value in self._fixed.items():
                    program._bind_value(entry, value)
                program._bound_to = self.key
            for entry, number in numbers:
                program._stage_number(entry, number)
            for entry, value in zip(self._changing, arrays, strict=True):
                program._bind_value(entry, value)
            return program._start()


class TimedProgram:
    """A program that tells how long each group of its plan took on the device.

    Its launches run one by one. The time of one that does the work of several groups is divided among them by blocks.
    """

    def __init__(self, program: Program) -> None:
        self._program = program

    def run(self, inputs: Sequence[Array | DeviceArray], outputs: Sequence[DeviceArray]) -> Array:
        """Run once, as `Program.run` does, and return seconds: of each group, and last of the copies at the end."""
        program = self._program
        with program._lock:
            program._bind_all(inputs, outputs)
            seconds = program._sequence.run_timed(range(1, len(program._facts["steps"]) + 1))
            failed = program._has_failed()
        if failed:
            program.fail()
        found = np.zeros(len(program.calls) + 1)
        for taken, shares in zip(seconds, program._facts["shares"], strict=True):
            for group, share in shares:
                found[group] += taken * share
        return found


def _apart(nbytes: int) -> int:
    return -(-nbytes // APART) * APART


assert APART % ALIGNMENT == 0
