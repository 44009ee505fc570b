"""`check=True`: NaNs are traced to their op and line, wrong kernels are caught, nothing changes before the check."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import check, nn, optim
from staticgrad.graph.errors import NumericError


def training(**options: Any) -> tuple[Any, Any, Any]:
    """A compiled step, its model and its optimizer."""
    sg.random.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Dropout(0.25), nn.Linear(6, 3))
    opt = optim.Adam(model.parameters(), lr=0.1)

    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    return sg.compile(step, **options), model, opt


def batch() -> tuple[Any, Any]:
    return np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32), np.arange(5) % 3


def content(model: Any, opt: Any) -> list[bytes]:
    tensors = [*model.state_dict().values()]
    for entries in opt.state.values():
        tensors += entries.values()
    return [np.array(tensor).tobytes() for tensor in tensors] + [sg.random.get_state().tobytes()]


def test_a_checked_run_is_the_run() -> None:
    results = []
    for checked in (False, True):
        step, model, opt = training(check=checked)
        losses = [step(*batch()).item() for _ in range(3)]
        results.append((losses, content(model, opt)))
        assert step.cache_info().misses == 1
    assert results[0] == results[1]


def test_a_nan_in_training_names_op_and_line_and_changes_nothing() -> None:
    step, model, opt = training(check=True)
    x, y = batch()
    step(x, y)
    before = content(model, opt)
    gradient = np.array(model[0].weight.grad)
    x[2, 1] = np.nan
    with pytest.raises(NumericError, match=r"check: x \(float32\[5, 4\]\) holds a NaN on entry\. Captured at .*test_c"):
        step(x, y)
    assert content(model, opt) == before
    np.testing.assert_array_equal(np.array(model[0].weight.grad), gradient)
    x[2, 1] = 0
    step(x, y)
    assert content(model, opt) != before


def test_a_nan_is_traced_to_the_op_that_made_it() -> None:
    @sg.compile(check=True)
    def function(x: Any) -> Any:
        shifted = x - 1.0
        logarithm = sg.log(shifted)
        return sg.sum(logarithm * 2 + 1)

    assert function(np.array([2.0, 3.0])).item() == pytest.approx(2 * np.log(2) + 2)
    with pytest.raises(NumericError) as caught:
        function(np.array([0.5, 2.0]))
    text = str(caught.value)
    assert text.startswith("log: made a NaN")
    assert "float64[2] in [-0.5, 1]" in text
    assert "sg.clip" in text
    line = function.fn.__code__.co_firstlineno + 3
    assert text.endswith(f"test_check.py:{line}")


def test_infinities_are_no_fault_but_a_nan_out_of_them_is() -> None:
    large = np.array([1000.0])
    assert sg.compile(lambda x: sg.exp(x), check=True)(large).item() == np.inf
    with pytest.raises(NumericError, match=r"mul: made a NaN out of operands .*\[inf, inf\]"):
        sg.compile(lambda x: sg.sum(sg.exp(x)) * 0.0, check=True)(large)
    sg.compile(lambda x: sg.exp(x) - sg.exp(x * 2), check=True)(large)  # NaN or infinite, as the kernel rounds


def test_a_nan_of_a_weight_is_named() -> None:
    weight = nn.Parameter(np.array([1.0, np.nan], np.float32))
    with pytest.raises(NumericError, match=r"check: weight \(float32\[2\]\) holds a NaN on entry"):
        sg.compile(lambda x: weight * x, check=True)(2.0)


@pytest.mark.parametrize("op", ["tanh", "matmul", "sum", "greater"])
def test_a_wrong_value_is_caught(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference that a kernel is compared with is moved by a thousandth: as if the kernel were wrong by it."""
    evaluate = check.evaluate

    def wrong(node: Any, operands: Any) -> Any:
        value = evaluate(node, operands)
        if node.op.name != op:
            return value
        return ~value if value.dtype == np.bool_ else value * (1 + 1e-3)

    def function(x: Any) -> Any:
        product = x @ x
        y = sg.tanh(product)
        return product, y, sg.sum(y, axis=0), y > 0.5

    x = np.random.default_rng(1).standard_normal((5, 5)).astype(np.float32)
    compiled = sg.compile(function, check=True)
    compiled(x)
    monkeypatch.setattr(check, "evaluate", wrong)
    message = rf"{op}: the compiled value differs from the dynamic one at \d+ of \d+ elements, first at \(.*expected"
    with pytest.raises(NumericError, match=message) as caught:
        compiled(x)
    assert "test_check.py:" in str(caught.value)


def test_a_kernel_that_writes_elsewhere_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored values are changed behind the program's back, before they are compared."""

    def function(x: Any) -> Any:
        return sg.sum(sg.exp(x) @ x)

    compiled = sg.compile(function, check=True)
    x = np.eye(3)
    compiled(x)
    keeping = compiled.last.keeping
    assert keeping is not None

    class Wrong:
        plan = keeping.plan

        def run_and_read(self, inputs: Any, outputs: Any) -> Any:
            stored = keeping.run_and_read(inputs, outputs)
            return {node: value + (node.op.name == "exp") for node, value in stored.items()}

    compiled.last.keeping = Wrong()  # type: ignore[assignment]
    with pytest.raises(NumericError, match="exp: the compiled value differs"):
        compiled(x)


def test_the_check_itself_is_tight() -> None:
    """A difference of a few units in the last place passes, a thousandth does not."""
    compiled = sg.compile(lambda x: x + 1)
    compiled(np.ones(4, np.float32))
    (node,) = compiled.graph.outputs
    right = np.full(4, 2, np.float32)
    check._compare(node, np.nextafter(right, 3, dtype=np.float32), right, 2.0)
    for wrong in (right * np.float32(1.001), np.array([2, 2, np.nan, 2], np.float32)):
        with pytest.raises(NumericError, match="add: the compiled value differs"):
            check._compare(node, wrong, right, 2.0)
    assert dataclasses.is_dataclass(compiled.cache_info())
