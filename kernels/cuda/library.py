"""What is asked of a library of matrix products, and how a program calls it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from staticgrad.graph.node import Graph
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Operand
from staticgrad.kernels.products import MatrixProduct

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class ProductCall:
    """`c = a @ b` on row-major matrices of shape (m, k), (k, n) and (m, n), `batch` times.

    With `transpose_a` a lies in memory as (k, m), and with `transpose_b` b as (n, k). A leading dimension is the
    distance between rows as stored, and a stride that between matrices of the batch, 0 for one that all share.

    Attributes:
        precision: see `precision.PRECISIONS`; of float32 only.
    """

    dtype: str
    precision: str
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    lda: int
    ldb: int
    ldc: int
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0

    @classmethod
    def of(cls, product: MatrixProduct, precision: str) -> ProductCall:
        """A product as the library is asked for it."""
        a, b, c = product.a, product.b, product.c
        dtype = product.dtype.name
        precision = precision if dtype == "float32" else dtype
        strides = (a.stride, b.stride, c.stride) if product.batch > 1 else (0, 0, 0)
        flags = (a.transposed, b.transposed)
        leading = (a.leading, b.leading, c.leading)
        return cls(dtype, precision, product.m, product.n, product.k, *flags, *leading, product.batch, *strides)


@dataclass(frozen=True)
class LibraryLaunch:
    """A product with its operands, a, b and c: what a `Launch` is for a kernel."""

    call: ProductCall
    operands: tuple[Operand, Operand, Operand]


@dataclass
class BoundProduct:
    """A product with addresses of this process, in the order a, b, c: what a `BoundLaunch` is for a kernel."""

    call: ProductCall
    addresses: list[int]


class Library(ABC):
    """A library of matrix products on one GPU.

    Attributes:
        name: what programs call its products.
        version: a part of the key of programs that may use it.
    """

    name: str
    version: str

    @abstractmethod
    def run(self, product: BoundProduct) -> None:
        """Queue a product on the current stream."""


def may_ask(graph: Graph, target: Target) -> bool:
    """Whether some product of a graph may be worth asking a library for."""
    return any(
        node.op.name == "matmul"
        and node.dtype.name in DTYPES
        and node.size * max(node.operands[0].shape[-2:]) >= target.library_from
        for node in graph.nodes
    )


def asks(product: MatrixProduct, target: Target) -> bool:
    """Whether a library may be faster at a product than a kernel of ours."""
    matrices = min(product.m, product.n, product.k) > 1
    return matrices and product.dtype.name in DTYPES and product.multiplications >= target.library_from


def packed(call: ProductCall) -> list[Any]:
    """A product as JSON has it; `ProductCall(*packed(call))` is the product again."""
    return list(vars(call).values())


__all__ = ["BoundProduct", "Library", "LibraryLaunch", "ProductCall", "asks", "may_ask", "packed"]
