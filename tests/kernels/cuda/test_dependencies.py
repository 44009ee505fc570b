"""Which launches wait for which: what kernels touch in the simulator against the edges that a program has."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for, graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import run_program, unmerged

from staticgrad.graph.node import Graph
from staticgrad.kernels.cuda import simulator
from staticgrad.kernels.cuda.compiler import planned
from staticgrad.kernels.cuda.dependencies import Touched, dependencies, depths, written_pointers
from staticgrad.kernels.cuda.lower import lower
from staticgrad.kernels.cuda.program import compile_graph
from staticgrad.kernels.cuda.simulator import SimulatedGPU
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Kernel

TARGETS = (
    simulator.SMALL,
    Target(warp=4, block=8, largest_block=16, processors=16, small=64),
    Target(warp=4, block=4, largest_block=8, processors=3, small=0),
)


# ---------------------------------------------------------------- by hand


def touched(space: int | None, start: int, end: int) -> Touched:
    return Touched(space, start, end, False)


def written(space: int | None, start: int, end: int) -> Touched:
    return Touched(space, start, end, True)


def test_readers_wait_for_the_writer_and_the_next_writer_for_the_readers() -> None:
    launches = [
        [written(None, 0, 64)],
        [touched(None, 0, 64), written(1, 0, 8)],
        [touched(None, 32, 64), written(2, 0, 8)],
        [written(None, 0, 32)],  # only the first reader had these bytes
        [touched(None, 64, 128), touched(1, 0, 8)],
    ]
    assert dependencies(launches) == [[], [0], [0], [1], [1]]
    assert depths(dependencies(launches)) == [0, 1, 1, 2, 2]


def test_what_follows_from_other_dependencies_is_left_out() -> None:
    launches = [[written(None, 0, 8)], [touched(None, 0, 8), written(None, 8, 16)], [touched(None, 0, 16)]]
    assert dependencies(launches) == [[], [0], [1]]


def test_equal_bytes_of_other_arrays_do_not_meet() -> None:
    assert dependencies([[written(1, 0, 8)], [written(2, 0, 8)], [touched(None, 0, 8)]]) == [[], [], []]


def test_a_launch_that_reads_and_writes_bytes_counts_as_their_writer() -> None:
    both = [touched(3, 0, 8), written(3, 0, 8)]
    assert dependencies([both, both[::-1], [touched(3, 0, 4)]]) == [[], [0], [1]]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("p1[0] = p0[0]", {1}),
        ("p1[0] += p0[0]", {1}),
        ("a = load4(p0, 0)\n    store4(p1, 0, a[0], a[1], a[2], a[3])", {1}),
        ("p1[checked_index(p0[0], 4, p2, p3)] = 1.0", {1, 2}),
        ("q = p0\n    p1[0] = q[0]", {0, 1}),
        ("something(p3)", {3}),
    ],
)
def test_what_a_kernel_writes_is_read_from_its_text(body: str, found: set[int]) -> None:
    kernel = Kernel(f"def kernel(p0, p1, p2, p3):\n    {body}\n", (np.dtype(np.float32),) * 4)
    assert written_pointers(kernel) == found


@settings(max_examples=30)
@given(graphs(), st.sampled_from(TARGETS))
def test_what_is_only_read_does_not_count_as_written(graph: Graph, target: Target) -> None:
    with unmerged():
        lowered = lower(graph, planned(graph, reuse=True), target)
    for kernel in lowered.kernels.values():
        read = {int(position) for position in re.findall(r"^    p(\d+): .*, read$", kernel.source, re.M)}
        assert not read & written_pointers(kernel), kernel.source


# ---------------------------------------------------------------- what kernels really touch


class Recorder(simulator.Pointer):
    """A pointer that takes note of the bytes that are read and written."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # pointers that the threads of a block make point to its shared memory
        self.touched = _current if threading.current_thread() is threading.main_thread() else (set(), set())

    def _bytes(self, index: int) -> range:
        itemsize = self._elements.itemsize
        start = self._elements.ctypes.data + self.place(index) * itemsize
        return range(start, start + itemsize)

    def __getitem__(self, index: int) -> Any:
        self.touched[0].update(self._bytes(index))
        return super().__getitem__(index)

    def __setitem__(self, index: int, value: Any) -> None:
        self.touched[1].update(self._bytes(index))
        super().__setitem__(index, value)


Bytes = tuple[set[int], set[int]]  # read, written
_current: Bytes = (set(), set())


