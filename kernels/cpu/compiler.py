"""From a graph to what a program is made of: fuse, schedule, plan, lower, compile the kernels, link."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache as remembered
from typing import Any

from staticgrad.graph.node import Graph
from staticgrad.graph.plan import Plan
from staticgrad.graph.timeline import stage
from staticgrad.kernels.cache import DiskCache, content_key
from staticgrad.kernels.cpu import native
from staticgrad.kernels.cpu.host import host_key, toolchain_key
from staticgrad.kernels.cpu.lower import lower
from staticgrad.kernels.kernel import Kernel
from staticgrad.kernels.planning import facts_of, planned

_kernel_code: dict[str, str] = {}  # IR of kernels compiled or loaded by this process, by symbol
_kernel_lock = threading.Lock()


def compiled(graph: Graph, *, reuse: bool, poison: bool, cache: DiskCache | None) -> tuple[dict[str, Any], bytes, Plan]:
    """What a program knows of itself, its native code for `native.load`, and its plan; arguments as `compile_graph`."""
    plan = planned(graph, reuse=reuse)
    with stage("lower"):
        lowered = lower(graph, plan, poison=poison, cache=cache)
    with stage("kernels"):
        kernels = {symbol: code_of(kernel, cache) for symbol, kernel in lowered.kernels.items()}
        kernels |= {symbol: product.llvm() for symbol, product in lowered.products.items()}
    with stage("link"):
        code = native.build(kernels, lowered.steps, parallel=lowered.parallel)
    facts = facts_of(graph, plan, reuse=reuse, own_bytes=lowered.own_bytes, errors=lowered.errors, calls=lowered.names)
    facts["sources"] = {symbol: kernel.source for symbol, kernel in lowered.kernels.items()} | {
        symbol: product.source for symbol, product in lowered.products.items() if product.source
    }
    return facts, code, plan


def code_of(kernel: Kernel, cache: DiskCache | None) -> str:
    """The IR of a kernel: from this process, from the disk, or compiled."""
    symbol = kernel.symbol
    with _kernel_lock:
        if symbol not in _kernel_code:
            key = content_key(symbol, host_key(), toolchain_key())
            found = cache.get("kernel", key) if cache is not None else None
            if found is None:
                found = kernel_llvm(kernel).encode()
                if cache is not None:
                    cache.put("kernel", key, found)
            _kernel_code[symbol] = found.decode()
        return _kernel_code[symbol]


def kernel_llvm(kernel: Kernel) -> str:
    """Compile a kernel to LLVM IR. This is the one place that imports Numba, and a cached program never gets here."""
    from staticgrad.kernels.cpu.numba_bridge import kernel_ir

    namespace: dict[str, Any] = dict(_names())
    exec(compile(kernel.source, f"<{kernel.symbol}>", "exec"), namespace)
    return kernel_ir(namespace["kernel"], kernel.dtypes, kernel.symbol, numbers=kernel.numbers)


@remembered
def _names() -> Mapping[str, Any]:
    """What a kernel's source may use."""
    import numba

    from staticgrad.kernels.accumulate import larger, smaller
    from staticgrad.kernels.source_names import names_with

    return names_with(numba) | {"larger": larger, "smaller": smaller}
