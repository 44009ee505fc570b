"""Seconds from Python function to plan for chains of 10,000 and 100,000 ops: `python -m benchmarks.scale`.

Each chain is a function of one tensor with its gradient. The stages are timed one after the other in one process, the
lengths in turn, and the median of the rounds is kept: `forward` runs the function on traced Tensors, `backward`
appends the derivative's nodes, then come `rewrite`, `fuse`, `order` and `make_plan`. The garbage collector is paused,
as in `sg.compile`. Written to `benchmarks/results/scale.json` with the ratio of the two lengths' totals; linear is 10.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import staticgrad as sg
from staticgrad.capture import Capture
from staticgrad.collector import collection_paused
from staticgrad.graph.fusion import fuse
from staticgrad.graph.node import Graph, Spec
from staticgrad.graph.plan import make_plan
from staticgrad.graph.rewrite import rewrite
from staticgrad.graph.schedule import order
from staticgrad.tensor import Tensor

RESULTS = Path(__file__).parent / "results" / "scale.json"
LENGTHS = (10_000, 100_000)
STAGES = ("forward", "backward", "rewrite", "fuse", "order", "plan")


def chain_of_tanh(x: Tensor, length: int) -> Tensor:
    """tanh of tanh of …: every value is needed again by the backward pass."""
    for _ in range(length):
        x = sg.tanh(x)
    return sg.sum(x)


def pendulum(x: Tensor, length: int) -> Tensor:
    """Steps of a symplectic integrator, four ops each: two states that read each other."""
    q, p = x, x * 0.0
    for _ in range(length // 4):
        q = q + p * 0.05
        p = p - sg.sin(q)
    return sg.sum(q)


def layers(x: Tensor, length: int) -> Tensor:
    """Products with one matrix, tanh and a sum over a row after each: many kernels."""
    for _ in range(length // 4):
        x = sg.tanh(sg.matmul(x, x)) + sg.sum(x, axis=1, keepdims=True)
    return sg.sum(x)


CHAINS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tanh": chain_of_tanh,
    "pendulum": pendulum,
    "layers": layers,
}


def timed_stages(chain: Callable[[Tensor, int], Tensor], length: int) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each stage, and how many nodes, kernels and bytes came out."""
    clock = time.perf_counter
    held = Capture()
    marks = [clock()]
    with held:
        x = Tensor(held.argument(0, Spec((8, 8), np.dtype(np.float32)), "x"))
        x.requires_grad_()
        out = chain(x, length)
        marks.append(clock())
        out.backward()
        assert x.grad is not None
        graph: Graph = held.graph([held.node_of(out), held.node_of(x.grad)], [])
    marks.append(clock())
    graph = rewrite(graph)
    marks.append(clock())
    groups = fuse(graph)
    marks.append(clock())
    groups = order(graph, groups)
    marks.append(clock())
    plan = make_plan(graph, groups)
    marks.append(clock())
    seconds = {stage: marks[i + 1] - marks[i] for i, stage in enumerate(STAGES)}
    return seconds, {"nodes": len(graph.nodes), "kernels": len(groups), "arena_bytes": plan.peak_bytes}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """The medians of one chain at both lengths, and the ratio of their totals."""
    found: dict[int, list[dict[str, float]]] = {length: [] for length in LENGTHS}
    sizes = {}
    for _ in range(rounds):
        for length in LENGTHS:
            gc.collect()
            with collection_paused:
                seconds, sizes[length] = timed_stages(CHAINS[name], length)
            found[length].append(seconds)
    lengths = {}
    for length in LENGTHS:
        stages = {stage: round(median(run[stage] for run in found[length]), 4) for stage in STAGES}
        total = median(sum(run.values()) for run in found[length])
        lengths[str(length)] = {**sizes[length], "seconds": {**stages, "total": round(total, 4)}}
    short, long = (lengths[str(length)]["seconds"]["total"] for length in LENGTHS)
    return {"lengths": lengths, "ratio": round(long / short, 2)}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chains", nargs="*", default=list(CHAINS), choices=list(CHAINS))
    options = parser.parse_args()
    results = {}
    for name in options.chains:
        results[name] = measure(name, options.rounds)
        for length, row in results[name]["lengths"].items():
            print(name, length, row, flush=True)
        print(name, "ratio", results[name]["ratio"], flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
