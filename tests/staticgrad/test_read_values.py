"""Plain Python values, elements and arrays that a captured function reads: a program follows their changes."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn
from staticgrad.graph.errors import TracedValueError

X = np.array([1.0, 2.0], np.float32)


def values(result: Any) -> list[Any]:
    return np.asarray(result).tolist()


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=2e-6, atol=1e-7)


# ---------------------------------------------------------------- values found by reference


def test_arrays_in_a_closure_are_state() -> None:
    array, tensor = np.ones(2, np.float32), sg.tensor([1.0, 1.0])
    table = {"w": np.ones(2, np.float32)}
    compiled = sg.compile(lambda x: x + array + 10 * tensor + x * 0 * table["w"] + 100 * sg.asarray(table["w"]))
    assert values(compiled(X)) == [112, 113]
    array[0] = 3
    tensor.copy_(sg.tensor([2.0, 2.0]))
    table["w"] *= 2
    assert values(compiled(X)) == [224, 223]
    assert compiled.cache_info().misses == 1


FACTOR = 2.0


def make_number(kind: str) -> tuple[Callable[[Any], Any], Callable[[float], None]]:
    """A function that multiplies by a number of Python, and how to change that number."""
    if kind == "closure":
        factor = 2.0

        def change(value: float) -> None:
            nonlocal factor
            factor = value

        return lambda x: x * factor, change
    if kind == "global":
        return lambda x: x * FACTOR, lambda value: globals().update(FACTOR=value)
    if kind == "list":
        items = [2.0]
        return lambda x: x * items[0], lambda value: items.__setitem__(0, value)
    if kind == "dict below a list":
        nested = [{"factor": 2.0}]
        return lambda x: x * nested[0]["factor"], lambda value: nested[0].update(factor=value)
    if kind == "class attribute":
        options = type("Options", (), {"factor": 2.0})
        return lambda x: x * options.factor, lambda value: setattr(options, "factor", value)  # type: ignore[attr-defined]
    space = types.SimpleNamespace(factor=2.0) if kind == "namespace" else _Settings()
    if kind == "property":
        return lambda x: x * space.scaled, lambda value: setattr(space, "factor", value)
    if kind == "helper":
        return lambda x: _helper(space, x), lambda value: setattr(space, "factor", value)
    if kind == "method":
        return space.times, lambda value: setattr(space, "factor", value)
    if kind == "partial":
        return functools.partial(_helper, space), lambda value: setattr(space, "factor", value)
    if kind == "compiled":
        inner = sg.compile(space.times)
        return lambda x: inner(x) * 1, lambda value: setattr(space, "factor", value)
    return lambda x: x * space.factor, lambda value: setattr(space, "factor", value)


class _Settings:
    def __init__(self) -> None:
        self.factor = 2.0
        self.unrelated = 0

    @property
    def scaled(self) -> float:
        return self.factor

    def times(self, x: Any) -> Any:
        return x * self.factor


def _helper(settings: Any, x: Any) -> Any:
    return x * settings.factor


KINDS = ["closure", "global", "list", "dict below a list", "class attribute", "attribute", "property", "helper"]


@pytest.mark.parametrize("kind", [*KINDS, "method", "partial", "compiled"])
def test_numbers_of_python_are_followed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    function, change = make_number(kind)
    compiled = sg.compile(function)
    try:
        for factor, misses in ((2.0, 1), (2.0, 1), (3.0, 2), (2.0, 2)):
            change(factor)
            assert values(compiled(X)) == [factor, 2 * factor]
            assert compiled.cache_info().misses == misses
    finally:
        change(2.0)
    assert "is compiled again: " in caplog.text
    assert "2.0" in caplog.text
    assert "3.0" in caplog.text


def test_what_is_not_read_does_not_matter() -> None:
    """Attributes, globals and items that share nothing with the function's names may change at every call."""
    settings, loss = _Settings(), 0.0

    def step(x: Any) -> Any:
        loss = x * settings.factor  # a local of the same name
        return types.SimpleNamespace(loss=loss).loss

    compiled = sg.compile(step)
    for i in range(3):
        settings.unrelated, loss = i, loss + i
        compiled(X)
    assert compiled.cache_info().misses == 1
    assert loss == 3


def test_a_rebound_variable_is_followed() -> None:
    model = nn.Linear(2, 1)
    compiled = sg.compile(lambda x: model(x))
    close(compiled(X).detach(), model(sg.asarray(X)).detach())
    model = nn.Linear(2, 1)
    close(compiled(X).detach(), model(sg.asarray(X)).detach())
    assert "the variable 'model'" in compiled.explain()


# ---------------------------------------------------------------- elements given to Python


@pytest.mark.parametrize("read", [float, lambda t: t.item(), lambda t: t.tolist(), lambda t: np.asarray(t)])
def test_elements_of_state_that_python_reads(read: Callable[[Any], Any]) -> None:
    """The number of a tensor that is not traced is at hand; a program that was made with it follows its changes."""
    scale = sg.asarray(2.0)
    compiled = sg.compile(lambda x: x * read(scale))
    for number, misses in ((2.0, 1), (2.0, 1), (3.0, 2), (2.0, 2)):
        scale.copy_(number)
        close(compiled(X), X * number)
        assert compiled.cache_info().misses <= misses
    assert "the content of scale, read by" in compiled.explain()


def test_elements_of_state_that_the_function_has_written() -> None:
    scale = sg.asarray(2.0)

    def function(x: Any) -> Any:
        scale.copy_(scale * 2)
        return x * float(scale)

    with pytest.raises(TracedValueError, match=r"float\(\): this value is being captured.*test_read_values"):
        sg.compile(function)(X)
    assert scale.item() == 2


# ---------------------------------------------------------------- arrays that NumPy computes with


def test_arrays_of_another_dtype_are_state_too() -> None:
    array = np.arange(2.0)
    compiled = sg.compile(lambda x: x + sg.asarray(array, dtype=np.float32) + sg.asarray(array).astype(np.float32))
    for _ in range(2):
        close(compiled(X), X + 2 * array)
        array += 1
    assert compiled.cache_info().misses == 1


def test_what_numpy_makes_of_an_array_is_followed() -> None:
    """NumPy's own arithmetic is no part of a program: a change of what it read compiles again."""
    array, table, unused = np.ones(2, np.float32), {"w": [np.ones(2, np.float32)]}, np.ones(2)
    compiled = sg.compile(lambda x: x * (2 * array) + table["w"][0] + np.eye(2, dtype=np.float32)[0])
    for misses in (1, 2):
        close(compiled(X), X * 2 * array + table["w"][0] + [1, 0])
        close(compiled(X), X * 2 * array + table["w"][0] + [1, 0])
        assert compiled.cache_info().misses == misses
        array += 1
        unused += 1
    table["w"][0][0] = 7
    close(compiled(X), X * 2 * array + table["w"][0] + [1, 0])
    assert "the content of the array 'array' was [1. 1.], is [2. 2.]" in compiled.explain()


def test_views_of_arrays_are_followed_without_compiling_again() -> None:
    array = np.zeros((2, 2), np.float32)
    compiled = sg.compile(lambda x: x + array[1] + array.T[:, 0])
    for i in range(3):
        array[:] = [[i, 10 * i], [100 * i, 1000 * i]]
        close(compiled(X), X + array[1] + array.T[:, 0])
    assert compiled.cache_info().misses == 1
