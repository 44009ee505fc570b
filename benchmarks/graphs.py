"""Static against dynamic graphs, measured: `python -m benchmarks.graphs [--quick] [--out FILE] [--plot]`.

Four questions, each over the width of a model, its batch, and the depth of a chain of ops: how much memory, how long
the backward pass, how much overhead for each op, how accurate the gradients. Both modes run the same functions from
the same state and take turns; times are medians with their quartiles. `--plot` writes the tables into
`docs/static_and_dynamic.md` and the pictures into `docs/images/`, from the results file.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import staticgrad as sg
from benchmarks import graphs_page
from staticgrad import nn
from staticgrad.comparison import Comparison
from staticgrad.kernels.cpu import compiler

RESULTS = Path(__file__).parent / "results" / "graphs.json"
HIDDEN_LAYERS, CLASSES = 3, 10
WIDTH, BATCH = 128, 32  # of the model where the other is varied
CHAIN_ELEMENTS, OPS_OF_STEP, TIME_STEP = 64, 5, 0.05
DIFFERENCE_STEPS = (1e-2, 1e-3, 1e-4, 1e-5)
DIRECTIONS = 3

FULL = {"width": (8, 32, 128, 512), "batch": (1, 8, 64, 512), "depth": (10, 100, 1_000, 10_000)}
QUICK = {"width": (8, 32), "batch": (8,), "depth": (10, 100)}

Function = Callable[..., Any]


# ---------------------------------------------------------------- what is measured


def model_functions(width: int, batch: int) -> tuple[Function, Function, tuple[Any, ...]]:
    """Forward, forward with backward, and a batch, of an MLP: `width` inputs, three hidden layers of `width`, tanh."""
    sg.random.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(HIDDEN_LAYERS):
        layers += [nn.Linear(width, width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES))

    def forward(x: Any, y: Any) -> Any:
        return nn.functional.cross_entropy(model(x), y).detach()

    def gradients(x: Any, y: Any) -> Any:
        for parameter in model.parameters():
            parameter.grad = None
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    random = np.random.default_rng(1)
    x = random.normal(size=(batch, width)).astype(np.float32)
    return forward, gradients, (x, random.integers(0, CLASSES, batch))


def swing(ops: int) -> Function:
    """`ops` ops that swing pendulums: the position moves with the speed, the speed with the sine of the position.

    The map keeps areas, so that its derivatives neither vanish nor grow faster than the chain.
    """

    def loss(position: Any, speed: Any) -> Any:
        for _ in range(ops // OPS_OF_STEP):
            position = position + TIME_STEP * speed
            speed = speed - TIME_STEP * sg.sin(position)
        return sg.mean(position * position)

    return loss


def chain_functions(ops: int) -> tuple[Function, Function, tuple[Any, ...]]:
    """The same for a chain of `ops` ops on 64 elements."""
    loss = swing(ops)
    random = np.random.default_rng(2)
    start = tuple(sg.asarray(random.uniform(-1, 1, CHAIN_ELEMENTS).astype(np.float32)) for _ in range(2))

    def forward(position: Any, speed: Any) -> Any:
        # requires_grad has the dynamic mode record its tape, as the forward half of a training step does
        return loss(position.detach().requires_grad_(), speed).detach()

    def gradients(position: Any, speed: Any) -> Any:
        return sg.value_and_grad(loss, argnums=(0, 1))(position, speed)

    return forward, gradients, start


def functions(sweep: str, value: int) -> tuple[Function, Function, tuple[Any, ...]]:
    """What is measured at one point of a sweep."""
    if sweep == "depth":
        return chain_functions(value)
    return model_functions(value, BATCH) if sweep == "width" else model_functions(WIDTH, value)


# ---------------------------------------------------------------- time and memory


@contextlib.contextmanager
def fresh_caches() -> Iterator[None]:
    """Nothing compiled before is found inside the block, on disk or in this process."""
    name = "STATICGRAD_CACHE_DIR"
    outer = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        compiler._kernel_code.clear()
        try:
            yield
        finally:
            if outer is None:
                del os.environ[name]
            else:
                os.environ[name] = outer


def quartiles(times: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return [float(value) for value in np.quantile(times, (0.25, 0.5, 0.75))]


def measure(sweep: str, value: int, repeat: int) -> dict[str, Any]:
    """Times, memory and counts at one point of a sweep."""
    forward, gradients, arguments = functions(sweep, value)
    with fresh_caches():
        whole = sg.compare(gradients, *arguments, repeat=repeat)
        half = sg.compare(forward, *arguments, repeat=repeat)
        begin = time.perf_counter()
        sg.compile(gradients)(*arguments)
        load_seconds = time.perf_counter() - begin
    return {
        "sweep": sweep,
        "value": value,
        "ops": whole.ops,
        "kernels": whole.kernels,
        "distinct_kernels": whole.distinct_kernels,
        "forward": times_of(half),
        "whole": times_of(whole),
        "outside_seconds": {"dynamic": whole.dynamic_outside_seconds, "static": whole.static_outside_seconds},
        "compile_seconds": whole.compile_seconds,
        "load_seconds": load_seconds,
        "memory": whole.to_dict()["memory"],
        "largest_relative_difference": whole.largest,
    }


def times_of(report: Comparison) -> dict[str, list[float]]:
    """Quartiles of both modes, seconds."""
    return {"dynamic": quartiles(report.dynamic_times), "static": quartiles(report.static_times)}


# ---------------------------------------------------------------- accuracy of gradients


def accuracy_problem(sweep: str, value: int, dtype: str) -> tuple[Function, tuple[Any, ...]]:
    """A loss and the point, a tuple of float64-made arrays in `dtype`, at which it is differentiated."""
    random = np.random.default_rng(3)
    if sweep == "depth":
        point = [random.uniform(-1, 1, CHAIN_ELEMENTS) for _ in range(2)]
        return swing(value), tuple(sg.asarray(array.astype(dtype)) for array in point)
    width, batch = (value, BATCH) if sweep == "width" else (WIDTH, value)
    sizes = [width] * (HIDDEN_LAYERS + 1) + [CLASSES]
    inputs = random.normal(size=(batch, width)).astype(dtype)
    labels = random.integers(0, CLASSES, batch)
    weights = [random.normal(size=pair) / np.sqrt(pair[0]) for pair in itertools.pairwise(sizes)]

    def loss(*weights: Any) -> Any:
        x = sg.asarray(inputs)
        for weight in weights[:-1]:
            x = sg.tanh(x @ weight)
        return nn.functional.cross_entropy(x @ weights[-1], labels)

    return loss, tuple(sg.asarray(weight.astype(dtype)) for weight in weights)


def flat(tensors: Sequence[Any]) -> np.ndarray[Any, Any]:
    """All elements as one float64 vector."""
    return np.concatenate([np.asarray(tensor, np.float64).ravel() for tensor in tensors])


def difference_error(loss: Function, point: Sequence[Any], gradient: np.ndarray[Any, Any]) -> float:
    """The largest error, over random directions, of five-point differences against the gradient, over its norm.

    Of several step sizes the one that agrees best counts: large steps truncate, small ones round.
    """
    random = np.random.default_rng(4)
    shapes = [tensor.shape for tensor in point]
    base = [np.asarray(tensor) for tensor in point]
    worst = 0.0
    for _ in range(DIRECTIONS):
        direction = [random.normal(size=shape) for shape in shapes]
        norm = np.sqrt(sum(float((part * part).sum()) for part in direction))
        direction = [part / norm for part in direction]
        slope = float(gradient @ flat(direction))

        def at(distance: float, direction: list[Any] = direction) -> float:
            moved = [sg.asarray(a + distance * d) for a, d in zip(base, direction, strict=True)]
            return float(loss(*moved))

        errors = []
        for h in DIFFERENCE_STEPS:
            found = (at(-2 * h) - 8 * at(-h) + 8 * at(h) - at(2 * h)) / (12 * h)
            errors.append(abs(found - slope))
        worst = max(worst, min(errors))
    return worst / float(np.linalg.norm(gradient))


def accuracy(sweep: str, value: int) -> dict[str, Any]:
    """Relative errors of the gradients of both modes, float64 against differences and float32 against float64."""
    found: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for dtype in ("float64", "float32"):
        loss, point = accuracy_problem(sweep, value, dtype)
        gradient = sg.grad(loss, argnums=tuple(range(len(point))))
        found[dtype] = {"dynamic": flat(gradient(*point)), "static": flat(sg.compile(gradient)(*point))}
    loss, point = accuracy_problem(sweep, value, "float64")
    reference = found["float64"]["dynamic"]
    norm = float(np.linalg.norm(reference))
    return {
        "sweep": sweep,
        "value": value,
        "float64_against_differences": {
            mode: difference_error(loss, point, gradient) for mode, gradient in found["float64"].items()
        },
        "float32_against_float64": {
            mode: float(np.linalg.norm(gradient - reference)) / norm for mode, gradient in found["float32"].items()
        },
        "static_against_dynamic": float(np.linalg.norm(found["float64"]["static"] - reference)) / norm,
    }


# ---------------------------------------------------------------- the run


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = ("numpy", "scipy", "numba", "llvmlite")
    return {
        "cpu": model,
        "cores": cores,
        "blas_threads": 1,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "staticgrad": sg.__version__,
        "date": datetime.date.today().isoformat(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def warm_up() -> float:
    """Seconds of the first compilation of this process, which imports the compiler."""
    with fresh_caches():
        begin = time.perf_counter()
        sg.compile(lambda x: x + 1)(sg.ones(3))
        return time.perf_counter() - begin


def repeats(sweep: str, value: int, quick: bool) -> int:
    """Calls to time: fewer where one takes long."""
    if quick:
        return 5
    return 10 if sweep == "depth" and value > 1_000 else 30


def run(quick: bool) -> dict[str, Any]:
    """Every measure; some minutes, or with `quick` some seconds."""
    points = [(sweep, value) for sweep, values in (QUICK if quick else FULL).items() for value in values]
    begin = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(), "quick": quick, "first_compile_seconds": warm_up()}
    results["cases"], results["accuracy"] = [], []
    for sweep, value in points:
        print(f"{sweep} {value}", flush=True)
        results["cases"].append(measure(sweep, value, repeats(sweep, value, quick)))
        results["accuracy"].append(accuracy(sweep, value))
    results["machine"]["load_average_after"] = round(os.getloadavg()[0], 2)
    results["seconds"] = round(time.perf_counter() - begin, 1)
    return results


def rounded(value: Any) -> Any:
    """Floats with four significant digits, so that the file reads well."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def use_one_thread() -> None:
    """Start this process again with one BLAS thread in each mode, unless that is so already.

    The question is the graph, not the number of threads; and two pools of threads on the same cores, or on cores that
    others use, make times that mean nothing.
    """
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    if any(os.environ.get(name) != "1" for name in names):
        command = [sys.executable, "-m", "benchmarks.graphs", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **dict.fromkeys(names, "1")})


def main() -> None:
    use_one_thread()
    parser = argparse.ArgumentParser(description="Measure static against dynamic graphs")
    parser.add_argument("--quick", action="store_true", help="a few small cases only")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go (JSON)")
    parser.add_argument("--plot", action="store_true", help="write docs/static_and_dynamic.md and its pictures")
    parser.add_argument("--no-run", action="store_true", help="with --plot: use the results that --out holds")
    options = parser.parse_args()
    logging.getLogger("staticgrad").setLevel(logging.ERROR)
    if options.no_run:
        results = json.loads(options.out.read_text())
    else:
        results = rounded(run(options.quick))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        graphs_page.write(results)
    print("\n\n".join(graphs_page.tables(results).values()))


if __name__ == "__main__":
    main()
