"""Clipping and flattening over all parameters."""

import math

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn
from staticgrad.graph.errors import NumericError, ShapeError
from staticgrad.nn import utils


def parameters_with(*grads):
    found = []
    for grad in grads:
        parameter = nn.Parameter(np.zeros_like(grad))
        parameter.grad = sg.asarray(grad.copy())
        found.append(parameter)
    return [*found, nn.Parameter(np.zeros(2, np.float32))]  # the last has no gradient


FIRST, SECOND = np.array([[3.0, -4.0]]), np.array([12.0])


# The factors are those of torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), at most 1.
@pytest.mark.parametrize(
    ("order", "norm"), [(2.0, 13.0), (1.0, 19.0), (math.inf, 12.0), (3.0, (27 + 64 + 1728) ** (1 / 3))]
)
def test_norm_clipping(order, norm):
    parameters = parameters_with(FIRST, SECOND)
    total = utils.clip_grad_norm_(parameters, 2.0, order)
    assert total.item() == pytest.approx(norm, rel=1e-14)
    factor = 2.0 / (norm + 1e-6)
    np.testing.assert_allclose(parameters[0].grad.numpy(), FIRST * factor, rtol=1e-14)
    np.testing.assert_allclose(parameters[1].grad.numpy(), SECOND * factor, rtol=1e-14)
    assert parameters[2].grad is None


def test_small_gradients_stay():
    parameters = parameters_with(FIRST)
    utils.clip_grad_norm_(parameters, 100.0)
    np.testing.assert_array_equal(parameters[0].grad.numpy(), FIRST)
    assert utils.clip_grad_norm_([nn.Parameter(np.zeros(2))], 1.0).item() == 0
    assert utils.clip_grad_norm_(parameters[0], 1.0).item() == 5


def test_a_norm_that_is_not_finite():
    parameters = parameters_with(np.array([np.nan, 1.0]))
    assert np.isnan(utils.clip_grad_norm_(parameters, 1.0).item())
    with pytest.raises(NumericError, match="clip_grad_norm_: the norm of the gradients must be finite; got nan"):
        utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)


def test_value_clipping():
    parameters = parameters_with(FIRST, SECOND)
    utils.clip_grad_value_(parameters, 3.5)
    np.testing.assert_array_equal(parameters[0].grad.numpy(), [[3.0, -3.5]])
    np.testing.assert_array_equal(parameters[1].grad.numpy(), [3.5])


def test_one_vector_and_back():
    first, second = nn.Parameter(np.arange(6.0).reshape(2, 3)), nn.Parameter(np.array([7.0]))
    vector = utils.parameters_to_vector([first, second])
    np.testing.assert_array_equal(vector.detach().numpy(), [0, 1, 2, 3, 4, 5, 7])
    sg.sum(vector * vector).backward()
    np.testing.assert_array_equal(first.grad.numpy(), 2 * np.arange(6.0).reshape(2, 3))
    utils.vector_to_parameters(sg.asarray(np.arange(7.0) + 1), [first, second])
    np.testing.assert_array_equal(first.detach().numpy(), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(second.detach().numpy(), [7])


def test_what_is_refused():
    with pytest.raises(ShapeError, match=r"vector_to_parameters: vec must have shape \(7,\).*got \(6,\)"):
        utils.vector_to_parameters(sg.zeros(6), [nn.Parameter(np.zeros((2, 3))), nn.Parameter(np.zeros(1))])
    with pytest.raises(ValueError, match="clip_grad_norm_: max_norm must be at least 0; got -1"):
        utils.clip_grad_norm_([], -1)
    with pytest.raises(ValueError, match="clip_grad_norm_: norm_type must be above 0; got 0"):
        utils.clip_grad_norm_([], 1.0, 0)
    with pytest.raises(ValueError, match="clip_grad_value_: clip_value must be at least 0"):
        utils.clip_grad_value_([], math.nan)
