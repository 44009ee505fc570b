"""What a driver can do: the steps of a program, with the addresses they work on.

A step runs on one thread, or is shared: then every thread runs it on its part of the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from staticgrad.kernels.addresses import Address, Argument
from staticgrad.kernels.products import StoredProduct


@dataclass(frozen=True, slots=True)
class KernelCall:
    """Call `void symbol(void *, ...)` with the given addresses.

    Attributes:
        extent: turns of the kernel's outermost loop; then two `int64_t` follow the addresses: the turns [begin, end)
            to make. 0 for a kernel that always makes them all and takes addresses only.
        grain: how many turns must stay together, so that no two threads write to one cache line.
        joins: pass 0 and the number of threads instead, for a kernel that joins what the threads have left.
        numbers: more `int64_t` after those two.
    """

    symbol: str
    addresses: tuple[Address, ...]
    extent: int = 0
    grain: int = 1
    joins: bool = False
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Gemm:
    """A matrix product by BLAS, with the addresses of its matrices."""

    product: StoredProduct
    a: Address
    b: Address
    c: Address


@dataclass(frozen=True, slots=True)
class Fill:
    """Set `bytes` bytes to `byte`: 0 clears an accumulator, 0xFF poisons a freed slot with NaN."""

    address: Address
    bytes: int
    byte: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `bytes` bytes between two buffers that do not overlap."""

    source: Address
    destination: Address
    bytes: int


Work = KernelCall | Gemm | Fill | Copy


@dataclass(frozen=True, slots=True)
class Owned:
    """Work that thread number `thread`, modulo the number of threads, does alone."""

    work: Work
    thread: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """Nobody goes on before all threads have come here."""


@dataclass(frozen=True, slots=True)
class Check:
    """End the run here if the 64-bit status word of any thread is not zero. All meet here as at a barrier."""

    status: Argument


Step = Work | Owned | Barrier | Check
