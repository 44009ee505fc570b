"""`plan_offsets`: the invariant on random lifetimes, plans drawn by hand, training chains, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staticgrad.graph.offsets import check_offsets, height, lower_bound, plan_offsets

Interval = tuple[int, int, int]


def live_load(intervals: list[Interval], time: int) -> int:
    return sum(size for lower, upper, size in intervals if lower <= time < upper)


def overlaps(intervals: list[Interval], offsets: list[int]) -> bool:
    """All pairs, as the definition has it."""
    for i, (lower, upper, size) in enumerate(intervals):
        for j, (other_lower, other_upper, other_size) in enumerate(intervals[:i]):
            together = lower < other_upper and other_lower < upper
            if (
                together
                and offsets[i] < offsets[j] + other_size
                and offsets[j] < offsets[i] + size
                and size * other_size
            ):
                return True
    return False


def training_chain(layers: int, seed: int = 0) -> list[Interval]:
    """Activations saved until backward, parameter gradients until the optimizer, cotangents and temporaries."""
    random = np.random.default_rng(seed)
    end = 4 * layers
    intervals = []
    for layer in range(layers):
        width, weight, temporary = (64 * random.integers(1, 64, 3)).tolist()
        backward = end - 2 * layer - 2
        intervals.append((2 * layer, end - 2 * layer, width))
        intervals.append((2 * layer, 2 * layer + 1, temporary))
        intervals.append((backward, backward + 3, width))
        intervals.append((backward, end + 2 + layer, weight))
    return intervals


lifetimes = st.lists(
    st.tuples(st.integers(-20, 40), st.integers(1, 30), st.integers(0, 300)).map(
        lambda drawn: (drawn[0], drawn[0] + drawn[1], drawn[2])
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(lifetimes, st.sampled_from([1, 16, 64]), st.randoms(use_true_random=False))
def test_every_plan_is_valid_aligned_and_repeatable(intervals, alignment, random):
    offsets = plan_offsets(intervals, alignment=alignment, effort=5)
    assert not overlaps(intervals, offsets)
    check_offsets(intervals, offsets, alignment=alignment)
    assert all(offset % alignment == 0 for offset in offsets)
    rounded = [(lower, upper, -(-size // alignment) * alignment) for lower, upper, size in intervals]
    bound = lower_bound(intervals, alignment=alignment)
    assert bound == max((live_load(rounded, lower) for lower, _, _ in rounded), default=0)
    assert height(rounded, offsets) >= bound
    assert offsets == plan_offsets(intervals, alignment=alignment, effort=5)
    random.shuffle(intervals)
    assert not overlaps(intervals, plan_offsets(intervals, alignment=alignment, effort=5))


@settings(max_examples=200, deadline=None)
@given(lifetimes, st.data())
def test_the_check_agrees_with_all_pairs(intervals, data):
    offsets = data.draw(st.lists(st.integers(0, 1000), min_size=len(intervals), max_size=len(intervals)))
    if overlaps(intervals, offsets):
        with pytest.raises(ValueError, match="must not share bytes"):
            check_offsets(intervals, offsets)
    else:
        check_offsets(intervals, offsets)


@pytest.mark.parametrize(
    ("intervals", "arena"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([(3, 4, 0)], 0, id="no-bytes"),
        pytest.param([(0, 1, 7), (1, 2, 7), (2, 3, 7)], 7, id="one-after-the-other-share"),
        pytest.param([(0, 2, 64), (1, 3, 32), (2, 4, 64)], 96, id="ping-pong"),
        pytest.param([(0, 6, 1), (1, 5, 2), (2, 4, 3)], 6, id="nested"),
        # The two long lifetimes meet only if they lie at opposite ends: one stack alone needs 6.
        pytest.param([(0, 4, 2), (1, 2, 2), (3, 6, 2), (5, 6, 2)], 4, id="two-ends"),
        # Best fit in decreasing size needs 8: the fours take the bottom and block the late three.
        pytest.param([(0, 2, 3), (1, 3, 4), (2, 4, 3), (3, 5, 4), (4, 6, 3)], 7, id="staircase"),
    ],
)
def test_plans_drawn_by_hand(intervals, arena):
    offsets = plan_offsets(intervals)
    check_offsets(intervals, offsets)
    assert height(intervals, offsets) == lower_bound(intervals) == arena


def test_input_is_any_integers_in_any_sequence():
    table = np.array([[0, 2, 64], [1, 3, 32], [2, 4, 64]], dtype=np.int32)
    offsets = plan_offsets(table)
    assert all(type(offset) is int for offset in offsets)
    assert offsets == plan_offsets([tuple(row) for row in table.tolist()])


def test_empty_blocks_collide_with_nothing():
    intervals = [(0, 9, 8), (0, 9, 0), (3, 4, 0)]
    check_offsets(intervals, plan_offsets(intervals))
    check_offsets(intervals, [0, 4, 7])


@pytest.mark.parametrize("layers", [2, 5, 20, 80])
def test_training_chains_come_within_two_percent_of_the_bound(layers):
    for seed in range(2):
        intervals = training_chain(layers, seed)
        offsets = plan_offsets(intervals, alignment=64)
        check_offsets(intervals, offsets, alignment=64)
        assert height(intervals, offsets) <= 1.02 * lower_bound(intervals, alignment=64)


def test_a_nested_chain_of_twenty_thousand_meets_the_bound():
    count = 20_000
    intervals = [(index, 2 * count - index, 64 + index % 7 * 64) for index in range(count)]
    offsets = plan_offsets(intervals)
    check_offsets(intervals, offsets)
    assert height(intervals, offsets) == lower_bound(intervals)


def test_a_long_training_chain_is_planned_without_comparing_all_pairs():
    intervals = training_chain(10_000)  # the pairs live together number some 10 ** 8
    offsets = plan_offsets(intervals, alignment=64)
    check_offsets(intervals, offsets, alignment=64)
    assert height(intervals, offsets) <= 1.005 * lower_bound(intervals, alignment=64)


def cut(count: int, seed: int, extent: int = 4096) -> list[Interval]:
    """A rectangle of time and memory, cut into `count` blocks: a perfect plan, of height `extent`, exists."""
    random = np.random.default_rng(seed)
    pieces = [(0, extent, extent)]
    while len(pieces) < count:
        lower, upper, size = pieces.pop(int(np.argmax([(piece[1] - piece[0]) * piece[2] for piece in pieces])))
        share = random.uniform(0.25, 0.75)
        if random.random() < 0.5:
            middle = lower + int(share * (upper - lower))
            pieces += [(lower, middle, size), (middle, upper, size)]
        else:
            part = int(share * size)
            pieces += [(lower, upper, part), (lower, upper, size - part)]
    return pieces


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_the_search_improves_on_the_placement_orders(seed):
    intervals = cut(100, seed)
    orders = height(intervals, plan_offsets(intervals, effort=0))
    searched = height(intervals, plan_offsets(intervals))
    assert lower_bound(intervals) == 4096
    assert searched < orders
    assert searched <= 1.1 * 4096


def test_a_failing_plan_is_named_pair_by_pair():
    intervals = [(0, 2, 64), (1, 3, 32), (2, 4, 64)]
    check_offsets(intervals, [0, 64, 0])
    with pytest.raises(ValueError, match=r"interval 0, live \[0, 2\), bytes \[0, 64\) and interval 1, live \[1, 3\)"):
        check_offsets(intervals, [0, 63, 0])
    with pytest.raises(ValueError, match="multiple of 16 and at least 0; interval 1 has 72"):
        check_offsets(intervals, [0, 72, 0], alignment=16)
    with pytest.raises(ValueError, match="at least 0; interval 2 has -1"):
        check_offsets(intervals, [0, 64, -1])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ((2, 2, 8), ValueError, r"lifetime \[lower, upper\) must not be empty; interval 1 is \[2, 2\)"),
        ((3, 2, 8), ValueError, r"interval 1 is \[3, 2\)"),
        ((0, 2, -8), ValueError, "size must be at least 0; interval 1 has -8"),
        ((0, 2.0, 8), TypeError, r"three integers \(lower, upper, size\); interval 1 is \(0, 2.0, 8\)"),
        ((0, 2), TypeError, "three integers"),
        (7, TypeError, "interval 1 is 7"),
        ((0, 2, 2**62), ValueError, "below 2\\*\\*62; interval 1"),
        ((0, 2**62, 1), ValueError, "below 2\\*\\*62; interval 1"),
    ],
)
def test_bad_intervals_are_named(bad, error, message):
    for function in (plan_offsets, lower_bound):
        with pytest.raises(error, match=f"{function.__name__}: .*{message}"):
            function([(0, 1, 1), bad])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="alignment must be at least 1; got 0"):
        plan_offsets([(0, 1, 1)], alignment=0)
    with pytest.raises(ValueError, match="effort must be at least 0; got -1"):
        plan_offsets([(0, 1, 1)], effort=-1)
    with pytest.raises(ValueError, match="one offset for each interval; got 1 intervals, 2 offsets"):
        height([(0, 1, 1)], [0, 0])
    with pytest.raises(ValueError, match="one offset for each interval; got 1 intervals, 0 offsets"):
        check_offsets([(0, 1, 1)], [])
