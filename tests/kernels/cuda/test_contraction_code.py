"""The machine code of matrix products at their real size: registers, wide accesses, multiplications fused with sums.

A process of its own compiles, since this one has Numba's simulator in place of its compiler. No GPU is needed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from builder import Builder

from staticgrad.graph.fusion import fuse
from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.kernels.cuda import contraction
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.tiles import Division, tiles_for
from staticgrad.kernels.kernel import Kernel

GPU = Target()
COMPILE = """
import dataclasses, json, sys
import numpy as np
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.kernel import Kernel

found = {}
for name, (source, dtypes, capability) in json.load(sys.stdin).items():
    kernel = Kernel(source, tuple(map(np.dtype, dtypes)))
    text = toolkit.ptx_of(kernel, tuple(capability))
    _, resources = toolkit.linked([text], tuple(capability))
    found[name] = text, dataclasses.asdict(resources[kernel.symbol])
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True)
class Code:
    text: str
    registers: int
    spills: int
    stack: int

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.text))

    def loop(self) -> str:
        """The innermost loop: the block of the text that multiplies most."""
        blocks = re.split(r"\n\$L\w+:|\n\s*@?%?\w*\s*bra", self.text)
        return max(blocks, key=lambda block: block.count("fma.rn"))


def kernels(
    m: int, n: int, k: int, division: Division | None = None, *, a: bool = False, b: bool = False,
    dtype: str = "float32", ops: Sequence[str] = (),
) -> list[Kernel]:  # fmt: skip
    """The kernels of a product, a bias and some ops of one operand."""
    builder = Builder()
    x = builder.argument((k, m) if a else (m, k), dtype)
    y = builder.argument((n, k) if b else (k, n), dtype)
    out = node = builder("matmul", x, y, transpose_x=a, transpose_y=b)
    if ops:
        out = builder("add", out, builder.argument((n,), dtype))
    for op in ops:
        out = builder(op, out)
    return launched(builder, node, out, division)


def launched(builder: Builder, node: Node, out: Node, division: Division | None) -> list[Kernel]:
    (group,) = fuse(builder.graph(out))
    with pytest.MonkeyPatch.context() as patch:
        if division is not None:
            patch.setattr(contraction, "divide", lambda product, target: division)
        launches, _ = contraction.product_launches(node, group, Members(), GPU)
    return [launch.kernel for launch in launches]


def by_tile(number: int, parts: int = 1) -> Division:
    return Division(tiles_for(GPU)[number], parts)


LARGE, MEDIUM, SMALL = range(3)
KERNELS: dict[str, tuple[Kernel, tuple[int, int]]] = {
    "large": (kernels(1024, 1024, 1024, by_tile(LARGE))[0], (9, 0)),
    "large on sm_80": (kernels(1024, 1024, 1024, by_tile(LARGE))[0], (8, 0)),
    "large, a transposed": (kernels(1024, 1024, 1024, by_tile(LARGE), a=True, ops=["tanh"])[0], (9, 0)),
    "large, b transposed": (kernels(1024, 1024, 1024, by_tile(LARGE), b=True)[0], (9, 0)),
    "large, edges": (kernels(1000, 1000, 1000, by_tile(LARGE), ops=["tanh"])[0], (9, 0)),
    "large, no vectors": (kernels(1001, 1001, 1001, by_tile(LARGE), ops=["sigmoid"])[0], (9, 0)),
    "large, float64": (kernels(1024, 1024, 1024, by_tile(LARGE), dtype="float64")[0], (9, 0)),
    "medium": (kernels(512, 512, 512, by_tile(MEDIUM), ops=["tanh"])[0], (9, 0)),
    "medium on sm_80": (kernels(500, 500, 500, by_tile(MEDIUM))[0], (8, 0)),
    "small": (kernels(100, 100, 100, by_tile(SMALL), ops=["exp"])[0], (9, 0)),
    "small, parts": (kernels(32, 32, 512, by_tile(SMALL, 4), b=True)[0], (9, 0)),
    "join": (kernels(32, 32, 512, by_tile(SMALL, 4), ops=["tanh"])[1], (9, 0)),
    "teams": (kernels(1024, 1, 1024)[0], (9, 0)),
    "columns": (kernels(1, 1024, 1024)[0], (9, 0)),
}


@pytest.fixture(scope="module")
def codes() -> dict[str, Code]:
    given = {
        name: (kernel.source, [dtype.name for dtype in kernel.dtypes], capability)
        for name, (kernel, capability) in KERNELS.items()
    }
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], input=json.dumps(given), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {name: Code(text, **resources) for name, (text, resources) in found.items()}


@pytest.mark.parametrize("name", KERNELS)
def test_registers_suffice(name: str, codes: dict[str, Code]) -> None:
    """Two blocks of the largest tile fit on a multiprocessor, one in float64; no value goes to memory."""
    code = codes[name]
    assert (code.spills, code.stack) == (0, 0)
    assert code.registers <= (255 if name == "large, float64" else 128)
    assert "local" not in code.text


@pytest.mark.parametrize(("name", "fused", "shared"), [("large", 256, 16), ("large on sm_80", 256, 16),
                                                       ("medium", 64, 8), ("small", 64, 8)])  # fmt: skip
def test_the_innermost_loop_only_multiplies(name: str, fused: int, shared: int, codes: dict[str, Code]) -> None:
    """For four terms: each row by each column of a thread, which come four at a time."""
    loop = codes[name].loop()
    assert loop.count("fma.rn.f32") == fused
    assert loop.count("ld.shared.v4.f32") + loop.count("ld.shared.v4.b32") == shared
    others = [line for line in loop.splitlines() if line.strip() and "fma.rn" not in line and "ld.shared" not in line]
    assert len(others) <= 20
    assert "mul.rn" not in loop


@pytest.mark.parametrize(
    ("name", "reads"),
    [("large", 2), ("large, b transposed", 2), ("large, edges", 3), ("large, float64", 4), ("medium", 3), ("teams", 2),
     ("columns", 1)],
)  # fmt: skip
def test_memory_is_read_16_bytes_at_a_time(name: str, reads: int, codes: dict[str, Code]) -> None:
    assert codes[name].count(r"ld\.global(\.nc)?\.v[24]") >= reads
    assert codes[name].count(r"st\.global\.v[24]") >= (0 if name == "teams" else 1)


def test_what_is_not_aligned_is_read_by_elements(codes: dict[str, Code]) -> None:
    assert codes["large, no vectors"].count(r"ld\.global(\.nc)?\.v[24]") == 0


def test_results_of_a_warp_are_exchanged_in_registers(codes: dict[str, Code]) -> None:
    assert codes["teams"].count(r"shfl\.sync\.bfly") == 5
