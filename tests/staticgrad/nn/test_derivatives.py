"""First and second derivatives of every function of nn, both directions, against five-point differences."""

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.autograd.gradcheck import gradgradcheck
from staticgrad.nn import functional as F  # noqa: N812

LABELS = sg.asarray(np.array([0, 2, 1]))
# Away from every kink (0, 0.5, 1, 3, 6 and their negatives) by more than the differences reach.
POINTS = np.array([[-6.6, -2.2, -0.7, 0.3], [0.8, 1.4, 3.5, -3.6], [2.3, 6.5, -1.3, -0.2]])

ACTIVATIONS = {
    "relu": {}, "relu6": {}, "leaky_relu": {}, "elu": {}, "selu": {}, "celu": {"alpha": 2.0}, "gelu": {},
    "silu": {}, "mish": {}, "sigmoid": {}, "tanh": {}, "softplus": {"beta": 2.0}, "softsign": {},
    "hardsigmoid": {}, "hardswish": {}, "hardtanh": {}, "logsigmoid": {}, "softmax": {"dim": 0},
    "log_softmax": {"dim": 1}, "softmin": {"dim": 1}, "glu": {},
}  # fmt: skip

PROBABILITY = (0.1 + np.abs(np.sin(POINTS))) / 1.2  # in (0, 1)
OTHER = np.roll(POINTS, 1, axis=0) + 0.05

FUNCTIONS = {
    "gelu-tanh": (lambda x: F.gelu(x, approximate="tanh"), [POINTS]),
    "prelu": (F.prelu, [POINTS, np.array([0.25, -0.5, 1.5, 0.1])]),
    "linear": (F.linear, [POINTS, np.cos(np.arange(20.0)).reshape(5, 4), np.sin(np.arange(5.0))]),
    "embedding": (lambda table: F.embedding(LABELS, table), [POINTS]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), [POINTS, np.array([1.0, 2, 3, 4]), np.ones(4)]),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1), [POINTS]),
    "cross_entropy-soft": (F.cross_entropy, [POINTS, PROBABILITY]),
    "nll_loss": (lambda x: F.nll_loss(x, LABELS), [POINTS]),
    "mse_loss": (F.mse_loss, [POINTS, OTHER]),
    "l1_loss": (F.l1_loss, [POINTS, OTHER]),
    "smooth_l1_loss": (F.smooth_l1_loss, [POINTS, OTHER]),
    "huber_loss": (F.huber_loss, [POINTS, OTHER]),
    "binary_cross_entropy": (F.binary_cross_entropy, [PROBABILITY, PROBABILITY[::-1].copy()]),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, [POINTS, PROBABILITY]),
    "bce-pos-weight": (
        lambda x: F.binary_cross_entropy_with_logits(x, PROBABILITY, pos_weight=np.arange(4.0)),
        [POINTS],
    ),
    "kl_div": (F.kl_div, [POINTS, PROBABILITY]),
    "kl_div-log": (lambda x, y: F.kl_div(x, y, log_target=True), [POINTS, np.log(PROBABILITY)]),
}
for name, options in ACTIVATIONS.items():
    FUNCTIONS[name] = (lambda x, name=name, options=options: getattr(F, name)(x, **options), [POINTS])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name):
    function, values = FUNCTIONS[name]
    inputs = [sg.asarray(value).requires_grad_() for value in values]
    assert sg.gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)
