"""The machine code of the CUDA kernels of ops that are no loops over elements: made without a GPU, and without spills.

A process of its own compiles them, as Numba's simulator compiles nothing: `python test_structural_code.py` prints what
each kernel takes, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from builder import Builder

from staticgrad.graph.members import Members
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.structural import lower_call, lowered_ops
from staticgrad.kernels.cuda.target import Target

CAPABILITIES = ((8, 0), (9, 0))
REGISTERS = 64  # with 256 threads to a block, four blocks fit on a multiprocessor

# name: the op, (shape, dtype) of its operands, and its attributes
CASES: dict[str, tuple[str, list[tuple[tuple[int, ...], str]], dict[str, Any]]] = {
    "rows": ("take", [((50, 64), "float32"), ((8, 9), "int64")], {"axis": 0}),
    "inner rows of booleans": ("take", [((3, 50, 5), "bool"), ((9,), "uint8")], {"axis": 1}),
    "rows of what 32 bits do not count": ("take", [((70_000, 64), "float32"), ((2**27,), "int32")], {"axis": 0}),
    "elements": ("take_along_axis", [((64, 10), "float64"), ((64, 13), "int16")], {"axis": 1}),
    "sums of few runs": (
        "scatter_add",
        [((10**6, 64), "float32"), ((10**6,), "int64")],
        {"shape": (1000, 64), "axis": 0},
    ),
    "sums of many runs": ("scatter_add", [((300, 65), "int8"), ((300,), "int32")], {"shape": (50_000, 65), "axis": 0}),
    "sums of inner runs": (
        "scatter_add",
        [((7, 300, 5), "float64"), ((300,), "int64")],
        {"shape": (7, 9, 5), "axis": 1},
    ),
    "sums by lists": (
        "scatter_add_along_axis",
        [((50, 640), "float32"), ((50, 640), "int64")],
        {"axis": 1, "size": 10},
    ),
    "sums by columns": (
        "scatter_add_along_axis",
        [((9, 70_000), "uint16"), ((9, 70_000), "int64")],
        {"axis": 0, "size": 3},
    ),
    "totals of short rows": ("cumulative_sum", [((500, 30), "float32")], {"axis": 1}),
    "totals of rows": ("cumulative_sum", [((500, 3000), "float64")], {"axis": 1, "reverse": True}),
    "totals of a long row": ("cumulative_sum", [((10**6,), "float32")], {"axis": 0}),
    "totals of columns": ("cumulative_sum", [((100, 70), "int8")], {"axis": 0, "reverse": True}),
    "totals of long columns": ("cumulative_sum", [((10_000, 7), "float64")], {"axis": 0}),
    "largest of columns": ("argmax", [((64, 3000), "float32")], {"axis": (0,)}),
    "smallest of long columns": ("argmin", [((100_000, 3), "float64")], {"axis": (0,)}),
    "a join": ("concat", [((64, 10), "float32"), ((64, 12), "float32"), ((64, 1), "float32")], {"axis": 1}),
    "a wide join": ("concat", [((9, 8), "uint8")] * 64, {"axis": 1}),
    "a pad": ("embed", [((64, 30, 30), "float32")], {"shape": (64, 32, 32), "start": (0, 1, 1), "step": (1, 1, 1)}),
    "a spread": ("embed", [((64, 30), "bool")], {"shape": (70, 100), "start": (3, 99), "step": (1, -3)}),
}


def launches(case: str, *, guarded: bool) -> list[Launch]:
    """The launches of a case for a large GPU."""
    name, operands, attributes = CASES[case]
    b = Builder()
    node = b(name, *(b.argument(shape, dtype) for shape, dtype in operands), **attributes)
    return lower_call(node, Members(), Target(), guarded=guarded)[0]


def resources() -> dict[str, list[list[int]]]:
    """Registers and spills of the kernels of each case, for each capability."""
    found: dict[str, list[list[int]]] = {case: [] for case in CASES}
    for capability in CAPABILITIES:
        for case in CASES:
            kernels = [one.kernel for one in launches(case, guarded=capability == CAPABILITIES[-1])]
            _, taken = toolkit.linked([toolkit.ptx_of(kernel, capability) for kernel in kernels], capability)
            found[case] += [[taken[kernel.symbol].registers, taken[kernel.symbol].spills] for kernel in kernels]
    return found


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[list[int]]]:
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[list[int]]] = json.loads(done.stdout)
    return found


def test_every_op_is_among_the_cases() -> None:
    assert {name for name, _, _ in CASES.values()} == lowered_ops()


@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_into_few_registers_and_spill_none(case: str, compiled: dict[str, list[list[int]]]) -> None:
    assert len(compiled[case]) == len(CAPABILITIES) * len(launches(case, guarded=False))
    for registers, spills in compiled[case]:
        assert spills == 0
        assert registers <= REGISTERS


def test_equal_work_is_one_kernel() -> None:
    """Names, and where operands lie, are no part of a kernel."""
    (first,), (again,) = (launches("rows", guarded=False) for _ in range(2))
    assert first.kernel == again.kernel


def test_rows_move_by_the_widest_access_that_their_place_allows() -> None:
    (rows,) = launches("rows", guarded=False)
    assert "load4(" in rows.kernel.source
    b = Builder()
    table = b("slice", b.argument((66, 6)), start=(1, 0), stop=(66, 6), step=(1, 1))
    (pairs,) = lower_call(b("take", table, b.argument((4,), "int64"), axis=0), Members(), Target())[0]
    assert "load2(" in pairs.kernel.source
    assert "load4(" not in pairs.kernel.source


def test_what_32_bits_do_not_count_is_divided_in_64() -> None:
    (wide,) = launches("rows of what 32 bits do not count", guarded=False)
    assert "quotient(" not in wide.kernel.source
    assert "rest(" not in wide.kernel.source


if __name__ == "__main__":
    print(json.dumps(resources()))
