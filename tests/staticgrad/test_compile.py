"""`sg.compile` from outside: how it is applied, what it is called with, when it compiles again, what it tells."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.errors import CaptureError, DTypeError, RecompileLimitError, ShapeError

X = np.array([1.0, 2.0], np.float32)


def values(result: Any) -> list[Any]:
    return np.asarray(result).tolist()


# ---------------------------------------------------------------- how it is applied


def test_decorators_functions_and_callables() -> None:
    @sg.compile
    def plain(x: Any) -> Any:
        """Twice x."""
        return x * 2

    @sg.compile(static_argnames="n", recompile_limit=3)
    def with_options(x: Any, n: int) -> Any:
        return x * n

    class Scale:
        def __call__(self, x: Any) -> Any:
            return x * 3

    assert (plain.__name__, plain.__doc__) == ("plain", "Twice x.")
    assert values(plain(X)) == [2, 4]
    assert values(with_options(X, 3)) == values(with_options(X, n=3)) == [3, 6]
    assert values(sg.compile(Scale())(X)) == [3, 6]
    assert values(sg.compile(lambda x: x + 1)(X)) == [2, 3]
    assert "plain, 1 specialisation>" in repr(plain)


def test_methods_belong_to_their_instances() -> None:
    class Counter:
        def __init__(self, start: float) -> None:
            self.total = sg.tensor([start])

        @sg.compile
        def add(self, x: Any) -> Any:
            self.total.copy_(self.total + x)
            return self.total * 1

    first, second = Counter(0.0), Counter(10.0)
    assert [values(first.add(1.0)), values(second.add(1.0)), values(first.add(1.0))] == [[1], [11], [2]]
    assert (first.total.item(), second.total.item()) == (2, 11)
    bound = sg.compile(first.add)
    assert values(bound(5.0)) == [7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recompile_limit": 0}, "compile: recompile_limit must be at least 1; got 0"),
        ({"static_argnames": "n"}, r"compile: static_argnames names 'n', but the function takes \(x\)"),
        ({"memory_budget": 100}, "compile: memory_budget is not part of this release"),
        ({"device": "tpu"}, "device: there are 'cpu', 'cuda' and 'cuda:0', 'cuda:1', …; got 'tpu'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sg.compile(lambda x: x, **options)


def test_only_functions_compile() -> None:
    with pytest.raises(TypeError, match="compile: takes a function; got int"):
        sg.compile(3)  # type: ignore[call-overload]
    with pytest.raises(CaptureError, match="has not been compiled yet; call it once first"):
        sg.compile(lambda x: x).memory()


# ---------------------------------------------------------------- arguments


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Batch:
    inputs: Any
    weight: float


def test_trees_of_every_kind_go_in_and_come_out() -> None:
    def function(items: Any, *rest: Any, scale: Any = 2.0, **named: Any) -> Any:
        pair, batch = items["pair"], items["batch"]
        return {
            "list": [pair.left * scale, (pair.right,)],
            "pair": Pair(batch.inputs * batch.weight, None),
            "batch": Batch(rest[0] + named["shift"], "text"),  # type: ignore[arg-type]
            "empty": [(), {}],
        }

    compiled = sg.compile(function)
    for scale, limit in (({}, 1), ({"scale": 3.0}, 2), ({"scale": 5.0}, 2)):
        items = OrderedDict(pair=Pair(X, X + 1), batch=Batch(sg.asarray(X), 4.0))
        for items_now in (items, dict(items)):
            given = items_now if isinstance(items_now, OrderedDict) else items
            found, expected = compiled(given, X, shift=1, **scale), function(given, sg.asarray(X), shift=1, **scale)
        assert type(found["pair"]) is Pair
        assert type(found["batch"]) is Batch
        flat, structure = sg.tree_flatten(found)
        wanted, wanted_structure = sg.tree_flatten(expected)
        assert structure == wanted_structure
        assert [values(a) if not isinstance(a, str) else a for a in flat] == [
            values(a) if not isinstance(a, str) else a for a in wanted
        ]
        assert compiled.cache_info().misses == limit


def test_numbers_are_weak_data_and_booleans_are_structure() -> None:
    def function(x: Any, number: Any, flag: bool) -> Any:
        return x * number if flag else x - number

    compiled = sg.compile(function)
    for number in (2.0, 3.5, np.float64(1.5)):
        found = compiled(X, number, True)
        assert found.dtype == np.float32  # a number does not widen the tensor
        assert values(found) == values(function(X, np.float32(number), True))
    assert compiled.cache_info().misses == 1
    assert values(compiled(X, 2.0, False)) == [-1, 0]
    assert compiled.cache_info().misses == 2
    integers = np.array([1, 2])
    assert compiled(integers, 2, True).dtype == np.int64
    assert compiled(integers, 2.5, True).dtype == sg.asarray(integers).__mul__(2.5).dtype == np.float32


def test_static_arguments() -> None:
    @sg.compile(static_argnames=("shape", "scale"))
    def function(x: Any, shape: tuple[int, ...] = (2,), *, scale: Any = 1) -> Any:
        return sg.reshape(x, shape) * scale

    assert function(X, (1, 2)).shape == (1, 2)
    assert function(X).shape == (2,)
    assert function(X, shape=(1, 2)).shape == (1, 2)
    assert function.cache_info().misses == 2
    assert function(np.array([1, 2]), scale=True).dtype != function(np.array([1, 2]), scale=1.0).dtype
    with pytest.raises(TypeError, match=r"the static argument 'shape' must be hashable.*got list"):
        function(X, [1, 2])


def test_arguments_that_cannot_be_told_apart() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(DTypeError, match="an argument of type Unhashable is neither an array nor hashable"):
        sg.compile(lambda x, y: x)(X, Unhashable())
    with pytest.raises(DTypeError, match=r"compile: an argument: dtypes are bool, int8.*got <U1"):
        sg.compile(lambda x: x)(np.array(["a"]))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4)[::2, ::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.float32(2.0), (2, 2)),
        np.array(3.0),
        np.zeros((0, 3)),
        np.arange(5, dtype=np.int8)[1::2],
        np.frombuffer(b"\0" + np.arange(3.0).tobytes(), np.uint8)[1:].view(np.float64),
        np.arange(3.0).astype(">f8"),
    ],
    ids=["strided", "fortran", "read-only", "0-d", "empty", "int8", "unaligned", "big-endian"],
)
def test_layouts_of_arguments(array: Any) -> None:
    before = array.copy()
    compiled = sg.compile(lambda x: (x * 2, sg.sum(x)))
    for given in (array, sg.asarray(array)):
        doubled, total = compiled(given)
        np.testing.assert_array_equal(doubled, before * 2)
        assert total.item() == before.sum()
    np.testing.assert_array_equal(array, before)


# ---------------------------------------------------------------- results


def test_results_are_never_overwritten() -> None:
    compiled = sg.compile(lambda x: (x * 2, x + 1))
    first = compiled(X)
    kept = [np.array(part) for part in first]
    for _ in range(3):
        compiled(X * 7)
    for part, before in zip(first, kept, strict=True):
        np.testing.assert_array_equal(part, before)


def test_results_that_are_nothing_new() -> None:
    """Inputs, parameters, constants, views and the same value twice: each result is an array of its own."""
    weight, constant = sg.tensor([5.0, 6.0]), np.array([7.0, 8.0])

    def function(x: Any) -> Any:
        y = x + 1
        return x, weight * 1, sg.asarray(constant), x[:1], y, y, sg.zeros(2), "text", 3, None

    compiled = sg.compile(function)
    given = X.copy()
    found, again = compiled(given), compiled(given)
    expected = [[1, 2], [5, 6], [7, 8], [1], [2, 3], [2, 3], [0, 0]]
    assert [values(part) for part in found[:7]] == expected
    assert found[7:] == ("text", 3, None)
    arrays = [np.asarray(part) for part in (*found[:7:], *again[:7]) if part is not found[2] and part is not again[2]]
    for i, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[i + 1 :])
        array[...] = -1
    assert values(given) == [1, 2]
    assert [values(part) for part in compiled(given)[:7]] == expected


# ---------------------------------------------------------------- when it compiles again


def test_reasons_are_logged_and_explained(caplog: pytest.LogCaptureFixture) -> None:
    offset = 1.0

    @sg.compile
    def shifted(batch: Any) -> Any:
        return batch["x"] + offset

    with caplog.at_level(logging.WARNING, "staticgrad"):
        shifted({"x": X})
        assert not caplog.records
        shifted({"x": X[:1]})
        shifted({"x": X.astype(np.float64)})
        offset = 2.0
        assert values(shifted({"x": X})) == [3, 4]
        with sg.no_grad():
            shifted({"x": X})
        shifted({"y": X, "x": X})
    text = [record.getMessage() for record in caplog.records]
    assert "batch['x']: float32[2] became float32[1]" in text[0]
    assert "shifted is compiled again" in text[0]
    assert "batch['x']: " in text[1]
    assert "became float64[2]" in text[1]
    assert "the variable 'offset' was 1.0, is 2.0" in text[2]
    assert "grad mode: on became off" in text[3]
    assert "structure of the arguments: dict(x=*)" in text[4]
    assert "became dict(y=*, x=*)" in text[4]
    for line in text:
        assert line.split("compiled again: ")[1] in shifted.explain()
    with sg.no_grad():
        shifted({"x": X})
    assert shifted.cache_info().misses == 6
    assert shifted.cache_info().hits == 1


def test_too_many_specialisations_are_an_error() -> None:
    compiled = sg.compile(lambda x: x * 2, recompile_limit=2)
    compiled(np.ones(1)), compiled(np.ones(2))
    message = r"was compiled 2 times, its limit; this call differs in: x: float64\[2\] became float64\[3\]\. Pad to"
    with pytest.raises(RecompileLimitError, match=message):
        compiled(np.ones(3))
    assert values(compiled(np.ones(2))) == [2, 2]  # what is there goes on working


# ---------------------------------------------------------------- what it tells


def test_source_memory_and_graph_are_readable() -> None:
    compiled = sg.compile(lambda x, w: sg.sum(sg.tanh(x @ w) * 2, axis=1))
    compiled(np.ones((3, 4), np.float32), np.ones((4, 5), np.float32))
    tree = ast.parse(compiled.source())
    assert any(isinstance(node, ast.FunctionDef) for node in ast.walk(tree))
    assert "tanh" in compiled.source()
    assert "tanh" in str(compiled.graph)
    assert "matmul" in str(compiled.graph)
    for word in ("peak", "lower bound", "naive", "offset"):
        assert word in compiled.memory().lower()
    plan = compiled.plan
    assert plan.lower_bound_bytes <= plan.peak_bytes <= plan.naive_bytes
    assert "1 specialisation" in compiled.explain()


MLP = """
import sys
import numpy as np
import staticgrad as sg
from staticgrad import nn, optim

