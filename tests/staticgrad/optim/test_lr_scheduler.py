"""Schedules against twenty steps of PyTorch's, for two groups."""

import json
from pathlib import Path

import numpy as np
import pytest

from staticgrad import nn, optim
from staticgrad.optim import lr_scheduler

ARRAYS = np.load(Path(__file__).parents[2] / "data" / "torch_schedulers.npz")
CASES = json.loads(str(ARRAYS["cases"]))


def two_groups():
    first, second = nn.Parameter(np.ones(1)), nn.Parameter(np.ones(1))
    return optim.SGD([{"params": [first], "lr": 0.5}, {"params": [second], "lr": 0.1}])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_equals_torch(case):
    optimizer = two_groups()
    scheduler = getattr(lr_scheduler, case["scheduler"])(optimizer, **case["options"])
    rates = [scheduler.get_last_lr()]
    for _ in range(20):
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    # PyTorch multiplies the last rate; here each is computed from the first, so that they differ in rounding.
    np.testing.assert_allclose(rates, ARRAYS[case["name"]], rtol=1e-13, atol=1e-16)


def test_a_saved_schedule_goes_on():
    optimizer = two_groups()
    scheduler = lr_scheduler.StepLR(optimizer, 2, 0.5)
    for _ in range(3):
        scheduler.step()
    other = two_groups()
    resumed = lr_scheduler.StepLR(other, 7)
    resumed.load_state_dict(scheduler.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for each in (scheduler, resumed):
        each.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr() == [0.125, 0.025]
    again = lr_scheduler.StepLR(other, 2, 0.5, last_epoch=4)
    assert again.get_last_lr() == [0.125, 0.025]


def test_what_is_refused():
    optimizer = two_groups()
    with pytest.raises(TypeError, match="StepLR: takes an optimizer; got list"):
        lr_scheduler.StepLR([], 3)
    with pytest.raises(ValueError, match="StepLR: step_size must be at least 1; got 0"):
        lr_scheduler.StepLR(optimizer, 0)
    with pytest.raises(ValueError, match="CosineAnnealingLR: T_max must be at least 1"):
        lr_scheduler.CosineAnnealingLR(optimizer, 0)
    with pytest.raises(ValueError, match=r"LinearLR: start_factor must lie in \(0, 1\]"):
        lr_scheduler.LinearLR(optimizer, start_factor=0.0)
    with pytest.raises(ValueError, match=r"ConstantLR: factor must lie in \[0, 1\]"):
        lr_scheduler.ConstantLR(optimizer, factor=2.0)
    with pytest.raises(ValueError, match="ExponentialLR: to go on from epoch 3 each group needs 'initial_lr'"):
        lr_scheduler.ExponentialLR(optimizer, 0.9, last_epoch=3)
    with pytest.raises(ValueError, match=r"StepLR.load_state_dict: does not know \['factor'\]"):
        lr_scheduler.StepLR(optimizer, 3).load_state_dict({"factor": 1})
