"""Compiles kernels for GPUs that need not be there, and prints what each takes: run by `test_machine_code.py`.

    python machine_code.py ops|models|shapes|lengths

It is a program of its own because Numba is either its CUDA compiler or its simulator for a whole process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "graph"), str(HERE.parents[1] / "staticgrad")]

import numpy as np  # noqa: E402
from builder import Builder  # noqa: E402
from models import MODELS  # noqa: E402

import staticgrad as sg  # noqa: E402
from staticgrad.graph.node import Graph  # noqa: E402
from staticgrad.graph.op import Op, registry  # noqa: E402
from staticgrad.graph.rewrite import rewrite  # noqa: E402
from staticgrad.kernels.cuda import toolkit  # noqa: E402
from staticgrad.kernels.cuda.any_length import AnyLength, Way  # noqa: E402
from staticgrad.kernels.cuda.compiler import planned  # noqa: E402
from staticgrad.kernels.cuda.lower import Step, lower  # noqa: E402
from staticgrad.kernels.cuda.target import Target  # noqa: E402
from staticgrad.kernels.kernel import Kernel  # noqa: E402

CAPABILITIES = ((8, 0), (9, 0))


def samples(op: Op) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Operands and attributes of an op, one of each dtype that it may take."""
    if op.samples is not None:
        return [(tuple(map(np.asarray, sample.operands)), dict(sample.attributes)) for sample in op.samples()]
    found = []
    for dtype in ("float32", "float64") if op.domain else ("bool", "uint8", "int32", "int64"):
        arrays = [np.zeros((64, 48) if i == 0 else (48,), bool if name == "condition" else dtype)
                  for i, name in enumerate(op.operands)]  # fmt: skip
        found.append((tuple(arrays), {"dtype": np.dtype("int32")} if op.name == "cast" else {}))
    return found


def graphs_of_ops() -> Iterator[Graph]:
    """Every op by itself."""
    for name, op in registry.items():
        for arrays, attributes in samples(op) if op.kind != "leaf" and op.operands else ():
            b = Builder()
            try:
                out = b(name, *(b.argument(array.shape, array.dtype) for array in arrays), **attributes)
            except TypeError:  # a dtype that the op does not take
                continue
            yield rewrite(b.graph(out))


def graphs_of_models() -> Iterator[Graph]:
    """Whole trainings, of some of the models: together they have every kind of layer."""
    for model in MODELS[::3]:
        sg.random.manual_seed(3)
        trial = model.build()
        step = sg.compile(trial.step)
        step(*trial.batches[0])
        yield step.last.captured.graph


def graphs_of_shapes() -> Iterator[Graph]:
    """Rows and sums, short and long, with few results and with many."""
    for rows, size in (
        (8, 5),
        (4096, 10),
        (512, 333),
        (256, 4096),
        (8192, 1000),
        (16, 100_000),
        (64, 50_257),
        (100_000, 3),
    ):
        b = Builder()
        x, w = b.argument((rows, size)), b.argument((size,))
        largest = b("reshape", b("max", x, axis=(1,)), shape=(rows, 1))
        powers = b("exp", b("sub", x, largest))
        soft = b("div", powers, b("reshape", b("sum", powers, axis=(1,)), shape=(rows, 1)))
        scaled = b("mul", soft, w)
        loss = b("sum", b("sum", scaled, axis=(1,)), axis=(0,))
        yield b.graph(scaled, loss, b("sum", scaled, axis=(0,)), b("argmax", x, axis=(1,)))


def kernels_of_any_length() -> Iterator[Kernel]:
    """The elementwise ops one by one, with operands that lie in each of the ways."""
    turns = [Way("each"), Way("number"), Way("cycle"), Way("run"), Way("one"), Way("block", False), Way("cycle", False)]
    for op in registry.values():
        for shift, (arrays, attributes) in enumerate(samples(op) if op.kind == "elementwise" else ()):
            dtypes = tuple(array.dtype for array in arrays)
            ways = tuple(turns[(shift + number) % len(turns) if number else 0] for number in range(len(dtypes)))
            try:
                yield AnyLength(op, dtypes, ways, tuple(attributes.items()), shift % 2 == 0).kernel(Target())
            except TypeError:  # a dtype that the op does not take
                continue
    add = registry["add"]
    for way in turns[2:]:
        for dtype in ("float32", "float64"):
            for narrow in (True, False):
                yield AnyLength(add, (np.dtype(dtype),) * 2, (Way("each"), way), (), narrow).kernel(Target())


def main(what: str) -> None:
    """Print each kernel's resources on each GPU, as JSON."""
    kernels: dict[str, Kernel] = {}
    blocks: dict[str, int] = {}
    graphs = {"ops": graphs_of_ops, "models": graphs_of_models, "shapes": graphs_of_shapes}
    for kernel in kernels_of_any_length() if what == "lengths" else ():
        kernels[kernel.symbol], blocks[kernel.symbol] = kernel, Target().block
    for graph in graphs[what]() if what in graphs else ():
        lowered = lower(graph, planned(graph, reuse=True), Target(), poison=True)
        kernels |= lowered.kernels
        blocks |= {step.symbol: step.block for step in lowered.steps if isinstance(step, Step)}
    found = []
    for capability in CAPABILITIES:
        texts = [toolkit.ptx_of(kernel, capability) for kernel in kernels.values()]
        resources = toolkit.linked(texts, capability)[1]
        for symbol, kernel in kernels.items():
            told = {"on": capability, "block": blocks[symbol], "source": kernel.source}
            found.append({**told, **asdict(resources[symbol])})
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
