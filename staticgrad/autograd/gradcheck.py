"""Check derivatives against five-point differences, and the two modes against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from staticgrad.autograd.modes import no_grad
from staticgrad.graph.errors import DerivativeError, DTypeError
from staticgrad.tensor import Array, Tensor
from staticgrad.tree import tree_flatten, tree_unflatten

Function = Callable[..., Any]


def gradcheck(
    func: Function,
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
    25.3.6). The floating outputs are summed with random weights; every element of every checked input is then moved
    in turn. Forward mode is held to the dot-product identity ⟨w, J v⟩ = ⟨Jᵀ w, v⟩ for random w and v.

    Args:
        func: takes `inputs`, returns any tree of tensors.
        inputs: float64 tensors with `requires_grad` are checked; others are held fixed.
        eps: the step h.
        atol, rtol: a difference may be at most atol + rtol·max(1, |expected|).
        raise_exception: whether to raise, or return False, where they differ.
        check_forward_ad: whether to check forward mode too.
        seed: of the random weights and directions.

    Returns:
        True if all agree.

    Raises:
        DerivativeError: they do not agree; or no input requires grad.
        DTypeError: an input to be checked is not float64.
    """
    given, checked = _inputs("gradcheck", inputs)
    primals = [given[i].detach() for i in checked]
    try:
        _check(_of_checked(func, given, checked), primals, checked, eps, atol, rtol, check_forward_ad, seed)
    except DerivativeError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(
    func: Function,
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-3,
    atol: float = 1e-9,
    rtol: float = 1e-7,
    raise_exception: bool = True,
    check_fwd_over_rev: bool = True,
    seed: int = 0,
) -> bool:
    """Check second derivatives: `gradcheck` of the map from (cotangents, inputs) to the reverse-mode gradients.

    Arguments, result and errors are those of `gradcheck`; `check_fwd_over_rev` pushes tangents through the backward
    pass.
    """
    from staticgrad.transforms import vjp

    given, checked = _inputs("gradgradcheck", inputs)
    function = _of_checked(func, given, checked)
    primals = [given[i].detach() for i in checked]
    with no_grad():
        outputs, structure = tree_flatten(function(*primals))
    rng = np.random.default_rng(seed)
    floating = [i for i, out in enumerate(outputs) if out.dtype.kind == "f"]
    cotangents = [Tensor(rng.standard_normal(outputs[i].shape)) for i in floating]

    def gradients(*values: Tensor) -> tuple[Any, ...]:
        _, pullback = vjp(function, *values[len(floating) :])
        full = [Tensor(np.zeros(out.shape, out.dtype)) for out in outputs]
        for i, value in zip(floating, values, strict=False):
            full[i] = value
        return pullback(tree_unflatten(structure, full))

    moved = [*cotangents, *primals]
    try:
        _check(gradients, moved, range(len(moved)), eps, atol, rtol, check_fwd_over_rev, seed + 1)
    except DerivativeError:
        if raise_exception:
            raise
        return False
    return True


def _inputs(name: str, inputs: Tensor | Sequence[Any]) -> tuple[list[Any], list[int]]:
    """All inputs, and the positions of those to check."""
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, x in enumerate(given) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise DerivativeError(f"{name}: no input requires grad, so there is nothing to check")
    for i in checked:
        if given[i].dtype != np.float64:
            raise DTypeError(f"{name}: differences need float64; input {i} is {given[i].dtype}; convert with astype")
    return given, checked


def _of_checked(func: Function, given: Sequence[Any], checked: Sequence[int]) -> Function:
    def function(*moved: Any) -> Any:
        values = list(given)
        for i, x in zip(checked, moved, strict=True):
            values[i] = x
        return func(*values)

    return function


def _check(
    function: Function,
    primals: Sequence[Tensor],
    names: Sequence[int],
    eps: float,
    atol: float,
    rtol: float,
    forward: bool,
    seed: int,
) -> None:
    from staticgrad.transforms import jvp, vjp

    rng = np.random.default_rng(seed)
    out, pullback = vjp(function, *primals)
    outputs, structure = tree_flatten(out)
    weights = [rng.standard_normal(o.shape) if o.dtype.kind == "f" else np.zeros(o.shape, o.dtype) for o in outputs]
    reverse = pullback(
        tree_unflatten(structure, [Tensor(w.astype(o.dtype)) for o, w in zip(outputs, weights, strict=True)])
    )

    def weighted(*moved: Array) -> float:
        with no_grad():
            return _dot(tree_flatten(function(*[Tensor(x) for x in moved]))[0], weights)

    arrays = [np.array(p, copy=True) for p in primals]
    for i, analytic in enumerate(reverse):
        _compare("reverse mode", names[i], np.asarray(analytic), five_point(weighted, arrays, i, eps), atol, rtol)
    if not forward:
        return
    directions = [rng.standard_normal(p.shape) for p in primals]
    _, tangent = jvp(function, primals, [Tensor(d) for d in directions])
    along, back = _dot(tree_flatten(tangent)[0], weights), _dot(reverse, directions)
    if not abs(along - back) <= atol + rtol * max(1.0, abs(back)):
        raise DerivativeError(
            f"gradcheck: forward and reverse mode differ: the weighted change along a direction is {along!r} by "
            f"forward mode, {back!r} by reverse mode"
        )


def _dot(tensors: Sequence[Tensor], weights: Sequence[Array]) -> float:
    """Σ t·w over all elements of all tensors."""
    return float(sum(np.sum(np.asarray(t) * w) for t, w in zip(tensors, weights, strict=True)))


def five_point(f: Callable[..., float], arrays: list[Array], which: int, eps: float) -> Array:
    """df/d arrays[which], element by element, by the five-point rule."""
    result = np.zeros_like(arrays[which])
    flat, slopes = arrays[which].reshape(-1), result.reshape(-1)
    for k in range(flat.size):
        original = flat[k]
        values = []
        for step in (-2, -1, 1, 2):
            flat[k] = original + step * eps
            values.append(f(*arrays))
        flat[k] = original
        slopes[k] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * eps)
    return result


def _compare(mode: str, index: int, found: Array, expected: Array, atol: float, rtol: float) -> None:
    if found.shape != expected.shape:
        raise DerivativeError(f"gradcheck: {mode} of input {index} has shape {found.shape}, not {expected.shape}")
    wrong = ~(np.abs(found - expected) <= atol + rtol * np.maximum(np.abs(expected), 1.0))
    if np.any(wrong):
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise DerivativeError(
            f"gradcheck: {mode} of input {index} differs from five-point differences at {place}: "
            f"{found[place]!r}, expected {expected[place]!r}"
        )
