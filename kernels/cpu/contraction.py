"""Lowers matmul to products as BLAS knows them: transposes become flags, strided operands are read where they lie."""

from __future__ import annotations

from collections.abc import Callable

from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.kernels.addresses import Address
from staticgrad.kernels.cpu.gemm import Product
from staticgrad.kernels.cpu.steps import Fill, Gemm, Work
from staticgrad.kernels.products import MatrixProduct, products

SMALLEST = 512  # multiplications: below, calling BLAS takes longer than the product, and timing it longer still
AddressOf = Callable[[Node, int], Address]


def lower_matmul(node: Node, members: Members, address: AddressOf) -> list[Work]:
    """The steps that compute a matmul: one for each stretch of the batch that has one stride.

    Args: `address(owner, offset)` gives the address of an element of an owner's storage.
    """
    found = products(node, members)
    if found and found[0].k == 0:
        return [Fill(address(node, 0), node.nbytes)]
    return [_gemm(product, address) for product in found]


def generated_product(step: Gemm) -> Product | None:
    """What a kernel made for this product computes; None for products with vectors and numbers."""
    if min(step.m, step.n) < 2 or step.k < 1 or step.batch < 1 or step.m * step.n * step.k < SMALLEST:
        return None
    return Product(
        step.dtype, step.m, step.n, step.k, step.transpose_a, step.transpose_b, step.lda, step.ldb, step.ldc,
        step.alpha, step.beta, step.batch, step.stride_a, step.stride_b, step.stride_c,
    )  # fmt: skip


def _gemm(product: MatrixProduct, address: AddressOf) -> Gemm:
    a, b, c = product.a, product.b, product.c
    return Gemm(
        dtype=product.dtype.name,
        m=product.m,
        n=product.n,
        k=product.k,
        transpose_a=a.transposed,
        transpose_b=b.transposed,
        a=address(a.owner, a.offset),
        b=address(b.owner, b.offset),
        c=address(c.owner, c.offset),
        lda=a.leading,
        ldb=b.leading,
        ldc=c.leading,
        batch=product.batch,
        stride_a=a.stride,
        stride_b=b.stride,
        stride_c=c.stride,
    )
