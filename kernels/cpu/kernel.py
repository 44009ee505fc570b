"""A kernel: generated Python source over raw pointers, its identity, and the names it may use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

from staticgrad.graph.node import DType, Node


@dataclass(frozen=True)
class Kernel:
    """Source of `def kernel(p0, p1, …)` and the dtypes behind its pointers. Equal text is one kernel.

    After the pointers come `numbers` integers: none, or first the turns [begin, end) of its outermost loop.

    The source depends on positions, shapes and strides only, never on the user's names or files, so that equal groups
    of nodes give equal text.
    """

    source: str
    dtypes: tuple[DType, ...]
    numbers: int = 0

    @cached_property
    def symbol(self) -> str:
        names = " ".join(dtype.name for dtype in self.dtypes)
        return "kernel_" + hashlib.sha256(f"{self.source}\n{names}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Operand:
    """What a call passes for one pointer: a value's storage, working memory, or where errors are reported.

    Working memory is "scratch" where the plan has a place for it, and "own" where each thread has some of its own;
    "joint" is that of the first thread, which the others' follow. `node` is the owner of the storage for "storage",
    and the node that reports for "error"; `offset` is in bytes.
    """

    kind: Literal["storage", "scratch", "own", "joint", "status", "error"]
    node: Node | None = None
    offset: int = 0


@dataclass(frozen=True)
class Call:
    """A kernel with the operands of one call.

    Attributes:
        extent: turns of the outermost loop, where the kernel can be told which ones to make.
        grain: turns that should stay together when threads share them.
        own_bytes: working memory for each thread that takes part.
        joins: the calls that bring together what the threads have left in theirs.
        numbers: what a joining kernel takes after `begin` and `end`.
    """

    kernel: Kernel
    operands: tuple[Operand, ...]
    extent: int = 0
    grain: int = 1
    own_bytes: int = 0
    joins: tuple[Call, ...] = ()
    numbers: tuple[int, ...] = ()


def kernel_llvm(kernel: Kernel) -> str:
    """Compile a kernel to LLVM IR. This is the one place that imports Numba, and a cached program never gets here."""
    from staticgrad.kernels.cpu.numba_bridge import kernel_ir

    namespace: dict[str, Any] = dict(_names())
    exec(compile(kernel.source, f"<{kernel.symbol}>", "exec"), namespace)
    return kernel_ir(namespace["kernel"], kernel.dtypes, kernel.symbol, numbers=kernel.numbers)


@cache
def _names() -> Mapping[str, Any]:
    """What a kernel's source may use: the dtypes, the vector maths, the steps of reductions, checked indices."""
    import numba

    from staticgrad.kernels.cpu import accumulate, vector_math
    from staticgrad.kernels.cpu.checked_index import checked_index, checked_position

    names = {name: getattr(vector_math, name) for name in dir(vector_math) if not name.startswith("_")}
    dtypes = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
    names |= {name: getattr(numba, name) for name in dtypes}
    names |= {name: getattr(accumulate, name) for name in ("accumulate_sum", "accumulate_product", "larger", "smaller")}
    checks = {"checked_index": checked_index, "checked_position": checked_position}
    return names | checks | {"inf": float("inf"), "nan": float("nan"), "range": range}
