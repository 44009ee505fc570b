"""Small parameters that are updated as one vector end exactly where they end one by one."""

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.optim import packing
from staticgrad.optim.optimizer import Optimizer

SHAPES = [(3, 4), (4,), (), (2, 0), (5, 3)]
OPTIMIZERS = {
    "sgd": lambda p: sg.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "nesterov": lambda p: sg.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: sg.optim.Adam(p, lr=0.1, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: sg.optim.AdamW(p, lr=0.1, maximize=True),
    "rmsprop": lambda p: sg.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "adagrad": lambda p: sg.optim.Adagrad(p, lr=0.1, lr_decay=0.1),
}


def _parameters(dtype=np.float32):
    rng = np.random.default_rng(0)
    return [sg.nn.Parameter(sg.asarray(np.asarray(rng.standard_normal(shape), dtype))) for shape in SHAPES]


def _train(make, parameters, steps=4):
    optimizer = make(parameters)
    rng = np.random.default_rng(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = sg.asarray(np.asarray(rng.standard_normal(parameter.shape), parameter.dtype))
        optimizer.step()
    return optimizer


def _state(optimizer, parameters):
    return [[value.numpy().copy() for value in optimizer.state[p].values()] for p in parameters]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtypes", [("float32",) * 5, ("float64", "float32", "float64", "float32", "float32")])
def test_packed_and_alone_agree_to_the_last_bit(name, dtypes, monkeypatch):
    def run(small):
        monkeypatch.setattr(packing, "SMALL", small)
        parameters = _parameters()
        for parameter, dtype in zip(parameters, dtypes, strict=True):
            sg.nn.parameter.convert_in_place(parameter, np.dtype(dtype))
        optimizer = _train(OPTIMIZERS[name], parameters)
        return parameters, _state(optimizer, parameters), optimizer

    together, state, optimizer = run(packing.SMALL)
    alone, expected, _ = run(-1)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    for a, b in zip(state, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert set(optimizer.state) == set(together)
    assert [p._version[0] for p in together] == [p._version[0] for p in alone]


def _packs(optimizer, parameters):
    group = optimizer.param_groups[0]
    return packing._packs(optimizer, group, optimizer.cohorts[0][0].step, parameters)


def test_only_small_parameters_of_one_dtype_that_share_no_storage_are_packed(monkeypatch):
    monkeypatch.setattr(packing, "SMALL", 12)
    parameters = _parameters()
    optimizer = _train(OPTIMIZERS["adam"], parameters, steps=1)
    (pack,) = _packs(optimizer, parameters)
    assert [p.shape for p in pack.parts] == [(3, 4), (4,), (), (2, 0)]

    whole = np.ones(8, np.float32)
    halves = [sg.nn.Parameter(whole[:4]), sg.nn.Parameter(whole[4:])]
    assert _packs(_train(OPTIMIZERS["adam"], halves, steps=1), halves) == []


def test_an_update_that_is_not_marked_gets_the_parameters_themselves():
    seen = []

    class Normed(sg.optim.SGD):
        def update(self, group, step, parameters):
            seen.extend(p.shape for p in parameters)
            super().update(group, step, parameters)

    _train(lambda p: Normed(p, lr=0.1), _parameters(), steps=1)
    assert seen == SHAPES
    assert not hasattr(Optimizer.update, "elementwise")


def test_a_parameter_that_cannot_be_written_says_so():
    array = np.ones(3, np.float32)
    parameters = [sg.nn.Parameter(array), sg.nn.Parameter(sg.ones(2))]
    array.flags.writeable = False
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    parameters[0]._value = frozen
    with pytest.raises(ValueError, match="cannot be written"):
        _train(OPTIMIZERS["sgd"], parameters, steps=1)
