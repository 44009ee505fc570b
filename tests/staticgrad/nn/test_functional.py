"""Activations, losses and layers against PyTorch's numbers: values and gradients, in both precisions.

The numbers are float64 results for inputs that float32 holds exactly, so both precisions are held to the same ones.
float64: 1e-12. float32: 1e-6 relative, and 1e-6 of the array's largest finite value for elements that are the
difference of larger ones (the tail of gelu, the gradient of a softmax).
"""

import json
from pathlib import Path

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.graph.errors import DTypeError, IndexRangeError, ShapeError
from staticgrad.nn import functional as F  # noqa: N812

DATA = Path(__file__).parents[2] / "data"
ARRAYS = {name: np.load(DATA / f"torch_{name}.npz") for name in ("activations", "losses", "layers")}
CASES = [
    pytest.param(name, case, id=case["name"])
    for name, arrays in ARRAYS.items()
    for case in json.loads(str(arrays["cases"]))
]


def inputs_of(kind, case, dtype):
    """The tensor arguments of a case; those with a gradient require it."""
    arrays = ARRAYS[kind]
    tensors = {}
    for key in case["tensors"]:
        value = arrays[f"{case['name']}/{key}"]
        tensors[key] = sg.asarray(value.astype(dtype) if value.dtype.kind == "f" else value)
        if key in case["grads"]:
            tensors[key].requires_grad_()
    return tensors


# In its float64 derivatives PyTorch has constants that were rounded to float32: 1/6 and 1e-12.
ROUNDED_IN_TORCH = {"hardsigmoid": 1e-7, "binary_cross_entropy-saturated": 1e-8}


def require_close(actual, expected, dtype, loosest=0.0):
    actual = actual.detach().numpy() if isinstance(actual, sg.Tensor) else actual
    assert actual.dtype == dtype
    finite = np.abs(expected[np.isfinite(expected)])
    largest = finite.max(initial=0.0)
    rtol, atol = (1e-6, 1e-6) if dtype == "float32" else (1e-12, 1e-14)
    np.testing.assert_allclose(actual, expected.astype(dtype), rtol=max(rtol, loosest), atol=atol * largest)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_equals_torch(kind, case, dtype):
    arrays, name = ARRAYS[kind], case["name"]
    tensors = inputs_of(kind, case, dtype)
    out = getattr(F, case["function"])(**tensors, **case["options"])
    require_close(out, arrays[f"{name}/out"], dtype)
    out.backward(sg.asarray(arrays[f"{name}/cotangent"].astype(dtype)))
    loosest = max((value for start, value in ROUNDED_IN_TORCH.items() if name.startswith(start)), default=0.0)
    for key in case["grads"]:
        require_close(tensors[key].grad, arrays[f"{name}/grad/{key}"], dtype, loosest)


# ---- what the numbers do not cover


ELEMENTWISE = [
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus",
    "softsign", "hardsigmoid", "hardswish", "hardtanh", "logsigmoid",
]  # fmt: skip


@pytest.mark.parametrize("function", ELEMENTWISE)
def test_nan_goes_through(function):
    x = sg.asarray(np.array([np.nan, 1.0], np.float32)).requires_grad_()
    out = getattr(F, function)(x)
    assert np.isnan(out.detach().numpy()).tolist() == [True, False]
    assert out.dtype == np.float32


@pytest.mark.parametrize("function", ELEMENTWISE)
def test_integers_are_refused(function):
    with pytest.raises(DTypeError, match=f"{function}: input must be floating; got int64"):
        getattr(F, function)(sg.asarray(np.arange(3)))


@pytest.mark.parametrize("function", ELEMENTWISE)
def test_empty_and_zero_axes(function):
    assert getattr(F, function)(sg.zeros((0, 3))).shape == (0, 3)
    assert getattr(F, function)(sg.asarray(np.float32(0.5).reshape(()))).shape == ()


