"""The backward engine: visits tape nodes from the latest to the earliest and sums what flows into each.

A node's serial is larger than those of the nodes it reads, so taking the largest pending serial first means that
every node has received all its cotangents when its turn comes. Iterative, O(n log n) in the nodes visited.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.autograd.modes import enable_grad, no_grad
from staticgrad.autograd.tape import TapeNode
from staticgrad.graph.errors import DerivativeError, DTypeError, ShapeError, StaticgradError
from staticgrad.graph.ops.arithmetic import cast
from staticgrad.kernels.device import find_device
from staticgrad.operands import as_operand
from staticgrad.tensor import Tensor


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Sequence[Tensor] | Tensor | None = None,
) -> None:
    """Accumulate the sum of cotangent·d tensor/d leaf into `grad` of every leaf, or of `inputs` only."""
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    cotangents = _cotangents(roots, grad_tensors)
    keep = create_graph if retain_graph is None else retain_graph
    if inputs is None:
        run(roots, cotangents, keep, create_graph, None)
        return
    targets = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not targets:
        raise DerivativeError("backward: inputs must name at least one tensor; leave it out for all leaves")
    _require_grad("backward", targets)
    for target, value in zip(targets, run(roots, cotangents, keep, create_graph, targets), strict=True):
        if value is not None and not target._retains_grad:  # a retained gradient was filled on the way
            _store(target, value, create_graph)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The sum of cotangent·d outputs/d input for each input, without touching any `grad`.

    Raises:
        DerivativeError: an input does not require grad, or none of the outputs depends on it and not `allow_unused`.
    """
    roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    targets = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _require_grad("grad", targets)
    keep = create_graph if retain_graph is None else retain_graph
    found = run(roots, _cotangents(roots, grad_outputs), keep, create_graph, targets)
    if not allow_unused and any(value is None for value in found):
        raise DerivativeError(
            "grad: an output does not depend on one of the inputs; pass allow_unused=True to get None for it"
        )
    return tuple(found)


def _require_grad(name: str, targets: Sequence[Tensor]) -> None:
    for target in targets:
        if not target._requires_grad:
            raise DerivativeError(
                f"{name}: an input ({target.spec}) does not require grad; call requires_grad_() on it before it is used"
            )


def _cotangents(roots: Sequence[Tensor], given: Any) -> list[Tensor]:
    listed = list(given) if isinstance(given, tuple | list) else [given] * len(roots) if given is None else [given]
    if len(listed) != len(roots):
        raise DerivativeError(f"backward: one gradient for each tensor; got {len(listed)} for {len(roots)}")
    return [_cotangent(root, value) for root, value in zip(roots, listed, strict=True)]


def _cotangent(root: Tensor, value: Any) -> Tensor:
    if not root._requires_grad:
        raise DerivativeError(
            f"backward: nothing to differentiate: the tensor ({root.spec}) does not require grad and no op that was "
            "recorded made it; set requires_grad on the inputs, and check for no_grad() and detach()"
        )
    if value is None:
        if root.size != 1:
            raise DerivativeError(
                f"backward: a gradient can be left out for one element only; the tensor has shape {root.shape}; pass "
                "gradient= of that shape, or reduce it with sum() or mean()"
            )
        return ones_like(root)
    operand = as_operand("backward", value)
    cotangent = (
        operand
        if isinstance(operand, Tensor)
        else Tensor(find_device(root.device).place(np.asarray(operand, root.dtype)))
    )
    if cotangent.shape != root.shape:
        raise ShapeError(f"backward: the gradient must have the tensor's shape {root.shape}; got {cotangent.shape}")
    if cotangent.dtype != root.dtype:
        raise DTypeError(f"backward: the gradient must have the tensor's dtype {root.dtype}; got {cotangent.dtype}")
    return cotangent


def ones_like(x: Tensor) -> Tensor:
    """A tensor of ones of x's type, in the mode the thread is in."""
    from staticgrad.array.creation import full

    return full(x.shape, 1, dtype=x.dtype, device=x.device)


def run(
    roots: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
    targets: Sequence[Tensor] | None,
) -> list[Tensor | None]:
    """Carry `cotangents` of `roots` back. With `targets` return theirs, else accumulate into the leaves."""
    wanted = None if targets is None else [target.gradient_edge() for target in targets]
    useful = None if wanted is None else _leading_to(wanted, [root.gradient_edge() for root in roots])
    mode = enable_grad() if create_graph else no_grad()
    with mode:
        arrived = _propagate(roots, cotangents, retain_graph, useful, {id(edge) for edge in wanted or ()})
        if wanted is not None:
            return [_transformed(edge, arrived.get(id(edge))) for edge in wanted]
        for leaf, value in arrived.values():
            if isinstance(leaf, Tensor):
                _accumulate_leaf(leaf, value, create_graph)
    return []


