"""What a user is told when there is no GPU, when it is too old, and when it fails; and what goes on after that."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cuda.bindings
import numpy as np
import pytest
from builder import Builder
from cuda.bindings import driver as real
from fake_contexts import Device
from fake_driver import FakeDriver, open_gpu
from simulated import unmerged

import staticgrad as sg
from staticgrad.graph.errors import DeviceError, OutOfMemoryError
from staticgrad.kernels.cuda import calls, toolkit
from staticgrad.kernels.cuda import device as cuda_device
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.gpu import GPU
from staticgrad.kernels.cuda.program import Program, compile_graph
from staticgrad.kernels.device import find_device, forget
from staticgrad.kernels.kernel import Kernel

FLOAT = np.dtype(np.float32)
ONE = Kernel("def kernel(p0):\n    p0[0] = 1\n", (FLOAT,))


def running_sum(gpu: GPU) -> Program:
    """A program of two launches."""
    b = Builder()
    x = b("cumulative_sum", b.argument((3,)), axis=0, reverse=False)
    with unmerged():
        return compile_graph(b.graph(b("cumulative_sum", x, axis=0, reverse=False)), gpu)


def break_down(gpu: GPU) -> None:
    """Have a kernel work on memory that is not there; the failure shows when the device comes to it."""
    x = DeviceArray.from_host(gpu, np.ones(3, np.float32))
    program = running_sum(gpu)
    program._bind_all([x], [x])
    program._sequence.launches[0].addresses[:] = [8] * len(program._sequence.launches[0].addresses)
    program._sequence.changed.add(0)
    program._sequence.run()


# ---------------------------------------------------------------- no GPU to use


@pytest.mark.parametrize(
    ("count", "ordinal", "message"),
    [
        (0, 0, r"device: cuda:0 was asked for and there are 0 GPUs; use another one, or device='cpu'"),
        (1, 3, r"device: cuda:3 was asked for and there is 1 GPU;"),
        (2, 2, r"device: cuda:2 was asked for and there are 2 GPUs;"),
    ],
)
def test_a_gpu_that_is_not_there(count: int, ordinal: int, message: str) -> None:
    fake = FakeDriver()
    fake.devices = [Device() for _ in range(count)]
    with pytest.raises(DeviceError, match=message):
        open_gpu(fake, ordinal)


def test_a_gpu_that_is_too_old() -> None:
    with pytest.raises(DeviceError, match=r"cuda:0 has compute capability 7\.5; staticgrad's kernels need 8\.0"):
        open_gpu(FakeDriver(Device(capability=(7, 5))))
    assert open_gpu(FakeDriver(Device(capability=(8, 0)))).capability == (8, 0)


def test_a_gpu_without_memory_pools() -> None:
    with pytest.raises(DeviceError, match=r"cuda:0 has no memory pools, .*; use device='cpu'"):
        open_gpu(FakeDriver(Device(pools=False)))


def test_what_a_gpu_says_of_itself() -> None:
    gpu = open_gpu(FakeDriver(Device(b"NVIDIA H200", (9, 0), 132, 1 << 20)))
    assert (gpu.name, gpu.title, gpu.capability) == ("cuda:0", "NVIDIA H200", (9, 0))
    assert gpu.memory_info() == (1 << 20, 1 << 20)
    assert "sm_9.0" in gpu.identity
    assert "processors=132" in gpu.identity


def cannot_be_found(_: int) -> Any:
    raise RuntimeError("libcuda.so.1 is not there")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (cannot_be_found, r"no NVIDIA driver was found on this machine .*; install the driver, or use device='cpu'"),
        (lambda _: (real.CUresult(100),), r"the NVIDIA driver cannot be used: no CUDA-capable device .*; nvidia-smi"),
    ],
)
def test_a_driver_that_is_missing_or_refuses(answer: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "cuInit", answer)
    monkeypatch.setattr(real, "cuGetErrorString", lambda _: (real.CUresult(0), b"no CUDA-capable device is detected"))
    with pytest.raises(DeviceError, match=f"cuda: {message}"):
        toolkit.driver.__wrapped__()


def test_bindings_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cuda.bindings, "driver")
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(DeviceError, match=r"cuda-bindings cannot be imported: .*; install .*staticgrad\[cuda\]"):
        toolkit.driver.__wrapped__()


# ---------------------------------------------------------------- packages that do not fit


@pytest.mark.parametrize("code", [200, 209, 222])
def test_code_that_the_driver_does_not_load(code: int) -> None:
    fake = FakeDriver(version=12040)
    gpu = open_gpu(fake)
    fake.refuse["cuModuleLoadData"] = [code]
    with pytest.raises(DeviceError, match=r"the driver \(of CUDA 12\.4\) does not load this code: CUDA_ERROR_.*"
                                          r"numba-cuda-.*: update the driver, or install packages"):  # fmt: skip
        gpu.load(b"something", {ONE.symbol: ONE})


@pytest.mark.parametrize(
    "error", [RuntimeError("function cuGraphLaunch is not found"), ValueError("950 is no CUresult")]
)
def test_a_driver_that_is_older_or_newer_than_its_bindings(error: Exception, fake: FakeDriver) -> None:
    gpu = open_gpu(fake)

    def unknown(*_: Any) -> Any:
        raise error

    fake.cuGraphCreate = unknown  # type: ignore[method-assign]
    with pytest.raises(
        DeviceError, match=f"cuGraphCreate failed on cuda:0: {error}; the driver does not fit numba-cuda"
    ):
        gpu.call("cuGraphCreate", 0)


def test_kernels_that_the_linker_does_not_take() -> None:
    with pytest.raises(
        DeviceError, match=r"cannot be linked for sm_90: .*Unsupported \.version.*numba-cuda-.*one CUDA"
    ):
        toolkit.linked([".version 99.0\n.target sm_90\n.address_size 64\n"], (9, 0))
    with pytest.raises(DeviceError, match=r"the linker \(nvJitLink\) cannot be used for sm_990: .*newest versions"):
        toolkit.linked([".version 8.0\n.target sm_90\n"], (99, 0))


@pytest.mark.parametrize(
    "error", [ImportError("no libNVVM"), OSError("libdevice"), RuntimeError("Failure: libnvvm.so")]
)
def test_a_compiler_that_is_missing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_ptx(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(toolkit, "cuda", SimpleNamespace(compile_ptx=compile_ptx))
    monkeypatch.setitem(sys.modules, "numba.cuda", SimpleNamespace(types=SimpleNamespace(CPointer=lambda kind: kind)))
    names = SimpleNamespace(names=dict, element_type=lambda dtype: dtype)
    monkeypatch.setitem(sys.modules, "staticgrad.kernels.cuda.dialect", names)
    monkeypatch.setattr(sys.modules["staticgrad.kernels.cuda"], "dialect", names, raising=False)
    with pytest.raises(DeviceError, match=rf"\(libNVVM\) cannot be used: {error}; install .*staticgrad\[cuda\]"):
        toolkit.machine_code([ONE], (9, 0))


# ---------------------------------------------------------------- a GPU that fails


def test_after_a_failure_every_use_says_so_and_nothing_is_called(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    x = DeviceArray.from_host(gpu, np.ones(3, np.float32))
    program = running_sum(gpu)
    for _ in range(2):
        program.run([x], [x])
    break_down(gpu)  # queued: not known yet
    lost = r"cuda: cuda:0 has failed with CUDA_ERROR_ILLEGAL_ADDRESS .* in cuStreamSynchronize, and what was in its " \
           r"memory is lost; the CPU still works; sg\.cuda\.reset\(\)"  # fmt: skip
    with pytest.raises(DeviceError, match=lost):
        gpu.stream.synchronize()
    begin = len(fake.calls)
    uses: list[Callable[[], Any]] = [
        gpu.synchronize,
        gpu.memory_info,
        gpu.memory_used,
        gpu.new_stream,
        x.to_host,
        x.copy,
        lambda: x.assign(np.zeros(3, np.float32)),
        lambda: DeviceArray.empty(gpu, (3,), FLOAT),
        lambda: program.run([x], [x]),
        lambda: running_sum(gpu).run([np.ones(3, np.float32)], [x]),
    ]
    for use in uses:
        with pytest.raises(DeviceError, match=lost):
            use()
    assert fake.names(begin) == []


def test_what_a_failed_gpu_had_is_not_given_back(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    x = DeviceArray.from_host(gpu, np.ones(3, np.float32))
    program = running_sum(gpu)
    for _ in range(2):
        program.run([x], [x])
    break_down(gpu)
    with pytest.raises(DeviceError):
        gpu.synchronize()
    begin = len(fake.calls)
    del x, program
    gc.collect()
    assert fake.names(begin) == []


def test_a_failure_shows_in_whichever_call_comes_next(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    out = DeviceArray.empty(gpu, (3,), FLOAT)
    program = running_sum(gpu)
    for _ in range(2):
        program.run([np.ones(3, np.float32)], [out])
    fake.refuse["cuGraphLaunch"] = [719]
    with pytest.raises(DeviceError, match=r"has failed with CUDA_ERROR_LAUNCH_FAILED .* in cuGraphLaunch"):
        program.run([np.ones(3, np.float32)], [out])
    with pytest.raises(DeviceError, match=r"has failed with CUDA_ERROR_LAUNCH_FAILED .* in cuGraphLaunch"):
        program.run([np.ones(3, np.float32)], [out])


def test_an_error_that_the_gpu_survives(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    fake.refuse["cuStreamSynchronize"] = [999]
    with pytest.raises(DeviceError, match=r"^cuda: cuStreamSynchronize failed on cuda:0: CUDA_ERROR_UNKNOWN \(what"):
        gpu.stream.synchronize()
    gpu.stream.synchronize()


def test_a_forked_process_is_told_to_be_spawned(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = open_gpu(fake)
    fake.refuse["cuMemAllocAsync"] = [3, 3]
    with pytest.raises(DeviceError, match="cuMemAllocAsync failed on cuda:0: CUDA_ERROR_NOT_INITIALIZED"):
        gpu.allocate(8)
    monkeypatch.setattr(calls, "os", SimpleNamespace(getpid=lambda: os.getpid() + 1))
    with pytest.raises(DeviceError, match=r"forked from, and cannot be used here; start processes with .*'spawn'"):
        gpu.allocate(8)


def test_an_error_in_a_finalizer_stays_there(fake: FakeDriver) -> None:
    gpu = open_gpu(fake)
    x = DeviceArray.empty(gpu, (3,), FLOAT)
    program = running_sum(gpu)
    program.run([np.ones(3, np.float32)], [x])
    fake.refuse["cuMemFreeAsync"] = fake.refuse["cuCtxPushCurrent"] = fake.refuse["cuModuleUnload"] = [4, 4]
    del x, program
    gpu.synchronize()


# ---------------------------------------------------------------- sg.cuda.reset()


@pytest.fixture
def opened(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """The device "cuda:0" of this process is the stand-in's."""
    monkeypatch.setattr(cuda_device, "_open", lambda ordinal: open_gpu(fake, ordinal))
    forget("cuda:0")
    yield fake
    forget("cuda:0")


