"""Programs on a GPU whose driver is played in Python: launches, CUDA graphs, index errors, threads.

The stand-in does work as late as it may, and reads what it is given when the real driver does: what is not waited for,
not changed in a graph, or given back too early shows as a wrong value or as a failure.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builder import Builder, arrays_for, graphs
from fake_contexts import Device
from fake_device import Module
from fake_driver import Executable, FakeDriver, NodeGraph, open_gpu
from hypothesis import given, settings

from staticgrad.graph.errors import IndexRangeError
from staticgrad.graph.interpret import interpret
from staticgrad.graph.node import Graph
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.gpu import GPU
from staticgrad.kernels.cuda.program import Program, compile_graph

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)
LAUNCHES = {"cuLaunchKernel", "cuGraphLaunch", "cuGraphExecKernelNodeSetParams", "cuGraphInstantiate"}


def on_device(gpu: GPU, *values: float) -> DeviceArray:
    return DeviceArray.from_host(gpu, np.array(values, np.float32))


def empty(gpu: GPU, count: int) -> DeviceArray:
    return DeviceArray.empty(gpu, (count,), FLOAT)


def growth() -> Graph:
    """Two inputs and a state of four numbers; three groups, of which one writes each output and one the state."""
    b = Builder()
    x, y, state = b.argument((4,)), b.argument((4,)), b.state((4,))
    total = b("sum", b("mul", x, y), axis=(0,))
    grown = b("add", state, b("cumulative_sum", x, axis=0, reverse=False))
    return b.graph(total, b("cumulative_sum", grown, axis=0, reverse=False), updates=[(state, grown)])


def launching(fake: FakeDriver, since: int) -> list[str]:
    return [name for name in fake.names(since) if name in LAUNCHES]


# ---------------------------------------------------------------- launches and graphs


def test_a_program_is_launched_plainly_once_and_as_one_graph_from_then_on(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(growth(), gpu)
    x, y, state = on_device(gpu, 1, 2, 3, 4), on_device(gpu, 1, 1, 2, 2), on_device(gpu, 0, 0, 0, 0)
    total, sums = DeviceArray.empty(gpu, (), FLOAT), empty(gpu, 4)
    kinds = []
    for turn in range(1, 5):
        begin = len(fake.calls)
        program.run([x, y, state], [total, sums])
        kinds.append(launching(fake, begin))
        assert total.to_host() == 17
        np.testing.assert_array_equal(state.to_host(), turn * np.array([1, 3, 6, 10]))
        np.testing.assert_array_equal(sums.to_host(), turn * np.array([1, 4, 10, 20]))
    count = len(kinds[0])
    assert count > 1
    assert kinds[0] == ["cuLaunchKernel"] * count
    assert kinds[1] == ["cuGraphInstantiate", "cuGraphLaunch"]
    assert kinds[2:] == [["cuGraphLaunch"]] * 2


def test_launches_that_do_not_need_each_other_are_not_chained_in_the_graph(fake: FakeDriver) -> None:
    b = Builder()
    x, y = b.argument((90,)), b.argument((99,))
    one, other = b("exp", x), b("log", y)
    total = b("add", b("sum", one, axis=(0,)), b("sum", other, axis=(0,)))
    program = compile_graph(b.graph(one, other, total), gpu := open_gpu(fake))
    arrays = [DeviceArray.from_host(gpu, np.full(size, 2, np.float32)) for size in (90, 99)]
    outputs = [empty(gpu, 90), empty(gpu, 99), DeviceArray.empty(gpu, (), FLOAT)]
    for _ in range(2):
        program.run(arrays, outputs)
    added = [arguments[1] for name, arguments in fake.calls if name == "cuGraphAddKernelNode"]
    assert [len(before) for before in added] == [len(before) for before in program._facts["after"]]
    assert [len(before) for before in added][:2] == [0, 0]
    assert max(map(len, added)) == 2
    assert outputs[2].to_host() == pytest.approx(90 * np.exp(2) + 99 * np.log(2))


def test_a_run_with_nothing_new_is_one_call_of_the_driver(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(growth(), gpu)
    arrays = [on_device(gpu, 1, 2, 3, 4) for _ in range(3)]
    outputs = [DeviceArray.empty(gpu, (), FLOAT), empty(gpu, 4)]
    for _ in range(2):
        program.run(arrays, outputs)
    begin = len(fake.calls)
    program.run(arrays, outputs)
    assert fake.names(begin) == ["cuGraphLaunch"]


def test_what_moves_between_runs_is_changed_in_the_graph_and_nothing_else(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(growth(), gpu)
    x, y, state = on_device(gpu, 1, 2, 3, 4), on_device(gpu, 1, 1, 1, 1), on_device(gpu, 0, 0, 0, 0)
    total, sums = DeviceArray.empty(gpu, (), FLOAT), empty(gpu, 4)
    changed: dict[str, set[int]] = {}

    def run(what: str) -> None:
        begin = len(fake.calls)
        program.run([x, y, state], [total, sums])
        nodes = [int(arguments[1]) for name, arguments in fake.calls[begin:] if name.endswith("NodeSetParams")]
        assert len(nodes) == len(set(nodes))
        changed[what] = set(nodes)

    for what in ("plainly", "as a graph"):
        run(what)
    np.testing.assert_array_equal(state.to_host(), [2, 6, 12, 20])
    total = DeviceArray.empty(gpu, (), FLOAT)
    run("total")
    assert total.to_host() == 10
    old, state = state, on_device(gpu, 100, 100, 100, 100)
    run("state")
    np.testing.assert_array_equal(state.to_host(), [101, 103, 106, 110])
    np.testing.assert_array_equal(sums.to_host(), [101, 204, 310, 420])
    np.testing.assert_array_equal(old.to_host(), [3, 9, 18, 30])
    y = on_device(gpu, 2, 2, 2, 2)
    run("y")
    assert total.to_host() == 20
    run("nothing")
    assert changed["plainly"] == changed["as a graph"] == changed["nothing"] == set()
    assert changed["total"]
    assert changed["state"]
    assert not changed["total"] & changed["state"]
    assert len(changed["total"] | changed["state"]) <= fake.names().count("cuGraphAddKernelNode")


def test_a_program_of_one_launch_needs_no_graph(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    b = Builder()
    program = compile_graph(b.graph(b("tanh", b.argument((4,)))), gpu)
    for _ in range(3):
        out = empty(gpu, 4)
        program.run([np.zeros(4, np.float32)], [out])
        np.testing.assert_array_equal(out.to_host(), np.zeros(4))
    assert fake.names().count("cuLaunchKernel") == 3
    assert fake.held(NodeGraph) == 0


@pytest.mark.parametrize("name", ["cuGraphAddKernelNode", "cuGraphInstantiate", "cuGraphExecKernelNodeSetParams"])
def test_a_graph_that_could_not_be_made_or_changed_is_made_or_changed_next_time(name: str, fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(growth(), gpu)
    x, y, state = (on_device(gpu, 1, 1, 1, 1) for _ in range(3))
    outputs = [DeviceArray.empty(gpu, (), FLOAT), empty(gpu, 4)]
    program.run([x, y, state], outputs)
    if name == "cuGraphExecKernelNodeSetParams":
        program.run([x, y, state], outputs)
    x, y, outputs = on_device(gpu, 2, 2, 2, 2), on_device(gpu, 3, 3, 3, 3), [outputs[0], empty(gpu, 4)]
    fake.refuse[name] = [1]
    with pytest.raises(ValueError, match=rf"cuda: {name} failed on cuda:0: CUDA_ERROR_INVALID_VALUE"):
        program.run([x, y, state], outputs)
    before = state.to_host()
    program.run([x, y, state], outputs)
    assert outputs[0].to_host() == 24
    np.testing.assert_array_equal(state.to_host(), before + np.array([2, 4, 6, 8]))
    assert (fake.held(NodeGraph), fake.held(Executable)) == (1, 1)


def test_a_profile_launches_plainly_and_leaves_the_graph_right(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(growth(), gpu)
    x, y, state = (on_device(gpu, 1, 1, 1, 1) for _ in range(3))
    outputs = [DeviceArray.empty(gpu, (), FLOAT), empty(gpu, 4)]
    for _ in range(2):
        program.run([x, y, state], outputs)
    begin, moved = len(fake.calls), [outputs[0], empty(gpu, 4)]
    seconds = program.timed_by_group().run([x, y, state], moved)
    assert len(seconds) == len(program.plan.groups) + 1
    assert (seconds[:-1] > 0).all()
    assert seconds.sum() == pytest.approx(0.5e-3 * len(program._facts["steps"]))
    assert "cuGraphLaunch" not in fake.names(begin)
    assert fake.names(begin).count("cuEventCreate") == fake.names(begin).count("cuEventDestroy")
    np.testing.assert_array_equal(moved[1].to_host(), np.cumsum([4, 7, 10, 13]))
    program.run([x, y, state], moved)
    np.testing.assert_array_equal(moved[1].to_host(), np.cumsum([5, 9, 13, 17]))


@settings(max_examples=25)
@given(graphs())
def test_random_graphs(graph: Graph) -> None:
    """Three runs, of which the last two are a CUDA graph; inputs and outputs move."""
    fake = FakeDriver()
    gpu = open_gpu(fake)
    program = compile_graph(graph, gpu)
    arrays = arrays_for(graph, 0)
    for _ in range(3):
        wanted, updates = interpret(graph, [array.copy() for array in arrays])
        inputs = [DeviceArray.from_host(gpu, array) for array in arrays]
        outputs = [DeviceArray.empty(gpu, node.shape, node.dtype) for node in graph.outputs]
        program.run(inputs, outputs)
        for out, value in zip(outputs, wanted, strict=True):
            np.testing.assert_allclose(out.to_host(), value, rtol=1e-5, atol=1e-5)
        for (leaf, _), value in zip(graph.updates, updates, strict=True):
            np.testing.assert_allclose(inputs[graph.inputs.index(leaf)].to_host(), value, rtol=1e-5, atol=1e-5)
    del inputs, outputs, out, program
    gc.collect()
    gpu.synchronize()
    assert gpu.memory_used()[0] == 0
    assert not fake.faults


# ---------------------------------------------------------------- index errors, threads


def look_up() -> Graph:
    b = Builder()
    table, rows = b.state((4, 2)), b.argument((3,), np.int64)
    found = b("take", table, rows, axis=0)
    sums = b("reshape", b("sum", found, axis=(0,)), shape=(1, 2))
    return b.graph(b("sum", found, axis=(0, 1)), updates=[(table, b("add", table, sums))])


WRONG = r"take: an index must lie in \[-4, 4\); got 7"


def wait_by_reading(gpu: GPU, run: Callable[[], None], out: DeviceArray) -> None:
    out.to_host()


def wait_by_itself(gpu: GPU, run: Callable[[], None], out: DeviceArray) -> None:
    gpu.synchronize()


def run_again(gpu: GPU, run: Callable[[], None], out: DeviceArray) -> None:
    come_to_the_end(gpu)
    run()


def come_to_the_end(gpu: GPU) -> None:
    """As if time passed: the GPU has done all work, and nobody has asked for anything."""
    gpu.call("cuStreamSynchronize", gpu.stream.handle)


@pytest.mark.parametrize("find_out", [wait_by_reading, wait_by_itself, run_again])
def test_an_index_out_of_range_leaves_the_state_alone_plainly_and_in_a_graph(fake: FakeDriver, find_out: Any) -> None:
    """The call that meets it returns; whoever waits for the GPU, or calls again, is told once."""
    gpu = open_gpu(fake)
    program = compile_graph(look_up(), gpu)
    program.waits = False
    table, out = DeviceArray.from_host(gpu, np.ones((4, 2), np.float32)), DeviceArray.empty(gpu, (), FLOAT)

    def run() -> None:
        program.run([table, np.array([0, 3, -1])], [out])

    total = 1.0
    for _ in range(3):
        before = table.to_host()
        program.run([table, np.array([0, 7, 1])], [out])
        with pytest.raises(IndexRangeError, match=WRONG):
            find_out(gpu, run, out)
        np.testing.assert_array_equal(table.to_host(), before)
        gpu.synchronize()
        run()
        assert out.to_host() == 6 * total
        total *= 4


def test_no_call_changes_state_until_the_error_has_been_raised(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(look_up(), gpu)
    program.waits = False
    table, out = DeviceArray.from_host(gpu, np.ones((4, 2), np.float32)), DeviceArray.empty(gpu, (), FLOAT)
    program.run([table, np.array([0, 7, 1])], [out])
    for _ in range(3):  # the GPU has not come to the first one yet
        program.run([table, np.array([0, 3, -1])], [out])
    come_to_the_end(gpu)
    with pytest.raises(IndexRangeError, match=f"{WRONG}; an earlier call met it"):
        program.run([table, np.array([0, 3, -1])], [out])
    np.testing.assert_array_equal(table.to_host(), np.ones((4, 2)))
    program.run([table, np.array([0, 3, -1])], [out])
    assert out.to_host() == 6


def test_each_of_several_programs_is_heard(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    for _ in range(3):
        program = compile_graph(look_up(), gpu)
        program.waits = False
        table, out = DeviceArray.from_host(gpu, np.ones((4, 2), np.float32)), DeviceArray.empty(gpu, (), FLOAT)
        program.run([table, np.array([0, 7, 1])], [out])
    for _ in range(3):
        with pytest.raises(IndexRangeError, match=WRONG):
            gpu.synchronize()
    gpu.synchronize()
    assert not gpu._watched


@pytest.fixture
def blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that are opened now wait for each call that may fail."""
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")


