"""Changes of Python state inside a compiled function are refused, and taken back."""

from __future__ import annotations

import random
import subprocess
import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.graph.errors import CaptureError

X = np.array([1.0, 2.0], np.float32)
LOG: list[Any] = []
COUNT = 0
MESSAGE = (
    "compile: the function changes the .*{what}.*; a compiled function runs without Python, so this would happen once "
    r"and never again\. Return the value from the function, keep it in a Tensor \(copy_\), or move the line out"
)


class Recorder:
    total = 0

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.count = 0
        self.nested = types.SimpleNamespace(best=1.0)

    def record(self, x: Any) -> None:
        self.log.append(x)


def appends_to_a_closure() -> tuple[Callable[[Any], Any], Any, str]:
    log: list[Any] = [1]

    def function(x: Any) -> Any:
        log.append(x * 2)
        return x

    return function, log, "list 'log'"


def appends_to_a_global() -> tuple[Callable[[Any], Any], Any, str]:
    def function(x: Any) -> Any:
        LOG.append(1)
        return x

    return function, LOG, "list 'LOG'"


def appends_in_a_helper() -> tuple[Callable[[Any], Any], Any, str]:
    log: list[Any] = []

    def helper(x: Any) -> Any:
        log.append(1)
        return x

    return (lambda x: helper(x)), log, "list 'log'"


def appends_below_a_compiled_function() -> tuple[Callable[[Any], Any], Any, str]:
    function, log, what = appends_to_a_closure()
    inner = sg.compile(function)
    return (lambda x: inner(x) * 2), log, what


def appends_to_an_attribute() -> tuple[Callable[[Any], Any], Any, str]:
    recorder = Recorder()

    def function(x: Any) -> Any:
        recorder.record(x)
        return x

    return function, recorder.log, r"list 'recorder\.log'"


def appends_to_a_nested_list() -> tuple[Callable[[Any], Any], Any, str]:
    nested: dict[str, Any] = {"a": [[]]}

    def function(x: Any) -> Any:
        nested["a"][0].append(1)
        return x

    return function, nested, r"list \"?nested\['a'\]\[0\]"


def changes_a_dict() -> tuple[Callable[[Any], Any], Any, str]:
    table = {"best": 1.0}

    def function(x: Any) -> Any:
        table["best"] = 2.0
        table["new"] = x * 1
        return x

    return function, table, "dict 'table'"


def changes_a_set_and_a_deque() -> tuple[Callable[[Any], Any], Any, str]:
    seen, last = {1}, deque([1], maxlen=1)

    def function(x: Any) -> Any:
        seen.add(2)
        last.append(2)
        return x

    return function, [seen, last], "set 'seen'"


def counts_in_a_closure() -> tuple[Callable[[Any], Any], Any, str]:
    calls = 0

    def function(x: Any) -> Any:
        nonlocal calls
        calls += 1
        return x * calls

    def state() -> int:
        return calls

    return function, state, "variable 'calls'"


def counts_in_an_attribute() -> tuple[Callable[[Any], Any], Any, str]:
    recorder = Recorder()

    def function(x: Any) -> Any:
        recorder.count += 1
        recorder.nested.best = 2.0
        recorder.new = 3
        return x

    return function, lambda: (recorder.count, recorder.nested.best, hasattr(recorder, "new")), r"recorder\.count"


def keeps_a_traced_tensor() -> tuple[Callable[[Any], Any], Any, str]:
    recorder = Recorder()

    def function(x: Any) -> Any:
        recorder.last = x * 2
        return x

    return function, lambda: vars(recorder).keys() == {"log", "count", "nested"}, r"recorder\.last"


CASES = [
    appends_to_a_closure,
    appends_to_a_global,
    appends_in_a_helper,
    appends_below_a_compiled_function,
    appends_to_an_attribute,
    appends_to_a_nested_list,
    changes_a_dict,
    changes_a_set_and_a_deque,
    counts_in_a_closure,
    counts_in_an_attribute,
    keeps_a_traced_tensor,
]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_changes_are_refused_and_taken_back(make: Callable[[], Any]) -> None:
    function, state, what = make()

    def seen() -> str:
        return repr(state() if callable(state) else state)

    before = seen()
    compiled = sg.compile(function)
    for _ in range(2):  # a refused capture is not kept
        with pytest.raises(CaptureError, match=MESSAGE.format(what=what)):
            compiled(X)
        assert seen() == before
    assert compiled.cache_info().misses == 0
    if make is not appends_below_a_compiled_function:
        function(sg.asarray(X))  # at once it may
        assert seen() != before
    LOG.clear()


