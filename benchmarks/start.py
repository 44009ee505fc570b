"""How long a process takes to start: importing staticgrad, and the first call of a compiled MNIST MLP step.

    python -m benchmarks.start [--out FILE]

Each figure is the median of fresh processes. "cold" has an empty cache, "warm" one that an earlier process filled; the
first call includes capture, planning and, where nothing is cached, compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "results" / "start.json"
PROCESSES = 5

_SCRIPT = """
import json, sys, time
import numpy as np
begun = time.perf_counter()
import staticgrad as sg
imported = time.perf_counter() - begun
light = not {"numba", "scipy", "llvmlite"} & set(sys.modules)
from staticgrad import nn, optim
model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = optim.Adam(model.parameters(), lr=1e-3)
@sg.compile
def step(x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
rng = np.random.default_rng(0)
x, y = rng.standard_normal((128, 784)).astype("float32"), rng.integers(0, 10, 128)
begun = time.perf_counter()
step(x, y)
first = time.perf_counter() - begun
from staticgrad.kernels.cpu.native import compile_count
print(json.dumps([imported, first, compile_count(), "numba" in sys.modules, light]))
"""


def processes(count: int, folder: str) -> list[Any]:
    """What fresh processes with the cache in `folder` measured."""
    environment = {**os.environ, "STATICGRAD_CACHE_DIR": folder}
    found = []
    for _ in range(count):
        done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, check=True, capture_output=True)
        found.append(json.loads(done.stdout))
    return found


def main() -> None:
    """Measure and write the results file."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--out", type=Path, default=OUT)
    options = command.parse_args()
    cold = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            cold += processes(1, folder)
            warm = processes(PROCESSES, folder)
    results = {
        "import_seconds": round(statistics.median(row[0] for row in warm), 3),
        "import_loads_numba_scipy_or_llvmlite": not all(row[4] for row in warm),
        "cold_first_call_seconds": round(statistics.median(row[1] for row in cold), 3),
        "warm_first_call_seconds": round(statistics.median(row[1] for row in warm), 3),
        "warm_numba_compiles": max(row[2] for row in warm),
        "warm_loads_numba": any(row[3] for row in warm),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
