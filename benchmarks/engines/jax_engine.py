"""The rows in JAX: one jitted function that takes its state by donation, with Adam written out as in optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.engines import Step
from benchmarks.rows import LEARNING_RATE, TRANSCENDENTALS, Arrays, Row, layer_widths

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


def build(row: Row, arrays: Arrays, variant: str) -> Step:
    """The step of `row`."""
    data = {name: jnp.asarray(_narrow(array)) for name, array in arrays.items() if "." not in name}
    if row.optimizes:
        return _training(row, arrays, data)
    function = jax.jit(_functions(row)[row.kind])
    arguments = tuple(data.values())
    if row.kind in ("softmax_ce", "chain"):  # two results
        return Step(lambda: jax.block_until_ready(function(*arguments)), lambda: None)
    return Step(lambda: function(*arguments).block_until_ready(), lambda: None)


def _narrow(array: Any) -> Any:
    """Labels and tokens as int32, the widest that JAX takes unless told otherwise."""
    return array.astype("int32") if array.dtype.kind == "i" else array


def _cross_entropy(logits: Any, labels: Any) -> Any:
    rows = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(rows, labels[:, None], axis=1).mean()


def _functions(row: Row) -> dict[str, Callable[..., Any]]:
    def elementwise(x: Any) -> Any:
        total = None
        for name in TRANSCENDENTALS:
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


def _training(row: Row, arrays: Arrays, data: dict[str, Any]) -> Step:
    loss_of = _loss(row, arrays)
    initial = {name: array for name, array in arrays.items() if "." in name}
    x, y = data["x"], data["y"]

    def whole(state: Tree, x: Any, y: Any) -> tuple[Tree, Any]:
        loss, gradients = jax.value_and_grad(loss_of)(state[0], x, y)
        return _adam(*state, gradients), loss

    step = jax.jit(whole, donate_argnums=0)
    state: Tree = None

    def restart() -> None:
        nonlocal state
        weights = {name: jnp.array(array) for name, array in initial.items()}  # copies: donation gives them away
        moments = [{name: jnp.zeros_like(array) for name, array in weights.items()} for _ in range(2)]
        state = (weights, *moments, jnp.zeros((), jnp.float32))

    def run() -> Any:
        nonlocal state
        state, loss = step(state, x, y)
        return loss.block_until_ready()

    restart()
    return Step(run, restart)
