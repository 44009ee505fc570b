"""Function transforms: grad, value_and_grad, vjp, jvp, of dynamic and of compiled functions, in any composition."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from staticgrad._context import context
from staticgrad.array.creation import asarray, zeros_like
from staticgrad.autograd import engine
from staticgrad.autograd.modes import enable_grad
from staticgrad.autograd.tape import TapeNode
from staticgrad.forward import below
from staticgrad.graph.errors import DerivativeError, DTypeError, ShapeError
from staticgrad.graph.op import structural
from staticgrad.tensor import Tensor, alias
from staticgrad.tree import TreeDef, tree_flatten, tree_map, tree_unflatten

_levels = itertools.count()  # never used twice, so that a dual number kept from an earlier jvp means nothing later
Pullback = Callable[[Any], tuple[Any, ...]]


def _identity_back(cotangent: Any) -> Any:
    return cotangent


_identity = structural(
    "identity",
    operands=("x",),
    infer=lambda x: x,
    reference=lambda x: x,
    vjp=(_identity_back,),
    linear="each",
    kind="view",
    exempt={"suite": "only ever on the tape: it marks where a transform's argument begins"},
)


def _argument(x: Any, name: str) -> Tensor:
    """A fresh place on the tape for `x`, from which outer derivatives still reach x."""
    tensor = x if isinstance(x, Tensor) else asarray(x)
    if tensor.dtype.kind != "f":
        raise DTypeError(
            f"{name}: derivatives are taken for floating arguments; got {tensor.spec}; convert with astype"
        )
    fresh = alias(tensor)
    if tensor._requires_grad:
        node = TapeNode(_identity, {}, [tensor.gradient_edge()], [tensor.spec])
        fresh._edge = node
    else:
        fresh._edge = None
        fresh._requires_grad = True
    return fresh


@contextmanager
def _nested() -> Iterator[None]:
    context.depth += 1
    try:
        with enable_grad():
            yield
    finally:
        context.depth -= 1


def _unwrap(f: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """The Python function below a compiled one, and how to compile a transform of it again."""
    compiled = getattr(f, "__staticgrad_compiled__", None)
    return (f, lambda g: g) if compiled is None else compiled()


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """The function that returns df/d(argument) for the arguments `argnums`, as `jax.grad`.

    Args:
        f: returns one floating element; with `has_aux`, a pair of that and anything else.
        argnums: position or positions of the arguments, each any tree of floating tensors.

    Returns:
        A function of the same arguments: the gradient, of the argument's structure (a tuple for several positions),
        paired with the second part of f's result if `has_aux`.

    Raises:
        DerivativeError: f does not return one floating element, or uses an op without a derivative.
    """
    both = value_and_grad(f, argnums, has_aux)

    @functools.wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    _, compile_again = _unwrap(f)
    return gradient if compile_again(_probe) is _probe else compile_again(_of_python(grad, f, argnums, has_aux))


def _probe() -> None:
    return None


def _of_python(transform: Callable[..., Any], f: Callable[..., Any], *options: Any) -> Callable[..., Any]:
    transformed: Callable[..., Any] = transform(_unwrap(f)[0], *options)
    return transformed


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """The function that returns (f(…), df/d(argument)); see `grad`."""
    python, compile_again = _unwrap(f)
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(python)
    def both(*args: Any, **kwargs: Any) -> Any:
        for position in positions:
            if not -len(args) <= position < len(args):
                raise DerivativeError(f"grad: argnums {argnums} but the function was called with {len(args)} arguments")
        if len({position % len(args) for position in positions}) < len(positions):
            raise DerivativeError(f"grad: argnums must name each argument once; got {argnums}")
        with _nested():
            replaced, leaves, structures = _fresh(args, positions, "grad")
            out = python(*replaced, **kwargs)
            value = out[0] if has_aux else out
            _check_scalar(value)
            found, again = _pull([value], [engine.ones_like(value)], leaves)
        gradients = _split([_settled(x, leaves) for x in found], structures)
        result = gradients[0] if isinstance(argnums, int) else tuple(gradients)
        walked = value._requires_grad and value._tangents is None and not again
        settled = value.detach() if walked else _settled(value, leaves)
        return ((settled, _settled_tree(out[1], leaves)) if has_aux else settled), result

    return compile_again(both)


def _check_scalar(value: Any) -> None:
    if not isinstance(value, Tensor) or value.size != 1 or value.dtype.kind != "f":
        came = value.spec if isinstance(value, Tensor) else type(value).__name__
        raise DerivativeError(f"grad: the function must return one floating element; got {came}; use sg.vjp for more")


def _fresh(args: Sequence[Any], positions: Sequence[int], name: str) -> tuple[list[Any], list[Tensor], list[TreeDef]]:
    """The arguments with fresh leaves at `positions`, those leaves, and the structures of those arguments."""
    replaced, leaves, structures = list(args), [], []
    for position in positions:
        found, structure = tree_flatten(args[position])
        fresh = [_argument(x, name) for x in found]
        replaced[position] = tree_unflatten(structure, fresh)
        leaves.extend(fresh)
        structures.append(structure)
    return replaced, leaves, structures


def _split(values: Sequence[Any], structures: Sequence[TreeDef]) -> list[Any]:
    trees, place = [], 0
    for structure in structures:
        trees.append(tree_unflatten(structure, values[place : place + structure.count]))
        place += structure.count
    return trees


def _pull(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], leaves: Sequence[Tensor]
) -> tuple[list[Tensor], bool]:
    """The leaves' cotangents, and whether they are differentiable again: if something outside may ask for it."""
    wanted = [(out, ct) for out, ct in zip(outputs, cotangents, strict=True) if out._requires_grad]
    again = (
        context.depth > 1
        or any(leaf._edge is not None for leaf in leaves)
        or _reaches_others([x for pair in wanted for x in pair], leaves)
    )
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if wanted:
        found = engine.run([o for o, _ in wanted], [ct for _, ct in wanted], True, again, leaves)
    return [zeros_like(leaf) if value is None else value for leaf, value in zip(leaves, found, strict=True)], again


