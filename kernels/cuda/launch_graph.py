"""Launches as one CUDA graph, and the machine code that they start."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from staticgrad.kernels.cuda.hardware import Bound, BoundLaunch, LaunchSequence
from staticgrad.kernels.cuda.library import BoundProduct
from staticgrad.kernels.cuda.product_nodes import ProductNodes

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.gpu import GPU
    from staticgrad.kernels.cuda.stream import Stream


class Module:
    """Machine code in a GPU's memory, which is given back when none of its functions is held any more."""

    def __init__(self, gpu: GPU, code: bytes) -> None:
        self._gpu = gpu
        self._handle = gpu.call("cuModuleLoadData", code)

    def function(self, symbol: str) -> Function:
        """One of its kernels."""
        return Function(self._gpu.call("cuModuleGetFunction", self._handle, symbol.encode()), self)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):  # code must not go while it runs
            waits = [("cuStreamSynchronize", stream) for stream in tuple(self._gpu.streams)]
            self._gpu.give_back(*waits, ("cuModuleUnload", self._handle))


class Function(NamedTuple):
    """A kernel that can be launched, and the module that it lives in."""

    handle: Any
    module: Module


class LaunchGraph(LaunchSequence):
    """Launches with packed arguments, that are started one by one at first and as one CUDA graph from then on.

    The first run loads the kernels and shows what fails. Later an address that differs from the last run's, such as
    that of a result which belongs to the caller, is changed in the graph; nothing is captured again.

    Args:
        after: for each launch those that it waits for in the graph, so that others run beside it; None where each waits
            for the one before it.
    """

    def __init__(self, gpu: GPU, launches: Sequence[Bound], after: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__(list(launches), set(range(len(launches))))
        self._gpu = gpu
        self._after = [range(max(0, n - 1), n) for n in range(len(launches))] if after is None else after
        ends = [0]
        for one in launches:
            ends.append(ends[-1] + len(one.addresses))
        self._values = (ctypes.c_uint64 * (ends[-1] + 1))()  # every argument of every launch
        start = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_uint64 * len(self._values))(*range(start, start + 8 * len(self._values), 8))
        self._ends = ends
        self._plain = [
            self._plain_arguments(number, one) if isinstance(one, BoundLaunch) else None
            for number, one in enumerate(launches)
        ]
        self._products = ProductNodes(gpu, launches)
        self._ran = False
        self._graph: Any = None  # the executable graph knows its nodes by those of the graph that it was made from
        self._executable: Any = None
        self._nodes: list[tuple[Any, Any]] = []  # of each launch: the node, and its parameters
        self._launch_graph = gpu.driver.cuGraphLaunch

    def run(self) -> None:
        gpu = self._gpu
        stream = gpu.stream
        if self._products.moved(stream):
            self.changed |= self._products.numbers
        if self.changed:
            self._update()
        if self._executable is None:
            if not self._ran or len(self.launches) < 2:
                self._start(0, len(self.launches), stream)
                self._ran = True
                return
            self._capture()
        (code,) = self._launch_graph(self._executable, stream.handle)
        if code:
            raise gpu.call.error("cuGraphLaunch", code)

    def run_timed(self, ends: Sequence[int]) -> list[float]:
        call, stream = self._gpu.call, self._gpu.stream
        self._update()
        events = [call("cuEventCreate", 0) for _ in range(len(ends) + 1)]
        try:
            call("cuEventRecord", events[0], stream.handle)
            for first, end, event in zip([0, *ends], ends, events[1:], strict=False):
                self._start(first, end, stream)
                call("cuEventRecord", event, stream.handle)
            call("cuStreamSynchronize", stream.handle)
            return [call("cuEventElapsedTime", begin, end) * 1e-3 for begin, end in pairwise(events)]
        finally:
            self._gpu.give_back(*(("cuEventDestroy", event) for event in events))

    def _update(self) -> None:
        """Take over the addresses that have changed, also into the graph."""
        for number in self.changed:
            addresses: Any = self.launches[number].addresses
            self._values[self._ends[number] : self._ends[number + 1]] = addresses
            if self._executable is not None and not self._update_node(number):
                self._forget()
        self.changed.clear()

    def _update_node(self, number: int) -> bool:
        """Change the addresses of a launch in the graph; False where only another graph can have them."""
        (node, parameters), one = self._nodes[number], self.launches[number]
        if isinstance(one, BoundProduct):
            return self._products.update(self._executable, node, one)
        self._gpu.call("cuGraphExecKernelNodeSetParams", self._executable, node, parameters)
        return True

    def _start(self, first: int, end: int, stream: Stream) -> None:
        """Start launches one by one."""
        for one, plain in zip(self.launches[first:end], self._plain[first:end], strict=True):
            if isinstance(one, BoundProduct):
                self._products.run(one)
            elif plain is not None:
                self._gpu.call("cuLaunchKernel", *plain[0], stream.handle, *plain[1])

    def _plain_arguments(self, number: int, one: BoundLaunch) -> tuple[tuple[Any, ...], tuple[int, int]]:
        """What cuLaunchKernel takes before the stream and after it."""
        return (one.function.handle, one.grid, 1, 1, one.block, 1, 1, 0), (self._arguments(number), 0)

    def _arguments(self, number: int) -> int:
        """The address of the pointers to the arguments of a launch."""
        return ctypes.addressof(self._pointers) + 8 * self._ends[number]

    def _capture(self) -> None:
        """Make the graph: each launch after those that it waits for."""
        call = self._gpu.call
        graph = call("cuGraphCreate", 0)
        try:
            nodes: list[tuple[Any, Any]] = []
            for number, one in enumerate(self.launches):
                after = [nodes[other][0] for other in self._after[number]]
                if isinstance(one, BoundProduct):
                    nodes.append((self._products.add(graph, after, one), None))
                    continue
                parameters = self._node_parameters(number, one)
                nodes.append((call("cuGraphAddKernelNode", graph, after, len(after), parameters), parameters))
            executable = call("cuGraphInstantiate", graph, 0)
        except BaseException:
            self._gpu.give_back(("cuGraphDestroy", graph))
            raise
        self._graph, self._nodes, self._executable = graph, nodes, executable

    def _node_parameters(self, number: int, one: BoundLaunch) -> Any:
        parameters = self._gpu.driver.CUDA_KERNEL_NODE_PARAMS()
        parameters.func = one.function.handle
        parameters.gridDimX, parameters.gridDimY, parameters.gridDimZ = one.grid, 1, 1
        parameters.blockDimX, parameters.blockDimY, parameters.blockDimZ = one.block, 1, 1
        parameters.sharedMemBytes = 0
        parameters.kernelParams = self._arguments(number)
        return parameters

    def _forget(self) -> None:
        """Be without a graph, until one is made again."""
        self._give_back()
        self._graph, self._executable, self._nodes = None, None, []

    def __del__(self) -> None:
        if getattr(self, "_executable", None) is not None:
            self._give_back()

    def _give_back(self) -> None:  # a graph that runs goes when it is done
        self._gpu.give_back(("cuGraphExecDestroy", self._executable), ("cuGraphDestroy", self._graph))
