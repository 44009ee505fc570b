"""Ops at once on a GPU whose driver is played in Python: single launches, their arguments, threads, failures."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from fake_driver import FakeDriver, open_gpu

from staticgrad.graph.errors import DeviceError, IndexRangeError, OutOfMemoryError
from staticgrad.graph.op import registry
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.device import CUDA

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)
LAUNCHES = ("cuLaunchKernel", "cuGraphLaunch", "cuMemcpyHtoDAsync")


@pytest.fixture
def device(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> CUDA:
    monkeypatch.setattr("staticgrad.kernels.cuda.device._open", lambda ordinal: open_gpu(fake))
    return CUDA(0)


def at_once(device: CUDA, name: str, *values: Any, **attributes: Any) -> DeviceArray:
    return device.run(registry[name], values, attributes, FLOAT)


def test_an_op_is_one_launch_and_its_numbers_go_with_it(device: CUDA, fake: FakeDriver) -> None:
    x = device.place(np.arange(10, dtype=np.float32))
    for number in (2.0, -0.5, 1e-30):
        begin = len(fake.calls)
        product = at_once(device, "mul", x, np.array(number, np.float32))
        assert [name for name in fake.names(begin) if name in LAUNCHES] == ["cuLaunchKernel"]
        np.testing.assert_array_equal(product.to_host(), np.arange(10, dtype=np.float32) * np.float32(number))
    found = at_once(device, "select", np.array(True), x, device.place(np.zeros(10, np.float32)))
    np.testing.assert_array_equal(found.to_host(), np.arange(10))
    for dtype in ("int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float64"):
        least = np.iinfo(dtype).min if dtype != "float64" else -1e300
        ones = device.place(np.ones(3, dtype))
        np.testing.assert_array_equal(at_once(device, "maximum", ones, np.array(least, dtype)).to_host(), np.ones(3))
        np.testing.assert_array_equal(at_once(device, "minimum", ones, np.array(least, dtype)).to_host(), [least] * 3)


def test_an_op_that_is_a_program_of_few_launches_is_no_graph(device: CUDA, fake: FakeDriver) -> None:
    values = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    for turn in range(3):
        x = device.place(values + turn)
        begin = len(fake.calls)
        total = at_once(device, "sum", x, axis=(0, 1))
        launched = [name for name in fake.names(begin) if name in LAUNCHES]
        assert launched == ["cuLaunchKernel"] * 2  # parts, and what joins them in the program's memory
        np.testing.assert_allclose(total.to_host(), (values + turn).sum(), rtol=1e-4)
        np.testing.assert_array_equal(at_once(device, "permute_dims", x, axes=(1, 0)).to_host(), (values + turn).T)


def test_an_op_that_checks_indices_still_does(device: CUDA) -> None:
    x = device.place(np.arange(4, dtype=np.float32))
    for _ in range(2):
        with pytest.raises(IndexRangeError, match="got 7"):  # at once: the next op may write state
            at_once(device, "take", x, device.place(np.array([0, 7])), axis=0, what="")
        found = at_once(device, "take", x, device.place(np.array([3, 1])), axis=0, what="")
        np.testing.assert_array_equal(found.to_host(), [3, 1])


def test_threads_and_streams_share_an_op(device: CUDA) -> None:
    gpu, faults = device.hardware, []
    values = np.arange(1200, dtype=np.float32).reshape(40, 30)
    shared = device.place(values)

    def work(number: int) -> None:
        with gpu.on(gpu.new_stream()):
            for turn in range(5):
                scaled = at_once(device, "mul", shared, np.array(number + turn, np.float32))
                total = at_once(device, "sum", scaled, axis=(0, 1)).to_host()
                wanted = (values * (number + turn)).sum(dtype=np.float64)
                if not np.isclose(total, wanted, rtol=1e-5):
                    faults.append((number, turn, total, wanted))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_launch_that_finds_no_memory_is_tried_once_more(device: CUDA, fake: FakeDriver) -> None:
    x = device.place(np.ones(3, np.float32))
    fake.refuse["cuLaunchKernel"] = [2]
    np.testing.assert_array_equal(at_once(device, "neg", x).to_host(), [-1, -1, -1])
    fake.refuse["cuLaunchKernel"] = [2, 2]
    with pytest.raises(OutOfMemoryError, match="cuLaunchKernel found no memory"):
        at_once(device, "neg", x)
    fake.refuse["cuMemAllocAsync"] = [2, 2]
    with pytest.raises(OutOfMemoryError, match="12 bytes are needed"):
        at_once(device, "neg", x)
    np.testing.assert_array_equal(at_once(device, "neg", x).to_host(), [-1, -1, -1])


def test_a_launch_that_fails_says_so(device: CUDA, fake: FakeDriver) -> None:
    x = device.place(np.ones(3, np.float32))
    fake.refuse["cuLaunchKernel"] = [700]
    with pytest.raises(DeviceError, match=r"has failed with CUDA_ERROR_ILLEGAL_ADDRESS .* in cuLaunchKernel"):
        at_once(device, "neg", x)
    with pytest.raises(DeviceError, match="has failed with"):
        at_once(device, "neg", x)
