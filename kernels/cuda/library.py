"""What is asked of a library of matrix products, and how a program calls it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass, field

from staticgrad.graph.node import Graph
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.kernel import Operand
from staticgrad.kernels.products import MatrixProduct, StoredProduct

DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class ProductCall(StoredProduct):
    """A product as the library is asked for it.

    Attributes:
        precision: see `precision.PRECISIONS`; of float32 only, else the dtype.
    """

    precision: str = field(kw_only=True)

    @classmethod
    def of(cls, product: MatrixProduct, precision: str) -> ProductCall:
        """A product with its factors rounded to a precision."""
        stored = product.stored
        return cls(*astuple(stored), precision=precision if stored.dtype == "float32" else stored.dtype)


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
    return matrices and product.dtype.name in DTYPES and product.stored.multiplications >= target.library_from


__all__ = ["BoundProduct", "Library", "LibraryLaunch", "ProductCall", "asks", "may_ask"]
