"""Long loops and many layers: what `run` adds to the native steps of an epoch, and what equal layers add to compiling.

    python -m benchmarks.loops [--out FILE]

The epoch is that of `mlp_tiny` (batches of 32, 64-64-64-10, tanh, Adam) over data in memory; its native steps are timed
one by one in ordinary calls, in turns with `run`. The layers are blocks of layer-norm, two linear layers and GELU; each
depth is compiled in fresh processes with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import staticgrad as sg
from staticgrad import nn, optim

OUT = Path(__file__).parent / "results" / "loops.json"
STEPS, BATCH, TURNS = 2000, 32, 9
DEPTHS = (2, 12, 48)

_LAYERS = """
import json, sys, time
import numpy as np
import staticgrad as sg
from staticgrad import nn, optim
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)
    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))
model = nn.Sequential(*[Block() for _ in range(int(sys.argv[1]))])
optimizer = optim.Adam(model.parameters())
@sg.compile
def step(x, y):
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
x = np.ones((32, 64), np.float32)
begun = time.perf_counter()
step(x, x)
seconds = time.perf_counter() - begun
print(json.dumps([seconds, len(step.last.program.sources), len(step.graph.nodes)]))
"""


def epoch() -> dict[str, Any]:
    """Microseconds for each step: natively, and of `run` as a whole."""
    random = np.random.default_rng(0)
    x = random.standard_normal((STEPS * BATCH, 64)).astype(np.float32)
    y = random.integers(0, 10, STEPS * BATCH)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    @sg.compile
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    native, called, whole, shuffled = [], [], [], []
    step.run((x, y), batch_size=BATCH)
    for turn in range(TURNS):
        with step.last.program.timed() as seconds:
            begun = time.perf_counter()
            for start in range(0, len(x), BATCH):
                step(x[start : start + BATCH], y[start : start + BATCH])
            called.append(time.perf_counter() - begun)
        native.append(sum(seconds))
        for times, seed in ((whole, None), (shuffled, turn)):
            begun = time.perf_counter()
            step.run((x, y), batch_size=BATCH, shuffle=seed)
            times.append(time.perf_counter() - begun)
    least = {"native": min(native), "run": min(whole), "run_shuffled": min(shuffled), "calls": min(called)}
    found: dict[str, Any] = {f"{name}_us": round(seconds / STEPS * 1e6, 2) for name, seconds in least.items()}
    found["run_over_native"] = round(least["run"] / least["native"], 3)
    found["run_shuffled_over_native"] = round(least["run_shuffled"] / least["native"], 3)
    return found


def layers(depth: int) -> dict[str, Any]:
    """Seconds of the first call of a model of so many equal blocks, with its kernels and nodes."""
    found = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "STATICGRAD_CACHE_DIR": folder}
            command = [sys.executable, "-c", _LAYERS, str(depth)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True)
            found.append(json.loads(done.stdout))
    return {
        "seconds": round(statistics.median(row[0] for row in found), 3),
        "kernels": found[0][1],
        "nodes": found[0][2],
    }


def main() -> None:
    """Measure and write the results file."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--out", type=Path, default=OUT)
    options = command.parse_args()
    results = {"epoch": epoch(), "layers": {str(depth): layers(depth) for depth in DEPTHS}}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
