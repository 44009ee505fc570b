"""What a compiled function tells of itself: explain, cost, profile."""

import logging

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.table import aligned, count, duration, markdown, size

BATCH, WIDE, NARROW = 8, 12, 5


@pytest.fixture
def training():
    sg.random.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDE, NARROW), nn.Tanh())
    optimizer = optim.Adam(model.parameters(), lr=1e-2)

    @sg.compile
    def step(x, y):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH, WIDE)).astype(np.float32)
    y = random.normal(size=(BATCH, NARROW)).astype(np.float32)
    return model, optimizer, step, (x, y)


def everything(model, optimizer):
    state = [tensor for entries in optimizer.state.values() for tensor in entries.values()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [np.array(t.detach()).tobytes() for t in (*model.parameters(), *state, *gradients)]


def test_explain_before_the_first_call(training):
    assert training[2].explain() == (
        "training.<locals>.step: not compiled yet; it is captured and compiled at its first call"
    )


def test_explain_lists_what_the_program_depends_on(training):
    _, _, step, batch = training
    for _ in range(3):
        step(*batch)
    text = step.explain()
    for expected in (
        "compiled because: first call",
        "calls      3",
        "x float32[8, 12]",
        "model.0.weight float32[5, 12], updated",
        "lr (read at each call)",
        "option 'betas' is (0.9, 0.999)",
        "2 set at each call",
        "arena",
        "matrix products",
    ):
        assert expected in text, expected


def test_explain_gives_the_reason_of_every_recompile(caplog):
    @sg.compile
    def double(x):
        return x * 2

    double(sg.ones(3))
    with caplog.at_level(logging.ERROR):
        double(sg.ones(4))
    text = double.explain()
    assert "2 specialisations" in text
    assert "2. compiled because: x: " in text


def test_explain_names_arguments_that_are_not_used():
    f = sg.compile(lambda x, y: x + 1)
    f(sg.ones(3), sg.ones(2))
    assert "y float32[2], not used" in f.explain()


def test_cost_counts_operations_and_bytes_of_products():
    f = sg.compile(lambda x, y: x @ y)
    f(sg.ones((3, 4)), sg.ones((4, 5)))
    (row,) = f.cost().rows
    assert (row.kernel, row.flops, row.functions) == ("gemm", 2 * 3 * 4 * 5, 0)
    assert (row.bytes_read, row.bytes_written) == (4 * (3 * 4 + 4 * 5), 4 * 3 * 5)
    assert row.intensity == 120 / (4 * (12 + 20 + 15))


def test_cost_counts_elements_once_whatever_reads_them():
    f = sg.compile(lambda x, b: sg.sum(sg.exp(x * x + b), axis=1))
    f(sg.ones((6, 4)), sg.ones(4))
    (row,) = f.cost().rows
    assert row.flops == 24 * 4  # product, sum, exponential, and the sum over the axis
    assert row.functions == 24
    assert row.bytes_read == 4 * (24 + 4)
    assert row.bytes_written == 4 * 6


def test_cost_counts_only_the_part_that_is_read():
    f = sg.compile(lambda x, index: (x[2:4] + 1, sg.take(x, index, axis=0)))
    f(sg.ones((10, 3)), np.array([1, 5]))
    assert sorted(row.bytes_read for row in f.cost().rows) == sorted([4 * 6, 4 * 6 + 8 * 2])


def test_cost_counts_no_arithmetic_on_integers():
    f = sg.compile(lambda x: x + 1)
    f(sg.arange(5))
    assert f.cost().flops == 0


def test_cost_prints_a_row_for_every_group_and_a_total(training):
    _, _, step, batch = training
    step(*batch)
    cost = step.cost()
    lines = str(cost).splitlines()
    assert len(lines) == 2 + len(step.plan.groups)
    assert lines[0].split()[:3] == ["kernel", "flop", "functions"]
    assert lines[-1].startswith("total")
    assert cost.flops == sum(row.flops for row in cost.rows)
    assert any("test_report.py:" in line for line in lines)
    assert {row.kernel for row in cost.rows} == {"gemm", *step.last.program.sources}


def test_profile_times_every_group_and_changes_nothing(training):
    model, optimizer, step, batch = training
    step(*batch)
    before = everything(model, optimizer)
    versions = [p._version[0] for p in model.parameters()]
    calls = step.last.calls
    profile = step.profile(*batch, repeat=5)
    assert everything(model, optimizer) == before
    assert [p._version[0] for p in model.parameters()] == versions
    assert step.last.calls == calls
    assert {row.cost for row in profile.rows} >= set(step.cost().rows)
    assert [row.seconds for row in profile.rows] == sorted((row.seconds for row in profile.rows), reverse=True)
    assert profile.seconds == pytest.approx(sum(row.seconds for row in profile.rows))
    assert sum(row.share for row in profile.rows) == pytest.approx(1)
    assert "medians of 5 calls" in str(profile)


def test_profile_goes_on_after_an_index_out_of_range():
    f = sg.compile(lambda x, index: sg.take(x, index, axis=0) * 2)
    x = sg.ones((4, 3))
    f(x, np.array([1, 2]))
    with pytest.raises(IndexError, match="take: an index must lie in"):
        f.profile(x, np.array([1, 9]))
    assert f.profile(x, np.array([1, 2])).rows


def test_profile_needs_a_call(training):
    with pytest.raises(ValueError, match="repeat must be at least 1; got 0"):
        training[2].profile(*training[3], repeat=0)


def test_profile_counts_the_copies_at_the_end():
    f = sg.compile(lambda x: (x, x + 1))
    f(sg.ones(4))
    rows = {row.cost.kernel: row.cost for row in f.profile(sg.ones(4)).rows}
    assert rows["memcpy"].bytes_written == 16


def test_numbers_and_tables():
    assert [count(v) for v in (0, 999, 1234, 5.678e7, 1e13)] == ["0", "999", "1.23 k", "56.8 M", "10.0 T"]
    assert [size(v) for v in (0, 1023, 1536, 3 << 20, 5 << 30)] == ["0 B", "1023 B", "1.50 KiB", "3.00 MiB", "5.00 GiB"]
    assert [duration(v) for v in (8.5e-8, 1.2e-6, 0.0331, 2)] == ["85.0 ns", "1.20 µs", "33.1 ms", "2.00 s"]
    rows = [("a", "1"), ("long", "22")]
    assert aligned(("name", "n"), rows) == "name   n\na      1\nlong  22"
    assert markdown(("name", "n"), rows) == "| name | n |\n| --- | ---: |\n| a | 1 |\n| long | 22 |"
