"""Memory of the GPU and transfers: all is given back, none is lost on the way, and too much is an error."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from builder import Builder
from gpu_runs import program_of
from gpu_sizes import SIMULATED, SIZES
from models import Trial, cross_entropy, labels, mlp, momentum, trial
from trainings import host

import staticgrad as sg
from staticgrad.graph.errors import OutOfMemoryError
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.device import find_device

Array = np.ndarray[Any, Any]
MOST = 1_000_000  # bytes of a test in the simulator that fills all memory


def held() -> int:
    """Bytes held when all work is done and all garbage gone."""
    gc.collect()
    sg.cuda.synchronize()
    return sg.cuda.memory_allocated()


def network() -> Trial:
    sizes = SIZES.layers
    return trial(mlp(*sizes), cross_entropy, momentum, labels((SIZES.batch, sizes[0]), sizes[-1]))


# ---------------------------------------------------------------- given back


def test_tensors_give_their_memory_back() -> None:
    before = held()
    tensors = [sg.asarray(np.zeros(count, np.float32), device="cuda") for count in (1, 100, SIZES.transfer // 10)]
    assert sg.cuda.memory_allocated() >= before + sum(tensor.nbytes for tensor in tensors)
    view = sg.reshape(tensors[-1], (1, -1))
    nbytes = view.nbytes
    del tensors
    assert held() >= before + nbytes
    del view
    assert held() == before


def test_the_peak_is_remembered_until_it_is_reset() -> None:
    before = held()
    sg.cuda.reset_peak_memory_stats()
    large = sg.asarray(np.zeros(SIZES.transfer // 10, np.float32), device="cuda")
    nbytes = large.nbytes
    del large
    assert held() == before
    assert sg.cuda.max_memory_allocated() >= before + nbytes
    sg.cuda.reset_peak_memory_stats()
    assert sg.cuda.max_memory_allocated() < before + nbytes


def test_a_training_gives_its_memory_back_and_takes_no_more_from_step_to_step() -> None:
    before = held()
    made = network()
    step = sg.compile(made.step, device="cuda")
    losses = [step(*made.batches[number % 6]) for number in range(5)]
    while_training = held()
    for number in range(SIZES.steps):
        losses[number % 5] = step(*made.batches[number % 6])
    assert held() == while_training > before
    del made, step, losses
    assert held() == before


def test_ops_one_by_one_give_their_memory_back() -> None:
    def work() -> None:
        sizes = SIZES.layers[0], SIZES.layers[-1]
        on_gpu = mlp(*sizes).to("cuda")  # before its optimizer is made, whose state lies where the parameters do
        made = trial(on_gpu, cross_entropy, momentum, labels((SIZES.batch, sizes[0]), sizes[-1]))
        for number in range(2):
            x, y = (sg.asarray(array, device="cuda") for array in made.batches[number])
            made.step(x, y)

    work()  # the programs of the ops stay
    before = held()
    work()
    assert held() == before


def test_new_programs_of_one_function_replace_nothing() -> None:
    """Functions compiled and dropped, again and again: neither code nor memory stays."""
    before = held()
    for number in range(10):
        function = sg.compile(lambda x, number=number: sg.tanh(x * 2.0 + float(number)), device="cuda")
        assert host(function(np.ones(SIZES.matrix, np.float32))).shape == SIZES.matrix
    del function
    assert held() == before


# ---------------------------------------------------------------- transfers


def test_there_and_back() -> None:
    values = np.random.default_rng(0).standard_normal(SIZES.transfer).astype(np.float32)
    there = sg.asarray(values, device="cuda")
    wanted = values.copy()
    values[:] = np.nan  # was copied when the call returned
    np.testing.assert_array_equal(host(there), wanted)
    twice = there + there
    np.testing.assert_array_equal(host(twice), wanted + wanted)


@pytest.mark.parametrize("nbytes", SIZES.copies)
def test_every_way_to_copy(nbytes: int) -> None:
    """Bytes of every amount: to the GPU, onto an array there, from array to array, and back."""
    gpu = find_device("cuda").hardware  # type: ignore[attr-defined]
    generator = np.random.default_rng(0)
    values, others = (generator.integers(0, 256, nbytes, np.uint8) for _ in range(2))
    there = DeviceArray.from_host(gpu, values)
    copied = there.copy()
    there.assign(others)
    np.testing.assert_array_equal(copied.to_host(), values)
    np.testing.assert_array_equal(there.to_host(), others)
    copied.assign(there)
    there.assign(values)
    np.testing.assert_array_equal(copied.to_host(), others)


def test_one_buffer_for_many_copies() -> None:
    """The host's array is filled anew as soon as a copy of it is queued."""
    gpu = find_device("cuda").hardware  # type: ignore[attr-defined]
    buffer = np.empty(max(2, SIZES.transfer // 8), np.float32)
    there = []
    for number in range(8):
        buffer[:] = number
        there.append(DeviceArray.from_host(gpu, buffer))
    for number, array in enumerate(there):
        np.testing.assert_array_equal(array.to_host(), np.float32(number))


def test_arrays_of_every_layout_and_dtype() -> None:
    rows, columns = SIZES.matrix
    for dtype in ("bool", "uint8", "int32", "int64", "uint64", "float32", "float64"):
        values = np.random.default_rng(0).integers(0, 100, (rows, columns)).astype(dtype)
        for view in (values, values.T, values[::-2, 1:], values[:, :0], values[0, 0], values.astype(values.dtype, "F")):
            np.testing.assert_array_equal(host(sg.asarray(view, device="cuda")), view)


# ---------------------------------------------------------------- too much


@pytest.fixture
def limit(hardware: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that there are; few in the simulator, whose memory is this machine's."""
    if SIMULATED:
        context = hardware.driver.devices[0].context
        monkeypatch.setattr(context, "_total", context.used + MOST)
        return MOST
    return sg.cuda.memory_info()[1]


def still_usable() -> bool:
    return sg.sum(sg.ones((10,), device="cuda")).item() == 10.0


def test_a_tensor_that_does_not_fit(limit: int) -> None:
    before = held()
    device = find_device("cuda")
    with pytest.raises(OutOfMemoryError, match=r"[\d,]+ bytes are needed and [\d,]+ of [\d,]+ are free on cuda:0"):
        device.empty((2 * limit,), np.dtype(np.uint8))
    assert held() == before
    assert still_usable()


def test_a_program_that_does_not_fit(limit: int) -> None:
    """Its plan is larger than the memory: an error that says so at the first call, and at the next one again."""
    before = held()
    size = int(limit**0.5)
    b = Builder()
    x = b.argument((size, 1))
    square = b("matmul", x, b("reshape", x, shape=(1, size)))  # 4 bytes for each byte there is
    program = program_of(b.graph(b("sum", b("cumulative_sum", square, axis=0), axis=(0, 1))))
    out = DeviceArray.empty(program.hardware, (), np.dtype(np.float32))
    for _ in range(2):
        with pytest.raises(OutOfMemoryError, match=r"The plan needs [\d,]+ bytes"):
            program.run([np.zeros((size, 1), np.float32)], [out])
    del program, out
    assert held() == before
    assert still_usable()


def test_memory_is_filled_to_the_last_and_used_again(limit: int) -> None:
    """What garbage holds is found when memory runs out, and what is dropped serves again, in other sizes."""
    before = held()
    device = find_device("cuda")
    piece, arrays = limit // 8, []

    def fill(found: list[Any]) -> None:
        while len(found) < 9:
            found.append(device.empty((piece,), np.dtype(np.uint8)))

    with pytest.raises(OutOfMemoryError):
        fill(arrays)
    assert len(arrays) >= 4
    cycle: list[Any] = [arrays]
    cycle.append(cycle)
    del arrays, cycle  # only the collector finds these
    large = device.empty((limit // 2,), np.dtype(np.uint8))
    assert large.nbytes == limit // 2
    del large
    assert held() == before
    assert still_usable()
