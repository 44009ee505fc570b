"""Memory, streams and transfers of a GPU whose driver is played in Python.

The stand-in does work as late as it may: what a stream does not wait for has not happened yet, and memory that is given
back on the wrong stream is gone while it is used.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from builder import Builder
from fake_contexts import Device
from fake_device import Event, Module, Stream
from fake_driver import Executable, FakeDriver, NodeGraph, open_gpu
from simulated import unmerged

from staticgrad.graph.errors import OutOfMemoryError
from staticgrad.kernels.cuda import staging
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.gpu import GPU
from staticgrad.kernels.cuda.program import Program, compile_graph

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)


def on_device(gpu: GPU, *values: float) -> DeviceArray:
    return DeviceArray.from_host(gpu, np.array(values, np.float32))


def doubling(gpu: GPU, count: int = 4) -> Program:
    """A program of several launches: its second output doubles the input, the first adds that up."""
    b = Builder()
    x = b.argument((count,))
    doubled = b("cumulative_sum", b("add", x, x), axis=0, reverse=False)
    with unmerged():
        return compile_graph(b.graph(b("sum", doubled, axis=(0,)), doubled), gpu)


def outputs_of(program: Program) -> list[DeviceArray]:
    return [DeviceArray.empty(program.hardware, node.shape, node.dtype) for node in program.graph.outputs]


# ---------------------------------------------------------------- streams


def test_a_stream_waits_for_the_one_that_used_an_array_last(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    x, y = on_device(gpu, 1, 2, 3), on_device(gpu, 0, 0, 0)  # before there is another stream
    with gpu.on(gpu.new_stream()) as other:
        y.assign(x)
        made = on_device(gpu, 7, 8)
    np.testing.assert_array_equal(y.to_host(), [1, 2, 3])
    begin = len(fake.calls)
    np.testing.assert_array_equal(made.to_host(), [7, 8])  # written on the other stream, read on the default one
    assert fake.names(begin)[:2] == ["cuEventRecord", "cuStreamWaitEvent"]
    recorded, waited = (arguments for _, arguments in fake.calls[begin : begin + 2])
    assert recorded[1] is other.handle
    assert waited[0] is gpu.stream.handle
    begin = len(fake.calls)
    np.testing.assert_array_equal(made.to_host(), [7, 8])
    assert "cuStreamWaitEvent" not in fake.names(begin)  # the default stream has used it last now


def test_a_stream_waits_once_for_each_other_one(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program, outputs = doubling(gpu), []
    x = on_device(gpu, 1, 2, 3, 4)
    for _ in range(2):
        outputs = outputs_of(program)
        program.run([x], outputs)
    begin = len(fake.calls)
    with gpu.on(gpu.new_stream()):
        program.run([x], outputs)
    assert fake.names(begin).count("cuStreamWaitEvent") == 1
    assert outputs[0].to_host() == 40


def test_runs_of_a_program_on_different_streams_follow_each_other(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = doubling(gpu)
    streams = [gpu.stream, gpu.new_stream(), gpu.new_stream()]
    kept = []
    for turn in range(6):
        with gpu.on(streams[turn % 3]):
            outputs = outputs_of(program)
            program.run([np.full(4, turn, np.float32)], outputs)  # copied to the same place each time
            kept.append(outputs[1])
    for turn, out in reversed(list(enumerate(kept))):
        np.testing.assert_array_equal(out.to_host(), 2 * turn * np.arange(1, 5))


@pytest.mark.parametrize("where", ["host", "device"])
def test_memory_is_given_back_behind_the_stream_that_used_it_last(where: str, fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = doubling(gpu)
    x: Any = np.ones(4, np.float32) if where == "host" else on_device(gpu, 1, 1, 1, 1)
    program.run([x], outputs_of(program))
    with gpu.on(gpu.new_stream()) as other:
        outputs = outputs_of(program)
        program.run([x], outputs)
    begin = len(fake.calls)
    del program, x  # with its arena and the place of its input, which the other stream still works on
    freed = [arguments[1] for name, arguments in fake.calls[begin:] if name == "cuMemFreeAsync"]
    assert len(freed) == 2
    assert {int(stream) for stream in freed} == {int(other.handle)}
    gpu.stream.synchronize()
    np.testing.assert_array_equal(outputs[1].to_host(), [2, 4, 6, 8])


def test_streams_are_passed_on_and_outlive_what_was_used_on_them(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    for turn in range(5):
        with gpu.on(gpu.new_stream()):
            x = on_device(gpu, turn)
        assert x.to_host() == turn
        del x
        gc.collect()
    assert fake.held(Stream) <= 3  # the default one, and two when the last one is still that of an array
    assert fake.held(Event) == fake.held(Stream)


def test_memory_in_a_cycle_with_its_stream_is_given_back(fake: FakeDriver) -> None:
    """Python may find the stream to be garbage before it finds the memory."""
    gpu = open_gpu(fake)
    with gpu.on(gpu.new_stream()) as stream:
        x = on_device(gpu, 1, 2)
        x.buffer.stream.held = x.buffer
    del x, stream
    gc.collect()
    gpu.synchronize()
    assert gpu.memory_used()[0] == 0


# ---------------------------------------------------------------- transfers


def test_an_array_may_be_changed_as_soon_as_it_is_written(fake: FakeDriver) -> None:
    """Also one in pinned memory, which the driver would read only later."""
    gpu = open_gpu(fake)
    gpu.synchronize()
    values = fake.pinned(6)
    values[:] = np.arange(6)
    x = DeviceArray.from_host(gpu, values)
    values[:] = -1
    np.testing.assert_array_equal(x.to_host(), np.arange(6))
    found = fake.pinned(6)
    gpu.read(found, x.address)  # there when `read` returns, wherever that is
    np.testing.assert_array_equal(found, np.arange(6))
    numbers = np.arange(6, dtype=np.float32)
    x.assign(numbers)
    numbers[:] = -1
    np.testing.assert_array_equal(x.to_host(), np.arange(6))


@pytest.mark.parametrize("count", [20_000, 70_000, 200_000])
def test_large_arrays_go_through_pinned_pieces(count: int, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "CHUNK", 100_000)
    gpu = open_gpu(fake)
    values = np.arange(count, dtype=np.float32)
    x = DeviceArray.from_host(gpu, values)
    y = DeviceArray.from_host(gpu, -values)
    values[:] = 0
    np.testing.assert_array_equal(y.to_host(), -np.arange(count))
    np.testing.assert_array_equal(x.to_host(), np.arange(count))
    chunks = 2 * -(-4 * count // 100_000)
    assert fake.names().count("cuMemcpyHtoDAsync") == chunks
    assert fake.names().count("cuMemHostAlloc") == min(chunks, staging.PIECES)


def test_large_arrays_are_written_by_several_threads(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "CHUNK", 50_000)
    gpu = open_gpu(fake)
    found: dict[int, Array] = {}

    def work(number: int) -> None:
        with gpu.on(gpu.new_stream()):
            found[number] = DeviceArray.from_host(gpu, np.full(60_000, number, np.float32)).to_host()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(found[number]) for number in range(4)] == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_arrays_of_every_shape_and_dtype_go_there_and_back(
    dtype: str, shape: tuple[int, ...], fake: FakeDriver
) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    x = DeviceArray.from_host(open_gpu(fake), values)
    again = x.copy()
    np.testing.assert_array_equal(again.to_host(), values)
    again.assign(np.logical_not(values).astype(dtype))
    np.testing.assert_array_equal(again.to_host(), np.logical_not(values).astype(dtype))
    x.assign(again)
    np.testing.assert_array_equal(x.to_host(), np.logical_not(values).astype(dtype))


# ---------------------------------------------------------------- memory


def test_memory_and_code_are_given_back(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = doubling(gpu)
    for _ in range(3):
        outputs = outputs_of(program)
        program.run([np.ones(4, np.float32)], outputs)
    assert (fake.held(Module), fake.held(NodeGraph), fake.held(Executable)) == (1, 1, 1)
    del program  # while its last run is under way
    assert (fake.held(Module), fake.held(NodeGraph), fake.held(Executable)) == (0, 0, 0)
    np.testing.assert_array_equal(outputs[1].to_host(), [2, 4, 6, 8])
    high = gpu.memory_used()[1]
    del outputs
    gpu.synchronize()
    assert gpu.memory_used() == (0, high)
    gpu.forget_peak()
    assert gpu.memory_used() == (0, 0)


def test_a_thread_that_never_used_the_gpu_gives_memory_and_code_back(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    held = [doubling(gpu)]
    held[0].run([np.ones(4, np.float32)], outputs_of(held[0]))
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    gpu.synchronize()
    assert gpu.memory_used()[0] == 0
    assert fake.held(Module) == 0


def small_gpu(total_bytes: int) -> tuple[FakeDriver, GPU]:
    fake = FakeDriver(Device(total_bytes=total_bytes))
    return fake, open_gpu(fake)


def test_memory_that_nobody_uses_is_found_when_there_is_none() -> None:
    fake, gpu = small_gpu(10_000)
    cycle: list[Any] = [DeviceArray.empty(gpu, (2000,), FLOAT)]
    cycle.append(cycle)
    del cycle  # Python has not found out yet, and the pool could use it for the same size only
    gc.disable()
    try:
        x = DeviceArray.empty(gpu, (1500,), FLOAT)
    finally:
        gc.enable()
    assert gpu.memory_used()[0] == x.nbytes
    assert fake.names().count("cuMemAllocAsync") == 3
    assert gpu.memory_info() == (4000, 10_000)


def test_memory_that_is_not_there_is_an_error_with_what_is_needed_and_what_is_free() -> None:
    fake, gpu = small_gpu(14_000)
    x = DeviceArray.empty(gpu, (3000,), FLOAT)
    with pytest.raises(OutOfMemoryError, match=r"cuda: 8,000 bytes are needed and 2,000 of 14,000 are free on cuda:0"):
        DeviceArray.empty(gpu, (2000,), FLOAT)
    program = doubling(gpu, 1000)
    outputs = [DeviceArray.empty(gpu, (), FLOAT)]
    with pytest.raises(OutOfMemoryError, match=r"The plan needs [\d,]+ bytes while it runs"):
        program.run([np.zeros(1000, np.float32)], [*outputs, DeviceArray.empty(gpu, (0,), FLOAT)])
    del x
    outputs.append(DeviceArray.empty(gpu, (1000,), FLOAT))
    program.run([on_device(gpu, *range(1000))], outputs)  # the GPU is as good as before, and the program whole
    assert outputs[1].to_host()[-1] == 2 * 999 * 500
    assert not fake.faults


def test_code_for_which_there_is_no_memory_is_loaded_once_there_is(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    program = doubling(gpu)
    outputs = outputs_of(program)
    fake.refuse["cuModuleLoadData"] = [2]
    program.run([np.ones(4, np.float32)], outputs)
    assert outputs[0].to_host() == 20
    again = doubling(gpu)
    fake.refuse["cuModuleLoadData"] = [2, 2]
    with pytest.raises(OutOfMemoryError, match=r"cuModuleLoadData found no memory on cuda:0: CUDA_ERROR_OUT_OF_MEMORY"):
        again.run([np.ones(4, np.float32)], outputs)
    again.run([np.full(4, 2, np.float32)], outputs)
    assert outputs[0].to_host() == 40


def test_a_program_whose_constants_could_not_be_written_is_bound_anew(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    b = Builder()
    x = b.argument((3,))
    table = b.constant(np.array([1, 2, 3], np.float32))
    program = compile_graph(b.graph(b("cumulative_sum", b("mul", x, table), axis=0, reverse=False)), gpu)
    out = DeviceArray.empty(gpu, (3,), FLOAT)
    values = on_device(gpu, 1, 1, 1)
    fake.refuse["cuMemcpyHtoDAsync"] = [999]
    with pytest.raises(ValueError, match="cuMemcpyHtoDAsync failed"):
        program.run([values], [out])
    program.run([values], [out])
    np.testing.assert_array_equal(out.to_host(), [1, 3, 6])