@pytest.mark.parametrize("function", ["softplus", "logsigmoid", "mish", "elu", "silu"])
def test_second_derivative_is_finite_everywhere(function):
    x = sg.asarray(np.array([-800.0, -30.0, 0.0, 30.0, 800.0])).requires_grad_()
    out = getattr(F, function)(x)
    out.backward(sg.ones(5, dtype=np.float64), create_graph=True)
    slope = x.grad
    x.grad = None
    sg.sum(slope).backward()
    assert np.isfinite(x.grad.detach().numpy()).all()


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "softmin"])
def test_softmax_needs_its_axis(function):
    with pytest.raises(ValueError, match=f"{function}: dim must say which axis"):
        getattr(F, function)(sg.zeros((2, 3)))


def test_glu_needs_an_even_axis():
    with pytest.raises(ShapeError, match=r"glu: axis -1 must have an even size.*\(2, 3\)"):
        F.glu(sg.zeros((2, 3)))
    with pytest.raises(ShapeError, match="glu: dim must lie in"):
        F.glu(sg.zeros((2, 4)), dim=2)


def test_options_out_of_range():
    x = sg.zeros((2, 4))
    with pytest.raises(ValueError, match="gelu: approximate must be 'none' or 'tanh'; got 'erf'"):
        F.gelu(x, approximate="erf")
    with pytest.raises(ValueError, match="hardtanh: min_val must be below max_val"):
        F.hardtanh(x, 1.0, -1.0)
    with pytest.raises(ValueError, match="celu: alpha must not be 0"):
        F.celu(x, 0.0)
    with pytest.raises(ValueError, match="softplus: beta must not be 0"):
        F.softplus(x, beta=0.0)
    with pytest.raises(ShapeError, match=r"prelu: weight must have shape.*\(4,\)"):
        F.prelu(x, sg.zeros(3))


# ---- losses

PAIRED = [
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "kl_div",
]  # fmt: skip


@pytest.mark.parametrize("function", [*PAIRED, "cross_entropy", "nll_loss"])
def test_unknown_reduction_names_the_known(function):
    with pytest.raises(ValueError, match=f"{function}: reduction must be one of 'none', 'mean', 'sum'.*got 'average'"):
        getattr(F, function)(sg.zeros((2, 3)), sg.zeros((2, 3)), reduction="average")


@pytest.mark.parametrize("function", PAIRED)
def test_target_has_the_shape_of_input(function):
    with pytest.raises(ShapeError, match=rf"{function}: target must have shape \(2, 3\).*got \(2, 1\)"):
        getattr(F, function)(sg.zeros((2, 3)), sg.zeros((2, 1)))


@pytest.mark.parametrize("function", PAIRED)
def test_mean_of_nothing_is_refused(function):
    loss = getattr(F, function)
    with pytest.raises(ShapeError, match=f"{function}: the mean over no elements is undefined.*skip empty batches"):
        loss(sg.zeros((0, 3)), sg.zeros((0, 3)))
    assert loss(sg.zeros((0, 3)), sg.zeros((0, 3)), reduction="sum").item() == 0


@pytest.mark.parametrize("function", ["cross_entropy", "nll_loss"])
def test_labels_are_checked(function):
    loss, scores = getattr(F, function), sg.zeros((4, 3))
    with pytest.raises(ShapeError, match=f"{function}: the mean over no elements"):
        loss(sg.zeros((0, 3)), sg.zeros(0, dtype=np.int64))
    with pytest.raises(DTypeError, match=rf"{function}: labels must be integers of shape \(4,\).*got float32"):
        loss(scores, sg.zeros(4))
    with pytest.raises(ShapeError, match=rf"{function}: labels must have shape \(4,\).*got \(3,\)"):
        loss(scores, sg.zeros(3, dtype=np.int64))
    for label in (3, -1, -5):
        with pytest.raises(IndexRangeError):
            loss(scores, sg.asarray(np.array([0, label, 1, 2])))
    with pytest.raises(ShapeError, match=rf"{function}: weight must have shape \(3,\)"):
        loss(scores, sg.zeros(4, dtype=np.int64), weight=sg.ones(4))
    with pytest.raises(ShapeError, match=f"{function}: input must have an axis of classes"):
        loss(sg.asarray(np.float32(1.0).reshape(())), sg.zeros((), dtype=np.int64))


