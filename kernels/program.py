"""What a compiled graph is on every device: facts and machine code, also as bytes, and runs prepared for its arrays."""

from __future__ import annotations

import json
import struct
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from staticgrad.graph.errors import FileFormatError, IndexRangeError
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.ops.indexing import range_error
from staticgrad.graph.serialize import canonical_order, from_json, to_json
from staticgrad.kernels.table import Table

if TYPE_CHECKING:
    from staticgrad.graph.plan import Plan
    from staticgrad.kernels.cache import DiskCache
    from staticgrad.kernels.device import Array, HostArray

_LENGTH = struct.Struct("<Q")


def _nothing() -> None:
    """What is done when a run fails, as long as nobody holds results of earlier ones."""


class CompiledGraph(ABC):
    """A compiled graph.

    Args:
        facts: what the program knows of itself: `planning.facts_of`, and what its device adds.
        code: machine code, in the form that its device loads.
    Attributes:
        graph: what it computes.
        arena_bytes: working memory of one run.
        sources: the generated kernels as Python source, by name.
        from_cache: whether it was loaded from disk rather than compiled.
        early_outputs: the outputs that a run may have written although it failed.
        calls: what computes each group of the plan, in order: kernels, or a library.
        free: workspaces that nobody uses now.
        waits: whether a run that can fail is waited for on a device that works while Python goes on. It must be, unless
            nothing that a failed run computes can reach state outside of this program.
        on_failure: called when a run is known to have failed, before the error is raised.
        repeats: whether `repeat` runs many steps in one native call; else many steps are started one by one.
    """

    magic: ClassVar[bytes]  # what the bytes of a program begin with
    made_for: ClassVar[str]  # the kind of device, in the message about other bytes
    repeats: ClassVar[bool] = False

    def __init__(self, graph: Graph, facts: Mapping[str, Any], code: bytes) -> None:
        self.graph = graph
        self.from_cache = False
        self._facts = facts
        self._code = code
        self.arena_bytes: int = facts["arena"]
        self.sources: Mapping[str, str] = facts["sources"]
        self.calls: tuple[str, ...] = tuple(facts["calls"])
        self.early_outputs: frozenset[int] = frozenset(facts["early"])
        self._table = Table(len(graph.inputs), len(graph.outputs), len(facts["constants"]))
        self.free: list[Any] = []
        self.waits = True
        self.on_failure: Callable[[], object] = _nothing

    @cached_property
    @abstractmethod
    def plan(self) -> Plan:
        """The plan of the memory; made again where the program came from disk."""

    @cached_property
    def _nodes(self) -> list[Node]:
        return canonical_order(self.graph)

    # ------------------------------------------------------------ runs

    @abstractmethod
    def run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Run once: read `inputs`, update those that are state in place, and write `outputs`.

        Args: C-contiguous arrays with the shapes and dtypes of `graph.inputs` and `graph.outputs`; no output may
            overlap another array. Any number of threads may run the program, each with arrays of its own.
        Raises:
            IndexRangeError: an index lay outside the axis it selects from. State is as it was, outputs are not.
        """

    @abstractmethod
    def run_and_read(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> dict[Node, HostArray]:
        """`run`, and a copy of every value that was stored in the arena; of a program compiled without reuse."""

    def repeat(
        self,
        workspace: Any,
        order: int,
        batch: int,
        rows: Mapping[int, tuple[int, int, int]],
        results: Mapping[int, tuple[int, int]],
        steps: int,
    ) -> int:
        """Run `steps` times in a prepared workspace; how many runs there were before one that failed.

        Args:
            order: address of the numbers (int64) of the rows of all steps, `batch` for each; 0 for rows as they lie.
            batch: rows in a step.
            rows: for inputs by number: source, bytes of a row, staging.
            results: for outputs by number: where that of the first step goes, and its bytes.
        """
        raise NotImplementedError("program: its steps are started one by one; see `repeats`")

    @abstractmethod
    def timed(self) -> AbstractContextManager[list[float]]:
        """The seconds of every run inside the block."""

    @abstractmethod
    def timed_by_group(self, cache: DiskCache | None = None) -> Any:
        """The same program, which tells how long each group of its plan takes."""

    @abstractmethod
    def new_workspace(self) -> Any:
        """A `Workspace` for one run at a time."""

    @abstractmethod
    def fail(self, workspace: Any) -> NoReturn:
        """Raise what a run has reported, and have its workspace serve again."""

    def _error(self, words: Sequence[int], when: str = "") -> IndexRangeError:
        """What the words mean that a kernel has reported; tells who is to know. `when` ends the sentence."""
        code, index, extent = words
        self.on_failure()
        node = self._nodes[self._facts["errors"][code - 1]]
        what = node.attributes.get("what", "")
        return IndexRangeError(f"{range_error(node.op.name, what, index, extent)}{when}. Captured at {node.location}")

    # ------------------------------------------------------------ as bytes

    def to_bytes(self) -> bytes:
        """The program with its graph, for any process on a machine like this one."""
        return self._packed(with_graph=True)

    def _packed(self, with_graph: bool) -> bytes:
        facts = {**self._facts, "graph": to_json(self.graph) if with_graph else None}
        text = json.dumps(facts).encode()
        return b"".join((self.magic, _LENGTH.pack(len(text)), text, self._code))

    @classmethod
    def unpacked(cls, data: bytes, graph: Graph | None = None) -> tuple[Graph, dict[str, Any], bytes]:
        """The graph, the facts and the code of a program that `to_bytes` made.

        Args:
            graph: the same graph if it is at hand; programs of the cache hold none.
        Raises:
            FileFormatError: the bytes are no program.
        """
        start = len(cls.magic) + _LENGTH.size
        if len(data) < start or not data.startswith(cls.magic):
            raise FileFormatError(
                f"program: expected one compiled for {cls.made_for}; got {len(data)} bytes of something else"
            )
        end = start + _LENGTH.unpack_from(data, len(cls.magic))[0]
        try:
            facts = json.loads(data[start:end])
            stored = facts.pop("graph")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise FileFormatError("program: the description of the program is damaged; compile it again") from error
        if graph is None:
            if stored is None:
                raise FileFormatError("program: the bytes hold no graph; they belong to the cache")
            graph = from_json(stored)
        return graph, facts, data[end:]


class Workspace:
    """What one run at a time needs.

    Attributes:
        prepared: the key of the `PreparedRuns` that this was filled for.
        numbers: one element each, for the numbers among the inputs of a prepared run.
        run: takes the arrays that change; whether it has failed.
    """

    def __init__(self) -> None:
        self.prepared: object = None
        self.numbers: list[array[Any]] = []
        self.run: Callable[..., Any] = unprepared


def unprepared(*_: Any) -> Any:
    """What stands for `Workspace.run` until `PreparedRuns.fill` has set it."""
    raise RuntimeError("program: the workspace is not prepared for arrays; call Prepared.fill first")


class PreparedRuns(ABC):
    """Runs of a program that have most of their arrays in common: these are bound once.

    `program.free` holds workspaces; one that was taken from it, or `new_workspace()`, is made ready by `fill`, unless
    its `prepared` is this `key`. Then `workspace.numbers[i][0] = value`, `failed = workspace.run(*arrays)`, and either
    `program.free.append(workspace)` or `program.fail(workspace)`.

    Args:
        fixed: arrays by the number of the input, or of the output behind all inputs.
        numbers: inputs that are numbers, as typecodes of Python's `array`.
        changing: the numbers of the arrays that `run` takes, in its order.
    """

    def __init__(
        self, program: Any, fixed: Mapping[int, Array], numbers: Mapping[int, str], changing: Sequence[int]
    ) -> None:
        self._program = program
        self._fixed = {1 + index: value for index, value in fixed.items()}  # by the entry of the table
        self._numbers = {1 + index: code for index, code in numbers.items()}
        self._changing = [1 + index for index in changing]
        self.key = object()

    @abstractmethod
    def fill(self, workspace: Any) -> None:
        """Make a workspace ready for these runs."""


__all__ = ["CompiledGraph", "PreparedRuns", "Workspace", "unprepared"]
