"""The rows of the speed benchmark: what each one computes, from which numbers, and the least it can cost.

Data and initial weights are NumPy arrays from a fixed seed; every engine builds its step from the same ones. A row is
described by its kind, which each engine knows how to build, and by sizes. The floor counts the arithmetic that the
mathematics needs and the bytes that must cross the memory bus at least once in a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]

LEARNING_RATE = 1e-3
SEED = 0
FLOAT = 4  # bytes
TRANSCENDENTAL = 20  # flops of one: range reduction and a polynomial of about degree 7
ADAM_BYTES = 6 * FLOAT  # for each parameter: itself and two moments, each read and written
ADAM_FLOPS = 16

# Every engine writes `sum of f(x)` over these, in this order, as one array: none of them can be left out.
TRANSCENDENTALS = (
    "exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "tan", "tanh", "sinh", "cosh", "asinh", "atan",
    "erf", "sigmoid", "sqrt", "rsqrt",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One workload.

    `kind` names the builder of each engine, `bar` is the most that our time may be over the best peer's with several
    threads, `bar_us` a bound in microseconds beside it, `dynamic_bar` the bound of dynamic mode over torch eager,
    `copy_bar` the least share of the speed at which the machine copies as many bytes. `precision` is that of matrix
    products: "float32", or "tf32" where operands may be rounded to ten bits of mantissa.
    """

    name: str
    kind: str
    what: str
    sizes: dict[str, Any]
    bar: float
    bar_us: float | None = None
    dynamic_bar: float | None = None
    copy_bar: float | None = None
    activation: str = ""
    precision: str = "float32"

    @property
    def optimizes(self) -> bool:
        """Whether a step ends with an update by Adam."""
        return self.kind in ("mlp", "layernorm_mlp", "embedding_bag", "adam")

    @property
    def tolerance(self) -> float:
        """How far results of engines may be apart, relative to their magnitude."""
        return 1e-2 if self.precision == "tf32" else 1e-3

    def arrays(self) -> Arrays:
        """The data (`x`, `y`, ...) and, with dotted names, the initial weights."""
        return _MAKERS[self.kind](self.sizes, np.random.default_rng(SEED))

    def costs(self) -> tuple[float, float]:
        """Flops, and bytes that must be read or written, of one step."""
        return _COSTS[self.kind](self.sizes)


def mlp(name: str, batch: int, widths: tuple[int, ...], activation: str, **other: Any) -> Row:
    """A perceptron trained with Adam on labels."""
    shape = f"{batch} x {'-'.join(map(str, widths))}, {activation}"
    return Row(name, "mlp", shape, {"batch": batch, "widths": widths}, activation=activation, **other)


ROWS = {
    row.name: row
    for row in (
        Row("overhead", "overhead", "x + 1 on 8 elements, no gradient", {"elements": 8}, 0.5, 3.0),
        mlp("mlp_tiny", 32, (64, 64, 64, 10), "tanh", bar=0.3, dynamic_bar=2.0),
        mlp("mlp_mnist", 128, (784, 256, 256, 10), "relu", bar=0.85),
        mlp("mlp_wide", 256, (1024, 1024, 1024, 10), "relu", bar=0.97),
        Row(
            "elementwise",
            "elementwise",
            "sum of 18 transcendentals over 1e6 elements",
            {"elements": 10**6, "functions": TRANSCENDENTALS},
            0.5,
        ),
        Row(
            "deep_chain",
            "chain",
            "loss and gradient through 3,000 ops, tanh(x * a + b) in turn, on 64 elements",
            {"rounds": 1000, "elements": 64},
            0.5,
        ),
        Row(
            "softmax_ce",
            "softmax_ce",
            "cross-entropy of 4096 x 512 logits, loss and gradient",
            {"batch": 4096, "classes": 512},
            0.8,
        ),
        Row(
            "layernorm_mlp",
            "layernorm_mlp",
            "256 x 4 blocks of x + W2 gelu(W1 layernorm(x)), 256-1024-256",
            {"batch": 256, "blocks": 4, "width": 256, "hidden": 1024},
            0.92,
        ),
        Row(
            "embedding_bag",
            "embedding_bag",
            "mean of 32 of 10,000 embeddings of 64, linear; 128 bags",
            {"batch": 128, "tokens": 32, "vocabulary": 10_000, "width": 64, "classes": 10},
            0.8,
        ),
    )
}


