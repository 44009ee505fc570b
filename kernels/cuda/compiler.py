"""From a graph to what a program for a GPU is made of: fuse, schedule, plan, lower, compile the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from staticgrad.graph.node import Graph
from staticgrad.graph.plan import Plan
from staticgrad.graph.timeline import stage
from staticgrad.kernels.addresses import Arena
from staticgrad.kernels.cuda.hardware import Hardware
from staticgrad.kernels.cuda.lower import for_device, lower
from staticgrad.kernels.cuda.product_choice import ProductChoice
from staticgrad.kernels.kernel import Kernel
from staticgrad.kernels.planning import facts_of
from staticgrad.kernels.planning import planned as plan_of


def planned(graph: Graph, *, reuse: bool) -> Plan:
    """The plan of a graph on a GPU: that of the CPU, but for what threads cannot do in place."""
    return plan_of(graph, reuse=reuse, adapt=for_device)


def compiled(
    graph: Graph, hardware: Hardware, choice: ProductChoice | None = None, *, reuse: bool, poison: bool
) -> tuple[dict[str, Any], bytes, Plan]:
    """What a program knows of itself, its machine code, and its plan; arguments as `program.compile_graph`."""
    plan = planned(graph, reuse=reuse)
    with stage("lower"):
        lowered = lower(graph, plan, hardware.target, poison=poison, choice=choice)
    with stage("kernels"):
        code = hardware.compile(list(lowered.kernels.values()))
    facts = facts_of(graph, plan, reuse=reuse, own_bytes=lowered.own_bytes, errors=lowered.errors, calls=lowered.names)
    facts |= {
        "identity": hardware.identity,
        "sources": {symbol: kernel.source for symbol, kernel in lowered.kernels.items()},
        "dtypes": {symbol: [dtype.name for dtype in kernel.dtypes] for symbol, kernel in lowered.kernels.items()},
        "steps": [
            (
                step.symbol,
                [
                    (None, address.offset) if isinstance(address, Arena) else (address.index, address.offset)
                    for address in step.addresses
                ],
                step.grid,
                step.block,
                asdict(step.product) if step.product is not None else None,
            )
            for step in lowered.steps
        ],
        "ends": lowered.ends,
    }
    return facts, code, plan


def kernels_of(facts: Mapping[str, Any]) -> dict[str, Kernel]:
    """The kernels of a program by symbol."""
    return {
        symbol: Kernel(facts["sources"][symbol], tuple(map(np.dtype, dtypes)))
        for symbol, dtypes in facts["dtypes"].items()
    }
