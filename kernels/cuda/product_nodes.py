"""A library's products in a sequence of launches: as calls at first, and as parts of a CUDA graph from then on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from staticgrad.kernels.cuda.library import BoundProduct

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.cublas import Cublas
    from staticgrad.kernels.cuda.gpu import GPU
    from staticgrad.kernels.cuda.hardware import Bound
    from staticgrad.kernels.cuda.stream import Stream


class ProductNodes:
    """The products of one sequence of launches, each a node that holds the graph of what the library does.

    Attributes:
        numbers: which of the launches they are.
    """

    def __init__(self, gpu: GPU, launches: Sequence[Bound]) -> None:
        self._gpu = gpu
        self.numbers = {number for number, one in enumerate(launches) if isinstance(one, BoundProduct)}
        self._workspace = 0  # of the stream of the last run

    @property
    def _library(self) -> Cublas:
        assert self._gpu.library is not None
        return self._gpu.library

    def moved(self, stream: Stream) -> bool:
        """Whether products work in other memory than at the last call, because they run on another stream."""
        if not self.numbers:
            return False
        before, self._workspace = self._workspace, self._library.workspace(stream)
        return before != self._workspace

    def run(self, product: BoundProduct) -> None:
        """Start a product by itself."""
        self._library.run(product)

    def add(self, graph: Any, after: Sequence[Any], product: BoundProduct) -> Any:
        """The node of a product, new in a graph."""
        part = self._library.captured(product)
        try:
            return self._gpu.call("cuGraphAddChildGraphNode", graph, list(after), len(after), part)  # copies the part
        finally:
            self._gpu.call("cuGraphDestroy", part)

    def update(self, executable: Any, node: Any, product: BoundProduct) -> bool:
        """Give a product its new addresses; False where the library does something else for them."""
        part = self._library.captured(product)
        try:
            (code,) = self._gpu.driver.cuGraphExecChildGraphNodeSetParams(executable, node, part)
        finally:
            self._gpu.call("cuGraphDestroy", part)
        return not int(code)


__all__ = ["ProductNodes"]