Arrived = dict[int, tuple[Any, Tensor]]


def _propagate(
    roots: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    retain_graph: bool,
    useful: set[int] | None,
    wanted: set[int],
) -> Arrived:
    """Visit the tape; what remains at the end are the cotangents of leaves and of the `wanted` edges."""
    arrived: Arrived = {}
    pending: list[tuple[int, int, TapeNode]] = []

    def deliver(edge: Any, value: Tensor) -> None:
        key = id(edge)
        known = arrived.get(key)
        if known is not None:
            arrived[key] = (edge, known[1] + value)
            return
        arrived[key] = (edge, value)
        if isinstance(edge, TapeNode):
            heapq.heappush(pending, (-edge.serial, key, edge))

    for root, cotangent in zip(roots, cotangents, strict=True):
        deliver(root.gradient_edge(), cotangent)
    capture = context.capture
    while pending:
        _, key, node = heapq.heappop(pending)
        value = arrived.pop(key)[1]
        if node.hooks or node.retained is not None:
            value = _hooked(node, value)
        if key in wanted:
            arrived[key] = (node, value)
        if capture is not None:
            capture.enter_backward(node)
        try:
            for edge, change in node.pull(value, useful):
                if useful is None or id(edge) in useful:
                    deliver(edge, change)
        except StaticgradError as error:
            raise _named(error, node) from error
        finally:
            if capture is not None:
                capture.leave_backward()
        if not retain_graph:
            node.free()
    return arrived


def _named(error: StaticgradError, node: TapeNode) -> StaticgradError:
    if node.location.line and str(node.location) not in str(error):
        return type(error)(f"{error}. The op was called at {node.location}")
    return error


def _hooked(node: TapeNode, value: Tensor) -> Tensor:
    """Run the hooks of the tensor that `node` made, and fill its `grad` if it is retained."""
    if node.hooks:
        value = call_hooks(node.hooks.values(), value)
    tensor = node.retained() if node.retained is not None else None
    if tensor is not None:
        accumulate(tensor, value, context.grad_enabled)
    return value


def call_hooks(hooks: Iterable[Any], value: Tensor) -> Tensor:
    """`value` after each hook in turn has had the chance to replace it."""
    for hook in list(hooks):
        changed = hook(value)
        if changed is not None:
            if not isinstance(changed, Tensor) or changed.spec != value.spec:
                raise ShapeError(f"hook: must return None or a gradient of {value.spec}; got {changed!r}")
            value = changed
    return value


def _transformed(edge: Any, found: tuple[Any, Tensor] | None) -> Tensor | None:
    if found is None:
        return None
    if isinstance(edge, Tensor) and edge._hooks:
        return call_hooks(edge._hooks.values(), found[1])
    return found[1]


def _accumulate_leaf(leaf: Tensor, value: Tensor, create_graph: bool) -> None:
    if leaf._hooks:
        value = call_hooks(leaf._hooks.values(), value)
    _store(leaf, value, create_graph)


def _store(leaf: Tensor, value: Tensor, create_graph: bool) -> None:
    accumulate(leaf, value, create_graph)
    if leaf._post_hooks:
        for hook in list(leaf._post_hooks.values()):
            hook(leaf)


def accumulate(tensor: Tensor, value: Tensor, create_graph: bool) -> None:
    """Add `value` to the tensor's `grad`; a first gradient gets storage of its own."""
    before = tensor.grad
    if before is not None:
        value = before + value
    elif not value.traced:
        # A copy: cotangents may be views, shared between operands, or the user's.
        if context.plain and not value._requires_grad and value._tangents is None:
            value = Tensor(value._value.copy())  # type: ignore[union-attr]
        else:
            value = Tensor.__bind__(cast, (value,), {"dtype": value.dtype})
    if not create_graph and value._requires_grad:
        value = _off_tape(value)
    if context.capture is None:
        tensor._grad = value
    else:
        tensor.grad = value


def _off_tape(value: Tensor) -> Tensor:
    out = value.detach()
    out._tangents = value._tangents
    return out


def _leading_to(wanted: Sequence[Any], roots: Sequence[Any]) -> set[int]:
    """The ids of edges on a path from a root to a wanted edge; iterative, linear in edges."""
    nodes: dict[int, TapeNode] = {}
    pending = [root for root in roots if isinstance(root, TapeNode)]
    while pending:
        node = pending.pop()
        if id(node) not in nodes:
            nodes[id(node)] = node
            pending += [edge for edge in node.edges if isinstance(edge, TapeNode) and id(edge) not in nodes]
    useful = {id(edge) for edge in wanted}
    for node in sorted(nodes.values(), key=_by_serial):
        for edge in node.edges:
            if edge is not None and id(edge) in useful:
                useful.add(id(node))
                break
    return useful


def _by_serial(node: TapeNode) -> int:
    return node.serial