sg.random.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
opt = optim.Adam(model.parameters(), lr=0.1)

@sg.compile
def step(x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss

x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
losses = [step(x, np.arange(6) % 3).item() for _ in range(3)]
from staticgrad.kernels.cpu import native
print(losses, native.compile_count() > 0, "numba" in sys.modules, step.cache_info().from_disk)
"""


def test_a_second_process_compiles_nothing(tmp_path: Any) -> None:
    environment = {**os.environ, "STATICGRAD_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", MLP], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    losses = runs[0].split("]")[0]
    assert runs[0].split("]")[1].split() == ["True", "True", "0"]
    assert runs[1].split("]")[1].split() == ["False", "False", "1"]
    assert runs[1].startswith(losses)


# ---------------------------------------------------------------- threads and interrupts


def test_threads_share_a_compiled_function() -> None:
    compiled = sg.compile(lambda x: sg.sum(sg.sin(x) * x))
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            rng = np.random.default_rng(seed)
            for _ in range(50):
                x = rng.standard_normal(64 if seed % 2 else 32)
                np.testing.assert_allclose(compiled(x).item(), np.sum(np.sin(x) * x), rtol=1e-12, atol=1e-12)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert compiled.cache_info().misses == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_capture_leaves_everything_as_it_was(error: type[BaseException]) -> None:
    sg.random.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    opt = optim.Adam(model.parameters(), lr=0.1)
    stop = True

    def step(x: Any) -> Any:
        loss = sg.sum(model(x) ** 2)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if stop:
            raise error("in the middle")
        return loss

    before = {name: np.array(tensor) for name, tensor in model.state_dict().items()}
    stream = sg.random.get_state()
    compiled = sg.compile(step)
    x = np.ones((1, 2), np.float32)
    with pytest.raises(error, match="in the middle"):
        compiled(x)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name])
    np.testing.assert_array_equal(sg.random.get_state(), stream)
    assert [parameter.grad for parameter in model.parameters()] == [None, None]
    assert sg.tanh(X).shape == (2,)  # no capture is left open
    stop = False
    compiled(x)
    assert model[0].weight.grad is not None


def test_state_of_another_shape_is_an_error() -> None:
    weight = sg.tensor([1.0, 2.0])
    compiled = sg.compile(lambda x: x * weight)
    compiled(X)
    weight._value = np.ones(3, np.float32)
    with pytest.raises(ShapeError, match=r"weight was captured as float32\[2\] and is now float32\[3\]"):
        compiled(X)
