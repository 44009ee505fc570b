"""Check derivatives against five-point differences, and the two modes against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.autograd.modes import no_grad
from staticgrad.graph.errors import DerivativeError, DTypeError
from staticgrad.tensor import Array, Tensor
from staticgrad.tree import tree_flatten


def gradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-3,
    atol: float = 1e-9,
    rtol: float = 1e-7,
    raise_exception: bool = True,
    check_forward_ad: bool = True,
    seed: int = 0,
) -> bool:
    """Compare reverse and forward derivatives of `func` at `inputs` with five-point differences.

    The difference (f(x-2h) - 8f(x-h) + 8f(x+h) - f(x+2h)) / 12h has an error of order h⁴ (Abramowitz and Stegun,
    25.3.6). Each output is weighted by random numbers; every element of every floating input is then moved in turn.

    Args:
        inputs: float64 tensors with `requires_grad` are checked; others are held fixed.
        eps: the step h.

    Returns:
        True if all agree within atol + rtol·|expected|. Otherwise DerivativeError, or False if not `raise_exception`.
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, x in enumerate(given) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise DerivativeError("gradcheck: no input requires grad, so there is nothing to check")
    for i in checked:
        if given[i].dtype != np.float64:
            raise DTypeError(f"gradcheck: differences need float64; input {i} is {given[i].dtype}; convert with astype")
    try:
        _check(func, given, checked, eps, atol, rtol, check_forward_ad, np.random.default_rng(seed))
    except DerivativeError:
        if raise_exception:
            raise
        return False
    return True


def _check(
    func: Callable[..., Any],
    given: list[Any],
    checked: list[int],
    eps: float,
    atol: float,
    rtol: float,
    forward: bool,
    rng: np.random.Generator,
) -> None:
    from staticgrad.transforms import jvp, vjp

    def of_checked(*moved: Any) -> Any:
        values = list(given)
        for i, x in zip(checked, moved, strict=True):
            values[i] = x
        return func(*values)

    primals = [given[i].detach() for i in checked]
    out, pullback = vjp(of_checked, *primals)
    outputs, structure = tree_flatten(out)
    weights = [rng.standard_normal(o.shape) if o.dtype.kind == "f" else None for o in outputs]
    cotangents = [Tensor(np.zeros(o.shape, o.dtype) if w is None else w) for o, w in zip(outputs, weights, strict=True)]
    from staticgrad.tree import tree_unflatten

    reverse = pullback(tree_unflatten(structure, cotangents))

    def weighted(*moved: Array) -> float:
        with no_grad():
            found, _ = tree_flatten(of_checked(*[Tensor(x) for x in moved]))
        return sum(float(np.sum(np.asarray(o) * w)) for o, w in zip(found, weights, strict=True) if w is not None)

    arrays = [np.array(p, copy=True) for p in primals]
    for i, analytic in enumerate(reverse):
        expected = five_point(weighted, arrays, i, eps)
        _compare("reverse mode", checked[i], np.asarray(analytic), expected, atol, rtol)
    if not forward:
        return
    directions = [rng.standard_normal(p.shape) for p in primals]
    _, tangent = jvp(of_checked, primals, [Tensor(d) for d in directions])
    changes, _ = tree_flatten(tangent)
    along = sum(float(np.sum(np.asarray(c) * w)) for c, w in zip(changes, weights, strict=True) if w is not None)
    back = sum(float(np.sum(np.asarray(r) * d)) for r, d in zip(reverse, directions, strict=True))
    _compare("forward mode (dot product with reverse)", 0, np.array(along), np.array(back), atol, rtol)


def five_point(f: Callable[..., float], arrays: list[Array], which: int, eps: float) -> Array:
    """df/d arrays[which], element by element, by the five-point rule."""
    result = np.zeros_like(arrays[which])
    flat = arrays[which].reshape(-1)
    for k in range(flat.size):
        original = flat[k]
        values = []
        for step in (-2, -1, 1, 2):
            flat[k] = original + step * eps
            values.append(f(*arrays))
        flat[k] = original
        result.reshape(-1)[k] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * eps)
    return result


def _compare(mode: str, index: int, found: Array, expected: Array, atol: float, rtol: float) -> None:
    wrong = ~(np.abs(found - expected) <= atol + rtol * np.maximum(np.abs(expected), 1.0))
    if np.any(wrong):
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise DerivativeError(
            f"gradcheck: {mode} of input {index} differs from five-point differences at {place}: "
            f"{found[place]!r}, expected {expected[place]!r}"
        )
