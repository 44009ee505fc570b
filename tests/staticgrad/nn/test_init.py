"""Starting values: bounds, moments, and what they refuse. Tolerances are five standard deviations of the estimate."""

import math

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.graph.errors import ShapeError
from staticgrad.nn import init

SHAPE = (200, 300)


def drawn(function, *args, dtype=np.float32, **options):
    sg.random.manual_seed(0)
    tensor = sg.zeros(SHAPE, dtype=dtype)
    assert function(tensor, *args, **options) is tensor
    assert tensor.dtype == dtype
    return tensor.numpy()


def require_uniform(values, bound):
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.999 * bound
    assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
    assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.01


def require_normal(values, mean, std):
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(values.size)
    assert abs(values.std() / std - 1) < 5 / math.sqrt(2 * values.size)
    assert 3.5 * std < np.abs(values - mean).max() < 6 * std


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_and_normal(dtype):
    require_uniform(drawn(init.uniform_, -0.5, 0.5, dtype=dtype), 0.5)
    require_normal(drawn(init.normal_, 2.0, 0.5, dtype=dtype), 2.0, 0.5)


def test_xavier():
    require_uniform(drawn(init.xavier_uniform_, gain=2.0), 2 * math.sqrt(6 / 500))
    require_normal(drawn(init.xavier_normal_), 0.0, math.sqrt(2 / 500))


def test_kaiming():
    require_uniform(drawn(init.kaiming_uniform_, nonlinearity="relu"), math.sqrt(6 / 300))
    require_uniform(drawn(init.kaiming_uniform_, a=math.sqrt(5)), 1 / math.sqrt(300))
    require_normal(drawn(init.kaiming_normal_, mode="fan_out", nonlinearity="tanh"), 0.0, 5 / 3 / math.sqrt(200))


def test_fans_of_more_axes():
    sg.random.manual_seed(0)
    tensor = sg.zeros((20, 30, 3, 3))
    require_uniform(init.kaiming_uniform_(tensor, nonlinearity="linear").numpy(), math.sqrt(3 / 270))


def test_trunc_normal():
    values = drawn(init.trunc_normal_, 0.5, 2.0, -1.0, 3.0)
    assert values.min() >= -1
    assert values.max() <= 3
    from scipy.stats import truncnorm

    expected = truncnorm(-0.75, 1.25, loc=0.5, scale=2.0)
    assert abs(values.mean() - expected.mean()) < 5 * expected.std() / math.sqrt(values.size)
    assert abs(values.std() / expected.std() - 1) < 0.01
    assert (drawn(init.trunc_normal_, 5.0, 0.0) == 2).all()


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (4, 2, 3)])
def test_orthogonal(shape):
    sg.random.manual_seed(0)
    matrix = init.orthogonal_(sg.zeros(shape, dtype=np.float64), gain=2.0).numpy().reshape(shape[0], -1)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-14)


def test_constants_and_parameters():
    assert (drawn(init.constant_, 3.0) == 3).all()
    assert (drawn(init.ones_) == 1).all()
    parameter = sg.nn.Parameter(sg.ones((2, 2)))
    init.zeros_(parameter)
    assert parameter.requires_grad
    assert (parameter.detach().numpy() == 0).all()


def test_gains_are_those_of_torch():
    # torch.nn.init.calculate_gain of torch 2.13
    expected = {"linear": 1, "sigmoid": 1, "tanh": 1.6666666666666667, "relu": 1.4142135623730951, "selu": 0.75}
    for name, gain in expected.items():
        assert init.calculate_gain(name) == gain
    assert init.calculate_gain("leaky_relu") == pytest.approx(1.4141428569978354, rel=1e-15)
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx(1.3867504905630728, rel=1e-15)


def test_what_init_refuses():
    with pytest.raises(ShapeError, match=r"xavier_uniform_: tensor must have two axes or more.*\(3,\)"):
        init.xavier_uniform_(sg.zeros(3))
    with pytest.raises(ShapeError, match="orthogonal_: tensor must have two axes"):
        init.orthogonal_(sg.zeros(3))
    with pytest.raises(ValueError, match="kaiming_normal_: mode must be 'fan_in' or 'fan_out'; got 'fan'"):
        init.kaiming_normal_(sg.zeros((2, 2)), mode="fan")
    with pytest.raises(ValueError, match=r"calculate_gain: nonlinearity must be one of .*'relu'.*; got 'swish'"):
        init.calculate_gain("swish")
    with pytest.raises(ValueError, match="uniform_: a must be at most b"):
        init.uniform_(sg.zeros(3), 1.0, 0.0)
    with pytest.raises(ValueError, match="normal_: std must be at least 0"):
        init.normal_(sg.zeros(3), std=-1.0)
    with pytest.raises(ValueError, match="trunc_normal_: a must be below b"):
        init.trunc_normal_(sg.zeros(3), a=1.0, b=1.0)