@pytest.mark.usefixtures("blocking")
def test_where_calls_are_waited_for_the_one_that_meets_an_error_raises_it(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(look_up(), gpu)
    program.waits = False
    table, out = DeviceArray.from_host(gpu, np.ones((4, 2), np.float32)), DeviceArray.empty(gpu, (), FLOAT)
    for _ in range(3):
        with pytest.raises(IndexRangeError, match=rf"{WRONG}\. Captured at"):
            program.run([table, np.array([0, 7, 1])], [out])
        gpu.synchronize()
    program.run([table, np.array([0, 3, -1])], [out])
    assert out.to_host() == 6


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run in several Python threads at once; what fails in one fails here."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("blocking")
def test_python_threads_share_a_program_and_an_index_error_reaches_the_one_that_made_it(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(look_up(), gpu)

    def work(number: int) -> None:
        table, out = DeviceArray.from_host(gpu, np.ones((4, 2), np.float32)), DeviceArray.empty(gpu, (), FLOAT)
        for turn in range(4):
            if number % 2:
                with pytest.raises(IndexRangeError, match=f"got {10 + number}$|got {10 + number}\\."):
                    program.run([table, np.array([10 + number, 0, 0])], [out])
            else:
                program.run([table, np.array([0, 1, 2])], [out])
                assert out.to_host() == 6.0 * 4**turn

    begin = len(fake.calls)
    in_threads(4, work)
    assert fake.names(begin).count("cuCtxSetCurrent") == 4  # once for each thread


@pytest.mark.usefixtures("blocking")
def test_an_index_error_is_that_of_the_thread_even_when_another_run_comes_between(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = open_gpu(fake)
    program = compile_graph(look_up(), gpu)
    ran, go_on, raise_it = threading.Event(), threading.Event(), Program.fail
    found: list[str] = []

    def late(*arguments: Any) -> None:
        ran.set()
        go_on.wait()
        raise_it(*arguments)

    def run(index: int) -> None:
        table, out = DeviceArray.from_host(gpu, np.ones((4, 2), np.float32)), DeviceArray.empty(gpu, (), FLOAT)
        try:
            program.run([table, np.array([0, 1, index])], [out])
            found.append(f"{out.to_host():.0f}")
        except IndexRangeError as error:
            found.append(str(error).partition("got ")[2].partition(".")[0])

    monkeypatch.setattr(Program, "fail", late)
    thread = threading.Thread(target=run, args=(11,))
    thread.start()
    ran.wait()
    monkeypatch.setattr(Program, "fail", raise_it)
    run(2)
    run(12)
    go_on.set()
    thread.join()
    assert found == ["6", "12", "11"]


def test_each_of_several_gpus_is_entered_before_it_is_used() -> None:
    fake = FakeDriver(Device(), Device())
    first, second = open_gpu(fake, 0), open_gpu(fake, 1)
    programs = [compile_graph(growth(), gpu) for gpu in (first, second)]
    for _ in range(3):
        for gpu, program in zip((first, second), programs, strict=True):
            arrays = [on_device(gpu, 1, 1, 1, 1) for _ in range(3)]
            total = DeviceArray.empty(gpu, (), FLOAT)
            program.run(arrays, [total, empty(gpu, 4)])
            assert total.to_host() == 4
    x = on_device(first, 1, 2)
    begin = len(fake.calls)
    del program, programs  # that of the second GPU goes while the first one is in use
    gc.collect()
    names = fake.names(begin)
    assert names.count("cuCtxPushCurrent") == names.count("cuCtxPopCurrent") > 0
    assert fake.held(Module) == fake.held(Executable) == fake.held(NodeGraph) == 0
    first.call("cuStreamSynchronize", first.stream.handle)
    np.testing.assert_array_equal(x.to_host(), [1, 2])
    assert not fake.faults