def small(row: Row) -> Row:
    """The row at sizes that take no time, for tests."""
    least = {"widths": (6, 5, 4, 3), "elements": 8, "rounds": 3, "batch": 4, "vocabulary": 20}
    sizes = {name: least.get(name, min(value, 6) if isinstance(value, int) else value) for name, value in
             row.sizes.items()}  # fmt: skip
    return replace(row, sizes=sizes)


# ---------------------------------------------------------------- data and weights


def layer_widths(arrays: Arrays) -> Iterator[tuple[int, int]]:
    """The layers `0.weight`, `1.weight`, ... of an MLP as (in, out); weights have the shape (out, in)."""
    for number in itertools.count():
        weight = arrays.get(f"{number}.weight")
        if weight is None:
            return
        yield weight.shape[1], weight.shape[0]


def _linear(random: np.random.Generator, name: str, fan_in: int, fan_out: int) -> Arrays:
    bound = 1 / np.sqrt(fan_in)
    return {
        f"{name}.weight": random.uniform(-bound, bound, (fan_out, fan_in)).astype(np.float32),
        f"{name}.bias": random.uniform(-bound, bound, fan_out).astype(np.float32),
    }


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return random.standard_normal(shape, dtype=np.float32)


def _overhead_arrays(sizes: dict[str, Any], random: np.random.Generator) -> Arrays:
    return {"x": _normal(random, sizes["elements"])}


