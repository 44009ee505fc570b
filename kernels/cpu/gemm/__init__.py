"""Matrix products generated for their shape: loops over tiles of registers, with what follows them done in place.

The tiles follow "BLIS: a framework for rapidly instantiating BLAS functionality" (F. van Zee and R. van de Geijn, ACM
Transactions on Mathematical Software 41, 2015), less its blocking for caches: shapes are small, sizes constant.
"""

from staticgrad.kernels.cpu.gemm.epilogue import Epilogue, emit, number
from staticgrad.kernels.cpu.gemm.kernel import gemm_ir
from staticgrad.kernels.cpu.gemm.product import Product, Side, extent, grain, scratch_bytes

__all__ = ["Epilogue", "Product", "Side", "emit", "extent", "gemm_ir", "grain", "number", "scratch_bytes"]
