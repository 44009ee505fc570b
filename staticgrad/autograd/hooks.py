"""Hooks on tensors, and gradients kept for computed tensors."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

from staticgrad.graph.errors import DerivativeError
from staticgrad.tensor import Tensor

_keys = itertools.count()


class RemovableHandle:
    """Takes a hook away again: `handle.remove()`, or leave the `with` block."""

    def __init__(self, hooks: dict[int, Any], key: int) -> None:
        self._hooks = hooks
        self._key = key

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        self._hooks.pop(self._key, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _add(hooks: dict[int, Any], hook: Callable[..., Any]) -> RemovableHandle:
    if not callable(hook):
        raise TypeError(f"hook: must be callable; got {type(hook).__name__}")
    key = next(_keys)
    hooks[key] = hook
    return RemovableHandle(hooks, key)


def _require_grad(tensor: Tensor, name: str) -> None:
    if not tensor.requires_grad:
        raise DerivativeError(f"{name}: the tensor does not require grad, so it never gets a gradient")


def register_hook(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """See `Tensor.register_hook`."""
    _require_grad(tensor, "register_hook")
    node = tensor.grad_fn
    if node is None:
        leaf = tensor.gradient_edge()
        if not isinstance(leaf, Tensor):
            raise DerivativeError("register_hook: the tensor has no place on the tape")
        leaf._hooks = {} if leaf._hooks is None else leaf._hooks
        return _add(leaf._hooks, hook)
    node.hooks = {} if node.hooks is None else node.hooks
    return _add(node.hooks, hook)


def register_post_accumulate_grad_hook(tensor: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """See `Tensor.register_post_accumulate_grad_hook`."""
    _require_grad(tensor, "register_post_accumulate_grad_hook")
    if not tensor.is_leaf:
        raise DerivativeError("register_post_accumulate_grad_hook: only leaves accumulate; use register_hook")
    tensor._post_hooks = {} if tensor._post_hooks is None else tensor._post_hooks
    return _add(tensor._post_hooks, hook)


def retain_grad(tensor: Tensor) -> None:
    """See `Tensor.retain_grad`."""
    _require_grad(tensor, "retain_grad")
    node = tensor.grad_fn
    if node is not None and not tensor._retains_grad:
        node.retained = weakref.ref(tensor)
        tensor._retains_grad = True