@contextmanager
def recorded() -> Iterator[list[Bytes]]:
    """The bytes of each launch inside the block."""
    found: list[Bytes] = []
    plain_launch, plain_pointer = simulator.launch, simulator.Pointer

    def launch(*arguments: Any) -> None:
        global _current
        _current = (set(), set())
        found.append(_current)
        plain_launch(*arguments)

    simulator.launch, simulator.Pointer = launch, Recorder  # type: ignore[misc]
    try:
        yield found
    finally:
        simulator.launch, simulator.Pointer = plain_launch, plain_pointer  # type: ignore[misc]


def reached(after: Sequence[Sequence[int]]) -> list[set[int]]:
    """For each step all that have run when it starts."""
    found: list[set[int]] = []
    for numbers in after:
        found.append({*numbers, *(other for number in numbers for other in found[number])})
    return found


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs(), st.sampled_from(TARGETS), st.sampled_from([{}, {"reuse": False}, {"poison": True}]))
def test_launches_that_touch_the_same_bytes_wait_for_each_other(
    graph: Graph, target: Target, options: dict[str, bool]
) -> None:
    program = compile_graph(graph, SimulatedGPU(target), **options)  # type: ignore[arg-type]
    with recorded() as launches:
        run_program(program, arrays_for(graph, 0))
    before = reached(program._facts["after"])
    assert len(launches) == len(before)
    for number, (read, written) in enumerate(launches):
        for other, (others_read, others_written) in enumerate(launches[:number]):
            if written & (others_read | others_written) or read & others_written:
                assert other in before[number]


@settings(max_examples=60)
@given(graphs(), st.sampled_from(TARGETS))
def test_no_launch_waits_without_a_reason(graph: Graph, target: Target) -> None:
    lowered = lower(graph, planned(graph, reuse=True), target)
    before = reached(lowered.after)
    for number, numbers in enumerate(lowered.after):
        for other in numbers:
            assert any(
                one.space == two.space and one.start < two.end and two.start < one.end and (one.written or two.written)
                for one in lowered.steps[number].touched
                for two in lowered.steps[other].touched
            )
            assert not any(other in before[third] for third in numbers)  # nor twice


# ---------------------------------------------------------------- programs


def test_branches_are_independent() -> None:
    b = Builder()
    x, y = b.argument((1000, 1000)), b.argument((1000, 1000))
    one, other = b("cumulative_sum", x, axis=0, reverse=False), b("cumulative_sum", y, axis=0, reverse=False)
    graph = b.graph(one, other, b("matmul", one, other))
    lowered = lower(graph, planned(graph, reuse=False), Target(processors=4))
    starts = [step.blocks.keys() for step, numbers in zip(lowered.steps, lowered.after, strict=True) if not numbers]
    assert starts == [{0}, {1}]
    assert reached(lowered.after)[-1] == set(range(len(lowered.steps) - 1))


def test_state_is_written_after_everything_that_may_report_an_error() -> None:
    b = Builder()
    table, other, rows = b.state((400, 300)), b.state((500, 300)), b.argument((50,), np.int64)
    found = b("take", table, rows, axis=0)
    grown = b("add", other, b("sum", other, axis=(0, 1)))  # needs nothing of what is looked up
    graph = b.graph(b("sum", found, axis=(0, 1)), updates=[(other, grown)])
    lowered = lower(graph, planned(graph, reuse=True), Target(processors=2))
    before = reached(lowered.after)
    reports = {n for n, step in enumerate(lowered.steps) if any(t.space == 0 and t.written for t in step.touched)}
    state = 1 + graph.inputs.index(other)
    writes = {n for n, step in enumerate(lowered.steps) if any(t.space == state and t.written for t in step.touched)}
    assert reports
    assert writes
    assert all(reports <= before[number] for number in writes)


def test_products_of_a_library_follow_each_other() -> None:
    b = Builder()
    given_ones = [b.argument((128, 128)) for _ in range(4)]
    graph = b.graph(*(b("matmul", x, x) for x in given_ones))
    target = Target(warp=4, block=8, largest_block=16, processors=2, small=64, library_from=1)
    program = compile_graph(graph, SimulatedGPU(target, library=True))
    assert [name for name in program.calls if name] == ["numpy"] * 4
    assert program._facts["after"] == [[], [0], [1], [2]]


def test_outputs_that_are_written_after_an_error_are_known() -> None:
    """The kernel of the second output does not look at the status: it runs on what the first one put in its place."""
    b = Builder()
    table, rows = b.argument((4, 3)), b.argument((5,), np.int64)
    found = b("take", table, rows, axis=0)
    program = compile_graph(b.graph(found, b("cumulative_sum", found, axis=0, reverse=False)), SimulatedGPU())
    assert program.early_outputs == {0, 1}
