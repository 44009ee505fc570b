"""The rows in JAX: one jitted function that takes its state by donation, with Adam written out as in optax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.engines import Step
from benchmarks.rows import LEARNING_RATE, Arrays, Row, layer_widths

VERSION = jax.__version__
_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": jnp.tanh, "relu": jax.nn.relu}
_ELSEWHERE = {
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "erf": jax.scipy.special.erf,
    "sigmoid": jax.nn.sigmoid,
    "rsqrt": jax.lax.rsqrt,
}
Tree = Any


def configure(threads: int) -> None:
    """Nothing: XLA makes one thread for each core that the process may use."""


def fetch(result: Any) -> np.ndarray[Any, Any]:
    """A result as a NumPy array."""
    return np.asarray(result)


def peak_memory() -> int:
    """Bytes of the GPU's memory."""
    return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])


def build(row: Row, arrays: Arrays, variant: str, device: str = "cpu") -> Step:
    """The step of `row`. The environment says which device JAX uses."""
    jax.config.update("jax_default_matmul_precision", {"float32": "highest", "tf32": "tensorfloat32"}[row.precision])
    data = {name: jnp.asarray(_narrow(array)) for name, array in arrays.items() if "." not in name}
    if row.optimizes:
        return _on(device, row, *_training(row, arrays, data))
    function = jax.jit(_functions(row)[row.kind])
    return _on(device, row, partial(function, *data.values()), lambda: None)


def _on(device: str, row: Row, start: Callable[[], Any], restart: Callable[[], None]) -> Step:
    """On the CPU a step ends when its results are there; on a GPU the next one may be started before."""
    if device == "cpu":
        if row.kind in ("softmax_ce", "chain", "adam"):  # several results
            return Step(lambda: jax.block_until_ready(start()), restart)
        return Step(lambda: start().block_until_ready(), restart)
    last: Any = None

    def run() -> Any:
        nonlocal last
        last = start()
        return last

    return Step(run, restart, wait=lambda: jax.block_until_ready(last))


def _narrow(array: Any) -> Any:
    """Labels and tokens as int32, the widest that JAX takes unless told otherwise."""
    return array.astype("int32") if array.dtype.kind == "i" else array


def _cross_entropy(logits: Any, labels: Any) -> Any:
    rows = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(rows, labels[:, None], axis=1).mean()


def _functions(row: Row) -> dict[str, Callable[..., Any]]:
    def elementwise(x: Any) -> Any:
        total = None
        for name in row.sizes["functions"]:
            value = (_ELSEWHERE.get(name) or getattr(jnp, name))(x)
            total = value if total is None else total + value
        return total

    def chain(x: Any, a: Any, b: Any) -> Any:
        for _ in range(row.sizes["rounds"]):
            x = jnp.tanh(x * a + b)
        return (x * x).mean()

    return {
        "overhead": lambda x: x + 1,
        "elementwise": elementwise,
        "chain": jax.value_and_grad(chain),
        "softmax_ce": jax.value_and_grad(_cross_entropy),
    }


def _layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    centred = x - x.mean(axis=1, keepdims=True)
    variance = (centred * centred).mean(axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * weight + bias


def _loss(row: Row, arrays: Arrays) -> Callable[[Tree, Any, Any], Any]:
    def linear(weights: Tree, name: str, x: Any) -> Any:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    depth = len(list(layer_widths(arrays)))

    def mlp(weights: Tree, x: Any, y: Any) -> Any:
        for number in range(depth - 1):
            x = _ACTIVATIONS[row.activation](linear(weights, str(number), x))
        return _cross_entropy(linear(weights, str(depth - 1), x), y)

    def layernorm_mlp(weights: Tree, x: Any, y: Any) -> Any:
        for block in range(row.sizes["blocks"]):
            inner = _layer_norm(x, weights[f"{block}.norm.weight"], weights[f"{block}.norm.bias"])
            inner = jax.nn.gelu(linear(weights, f"{block}.up", inner), approximate=False)
            x = x + linear(weights, f"{block}.down", inner)
        return ((x - y) ** 2).mean()

    def embedding_bag(weights: Tree, x: Any, y: Any) -> Any:
        return _cross_entropy(linear(weights, "linear", weights["embedding.weight"][x].mean(axis=1)), y)

    return {"mlp": mlp, "layernorm_mlp": layernorm_mlp, "embedding_bag": embedding_bag}[row.kind]


def _adam(weights: Tree, first: Tree, second: Tree, count: Any, gradients: Tree) -> tuple[Tree, Tree, Tree, Any]:
    """Adam with the defaults that every engine uses: betas 0.9 and 0.999, eps 1e-8 (Kingma and Ba, 1412.6980)."""
    count = count + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * (g * g), second, gradients)
    rate = LEARNING_RATE / (1 - 0.9**count)
    scale = 1 / jnp.sqrt(1 - 0.999**count)
    weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) * scale + 1e-8), weights, first, second)
    return weights, first, second, count


def _training(row: Row, arrays: Arrays, data: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], None]]:
    """A step that keeps its state, and how the state is put back."""
    initial = {name: array for name, array in arrays.items() if "." in name}
    state: Tree = None

    if row.kind == "adam":

        def whole(state: Tree, *gradients: Any) -> tuple[Tree, Any]:
            return _adam(*state, dict(zip(initial, gradients, strict=True))), None
    else:
        loss_of = _loss(row, arrays)

        def whole(state: Tree, *data: Any) -> tuple[Tree, Any]:
            loss, gradients = jax.value_and_grad(loss_of)(state[0], *data)
            return _adam(*state, gradients), loss

    step = jax.jit(whole, donate_argnums=0)
    arguments = tuple(data.values())

    def restart() -> None:
        nonlocal state
        weights = {name: jnp.array(array) for name, array in initial.items()}  # copies: donation gives them away
        moments = [{name: jnp.zeros_like(array) for name, array in weights.items()} for _ in range(2)]
        state = (weights, *moments, jnp.zeros((), jnp.float32))

    def run() -> Any:
        nonlocal state
        state, loss = step(state, *arguments)
        return tuple(state[0].values()) if loss is None else loss

    restart()
    return run, restart
