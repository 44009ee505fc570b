"""Tensors, ops and whole trainings on a GPU, played by the simulator: the same results as on the CPU."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from models import MODELS, Model
from trainings import check_close, check_plans_agree, host, trained

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.errors import CaptureError, DeviceError
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.device import find_device

pytestmark = pytest.mark.skipif(not toolkit.SIMULATED, reason="these sizes are the simulator's")

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_training_gives_what_the_cpu_gives(model: Model) -> None:
    check_close(trained(model, "cpu"), trained(model, "cuda"))


@pytest.mark.parametrize("model", MODELS[:: max(1, len(MODELS) // 6)], ids=lambda model: model.name)
def test_planned_without_reuse_and_poisoned_are_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    check_plans_agree(model, monkeypatch)


def test_the_same_step_runs_op_by_op() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((6, 5)).astype(np.float32), random.integers(0, 3, 6)
    found = []
    for device in ("cpu", "cuda"):
        sg.random.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Dropout(0.25), nn.Linear(4, 3)).to(device)
        opt = optim.Adam(model.parameters(), lr=0.1)
        losses = []
        for _ in range(2):
            loss = nn.functional.cross_entropy(model(sg.asarray(x, device=device)), sg.asarray(y, device=device))
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        assert {p.device for p in model.parameters()} == {sg.zeros(1, device=device).device}
        found.append(
            {"losses": np.array(losses, np.float32), **{name: host(t) for name, t in model.state_dict().items()}}
        )
    check_close(*found)


# ---------------------------------------------------------------- tensors


def test_there_and_back() -> None:
    x = sg.asarray(np.arange(6.0, dtype=np.float32).reshape(2, 3))
    there = x.to("cuda")
    assert there.device == "cuda:0"
    assert there.to("cuda:0") is there
    assert there.to("cpu").device == "cpu"
    np.testing.assert_array_equal(there.to("cpu").numpy(), x.numpy())
    assert there.to("cuda", np.float64).dtype == np.float64
    assert there[1, 2].item() == 5.0
    assert float(sg.sum(there)) == 15.0
    assert there.tolist() == x.tolist()
    assert repr(there) == "Tensor([[0., 1., 2.],\n        [3., 4., 5.]], device='cuda:0')"
    np.testing.assert_array_equal(copy.deepcopy(there).to("cpu").numpy(), x.numpy())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(there)).numpy(), x.numpy())


def test_numpy_does_not_reach_a_gpu_by_itself() -> None:
    there = sg.ones(3, device="cuda")
    for read in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(DeviceError, match=r"the tensor lives on cuda:0; copy it first with \.to\('cpu'\)"):
            read()


def test_cotangents_go_back_to_where_the_elements_came_from() -> None:
    x = sg.asarray([1.0, 2.0, 3.0]).requires_grad_()
    (x.to("cuda") * sg.asarray([1.0, 0.0, 2.0], device="cuda")).sum().backward()
    assert x.grad is not None
    assert x.grad.device == "cpu"
    np.testing.assert_array_equal(x.grad.numpy(), [1.0, 0.0, 2.0])
    value, tangent = sg.jvp(lambda v: v.to("cuda") * 2.0, (x.detach(),), (sg.ones(3),))
    assert (value.device, tangent.device) == ("cuda:0", "cuda:0")
    np.testing.assert_array_equal(tangent.to("cpu").numpy(), [2.0, 2.0, 2.0])


def test_operands_on_different_devices_are_an_error() -> None:
    with pytest.raises(DeviceError, match=r"mul: operands must live on one device; got .*on cuda:0, .*on cpu"):
        sg.ones(2, device="cuda") * sg.ones(2)
    assert (sg.ones(2, device="cuda") * 2).device == "cuda:0"  # numbers go with any
    assert (sg.ones(2, device="cuda") * sg.asarray(2.0)).device == "cuda:0"


def test_a_view_on_a_gpu_is_a_copy_that_cannot_be_written() -> None:
    x = sg.zeros((2, 3), device="cuda")
    with pytest.raises(ValueError, match="on a GPU any view is a copy"):
        x.mT.copy_(1.0)
    sg.reshape(x, (6,)).copy_(sg.asarray([1, 2, 3, 4, 5, 6]))  # but for another shape of the same elements
    np.testing.assert_array_equal(x.to("cpu").numpy(), [[1, 2, 3], [4, 5, 6]])


def test_elements_are_converted_and_spread_when_they_are_written() -> None:
    x = sg.zeros((2, 3), device="cuda")
    x.copy_(np.array([1, 2, 3]))
    x.copy_(sg.asarray([[7], [8]], device="cuda").to(np.float64))
    np.testing.assert_array_equal(x.to("cpu").numpy(), [[7, 7, 7], [8, 8, 8]])
    y = sg.zeros((2, 3))
    y.copy_(x)
    np.testing.assert_array_equal(y.numpy(), [[7, 7, 7], [8, 8, 8]])


# ---------------------------------------------------------------- modules and programs


def test_a_module_moves_with_its_gradients_and_loads_from_anywhere() -> None:
    layer = nn.Linear(3, 2)
    before = {name: host(tensor) for name, tensor in layer.state_dict().items()}
    layer(sg.ones((1, 3))).sum().backward()
    weight = layer.weight
    assert layer.to("cuda").weight is weight
    assert weight.device == "cuda:0"
    assert weight.grad is not None
    assert weight.grad.device == "cuda:0"
    layer.load_state_dict({name: values + 1 for name, values in before.items()})
    np.testing.assert_array_equal(host(weight), before["weight"] + 1)
    assert layer.to("cpu").weight.device == "cpu"


def test_a_program_runs_where_its_arguments_or_its_state_are() -> None:
    double = sg.compile(lambda x: x * 2.0)
    assert double(np.ones(3, np.float32)).device == "cpu"
    assert double(sg.ones(3, device="cuda")).device == "cuda:0"
    layer = nn.Linear(3, 2).to("cuda")
    assert sg.compile(lambda x: layer(x))(np.ones((1, 3), np.float32)).device == "cuda:0"


def test_state_follows_the_program_that_uses_it() -> None:
    counter = sg.zeros(())

    def count() -> Any:
        counter.copy_(counter + 1.0)
        return counter * 1.0

    here, there = sg.compile(count, device="cpu"), sg.compile(count, device="cuda")
    values = [here().item(), there().item(), there().item(), here().item()]
    assert values == [1.0, 2.0, 3.0, 4.0]
    assert counter.device == "cpu"


def test_an_array_of_numpy_is_read_anew_and_must_not_be_written() -> None:
    offset = np.zeros(3, np.float32)
    added = sg.compile(lambda x: x + offset, device="cuda")
    x = sg.ones(3, device="cuda")
    assert added(x).tolist() == [1.0, 1.0, 1.0]
    offset[:] = 5.0
    assert added(x).tolist() == [6.0, 6.0, 6.0]

    def write() -> Any:
        held = sg.asarray(offset)
        held.copy_(held + 1.0)
        return held

    with pytest.raises(CaptureError, match=r"is an array of NumPy's, which lives on the CPU, .* make it a Tensor"):
        sg.compile(write, device="cuda")()


def test_inside_a_program_everything_lives_on_its_device() -> None:
    assert sg.compile(lambda x: x.to("cuda") + 1.0, device="cuda")(np.ones(2, np.float32)).device == "cuda:0"
    with pytest.raises(CaptureError, match=r"to\('cpu'\): a compiled function runs on one device, here 'cuda:0'"):
        sg.compile(lambda x: x.to("cpu") + 1.0, device="cuda")(np.ones(2, np.float32))


def test_random_numbers_are_the_same_on_both_devices() -> None:
    drawn = []
    for device in ("cpu", "cuda"):
        sg.random.manual_seed(7)
        draw = sg.compile(
            lambda: (sg.random.uniform((50,)), sg.random.normal((20,)), sg.random.randint(0, 9, (30,))), device=device
        )
        drawn.append([host(value) for value in (*draw(), *draw())] + [host(sg.random.uniform((5,)))])
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
        if one.dtype.kind != "f" or one.size != 20:
            np.testing.assert_array_equal(other, one)


def test_an_index_out_of_range_is_an_error_and_leaves_state_alone() -> None:
    table = nn.Embedding(4, 2)
    opt = optim.SGD(table.parameters(), lr=0.1)

    def step(rows: Any) -> Any:
        loss = table(rows).sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    train = sg.compile(step, device="cuda")
    train(np.array([0, 1]))
    before = host(table.weight)
    with pytest.raises(IndexError, match=r"embedding: an index must .*; got 4\. Captured at .*test_devices"):
        train(np.array([0, 4]))
    np.testing.assert_array_equal(host(table.weight), before)
    train(np.array([0, 3]))
    with pytest.raises(IndexError, match="got 7"):
        sg.take(table.weight, sg.asarray(np.array([7]), device="cuda"), axis=0)


def test_what_is_not_a_whole_step_is_waited_for() -> None:
    """Gradients, predictions and losses to be differentiated reach state by other ways than the program."""
    model = nn.Linear(3, 3)
    opt = optim.SGD(model.parameters(), lr=0.1)
    x, y = sg.asarray(np.ones((2, 3), np.float32), device="cuda"), sg.asarray(np.array([0, 2]), device="cuda")

    def loss_of(x: Any, y: Any) -> Any:
        return nn.functional.cross_entropy(model(x), y)

    def backward(x: Any, y: Any) -> Any:
        loss = loss_of(x, y)
        opt.zero_grad()
        loss.backward()
        return loss

    def whole(x: Any, y: Any) -> Any:
        loss = backward(x, y)
        opt.step()
        return loss

    def waits(function: Any) -> bool:
        compiled = sg.compile(function, device="cuda")
        compiled(x, y)
        return bool(compiled.last.program.waits)

    assert not waits(whole)
    assert not waits(lambda x, y: loss_of(x, y).detach())
    assert waits(lambda x, y: (whole(x, y), model(x).detach()))
    assert waits(loss_of)
    assert waits(backward)
    assert waits(sg.value_and_grad(loss_of))


@pytest.mark.parametrize("find_out", ["read", "synchronize", "call"])
@pytest.mark.parametrize("calls", [1, 4])  # the first calls go the ordinary way, later ones are written out
def test_where_nobody_waits_an_index_error_comes_later_and_nothing_has_changed(
    calls: int, find_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_device("cuda").hardware, "blocking", False)  # type: ignore[attr-defined]
    sg.random.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    opt = optim.Adam(model.parameters(), lr=0.1)

    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    train = sg.compile(step, device="cuda")
    x, right, wrong = np.ones((2, 3), np.float32), np.array([0, 2]), np.array([0, 3])
    for _ in range(calls):
        train(x, right)
    assert (train.last.bound_calls > 0) == (calls > 1)
    before = {name: host(value) for name, value in model.state_dict().items()}
    loss = train(x, wrong)
    with pytest.raises(IndexError, match=r"cross_entropy: a label must lie in \[0, 3\); got 3; .*test_devices"):
        {"read": loss.item, "synchronize": sg.cuda.synchronize, "call": lambda: train(x, right)}[find_out]()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(host(value), before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
    sg.cuda.synchronize()
    assert np.isfinite(train(x, right).item())
    assert not np.array_equal(host(model[0].weight), before["0.weight"])


def test_a_saved_program_comes_back_on_its_device(tmp_path: Any) -> None:
    layer = nn.Linear(3, 2)
    forward = sg.compile(lambda x: sg.tanh(layer(x)), device="cuda")
    x = np.ones((4, 3), np.float32)
    wanted = host(forward(x))
    forward.save(tmp_path / "forward.sg")
    result = sg.load(tmp_path / "forward.sg")(x)
    assert result.device == "cuda:0"
    np.testing.assert_array_equal(host(result), wanted)


def test_check_compares_a_gpu_with_the_reference() -> None:
    layer = nn.Linear(3, 2)
    checked = sg.compile(lambda x: sg.softmax(layer(x), axis=-1), device="cuda", check=True)
    x = np.ones((4, 3), np.float32)
    np.testing.assert_allclose(host(checked(x)), host(sg.softmax(layer.to("cpu")(sg.asarray(x)), axis=-1)), rtol=1e-5)


def test_run_profile_and_compare_take_a_gpu() -> None:
    layer = nn.Linear(3, 1)
    opt = optim.SGD(layer.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        loss = (layer(x) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    train = sg.compile(step, device="cuda")
    losses = train.run((x,), batch_size=4, epochs=2)
    assert losses.shape == (4,)
    assert losses[-1] < losses[0]
    before = host(layer.weight)
    profile = train.profile(x[:4], repeat=1)
    assert len(profile.rows) >= len(train.plan.groups)
    assert all(row.seconds > 0 for row in profile.rows[: len(train.plan.groups)])
    comparison = sg.compare(train, x[:4], repeat=1)
    assert max(difference.relative for difference in comparison.differences) < 1e-5
    assert comparison.memory.dynamic_peak > 0
    np.testing.assert_array_equal(host(layer.weight), before)


# ---------------------------------------------------------------- sg.cuda


def test_what_sg_cuda_tells() -> None:
    assert sg.cuda.is_available()
    assert sg.cuda.why_unavailable() == ""
    assert sg.cuda.get_device_properties().capability == (9, 0)
    sg.cuda.reset_peak_memory_stats()
    used = sg.cuda.memory_allocated()
    x = sg.zeros((1000,), device="cuda")
    assert sg.cuda.memory_allocated() == used + x.nbytes
    assert sg.cuda.max_memory_allocated() >= used + x.nbytes
    free, total = sg.cuda.memory_info()
    assert 0 < free < total
    del x
    assert sg.cuda.memory_allocated() == used
    with sg.cuda.stream() as stream:
        y = sg.ones(3, device="cuda") * 2.0
        stream.synchronize()
    sg.cuda.synchronize()
    assert y.tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(DeviceError, match="cuda: needs a GPU, such as 'cuda:0'; got 'cpu'"):
        sg.cuda.synchronize("cpu")


# ---------------------------------------------------------------- calls that are written out


def test_calls_keep_what_they_gave_and_see_what_has_changed() -> None:
    layer = nn.Linear(3, 2)
    opt = optim.SGD(layer.parameters(), lr=0.5)

    def step(x: Any) -> Any:
        loss = (layer(x) ** 2).sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    sg.random.manual_seed(0)
    here = copy.deepcopy(layer), []
    train = sg.compile(step, device="cuda")
    x = np.ones((4, 3), np.float32)
    losses = []
    for turn in range(6):
        x[:] = turn / 8  # the call before has taken its copy
        opt.param_groups[0]["lr"] = 0.1 / (1 + turn)
        losses.append(train(x))
    assert train.last.bound_calls > 0
    layer.load_state_dict(here[0].state_dict())
    layer.to("cpu")
    for turn in range(6):
        opt.param_groups[0]["lr"] = 0.1 / (1 + turn)
        here[1].append(step(np.full((4, 3), turn / 8, np.float32)).item())
    np.testing.assert_allclose([loss.item() for loss in losses], here[1], rtol=1e-4, atol=1e-6)


def test_written_out_calls_report_indices_and_follow_replaced_state() -> None:
    table = nn.Embedding(4, 2)
    look_up = sg.compile(lambda rows: table.weight.detach()[rows] * 2.0, device="cuda")
    rows = np.array([0, 1, 3])
    for _ in range(3):
        first = look_up(rows)
    with pytest.raises(IndexError, match="got 4"):
        look_up(np.array([0, 1, 4]))
    table.load_state_dict({"weight": np.arange(8, dtype=np.float32).reshape(4, 2)})
    table.to("cpu").to("cuda")
    for _ in range(3):
        np.testing.assert_array_equal(host(look_up(rows)), [[0, 2], [4, 6], [12, 14]])
    assert host(first).shape == (3, 2)
    assert look_up.last.bound_calls > 2


def test_an_argument_that_is_state_is_read_before_it_is_written() -> None:
    held = sg.zeros(4, device="cuda")

    def swap(x: Any) -> Any:
        before = held * 1.0
        held.copy_(x + 1.0)
        return before

    step = sg.compile(swap)
    for turn in range(4):
        np.testing.assert_array_equal(host(step(held)), np.full(4, float(turn)))
    np.testing.assert_array_equal(host(held), np.full(4, 4.0))