def _mlp_arrays(sizes: dict[str, Any], random: np.random.Generator) -> Arrays:
    """Every input comes twice, with labels of its own: the loss cannot reach zero, however many steps are timed."""
    batch, widths = sizes["batch"], sizes["widths"]
    half = _normal(random, batch // 2, widths[0])
    first = random.integers(0, widths[-1], batch // 2)
    second = (first + random.integers(1, widths[-1], batch // 2)) % widths[-1]
    arrays = {"x": np.concatenate([half, half]), "y": np.concatenate([first, second])}
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        arrays |= _linear(random, str(number), fan_in, fan_out)
    return arrays


def _elementwise_arrays(sizes: dict[str, Any], random: np.random.Generator) -> Arrays:
    return {"x": random.uniform(0.1, 1.4, sizes["elements"]).astype(np.float32)}


def _chain_arrays(sizes: dict[str, Any], random: np.random.Generator) -> Arrays:
    elements = sizes["elements"]
    return {
        "x": _normal(random, elements),
        "a": random.uniform(0.9, 1.2, elements).astype(np.float32),
        "b": random.uniform(-0.1, 0.1, elements).astype(np.float32),
    }


def _softmax_arrays(sizes: dict[str, Any], random: np.random.Generator) -> Arrays:
    batch, classes = sizes["batch"], sizes["classes"]
    return {"x": _normal(random, batch, classes), "y": random.integers(0, classes, batch)}


def _layernorm_arrays(sizes: dict[str, Any], random: np.random.Generator) -> Arrays:
    batch, width, hidden = sizes["batch"], sizes["width"], sizes["hidden"]
    arrays = {"x": _normal(random, batch, width), "y": _normal(random, batch, width)}
    for block in range(sizes["blocks"]):
        arrays[f"{block}.norm.weight"] = np.ones(width, np.float32)
        arrays[f"{block}.norm.bias"] = np.zeros(width, np.float32)
        arrays |= _linear(random, f"{block}.up", width, hidden) | _linear(random, f"{block}.down", hidden, width)
    return arrays


def _embedding_arrays(sizes: dict[str, Any], random: np.random.Generator) -> Arrays:
    batch, classes = sizes["batch"], sizes["classes"]
    return {
        "x": random.integers(0, sizes["vocabulary"], (batch, sizes["tokens"])),
        "y": random.integers(0, classes, batch),
        "embedding.weight": _normal(random, sizes["vocabulary"], sizes["width"]),
        **_linear(random, "linear", sizes["width"], classes),
    }


def _adam_arrays(sizes: dict[str, Any], random: np.random.Generator) -> Arrays:
    """Gradients `gradient_0`, ..., and parameters of two steps' length: a wrong step changes their magnitude."""
    shape = (sizes["width"], sizes["width"])
    arrays: Arrays = {}
    for number in range(sizes["matrices"]):
        arrays[f"{number}.weight"] = (4 * LEARNING_RATE) * (random.random(shape, np.float32) - np.float32(0.5))
        arrays[f"gradient_{number}"] = _normal(random, *shape)
    return arrays


_MAKERS: dict[str, Callable[[dict[str, Any], np.random.Generator], Arrays]] = {
    "overhead": _overhead_arrays,
    "mlp": _mlp_arrays,
    "elementwise": _elementwise_arrays,
    "chain": _chain_arrays,
    "softmax_ce": _softmax_arrays,
    "layernorm_mlp": _layernorm_arrays,
    "embedding_bag": _embedding_arrays,
    "adam": _adam_arrays,
}


# ---------------------------------------------------------------- what a step costs at least


def _mlp_costs(sizes: dict[str, Any]) -> tuple[float, float]:
    batch, pairs = sizes["batch"], list(itertools.pairwise(sizes["widths"]))
    products = [2 * batch * fan_in * fan_out for fan_in, fan_out in pairs]
    parameters = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairs)
    # forward and the gradient of the weights for each layer; the gradient of the input for all but the first
    flops = 3 * sum(products) - products[0] + ADAM_FLOPS * parameters
    return flops, ADAM_BYTES * parameters + FLOAT * batch * pairs[0][0]


def _layernorm_costs(sizes: dict[str, Any]) -> tuple[float, float]:
    batch, blocks, width, hidden = (sizes[name] for name in ("batch", "blocks", "width", "hidden"))
    parameters = blocks * (2 * width * hidden + 3 * width + hidden)
    products = blocks * 2 * (2 * batch * width * hidden)
    activations = blocks * batch * (2 * TRANSCENDENTAL * hidden + 20 * width)
    return 3 * products + activations + ADAM_FLOPS * parameters, ADAM_BYTES * parameters + 2 * FLOAT * batch * width


def _embedding_costs(sizes: dict[str, Any]) -> tuple[float, float]:
    batch, tokens, width, classes = (sizes[name] for name in ("batch", "tokens", "width", "classes"))
    parameters = sizes["vocabulary"] * width + (width + 1) * classes
    flops = 2 * batch * tokens * width + 6 * batch * width * classes + ADAM_FLOPS * parameters
    return flops, ADAM_BYTES * parameters + 8 * batch * tokens


_COSTS: dict[str, Callable[[dict[str, Any]], tuple[float, float]]] = {
    "overhead": lambda sizes: (0, 0),
    "mlp": _mlp_costs,
    "elementwise": lambda sizes: (
        len(sizes["functions"]) * (TRANSCENDENTAL + 1) * sizes["elements"],
        2 * FLOAT * sizes["elements"],
    ),
    "chain": lambda sizes: (
        sizes["rounds"] * sizes["elements"] * (2 + TRANSCENDENTAL + 4),
        4 * FLOAT * sizes["elements"],
    ),
    "softmax_ce": lambda sizes: (
        sizes["batch"] * sizes["classes"] * (TRANSCENDENTAL + 5),
        2 * FLOAT * sizes["batch"] * sizes["classes"],
    ),
    "layernorm_mlp": _layernorm_costs,
    "embedding_bag": _embedding_costs,
    "adam": lambda sizes: (
        ADAM_FLOPS * sizes["matrices"] * sizes["width"] ** 2,
        (ADAM_BYTES + FLOAT) * sizes["matrices"] * sizes["width"] ** 2,  # the gradients are read
    ),
}
