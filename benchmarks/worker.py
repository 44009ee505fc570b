"""One process of the speed benchmark: one engine, one row.

It answers lines of JSON on its standard input with lines of JSON on what was its standard output when it started;
whatever a library prints goes to standard error. Between commands it waits in a read, so that it takes no core.

    {"do": "import", "engine": ..., "threads": ..., "device": ...}   -> version, seconds
    {"do": "build", "row": ..., "variant": ..., "arrays": FILE, "steps": n}
                                                      -> seconds to the end of the first step, values of n steps, memory
    {"do": "calibrate", "seconds": s}                 -> seconds of one step
    {"do": "round", "steps": n, "warm_up": n}         -> seconds of one step, mean of n after the warm-up; on a GPU also
                                                         those that starting a step takes
    {"do": "profile"}                                 -> ops, name and seconds of each kernel, where an engine tells
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks.engines import ENGINES, Step

STARTED = 10  # steps that are timed until they are started: few, so that no queue is full


def memory(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


def forget_peak() -> bool:
    """Let VmHWM begin anew from what is resident now; False where the system does not permit it."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def numbers(result: Any, fetch: Callable[[Any], Any]) -> list[float]:
    """The mean magnitude of each result: of a scalar loss, the loss."""
    import numpy as np

    results = result if isinstance(result, tuple) else (result,)
    return [float(np.abs(fetch(array)).mean(dtype=np.float64)) for array in results]


class Worker:
    """What the commands do; each gives back its answer."""

    step: Step

    def do_import(self, engine: str, threads: int, device: str) -> dict[str, Any]:
        begin = time.perf_counter()
        module = importlib.import_module(f"benchmarks.engines.{ENGINES[engine]}_engine")
        seconds = time.perf_counter() - begin
        module.configure(threads)
        self.module, self.device = module, device
        self.options = {"staticgrad_dynamic": {"compiled": False}, "torch_compile": {"compiled": True}}.get(engine, {})
        return {"version": module.VERSION, "seconds": seconds}

    def do_build(self, row: str, variant: str, arrays: str, steps: int) -> dict[str, Any]:
        import numpy as np

        from benchmarks.gpu_rows import rows_on

        reset = forget_peak()
        before = memory("VmRSS")
        with np.load(arrays) as file:
            loaded = dict(file)
        begin = time.perf_counter()
        step = self.module.build(rows_on(self.device)[row], loaded, variant, self.device, **self.options)
        first = step.run()
        step.wait()
        seconds = time.perf_counter() - begin
        values = [numbers(first, self.module.fetch)]
        del first
        values += [numbers(step.run(), self.module.fetch) for _ in range(steps - 1)]
        self.step = step
        used = memory("VmHWM") - before if self.device == "cpu" else self.module.peak_memory()
        return {"seconds": seconds, "values": values, "memory": used, "memory_reset": reset}

    def do_calibrate(self, seconds: float) -> dict[str, Any]:
        count = 1
        while True:
            taken = self._timed(count)
            if taken >= seconds:
                return {"seconds": taken / count}
            count = max(2 * count, math.ceil(1.1 * count * seconds / max(taken, 1e-9)) if taken > seconds / 10 else 0)

    def do_round(self, steps: int, warm_up: int) -> dict[str, Any]:
        self.step.restart()
        gc.collect()
        self._timed(warm_up)
        found = {"seconds": self._timed(steps) / steps}
        return found if self.device == "cpu" else found | {"host_seconds": self._starting(min(steps, STARTED))}

    def do_profile(self) -> dict[str, Any]:
        return {"kernels": self.step.profile() if self.step.profile else []}

    def _timed(self, count: int) -> float:
        run = self.step.run
        gc.disable()
        try:
            begin = time.perf_counter()
            for _ in range(count):
                run()
            self.step.wait()
            return time.perf_counter() - begin
        finally:
            gc.enable()

    def _starting(self, count: int) -> float:
        """How long each of so many steps keeps its caller, when the GPU has nothing else to do at first."""
        run = self.step.run
        begin = time.perf_counter()
        for _ in range(count):
            run()
        seconds = (time.perf_counter() - begin) / count
        self.step.wait()
        return seconds


def answer(worker: Worker, command: dict[str, Any]) -> dict[str, Any]:
    """The answer to one command; of a failure its class, message and traceback."""
    name = command.pop("do")
    try:
        found: dict[str, Any] = getattr(worker, f"do_{name}")(**command)
    except Exception as error:  # the parent decides what it means
        text = str(error).strip().splitlines() or [""]
        traceback.print_exc()
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        kind = type(error).__name__
        return {"error": f"{kind}: {text[0]}", "missing": missing, "kind": kind}
    return found


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        answers.write(json.dumps(answer(worker, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