def _reaches_others(values: Sequence[Tensor], leaves: Sequence[Tensor]) -> bool:
    """Whether `values` depend on a tensor that requires grad other than `leaves`, or on what those were made from."""
    own = {id(leaf) for leaf in leaves}
    seen: set[int] = set()
    pending: list[Any] = [x.gradient_edge() for x in values if x._requires_grad]
    while pending:
        edge = pending.pop()
        if id(edge) in seen or id(edge) in own:
            continue
        seen.add(id(edge))  # the identity that begins a differentiable argument leads on to it through its edge
        if isinstance(edge, Tensor):
            return True
        pending += [other for other in edge.edges if other is not None and id(other) not in seen]
    return False


def _settled(value: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """A transform's result: it and its tangents off the tape, unless they depend on more than its own `leaves`."""
    if not value._requires_grad and value._tangents is None:
        return value
    out = alias(value) if value._requires_grad and _reaches_others([value], leaves) else value.detach()
    if value._tangents is not None:
        out._tangents = {level: _settled(tangent, leaves) for level, tangent in value._tangents.items()}
    return out


def _settled_tree(tree: Any, leaves: Sequence[Tensor]) -> Any:
    return tree_map(lambda x: _settled(x, leaves) if isinstance(x, Tensor) else x, tree)


def vjp(f: Callable[..., Any], *primals: Any) -> tuple[Any, Pullback]:
    """(f(*primals), pullback), where pullback(ct) gives the cotangents of all primals as a tuple, as `jax.vjp`.

    `ct` must have the structure, shapes and dtypes of f's result; pullback may be called any number of times.
    """
    python, _ = _unwrap(f)
    with _nested():
        replaced, leaves, structures = _fresh(primals, range(len(primals)), "vjp")
        result = python(*replaced)
    outputs, structure = tree_flatten(result)
    for out in outputs:
        if not isinstance(out, Tensor):
            raise DerivativeError(f"vjp: the function must return tensors; got {type(out).__name__}")

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        given, found = tree_flatten(cotangent)
        if found != structure:
            raise DerivativeError(f"vjp: the cotangent must have the result's structure {structure}; got {found}")
        cotangents = [_like("vjp: the cotangent", out, ct) for out, ct in zip(outputs, given, strict=True)]
        with _nested():
            values, _ = _pull(outputs, cotangents, leaves)
        return tuple(_split(values, structures))

    return tree_unflatten(structure, [_settled(out, leaves) for out in outputs]), pullback


def _like(name: str, reference: Tensor, value: Any) -> Tensor:
    given = value if isinstance(value, Tensor) else asarray(value, dtype=reference.dtype)
    if given.shape != reference.shape:
        raise ShapeError(f"{name} must have shape {reference.shape}; got {given.shape}")
    if given.dtype != reference.dtype:
        raise DTypeError(f"{name} must have dtype {reference.dtype}; got {given.dtype}")
    return given


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """(f(*primals), its derivative in the direction `tangents`), by forward mode, as `jax.jvp`.

    `tangents` must have the structure, shapes and dtypes of `primals`.
    """
    python, compile_again = _unwrap(f)
    if compile_again(_probe) is not _probe and context.capture is None:
        compiled = f.derived("jvp", lambda given, directions: jvp(python, given, directions))  # type: ignore[attr-defined]
        return compiled(tuple(primals), tuple(tangents))  # type: ignore[no-any-return]
    given, structure = tree_flatten(tuple(primals))
    directions, found = tree_flatten(tuple(tangents))
    if found != structure:
        raise DerivativeError(f"jvp: tangents must have the structure of primals {structure}; got {found}")
    context.depth += 1
    level = next(_levels)
    try:
        duals = [_dual(x, t, level) for x, t in zip(given, directions, strict=True)]
        outputs, result = tree_flatten(python(*tree_unflatten(structure, duals)))
    finally:
        context.depth -= 1
    values, changes = [], []
    for out in outputs:
        if not isinstance(out, Tensor):
            raise DerivativeError(f"jvp: the function must return tensors; got {type(out).__name__}")
        tangent = out._tangents.get(level) if out._tangents else None
        values.append(below(out, level))
        changes.append(zeros_like(out.detach()) if tangent is None else tangent)
    return tree_unflatten(result, values), tree_unflatten(result, changes)


def _dual(x: Any, tangent: Any, level: int) -> Tensor:
    primal = x if isinstance(x, Tensor) else asarray(x)
    if primal.dtype.kind != "f":
        raise DTypeError(f"jvp: derivatives are taken for floating arguments; got {primal.spec}; convert with astype")
    direction = _like("jvp: a tangent", primal, tangent)
    dual = alias(primal)
    dual._tangents = {**(dual._tangents or {}), level: direction}
    return dual


def stop_gradient(x: Tensor) -> Tensor:
    """x, through which no derivative flows in either mode."""
    return x.detach()
