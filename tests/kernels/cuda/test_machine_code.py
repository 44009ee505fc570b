"""Every kernel becomes machine code of two generations of GPUs: what the simulator hides shows without a device.

Types, intrinsics and limits of shared memory are the compiler's to judge. A kernel of loops over elements or rows that
spills registers to memory would be many times slower than its memory traffic.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = 65536  # registers of a multiprocessor
REGISTERS = {"points and rows": 96, "products": 255}


def compiled(what: str) -> list[dict[str, Any]]:
    script = Path(__file__).with_name("machine_code.py")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, script, what], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("what", ["ops", "models", "shapes", "lengths"])
def test_no_kernel_spills(what: str) -> None:
    found = compiled(what)
    assert {tuple(kernel["on"]) for kernel in found} == {(8, 0), (9, 0)}
    assert len(found) > 20
    for kernel in found:
        kind = "products" if "shared_memory" in kernel["source"] else "points and rows"
        assert kernel["spills"] == 0, kernel["source"]
        assert kernel["registers"] <= REGISTERS[kind], kernel["source"]
        assert -(-kernel["registers"] // 8) * 8 * kernel["block"] <= FILE, kernel["source"]  # else it cannot be started
