"""Optimizers against twelve steps of PyTorch's, in both precisions; groups, state and what is refused.

float64: 1e-12. float32: 2e-6, a rounding or two in each of twelve steps.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.errors import DTypeError

ARRAYS = np.load(Path(__file__).parents[2] / "data" / "torch_optimizers.npz")
CASES = json.loads(str(ARRAYS["cases"]))
GRADS = [ARRAYS[f"grad/{index}"] for index in range(3)]
STEPS = len(GRADS[0])


def parameters_of(dtype):
    return [nn.Parameter(ARRAYS[f"parameter/{index}"].astype(dtype)) for index in range(3)]


def groups_of(parameters, way, options):
    if way != "groups":
        return parameters
    return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 10 * options.get("lr", 0.001)}]


def give_grads(parameters, step, way="plain"):
    for index, parameter in enumerate(parameters):
        skipped = way == "skipped" and ((index == 0 and step in (0, 1, 5)) or index == 2)
        parameter.grad = None if skipped else sg.asarray(GRADS[index][step].astype(parameter.dtype))


def values(parameters):
    return [parameter.detach().numpy().copy() for parameter in parameters]


def require_equal(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_equals_torch(case):
    dtype, way = case["dtype"], case["way"]
    parameters = parameters_of(dtype)
    optimizer = getattr(optim, case["optimizer"])(groups_of(parameters, way, case["options"]), **case["options"])
    rtol, atol = (2e-6, 2e-7) if dtype == "float32" else (1e-12, 1e-14)
    for step in range(STEPS):
        give_grads(parameters, step, way)
        optimizer.step()
        if way == "plain" or step == STEPS - 1:
            for index, parameter in enumerate(parameters):
                expected = ARRAYS[f"{case['name']}/{index}"]
                expected = expected[step] if way == "plain" else expected
                np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=rtol, atol=atol)
                assert parameter.dtype == dtype


KINDS = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    (optim.Adam, {"lr": 0.1, "amsgrad": True}),
    (optim.AdamW, {"lr": 0.1}),
    (optim.RMSprop, {"lr": 0.1, "centered": True, "momentum": 0.9}),
    (optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
]
EACH = pytest.mark.parametrize(("kind", "options"), KINDS, ids=lambda value: getattr(value, "__name__", None))


# ---- state


@EACH
@pytest.mark.parametrize("way", ["plain", "skipped"])
def test_a_saved_run_goes_on_as_if_never_stopped(kind, options, way):
    whole, first = parameters_of("float32"), parameters_of("float32")
    straight, stopped = kind(whole, **options), kind(first, **options)
    for step in range(4):
        give_grads(whole, step, way)
        give_grads(first, step, way)
        straight.step()
        stopped.step()
    saved = stopped.state_dict()
    second = [nn.Parameter(value) for value in values(first)]
    resumed = kind(second, lr=9.0)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["lr"] == options["lr"]
    for step in range(4, STEPS):
        give_grads(whole, step, way)
        give_grads(second, step, way)
        straight.step()
        resumed.step()
    require_equal(values(whole), values(second))


def test_state_has_the_layout_of_torch():
    parameters = parameters_of("float32")
    optimizer = optim.Adam([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}])
    assert optimizer.state_dict()["state"] == {}
    give_grads(parameters, 0, "skipped")
    optimizer.step()
    optimizer.step()
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert list(saved["state"]) == [1]
    assert set(saved["state"][1]) == {"step", "exp_avg", "exp_avg_sq"}
    assert saved["state"][1]["step"].item() == 2
    assert saved["state"][1]["step"].dtype == np.float32
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1, 2]]
    assert [group["lr"] for group in saved["param_groups"]] == [0.001, 0.5]
    names = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "params"}
    assert set(saved["param_groups"][0]) == names
    assert set(optimizer.state[parameters[1]]) == {"step", "exp_avg", "exp_avg_sq"}


def test_state_of_torch_loads():
    """A dict as torch.save would give it: arrays, a step of float32, an option we have, and None for no momentum."""
    parameters = parameters_of("float32")
    optimizer = optim.Adam(parameters)
    shape = [parameter.shape for parameter in parameters]
    state = {
        index: {
            "step": np.array(3.0, np.float32),
            "exp_avg": np.full(shape[index], 0.5, np.float32),
            "exp_avg_sq": np.full(shape[index], 0.25, np.float32),
        }
        for index in (0, 2)
    }
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    optimizer.load_state_dict({"state": state, "param_groups": [{**group, "lr": 0.25, "params": [0, 1, 2]}]})
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.state[parameters[0]]["step"].item() == 3
    assert optimizer.state[parameters[1]]["step"].item() == 0
    assert optimizer.state[parameters[2]]["exp_avg"].numpy().tolist() == [[0.5, 0.5], [0.5, 0.5]]

    momentum = optim.SGD(parameters, momentum=0.9)
    saved = momentum.state_dict()
    momentum.load_state_dict({**saved, "state": {0: {"momentum_buffer": None}}})
    assert momentum.state_dict()["state"] == {}


@EACH
def test_loading_what_does_not_fit_changes_nothing(kind, options):
    parameters = parameters_of("float32")
    optimizer = kind(parameters, **options)
    give_grads(parameters, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    before = {
        number: {key: t.numpy().copy() for key, t in entries.items()} for number, entries in saved["state"].items()
    }

    def refused(state_dict, message):
        with pytest.raises(ValueError, match=f"{kind.__name__}.load_state_dict: {message}"):
            optimizer.load_state_dict(state_dict)
        for number, entries in optimizer.state_dict()["state"].items():
            for key, tensor in entries.items():
                np.testing.assert_array_equal(tensor.numpy(), before[number][key])

    refused({"state": {}}, "takes a dict with 'state' and 'param_groups'")
    shorter = [{**saved["param_groups"][0], "params": [0, 1]}]
    refused(
        {"state": {}, "param_groups": shorter}, r"the groups must have as many parameters as here, \[3\]; got \[2\]"
    )
    names = [key for key in saved["state"].get(2, {}) if key != "step"]
    if names:
        entries = {key: sg.zeros((7,)) for key in names}
        refused(
            {**saved, "state": {**saved["state"], 2: entries}}, rf"{names[0]} must have the parameter's shape \(2, 2\)"
        )
        refused({**saved, "state": {**saved["state"], 2: {"step": 1.0}}}, ".*are missing")


def test_bad_hyperparameters_in_a_state_change_nothing():
    parameters = parameters_of("float32")
    optimizer = optim.SGD(parameters, lr=0.5)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"SGD: lr must be a finite number at least 0; got -1.0"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5


# ---- steps


def test_counters_are_shared_until_they_part():
    parameters = parameters_of("float32")
    optimizer = optim.Adam(parameters)
    steps = [optimizer.state[parameter]["step"] for parameter in parameters]
    assert steps[0] is steps[1] is steps[2]
    give_grads(parameters, 0)
    optimizer.step()
    parameters[1].grad = None
    optimizer.step()
    steps = [optimizer.state[parameter]["step"] for parameter in parameters]
    assert steps[0] is steps[2]
    assert [step.item() for step in steps] == [2, 1, 2]


def test_zero_grad_and_closure():
    parameters = parameters_of("float64")
    optimizer = optim.SGD(parameters, lr=0.1)
    before = values(parameters)

    def closure():
        optimizer.zero_grad()
        loss = sum(sg.sum(parameter * parameter) for parameter in parameters)
        loss.backward()
        return loss

    with sg.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(sum((value**2).sum() for value in before))
    for parameter, value in zip(parameters, before, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), 0.8 * value, rtol=1e-14)
    optimizer.zero_grad(set_to_none=False)
    assert all((parameter.grad.numpy() == 0).all() for parameter in parameters)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)
    assert optimizer.step() is None
    assert all(parameter.requires_grad for parameter in parameters)


def test_hyperparameters_can_be_changed_between_steps():
    parameters = parameters_of("float64")
    optimizer = optim.SGD(parameters, lr=0.1)
    before = values(parameters)
    for lr in (0.1, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        give_grads(parameters, 0)
        optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.step()
    for index, parameter in enumerate(parameters):
        expected = before[index] - 0.12 * GRADS[index][0].astype(np.float64)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-13, atol=1e-15)


def test_groups_can_be_added():
    parameters = parameters_of("float32")
    optimizer = optim.Adam(parameters[:2])
    optimizer.add_param_group({"params": parameters[2], "lr": 0.5})
    before = values(parameters)
    give_grads(parameters, 0)
    optimizer.step()
    assert np.abs(values(parameters)[2] - before[2]).min() > 0.49
    assert np.abs(values(parameters)[0] - before[0]).max() < 0.0011
    text = repr(optimizer)
    assert text.startswith("Adam (\nParameter Group 0\n    amsgrad: False\n")
    assert "Parameter Group 1" in text


@EACH
def test_a_minimum_is_found(kind, options):
    parameter = nn.Parameter(np.array([1.0, -2.0]))
    optimizer = kind([parameter], **{**options, "lr": 2.0 if kind is optim.Adagrad else 0.05})
    target = sg.asarray(np.array([0.5, 0.25]))
    for _ in range(1500):
        optimizer.zero_grad()
        nn.functional.mse_loss(parameter, target).backward()
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), target.numpy(), atol=0.05)


# ---- what is refused


def test_parameters_that_cannot_be_optimized():
    weight = nn.Parameter(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"Adam: there must be parameters to optimize; got none.*model.parameters\(\)"):
        optim.Adam([])
    with pytest.raises(ValueError, match="SGD: there must be parameters"):
        optim.SGD(nn.ReLU().parameters())
    with pytest.raises(TypeError, match="SGD: params must be an iterable of parameters or of groups; got Parameter"):
        optim.SGD(weight)
    with pytest.raises(TypeError, match=r"SGD: params must be an iterable.*got int"):
        optim.SGD(3)
    with pytest.raises(TypeError, match="SGD: only Tensors can be optimized; got str at position 1"):
        optim.SGD([weight, "bias"])
    with pytest.raises(TypeError, match="SGD: params must be all parameters or all groups"):
        optim.SGD([weight, {"params": []}])
    with pytest.raises(ValueError, match=r"SGD: a parameter must be a leaf.*position 0"):
        optim.SGD([weight * 2])
    with pytest.raises(ValueError, match="SGD: a parameter can be given once only; position 1"):
        optim.SGD([weight, weight])
    with pytest.raises(ValueError, match="SGD: a parameter can be given once only; position 0"):
        optim.SGD([{"params": [weight]}, {"params": [weight]}])
    with pytest.raises(DTypeError, match="SGD: a parameter must be floating; got int64"):
        optim.SGD([sg.asarray(np.arange(3))])
    with pytest.raises(ValueError, match="SGD: a group must have its parameters under 'params'"):
        optim.SGD([{"lr": 0.1}])
    with pytest.raises(ValueError, match=r"SGD: a group takes the hyperparameters .*got also \['betas'\]"):
        optim.SGD([{"params": [weight], "betas": (0.9, 0.99)}])


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), "fast", None, True])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad])
def test_learning_rates_that_make_no_sense(kind, lr):
    with pytest.raises(ValueError, match=f"{kind.__name__}: lr must be a finite number at least 0; got {lr!r}"):
        kind([nn.Parameter(np.ones(3))], lr=lr)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (optim.SGD, {"momentum": -1}, "SGD: momentum must be"),
        (optim.SGD, {"weight_decay": float("nan")}, "SGD: weight_decay must be"),
        (optim.SGD, {"nesterov": True}, "SGD: nesterov needs a momentum above 0"),
        (optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "and a dampening of 0"),
        (optim.Adam, {"betas": (0.9, 1.0)}, r"Adam: betas\[1\] must be a finite number in \[0, 1\); got 1.0"),
        (optim.Adam, {"betas": 0.9}, "Adam: betas must be two numbers"),
        (optim.AdamW, {"eps": -1e-8}, "AdamW: eps must be"),
        (optim.RMSprop, {"alpha": 1.5}, r"RMSprop: alpha must be a finite number in \[0, 1\)"),
        (optim.Adagrad, {"initial_accumulator_value": -1}, "Adagrad: initial_accumulator_value must be"),
        (optim.Adagrad, {"lr_decay": -1}, "Adagrad: lr_decay must be"),
    ],
)
def test_hyperparameters_that_make_no_sense(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind([nn.Parameter(np.ones(3))], **options)
    group = {"params": [nn.Parameter(np.ones(3))], **options}
    with pytest.raises(ValueError, match=message):
        kind([group])


def test_flags_are_flags():
    with pytest.raises(TypeError, match="Adam: amsgrad must be True or False; got 'yes'"):
        optim.Adam([nn.Parameter(np.ones(3))], amsgrad="yes")
