"""The bind point: what is remembered of an op's types, and what an op may be run inside of."""

import threading
import warnings

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import binding
from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.ops import arithmetic


def test_a_pair_known_by_dtype_still_checks_shapes():
    sg.ones(3) + sg.ones(3)
    with pytest.raises(ShapeError, match=r"add: operands must broadcast.*\(3,\) and \(4,\).*test_binding\.py:"):
        sg.ones(3) + sg.ones(4)


def test_an_op_known_by_shapes_checks_other_shapes_and_attributes():
    x = sg.ones((2, 3))
    sg.reshape(x, (3, 2))
    with pytest.raises(ShapeError, match="number of elements"):
        sg.reshape(x, (3, 3))
    with pytest.raises(DTypeError, match="floating"):
        sg.exp(sg.asarray([1]))


def test_remembered_types_are_bounded(monkeypatch):
    monkeypatch.setattr(binding, "_types", {})
    monkeypatch.setattr(binding, "_KEPT_TYPES", 5)
    for extent in range(1, 20):
        sg.sum(sg.ones(extent))
    assert 0 < len(binding._types) <= 5


def test_an_attribute_that_cannot_be_hashed_is_taken():
    out = binding.bind(sg.graph.ops.shape.reshape, (sg.ones((2, 3)),), {"shape": [3, 2]})
    assert out.shape == (3, 2)


def test_no_floating_point_warnings_and_the_users_own_stay():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sg.ones(2) / sg.zeros(2) is not None
        assert np.isinf((sg.ones(2) / 0.0).numpy()).all()
    with np.errstate(divide="warn"), pytest.warns(RuntimeWarning, match="divide"):
        np.ones(2) / np.zeros(2)


def test_every_thread_computes_quietly():
    found = []

    def work():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append((sg.ones(2) / sg.zeros(2)).tolist())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[np.inf, np.inf]]


def test_an_op_runs_inside_the_reference_of_another():
    x = sg.asarray([1.0, 2.0])
    inside = sg._context.context.quietly(lambda: [(x / 0.0).tolist(), sg.exp(x * 0.0).tolist(), (x + x).tolist()])
    assert inside == [[np.inf, np.inf], [1.0, 1.0], [2.0, 4.0]]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
def test_a_number_adapts_to_integers(dtype):
    x = sg.asarray(np.array([1, 2], dtype))
    assert (x + 1).dtype == x.dtype
    assert (2 * x).dtype == x.dtype
    assert (x + 1.5).dtype == np.float32
    assert (x + True).dtype == x.dtype
    assert sg.where(x > 1, x, 0).dtype == x.dtype
    assert sg.where(x > 1, 0.5, x).dtype == np.float32


def test_a_number_that_does_not_fit_integers():
    with pytest.raises(DTypeError, match="300 does not fit int8"):
        binding.bind(arithmetic.add, (sg.asarray(np.array([1], np.int8)), 300), {})


def test_a_dtype_of_another_byte_order_or_identity():
    x = sg.asarray(np.array([1.0, 2.0], ">f4"))
    y = sg.asarray(np.ones(2, np.dtype("f4").newbyteorder("=")))
    assert (x + y).tolist() == [2.0, 3.0]
    assert (x + y).dtype == np.float32


def test_broadcast_views_are_read_only_and_share():
    base = np.arange(3.0)
    view = sg.broadcast_to(sg.asarray(base), (2, 3)).numpy()
    assert np.shares_memory(view, base)
    assert not view.flags.writeable
    strided = sg.broadcast_to(sg.asarray(np.arange(6.0)[::2]), (2, 3))
    assert strided.tolist() == [[0.0, 2.0, 4.0]] * 2
    assert sg.broadcast_to(sg.zeros((1, 0)), (4, 0)).shape == (4, 0)