def test_reset_begins_anew(opened: FakeDriver) -> None:
    x = sg.ones(3, device="cuda")
    twice = sg.compile(lambda x: (x * 2.0).sum(), device="cuda")
    assert float(twice(x)) == 6
    break_down(find_device("cuda").hardware)  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match=r"sg\.cuda\.reset\(\)"):
        sg.cuda.synchronize()
    assert (sg.ones(3) + 1).tolist() == [2, 2, 2]  # the CPU goes on
    sg.cuda.reset()
    assert (sg.ones(3, device="cuda") + 1).tolist() == [2, 2, 2]
    with pytest.raises(DeviceError, match="cuda:0 was reset; make the tensors and compile the functions again"):
        x.tolist()
    begin = len(opened.calls)
    del x, twice  # what they held went with the old context
    gc.collect()
    assert opened.names(begin) == []
    (device,) = opened.devices
    assert device.retained == 1


def test_a_gpu_is_opened_once_whatever_it_is_called(opened: FakeDriver) -> None:
    threads = [threading.Thread(target=find_device, args=(name,)) for name in ("cuda:0", "cuda", "cuda:00", "cuda:0")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find_device("cuda") is find_device("cuda:0") is find_device("cuda:00")
    assert opened.names().count("cuDevicePrimaryCtxRetain") == 1


def test_a_thread_that_used_the_gpu_before_a_reset_uses_it_afterwards(opened: FakeDriver) -> None:
    ready, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def work() -> None:
        found.append(sg.ones(2, device="cuda").tolist())
        ready.set()
        done.wait()
        found.append((sg.ones(2, device="cuda") * 2).tolist())

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    sg.cuda.reset()
    done.set()
    thread.join()
    assert found == [[1, 1], [2, 2]]


def test_a_gpu_that_cannot_be_reset_needs_a_new_process(opened: FakeDriver) -> None:
    sg.ones(3, device="cuda")
    break_down(find_device("cuda").hardware)  # type: ignore[attr-defined]
    with pytest.raises(DeviceError):
        sg.cuda.synchronize()
    opened.devices[0].lost = 700
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"cuda:0 has failed .* in cuDevicePrimaryCtxRetain; .* in a new process"):
            sg.cuda.reset()
    assert not sg.cuda.is_available()
    assert "a new process" in sg.cuda.why_unavailable()
    assert float(sg.ones(3).sum()) == 3


def test_memory_errors_of_the_library_are_those_of_python(opened: FakeDriver) -> None:
    opened.devices[0].total_bytes = 10_000
    x = sg.ones(3, device="cuda")
    with pytest.raises(MemoryError, match=r"cuda: 12,000 bytes are needed and [\d,]+ of 10,000 are free on cuda:0"):
        sg.zeros(3000, device="cuda")
    with pytest.raises(OutOfMemoryError):
        sg.zeros(3000, device="cuda")
    assert x.tolist() == [1, 1, 1]
