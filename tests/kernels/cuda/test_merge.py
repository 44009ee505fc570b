"""Small launches made one: the same values, bit for bit, in fewer launches, and within the limits of one kernel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from builder import Builder, arrays_for, graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import run_program, unmerged

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.node import Graph
from staticgrad.kernels.cuda import merge, merged_kernel, simulator
from staticgrad.kernels.cuda.compiler import planned
from staticgrad.kernels.cuda.dependencies import depths
from staticgrad.kernels.cuda.lower import Lowered, lower
from staticgrad.kernels.cuda.program import compile_graph
from staticgrad.kernels.cuda.simulator import SimulatedGPU
from staticgrad.kernels.cuda.step import Step
from staticgrad.kernels.cuda.target import Target

ROOMY = Target(warp=4, block=16, largest_block=16, processors=16, small=40)


def lowered_for(graph: Graph, target: Target | None = None) -> Lowered:
    return lower(graph, planned(graph, reuse=True), target or Target())


def parts_of(step: Step) -> int:
    return step.kernel.source.count("@part") if step.kernel is not None else 0


def training(layers: int) -> Graph:
    """A step of Adam on a model of some layers."""
    sizes = [64] * layers + [10]
    linear = [nn.Linear(m, n) for m, n in pairwise(sizes)]
    model = nn.Sequential(*(one for layer in linear for one in (layer, nn.Tanh())))
    opt = optim.Adam(model.parameters(), lr=1e-3)

    def step(x: sg.Tensor, y: sg.Tensor) -> sg.Tensor:
        loss = nn.functional.mse_loss(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    compiled = sg.compile(step)
    compiled(np.ones((32, 64), np.float32), np.ones((32, 10), np.float32))
    return compiled.last.captured.graph


# ---------------------------------------------------------------- how many


def test_a_step_of_adam_on_three_layers_is_eight_launches() -> None:
    lowered = lowered_for(training(3))
    assert len(lowered.steps) <= 8
    assert max(depths(lowered.after)) + 1 == len(lowered.steps)  # nothing is left to put side by side
    assert all(lowered.names)


def test_deeper_models_have_launches_for_their_depth_and_no_more_kernels() -> None:
    """Forwards and backwards a launch for each layer; what layers have in common is one kernel."""
    few, many = lowered_for(training(4)), lowered_for(training(10))
    assert len(many.steps) - len(few.steps) <= 2 * 6
    assert len(many.kernels) - len(few.kernels) <= 3


def test_a_long_chain_of_few_elements_is_one_launch_whose_code_does_not_grow() -> None:
    """Of 200 ops, in groups that one block computes; those of one kernel are in the code once."""

    def chain(rounds: int) -> Graph:
        b = Builder()
        x, y = b.argument((64,)), b.argument((64,))
        for _ in range(rounds):
            x = b("tanh", b("mul", x, y))
        return b.graph(x)

    short, long = lowered_for(chain(100)), lowered_for(chain(200))
    for lowered in (short, long):
        (step,) = lowered.steps
        assert (step.grid, lowered.after) == (1, [[]])
        assert set(lowered.names) == {step.symbol}
        assert set(step.blocks.values()) == {1}
    assert parts_of(long.steps[0]) <= parts_of(short.steps[0]) + 1


def test_every_group_names_its_kernel_and_its_blocks() -> None:
    lowered = lowered_for(training(3))
    for position, name in enumerate(lowered.names):
        mine = [step for step in lowered.steps if position in step.blocks]
        assert name == "+".join(dict.fromkeys(step.symbol for step in mine))
    for step in lowered.steps:
        assert sum(step.blocks.values()) == step.grid or step.grid == 1


# ---------------------------------------------------------------- the same values


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs(), st.sampled_from([ROOMY, simulator.SMALL]))
def test_merged_launches_give_the_same_bits(graph: Graph, target: Target) -> None:
    arrays = arrays_for(graph, 0)
    merged = run_program(compile_graph(graph, SimulatedGPU(target)), arrays)
    with unmerged():
        program = compile_graph(graph, SimulatedGPU(target))
        assert not any("@part" in source for source in program.sources.values())
        plain = run_program(program, arrays)
    for one, other in zip(merged, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_blocks_of_several_sizes_and_barriers_share_a_launch() -> None:
    """A sum of columns, whose warps meet at a barrier, beside a few elements, for which most threads have nothing."""
    b = Builder()
    x, y, z = b.argument((50, 12)), b.argument((3,)), b.argument((50, 12))
    graph = b.graph(b("sum", x, axis=(0,)), b("exp", y), b("sum", z, axis=(0,)))
    program = compile_graph(graph, SimulatedGPU(ROOMY))
    (source,) = {source for source in program.sources.values() if source.count("@part") == 2}
    assert "2 times sum" in source
    assert "if thread < 4:" in source
    assert "cuda.syncthreads()" in source
    x, y, z = arrays = arrays_for(graph, 0)
    found = run_program(program, arrays)
    for one, wanted in zip(found, (x.sum(0), np.exp(y), z.sum(0)), strict=False):
        np.testing.assert_allclose(one, wanted, rtol=1e-5)


def test_copies_at_the_end_are_one_launch() -> None:
    b = Builder()
    states = [b.state((5,)) for _ in range(4)]
    updates = [(state, b("add", state, 1.0)) for state in states]
    graph = b.graph(*(new for _, new in updates), updates=updates)
    program = compile_graph(graph, SimulatedGPU(ROOMY))
    assert len(program.plan.copies) == 4
    assert len(program._facts["steps"]) == 2
    arrays = arrays_for(graph, 0)
    found = run_program(program, arrays)
    for new, left, old in zip(found[:4], found[4:], arrays, strict=True):
        np.testing.assert_array_equal(new, old + 1)
        np.testing.assert_array_equal(left, new)


def test_products_in_turn_meet_at_barriers() -> None:
    """Each needs the one before it, and all have their tiles in the same shared memory."""
    b = Builder()
    x, w = b.argument((8, 8)), b.argument((8, 8))
    found = x
    for _ in range(4):
        found = b("matmul", found, w)
    program = compile_graph(b.graph(found), SimulatedGPU(ROOMY))
    (source,) = program.sources.values()
    assert "0 to 3: 4 times matmul" in source
    assert "cuda.syncthreads()" in source.partition("def kernel(")[0]
    arrays = arrays_for(program.graph, 0)
    x, w = arrays
    np.testing.assert_allclose(run_program(program, arrays)[0], x @ w @ w @ w @ w, rtol=1e-5)


# ---------------------------------------------------------------- limits


def test_large_launches_stay_alone() -> None:
    b = Builder()
    large = [b.argument((1024, 1024)) for _ in range(2)]
    lowered = lowered_for(b.graph(*(b("exp", x) for x in large), b("exp", b.argument((10,)))))
    assert [parts_of(step) for step in lowered.steps] == [0, 0, 0]


def test_a_merged_kernel_keeps_within_pointers_and_one_wave() -> None:
    b = Builder()
    lowered = lowered_for(b.graph(*(b("exp", b.argument((10_000,))) for _ in range(300))), Target(processors=16))
    assert 1 < len(lowered.steps) < 300
    for step in lowered.steps:
        assert step.grid <= merge.WAVE * 16
        assert parts_of(step) == 1
    lowered = lowered_for(b.graph(*(b("exp", b.argument((3,))) for _ in range(300))))
    assert len(lowered.steps) == -(-300 // (merge.MOST_POINTERS // 2))
    assert max(len(step.addresses) for step in lowered.steps) == merge.MOST_POINTERS


def test_a_merged_kernel_keeps_within_the_shared_memory_of_a_block() -> None:
    b = Builder()
    pairs = [(b.argument((40 + i, 20 + i)), b.argument((20 + i, 30 + i))) for i in range(12)]
    lowered = lowered_for(b.graph(*(b("matmul", x, y) for x, y in pairs)))
    assert 1 < len(lowered.steps) < 12
    for step in lowered.steps:
        assert step.kernel is not None
        assert merged_kernel.shared_bytes(step.kernel) <= merge.SHARED_BYTES


def test_working_memory_of_small_groups_does_not_tie_them() -> None:
    """Products of few elements and long sums, added up in parts: each has its parts in memory of its own."""
    b = Builder()
    pairs = [(b.argument((4, 2000)), b.argument((2000, 4))) for _ in range(3)]
    lowered = lowered_for(b.graph(*(b("matmul", x, y) for x, y in pairs)))
    assert len(lowered.steps) == 2
    assert lowered.own_bytes >= 3 * 4 * 4 * 4
