"""A library's products in CUDA graphs, and the times of launches, with a driver that keeps a graph as a list."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from column_blas import CALL, ColumnBlas, FakeGPU, stream

from staticgrad.graph.errors import DeviceError
from staticgrad.kernels.cuda.cublas import Cublas, StatusError
from staticgrad.kernels.cuda.hardware import Bound, BoundLaunch
from staticgrad.kernels.cuda.launch_graph import Function, LaunchGraph
from staticgrad.kernels.cuda.library import BoundProduct


class Driver:
    """The driver's graphs, as far as sequences use them: a graph is the list of what it does."""

    CUDA_KERNEL_NODE_PARAMS = SimpleNamespace
    CUstreamCaptureMode = staticmethod(lambda mode: mode)

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.refuse_updates = False
        self.interrupted = 0  # captures that another thread ends by waiting for the whole GPU

    def cuGraphExecChildGraphNodeSetParams(self, executable: Any, node: int, part: Any) -> tuple[int]:  # noqa: N802
        if self.refuse_updates:
            return (910,)
        executable[node] = list(part)
        return (0,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        captured = [entry for entry in self.log if isinstance(entry, tuple)]
        self.log = []
        if self.interrupted:
            self.interrupted -= 1
            return 901, None
        return 0, captured

    def __call__(self, name: str, *arguments: Any) -> Any:
        answer: Callable[..., Any] | None = getattr(self, f"_{name}", None)
        return answer(*arguments) if answer is not None else self.log.append(name)

    def error(self, name: str, code: int) -> DeviceError:
        return DeviceError(f"{name}: {code}")

    def _cuStreamCreate(self, flags: int) -> int:  # noqa: N802
        return 9

    def _cuGraphCreate(self, flags: int) -> Any:  # noqa: N802
        return []

    def _cuGraphAddKernelNode(self, graph: Any, after: Any, count: int, parameters: Any) -> int:  # noqa: N802
        assert list(after) == list(range(len(graph)))[-1:]
        graph.append(parameters.func)
        return len(graph) - 1

    def _cuGraphAddChildGraphNode(self, graph: Any, after: Any, count: int, part: Any) -> int:  # noqa: N802
        assert list(after) == list(range(len(graph)))[-1:]
        graph.append(list(part))
        return len(graph) - 1

    def _cuGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        return list(graph)

    def cuGraphLaunch(self, executable: Any, stream: int) -> tuple[int]:  # noqa: N802
        self.log.append(("graph", stream, [*executable]))
        return (0,)

    def _cuLaunchKernel(self, function: Any, *arguments: Any) -> None:  # noqa: N802
        self.log.append(("kernel", function))


class _Recorder(ColumnBlas):
    """Logs products where the driver logs kernels, as a stream does."""

    driver: Driver
    workspace = 0

    def set_workspace(self, handle: int, address: int, nbytes: int) -> None:
        self.workspace = address

    def gemm_ex_64(self, handle: int, *arguments: int) -> None:
        stream = self.queued[-1][2]
        self.driver.log.append(("product", stream, self.workspace, arguments[13]))  # c


class DrivenGPU(FakeGPU):
    """A GPU with the driver above."""

    def __init__(self) -> None:
        super().__init__()
        self.given_back: list[str] = []
        self.driver = Driver()
        self.call = self.driver
        self.blas = _Recorder(self.memory)
        self.blas.driver = self.driver
        self._library = Cublas(self, self.blas)  # type: ignore[arg-type, assignment]

    def give_back(self, *calls: tuple[Any, ...]) -> None:
        self.given_back += [name for name, *_ in calls]


def _sequence(gpu: DrivenGPU) -> LaunchGraph:
    kernels = [BoundLaunch(Function(name, None), [place], 1, 1) for place, name in enumerate("fg")]  # type: ignore[arg-type]
    launches: list[Bound] = [kernels[0], BoundProduct(CALL, [10, 20, 30]), kernels[1]]
    return LaunchGraph(gpu, launches)  # type: ignore[arg-type]


def _played(gpu: DrivenGPU, sequence: LaunchGraph) -> list[Any]:
    gpu.driver.log = []
    sequence.run()
    return gpu.driver.log


def test_products_become_parts_of_the_graph_in_order() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    first = _played(gpu, sequence)
    space = gpu.stream.workspace.address
    assert first == [("kernel", "f"), ("product", 5, space, 30), ("kernel", "g")]
    assert _played(gpu, sequence)[-1] == ("graph", 5, ["f", [("product", 9, space, 30)], "g"])
    assert _played(gpu, sequence) == [("graph", 5, ["f", [("product", 9, space, 30)], "g"])]  # nothing captured again


def test_new_addresses_and_another_streams_workspace_reach_the_graph() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    for _ in range(2):
        sequence.run()
    space = gpu.stream.workspace.address
    sequence.set_address(1, 2, 31)
    assert _played(gpu, sequence)[-1] == ("graph", 5, ["f", [("product", 9, space, 31)], "g"])
    other, gpu._stream = gpu.stream, stream(6)
    found = _played(gpu, sequence)[-1]
    assert gpu.stream.workspace.address != other.workspace.address == space
    assert found == ("graph", 6, ["f", [("product", 9, gpu.stream.workspace.address, 31)], "g"])


def test_where_the_library_does_something_else_the_graph_is_made_again() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    for _ in range(2):
        sequence.run()
    gpu.driver.refuse_updates = True
    sequence.set_address(1, 2, 32)
    found = _played(gpu, sequence)
    assert found[-1] == ("graph", 5, ["f", [("product", 9, gpu.stream.workspace.address, 32)], "g"])
    assert gpu.given_back == ["cuGraphExecDestroy", "cuGraphDestroy"]


def test_a_capture_ends_where_the_library_fails() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    sequence.run()

    def refuse(*arguments: Any) -> None:
        refused.append(arguments)
        raise StatusError(14)

    refused: list[Any] = []
    gpu.blas.gemm_ex_64 = refuse  # type: ignore[method-assign]
    gpu.driver.interrupted = 1
    with pytest.raises(DeviceError, match="CUBLAS_STATUS_INTERNAL_ERROR"):
        sequence.run()
    assert len(refused) == 2
    assert gpu.driver.log == []  # what ends a capture empties it


def test_a_capture_that_another_thread_has_ended_is_made_again() -> None:
    gpu = DrivenGPU()
    sequence = _sequence(gpu)
    sequence.run()
    gpu.driver.interrupted = 2
    space = gpu.stream.workspace.address
    assert _played(gpu, sequence)[-1] == ("graph", 5, ["f", [("product", 9, space, 30)], "g"])
    sequence.set_address(1, 2, 31)
    gpu.driver.interrupted = 100
    with pytest.raises(DeviceError, match="cuStreamEndCapture: 901"):
        sequence.run()


def test_times_are_the_median_of_several_measurements_of_one_run() -> None:
    from staticgrad.kernels.cuda.timing import COPIES, seconds_of

    milliseconds = iter([0.9, 8.0, 2.0, 4.0, 2.0, 6.0])  # the first run by itself, then two runs each time
    runs: list[int] = []
    answers = {"cuEventCreate": lambda flags: "event", "cuEventElapsedTime": lambda *events: next(milliseconds)}
    sequence = SimpleNamespace(run=lambda: runs.append(1))
    gpu: Any = SimpleNamespace(
        sequence=lambda launches: sequence if len(launches) == COPIES else None,
        stream=SimpleNamespace(handle=1),
        call=lambda name, *arguments: answers.get(name, lambda *rest: None)(*arguments),
    )
    assert seconds_of(gpu, [BoundProduct(CALL, [1, 2, 3])]) == pytest.approx(0.004 / 2 / COPIES)
    assert len(runs) == 3 + 1 + 5 * 2
