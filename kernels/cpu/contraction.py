"""Lowers matmul to products as BLAS knows them: transposes become flags, strided operands are read where they lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.kernels.addresses import Address
from staticgrad.kernels.cpu.gemm import Product
from staticgrad.kernels.cpu.steps import Fill, Gemm, Work
from staticgrad.kernels.products import MatrixProduct, StoredProduct, products

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


def generated_product(stored: StoredProduct) -> Product | None:
    """What a kernel made for this product computes; None for products with vectors and numbers."""
    if min(stored.m, stored.n) < 2 or stored.k < 1 or stored.batch < 1 or stored.m * stored.n * stored.k < SMALLEST:
        return None
    return Product(*astuple(stored))


def _gemm(product: MatrixProduct, address: AddressOf) -> Gemm:
    return Gemm(product.stored, *(address(matrix.owner, matrix.offset) for matrix in (product.a, product.b, product.c)))
