"""The random streams: known answers, independence of how draws are split, moments and bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

import staticgrad as sg
from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.ops.numpy_math import threefry2x32
from staticgrad.random import Generator
from staticgrad.tensor import Tensor

ONES = 0xFFFFFFFF
# The known answers published with Random123 (Salmon and others, SC'11) for threefry2x32 with 20 rounds:
# counter words, key words, result words.
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


def word(low: int, high: int) -> Any:
    return np.array(low | high << 32, np.uint64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_threefry_known_answers(counter: Any, key: Any, expected: Any) -> None:
    assert threefry2x32(word(*key), word(*counter)) == word(*expected)


def test_the_counter_moves_on_by_what_was_drawn() -> None:
    generator = Generator(7)
    np.testing.assert_array_equal(
        np.asarray(generator.bits(3)), threefry2x32(np.uint64(7), np.arange(3, dtype=np.uint64))
    )
    assert np.asarray(generator.state).tolist() == [7, 3]
    assert np.asarray(generator.bits(1)).tolist() == [int(threefry2x32(np.uint64(7), np.uint64(3)))]
    assert np.asarray(generator.state).tolist() == [7, 4]


DRAWS = {
    "uniform32": lambda n, g: sg.random.uniform(n, generator=g),
    "uniform64": lambda n, g: sg.random.uniform(n, dtype="float64", generator=g),
    "normal32": lambda n, g: sg.random.normal(n, generator=g),
    "normal64": lambda n, g: sg.random.normal(n, dtype="float64", generator=g),
    "bernoulli": lambda n, g: sg.random.bernoulli(0.3, n, generator=g),
    "randint": lambda n, g: sg.random.randint(-5, 1000, n, generator=g),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_in_blocks_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, blocks = Generator(3), Generator(3)
    expected = np.asarray(DRAWS[name]((7, 11), whole))
    monkeypatch.setattr(sg.random, "_BLOCK", 10)
    found = np.asarray(DRAWS[name]((7, 11), blocks))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.asarray(blocks.state), np.asarray(whole.state))


@pytest.mark.parametrize("name", DRAWS)
def test_draws_do_not_depend_on_how_they_are_split(name: str) -> None:
    draw = DRAWS[name]
    whole = np.asarray(draw((4, 5), Generator(3)))
    generator = Generator(3)
    parts = [np.asarray(draw(n, generator)) for n in (10, 1, 9)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.reshape(-1))


@pytest.mark.parametrize("name", DRAWS)
def test_seeds(name: str) -> None:
    draw = DRAWS[name]
    first, again, other = (np.asarray(draw(64, Generator(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_the_default_generator() -> None:
    sg.random.manual_seed(11)
    first = sg.random.uniform(5).tolist()
    state = sg.random.get_state()
    second = sg.random.uniform(5).tolist()
    assert first != second
    sg.random.set_state(state)
    assert sg.random.uniform(5).tolist() == second
    sg.random.manual_seed(11)
    assert sg.random.uniform(5).tolist() == first
    np.testing.assert_array_equal(np.asarray(sg.random.uniform(5, generator=Generator(11))), first)


def test_a_state_is_a_copy() -> None:
    state = sg.random.get_state()
    before = state.copy()
    sg.random.uniform(5)
    np.testing.assert_array_equal(state, before)


@pytest.mark.parametrize("seed", [-1, 2**64 + 5, 2**63])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert int(np.asarray(Generator(seed).state)[0]) == seed % 2**64
    assert np.isfinite(np.asarray(sg.random.normal(3, generator=Generator(seed)))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform(dtype: str) -> None:
    x = np.asarray(sg.random.uniform(100_000, dtype=dtype, generator=Generator(5)))
    assert x.dtype == dtype
    assert x.min() >= 0.0
    assert x.max() < 1.0
    assert scipy.stats.kstest(x, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.01
    shifted = np.asarray(sg.random.uniform(100_000, low=-3.0, high=5.0, dtype=dtype, generator=Generator(5)))
    assert shifted.min() >= -3.0
    assert shifted.max() < 5.0
    np.testing.assert_allclose(shifted, x * 8 - 3, rtol=1e-5, atol=1e-5)


def test_uniform_never_reaches_its_upper_bound() -> None:
    low, high = 2.0**24, 2.0**24 + 2  # one float32 apart
    assert set(sg.random.uniform(1000, low=low, high=high, generator=Generator(1)).tolist()) == {low}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal(dtype: str) -> None:
    x = np.asarray(sg.random.normal(100_000, dtype=dtype, generator=Generator(9)))
    assert x.dtype == dtype
    assert np.isfinite(x).all()
    assert scipy.stats.kstest(x, "norm").pvalue > 0.01
    moments = [np.mean(x.astype(float) ** k) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.06)
    moved = np.asarray(sg.random.normal(100_000, mean=2.0, std=0.5, dtype=dtype, generator=Generator(9)))
    np.testing.assert_allclose(moved, x * 0.5 + 2, rtol=1e-5, atol=1e-5)


def test_bernoulli() -> None:
    x = sg.random.bernoulli(0.25, 100_000, generator=Generator(2))
    assert x.dtype == np.bool_
    assert abs(np.mean(np.asarray(x)) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 100_000)
    assert not np.asarray(sg.random.bernoulli(0.0, 1000)).any()
    assert np.asarray(sg.random.bernoulli(1.0, 1000)).all()
    rows = sg.random.bernoulli(sg.asarray([0.0, 1.0]), (3, 2))
    assert rows.tolist() == [[False, True]] * 3


def test_randint() -> None:
    x = np.asarray(sg.random.randint(-3, 7, 50_000, generator=Generator(4)))
    assert x.dtype == np.int64
    assert sorted(set(x.tolist())) == list(range(-3, 7))
    assert scipy.stats.chisquare(np.bincount(x + 3)).pvalue > 0.01
    assert sg.random.randint(0, 5, (2, 3), dtype="int8").spec == ((2, 3), np.dtype("int8"))
    for low, high in [(0, 0), (5, 1), (0, 2**32)]:
        with pytest.raises(ShapeError, match="randint: the range"):
            sg.random.randint(low, high)


def test_permutation() -> None:
    x = np.asarray(sg.random.permutation(1000, generator=Generator(6)))
    assert sorted(x.tolist()) == list(range(1000))
    assert x.tolist() != list(range(1000))
    assert np.asarray(sg.random.permutation(1000, generator=Generator(6))).tolist() == x.tolist()
    assert sg.random.permutation(0).shape == (0,)


@pytest.mark.parametrize("shape", [(), 0, (2, 0), 3, (2, 3)])
def test_shapes(shape: Any) -> None:
    wanted = (shape,) if isinstance(shape, int) else shape
    drawn: list[Tensor] = [sg.random.uniform(shape), sg.random.normal(shape), sg.random.normal(shape, dtype="float64")]
    drawn += [sg.random.bernoulli(0.5, shape), sg.random.randint(0, 2, shape)]
    assert all(x.shape == wanted for x in drawn)


def test_errors() -> None:
    with pytest.raises(DTypeError, match="uniform: draws floating numbers; got dtype int32"):
        sg.random.uniform(3, dtype="int32")
    with pytest.raises(DTypeError, match="normal: draws floating"):
        sg.random.normal(3, dtype=bool)
    with pytest.raises(ShapeError, match="negative"):
        sg.random.uniform((-1,))
    with pytest.raises(ValueError, match="uniform: low must not be above high"):
        sg.random.uniform(3, low=2.0, high=1.0)
    with pytest.raises(ValueError, match="normal: std must not be negative"):
        sg.random.normal(3, std=-1.0)
    with pytest.raises(ShapeError, match="set_state: a state is two uint64 words; got float64"):
        sg.random.set_state([1.0, 2.0])


def test_draws_take_no_part_in_derivatives() -> None:
    assert not sg.random.normal(3).requires_grad
    x = sg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x * sg.random.uniform(3, generator=Generator(1))).sum().backward()
    np.testing.assert_array_equal(np.asarray(x.grad), np.asarray(sg.random.uniform(3, generator=Generator(1))))


@pytest.mark.parametrize("name", DRAWS)
def test_compiled_draws_continue_the_same_stream(name: str) -> None:
    draw = DRAWS[name]
    generator, other = Generator(8), Generator(8)
    compiled = sg.compile(lambda: draw(7, generator))
    for _ in range(3):
        np.testing.assert_allclose(np.asarray(compiled()), np.asarray(draw(7, other)), rtol=2e-6, atol=2e-7)
    np.testing.assert_array_equal(np.asarray(generator.state), np.asarray(other.state))