def test_a_global_that_is_only_assigned() -> None:
    def function(x: Any) -> Any:
        global COUNT
        COUNT = 5
        return x

    with pytest.raises(CaptureError, match=MESSAGE.format(what="variable 'COUNT'")):
        sg.compile(function)(X)
    assert COUNT == 0


@pytest.mark.parametrize("change", [lambda tree: tree["list"].append(1), lambda tree: tree.update(new=1)])
def test_arguments_of_another_structure_afterwards(change: Callable[[Any], Any]) -> None:
    def function(tree: Any) -> Any:
        change(tree)
        return tree["list"][0] * 2

    tree = {"list": [X]}
    with pytest.raises(CaptureError, match=r"the structure of one of its arguments .appends to a list, adds a key"):
        sg.compile(function)(tree)
    assert tree.keys() == {"list"}
    assert len(tree["list"]) == 1


def test_an_argument_that_is_an_object() -> None:
    recorder = Recorder()

    def function(x: Any, recorder: Any) -> Any:
        recorder.record(1)
        return x

    with pytest.raises(CaptureError, match=MESSAGE.format(what=r"list 'Recorder\.log'")):
        sg.compile(function)(X, recorder)
    assert recorder.log == []


def test_what_begins_and_ends_inside_is_free() -> None:
    """Local lists, objects made inside, and attributes that end with the value they had."""
    recorder = Recorder()

    def function(x: Any) -> Any:
        parts, own = [], Recorder()
        for i in range(3):
            parts.append(x * i)
            own.record(x)
        recorder.count, before = 5, recorder.count
        recorder.count = before
        return sg.stack(parts)

    compiled = sg.compile(function)
    np.testing.assert_array_equal(np.asarray(compiled(X)), np.asarray(function(sg.asarray(X))))


def test_tensors_in_containers_may_be_written() -> None:
    table = {"mean": sg.zeros(2), "history": [sg.zeros(2)]}

    def function(x: Any) -> Any:
        table["history"][0].copy_(table["mean"])  # type: ignore[index]
        table["mean"].copy_(table["mean"] * 0.5 + x)  # type: ignore[attr-defined, operator]
        return x * 1

    compiled = sg.compile(function)
    compiled(X), compiled(X)
    assert np.asarray(table["mean"]).tolist() == [1.5, 3]
    assert np.asarray(table["history"][0]).tolist() == [1, 2]  # type: ignore[index]


def test_an_error_inside_is_passed_on_with_its_line() -> None:
    def function(x: Any) -> Any:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing") as caught:
        sg.compile(function)(X)
    assert caught.traceback[-1].path.name == "test_side_effects.py"


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("numpy.random", lambda rng: np.random.standard_normal(2)),
        ("random", lambda rng: random.random()),
        ("rng", lambda rng: rng.standard_normal(2)),
    ],
)
def test_random_numbers_of_others(name: str, draw: Callable[[Any], Any]) -> None:
    """They would be drawn once, when the function is captured; the generators go on as if it had not been called."""
    rng = np.random.default_rng(0)

    def function(x: Any) -> Any:
        return x + draw(rng)

    before = np.random.get_state()[1].copy(), random.getstate(), rng.bit_generator.state  # type: ignore[index, union-attr]
    with pytest.raises(
        CaptureError, match=rf"compile: the function draws from {name}; .*Draw with sg\.random, or pass"
    ):
        sg.compile(function)(X)
    after = np.random.get_state()[1], random.getstate(), rng.bit_generator.state  # type: ignore[index]
    np.testing.assert_array_equal(after[0], before[0])
    assert after[1:] == before[1:]


_FIRST_IMPORT = """
import sys
import numpy as np
import staticgrad as sg
from staticgrad.graph.errors import CaptureError

def function(x):
    {line}
    return x + 1

assert "numpy.random" not in sys.modules
try:
    sg.compile(function)(np.ones(2, np.float32))
except CaptureError as error:
    print("refused" if "draws from numpy.random" in str(error) else error)
else:
    print("compiled")
"""


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("pass", "compiled"),
        ("import numpy.random", "compiled"),
        ("np.random.rand()", "refused"),
        ("np.random.standard_normal(3)", "refused"),
        ("np.random.seed(1)", "refused"),
    ],
)
def test_random_numbers_of_numpy_first_imported_inside(line: str, answer: str) -> None:
    program = _FIRST_IMPORT.format(line=line)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == answer
