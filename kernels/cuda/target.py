"""What kernels are generated for: how many threads work together, and how many groups of them there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A GPU as the generators see it. The simulator has a small one, so that few threads show every case.

    Attributes:
        warp: threads that run in step and can exchange values without a barrier; a power of two.
        block: threads of a block, at most a power of two.
        largest_block: threads of a block that works on one long row.
        processors: multiprocessors; each holds several blocks at a time.
        small: points up to which one block does all the work of a group, so that it is one launch.
        library_from: multiplications of a matrix product from which a library is asked for it.
    """

    warp: int = 32
    block: int = 256
    largest_block: int = 1024
    processors: int = 132
    small: int = 8192
    library_from: int = 2**20

    @property
    def blocks(self) -> int:
        """Blocks that keep every multiprocessor busy."""
        return 8 * self.processors


VECTOR_BYTES = 16  # the widest access to memory of one thread