def test_small_label_dtypes_work():
    scores = sg.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    labels = np.array([0, 2, 1, 2])
    expected = F.cross_entropy(scores, sg.asarray(labels)).item()
    for dtype in ("int8", "int32", "uint8", "uint16"):
        assert F.cross_entropy(scores, sg.asarray(labels.astype(dtype))).item() == expected


def test_all_labels_ignored_gives_nan_as_in_torch():
    labels = sg.asarray(np.full(4, -100))
    assert np.isnan(F.cross_entropy(sg.zeros((4, 3)), labels).item())
    assert F.cross_entropy(sg.zeros((4, 3)), labels, reduction="sum").item() == 0


def test_loss_options_out_of_range():
    x = sg.zeros((2, 3))
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\]; got 1.5"):
        F.cross_entropy(x, sg.zeros(2, dtype=np.int64), label_smoothing=1.5)
    with pytest.raises(ValueError, match="smooth_l1_loss: beta must be at least 0"):
        F.smooth_l1_loss(x, x, beta=-1.0)
    with pytest.raises(ValueError, match="huber_loss: delta must be above 0"):
        F.huber_loss(x, x, delta=0.0)
    with pytest.raises(ShapeError, match="pos_weight must broadcast"):
        F.binary_cross_entropy_with_logits(x, x, pos_weight=sg.ones(2))
    with pytest.raises(ShapeError, match="weight must broadcast"):
        F.binary_cross_entropy(x, x, weight=sg.ones((1, 2, 3)))


# ---- layers


def test_linear_says_what_it_expects():
    weight = sg.zeros((5, 4))
    with pytest.raises(ShapeError, match=r"linear: the last axis of input must have in_features=4.*\(2, 3\)"):
        F.linear(sg.zeros((2, 3)), weight)
    with pytest.raises(DTypeError, match="linear: input and weight must have one dtype; got float64 and float32"):
        F.linear(sg.zeros((2, 4), dtype=np.float64), weight)
    with pytest.raises(DTypeError, match="linear: input must be floating; got int64"):
        F.linear(sg.zeros((2, 4), dtype=np.int64), weight)
    with pytest.raises(ShapeError, match=r"linear: bias must have shape \(5,\)"):
        F.linear(sg.zeros((2, 4)), weight, sg.zeros(4))
    assert F.linear(sg.zeros((0, 4)), weight).shape == (0, 5)
    assert F.linear(sg.zeros((3, 0, 4)), weight).shape == (3, 0, 5)


def test_embedding_says_what_it_expects():
    table = sg.zeros((5, 4))
    with pytest.raises(DTypeError, match="embedding: input must hold integer indices; got float32"):
        F.embedding(sg.zeros(3), table)
    for index in (5, -1):
        with pytest.raises(IndexRangeError):
            F.embedding(sg.asarray(np.array([0, index])), table)
    with pytest.raises(ValueError, match=r"embedding: padding_idx must lie in \[-5, 5\); got 5"):
        F.embedding(sg.asarray(np.array([0])), table, padding_idx=5)


def test_layer_norm_says_what_it_expects():
    with pytest.raises(ShapeError, match=r"layer_norm: input must end in normalized_shape=\(4,\)"):
        F.layer_norm(sg.zeros((2, 3)), (4,))


def test_dropout_keeps_the_mean_and_scales_the_rest():
    sg.random.manual_seed(0)
    x = sg.ones((200, 100)).requires_grad_()
    out = F.dropout(x, 0.25)
    values = out.detach().numpy()
    assert set(np.unique(values)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((values == 0).mean() - 0.25) < 0.015  # five standard deviations of a draw of 20,000
    sg.sum(out).backward()
    np.testing.assert_array_equal(x.grad.numpy(), values)  # the gradient has the same mask
    assert (F.dropout(x, 0.25).detach().numpy() != values).any()


def test_dropout_at_its_ends():
    x = sg.ones((3, 4), dtype=np.float64)
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    np.testing.assert_array_equal(F.dropout(x, 1.0).numpy(), np.zeros((3, 4)))
    assert F.dropout(x, 0.5).dtype == np.float64
    with pytest.raises(ValueError, match=r"dropout: p must be a probability in \[0, 1\]; got 1.5"):
        F.dropout(x, 1.5)
