"""How library code reads Python state so that a compiled step follows it: guarded, or read again at each call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from staticgrad._context import context
from staticgrad.graph.errors import StaticgradError
from staticgrad.graph.node import DType
from staticgrad.guards import attribute, item
from staticgrad.tensor import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def watch(owner: Any, name: str) -> Any:
    """`owner.name`; under capture a change of it makes the next call compile again."""
    if context.capture is None:
        return getattr(owner, name)
    what = f"{type(owner).__name__}.{name}"
    return context.capture.guard(what, attribute(owner, name), owner, name)


def watch_item(mapping: MutableMapping[str, Any], key: str) -> Any:
    """`mapping[key]`; under capture a change of it makes the next call compile again."""
    if context.capture is None:
        return mapping[key]
    return context.capture.guard(f"option {key!r}", item(mapping, key), mapping, key)


def hyperparameter(mapping: MutableMapping[str, Any], key: str, dtype: DType) -> Any:
    """The number `mapping[key]`; under capture a 0-d tensor that is read again at each call, with no recompile.

    A Tensor found there is returned as it is: it is state like any other.
    """
    value = mapping[key]
    if context.capture is None or isinstance(value, Tensor):
        return value
    return context.capture.scalar(mapping, key, np.dtype(dtype))


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Nodes captured inside the block carry `name` in their scope, for reports."""
    capture = context.capture
    if capture is None:
        yield
        return
    outer = capture.scope
    capture.scope = f"{outer}/{name}" if outer else name
    try:
        yield
    finally:
        capture.scope = outer


def composite(name: str) -> Callable[[F], F]:
    """Mark a function written in terms of ops: its nodes carry `name` in their scope, its errors the user's line."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                if context.capture is None:
                    return function(*args, **kwargs)
                with scope(name):
                    return function(*args, **kwargs)
            except StaticgradError as error:
                from staticgrad.binding import located

                raise located(error) from error.__cause__

        return wrapped  # type: ignore[return-value]

    return decorate
