"""One step of a lowered program: a launch with its addresses, what it touches, and the groups that it computes."""

from __future__ import annotations

from dataclasses import dataclass

from staticgrad.kernels.addresses import Address
from staticgrad.kernels.cuda.dependencies import Touched
from staticgrad.kernels.cuda.library import ProductCall
from staticgrad.kernels.kernel import Kernel


@dataclass(frozen=True)
class Step:
    """One launch with its addresses, or a product of a library, which has no kernel.

    Attributes:
        name: the kernel's symbol, or the library's name.
        touched: the bytes that it reads and writes.
        blocks: for each group of the plan how many of its blocks, or of the turns of its one block, work for it; the
            copies at the end count as one more group.
    """

    name: str
    addresses: tuple[Address, ...]
    touched: tuple[Touched, ...]
    blocks: dict[int, int]
    kernel: Kernel | None = None
    grid: int = 0
    block: int = 0
    product: ProductCall | None = None

    @property
    def symbol(self) -> str:
        """The kernel's symbol; empty for a library's product."""
        return self.kernel.symbol if self.kernel is not None else ""
