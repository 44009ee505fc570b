"""The benchmark against peers: its command line, its checks and its judgement. No time is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FIVE = [[2.0], [1.5], [1.25], [1.0], [0.5]]
FLOORS = {"gemm_gflops": 100.0, "copy_gb_per_second": {"1048576": 100.0, "67108864": 20.0}}


def test_the_rows_are_those_that_were_asked_for():
    from benchmarks.rows import ROWS

    assert list(ROWS) == [
        "overhead", "mlp_tiny", "mlp_mnist", "mlp_wide", "elementwise", "deep_chain", "softmax_ce", "layernorm_mlp",
        "embedding_bag",
    ]  # fmt: skip


def test_rows_come_from_a_fixed_seed():
    from benchmarks.rows import ROWS, small

    for row in ROWS.values():
        first, second = small(row).arrays(), small(row).arrays()
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
            assert first[name].dtype in (np.float32, np.int64)


@pytest.mark.parametrize("name", ["overhead", "mlp_tiny", "mlp_mnist", "elementwise", "deep_chain", "softmax_ce",
                                  "layernorm_mlp", "embedding_bag"])  # fmt: skip
def test_both_modes_compute_the_same_and_restart(name):
    from benchmarks.engines.staticgrad_engine import build, fetch
    from benchmarks.measure import STEPS_COMPARED, check_agreement
    from benchmarks.rows import ROWS, small
    from benchmarks.worker import numbers

    row = small(ROWS[name])
    values = {}
    for mode in (True, False):
        step = build(row, row.arrays(), "", compiled=mode)
        values[f"compiled={mode}"] = [numbers(step.run(), fetch) for _ in range(STEPS_COMPARED)]
        assert (step.profile is not None) is mode
        if step.profile:
            assert all(seconds >= 0 and ops and kernel for ops, kernel, seconds in step.profile())
        step.restart()
        values[f"compiled={mode}, again"] = [numbers(step.run(), fetch) for _ in range(STEPS_COMPARED)]
    check_agreement(name, values)
    found = values["compiled=True"]
    assert (found[0] != found[-1]) == row.optimizes


def test_what_a_step_costs_at_least():
    from benchmarks.floors import floor_microseconds
    from benchmarks.rows import ROWS

    flops, moved = ROWS["mlp_wide"].costs()
    parameters = 2 * 1024 * 1025 + 1025 * 10
    assert flops == 2 * 256 * (2 * 1024**2 + 3 * (1024**2 + 1024 * 10)) + 16 * parameters
    assert moved == 24 * parameters + 4 * 256 * 1024
    assert floor_microseconds(*ROWS["overhead"].costs(), FLOORS) is None
    assert floor_microseconds(1e6, 1000, FLOORS) == pytest.approx(10)  # arithmetic
    assert floor_microseconds(0, 2**20, FLOORS) == pytest.approx(2**20 / 100 / 1e3)  # the nearest cache that holds it
    assert floor_microseconds(0, 2**30, FLOORS) == pytest.approx(2**30 / 20 / 1e3)


def test_of_two_measures_of_the_machine_the_higher_counts():
    from benchmarks.floors import higher

    disturbed = {"gemm_gflops": 50.0, "copy_gb_per_second": {"1048576": 110.0, "67108864": 10.0}}
    best = {"gemm_gflops": 100.0, "copy_gb_per_second": {"1048576": 110.0, "67108864": 20.0}}
    assert higher(FLOORS, disturbed) == higher(disturbed, FLOORS) == best


# ---------------------------------------------------------------- agreement


def test_engines_that_agree_pass():
    from benchmarks.measure import check_agreement

    check_agreement("row", {"one": FIVE, "other": [[loss * 1.0005] for (loss,) in FIVE]})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([*FIVE[:2], [1.2525], *FIVE[3:]], "row: the engines disagree at step 3: ours 1.25, theirs 1.2525; no time"),
        ([*FIVE[:4], [float("nan")]], "disagree at step 5: ours 0.5, theirs nan"),
        ([[*loss, 1.0] for loss in FIVE], "different numbers of results at step 1"),
        (FIVE[:3], "5 steps expected of each engine; got ours 5, theirs 3"),
    ],
)
def test_engines_that_disagree_are_an_error(other, message):
    from benchmarks.measure import DisagreementError, check_agreement

    with pytest.raises(DisagreementError, match=message):
        check_agreement("row", {"ours": FIVE, "theirs": other})


def test_a_second_result_counts_too():
    from benchmarks.measure import DisagreementError, check_agreement

    with pytest.raises(DisagreementError, match=r"ours 1, theirs 1\.1"):
        check_agreement("row", {"ours": [[2.0, 1.0]] * 5, "theirs": [[2.0, 1.1]] * 5})


# ---------------------------------------------------------------- judgement and tables


def engine(median, cold=1.0, warm=0.05, peak=50.0):
    return {"median_us": median, "min_us": 0.9 * median, "cold_s": cold, "warm_s": warm, "peak_mib": peak}


def judged(threads=2):
    from benchmarks.report import judged
    from benchmarks.rows import ROWS

    engines = {"staticgrad": engine(30.0), "staticgrad_dynamic": engine(900.0), "torch": engine(400.0, peak=80.0)}
    engines["jax"] = engine(90.0, cold=0.5, warm=0.2, peak=60.0)
    return judged(
        ROWS["mlp_tiny"],
        {"engines": engines, "left_out": {}, "restless": ["jax"], "others_cores": 0.5},
        threads,
        FLOORS,
    )


def test_figures_are_held_to_their_bars():
    row = judged()
    assert row["best_peer"] == "jax"
    assert row["ratio"] == pytest.approx(1 / 3)
    assert row["share"] == pytest.approx(row["floor_us"] / 30)
    bars = {bar["figure"]: (pytest.approx(bar["value"]), bar["bar"], bar["met"]) for bar in row["bars"]}
    assert bars == {
        "step over the best peer's": (1 / 3, 0.3, False),
        "cold compile over jax's": (2.0, 1.5, False),
        "warm compile, s": (0.05, 0.1, True),
        "warm compile over jax's": (0.25, 0.5, True),
        "peak memory over the best peer's": (5 / 6, 0.9, True),
        "dynamic mode over torch eager": (2.25, 2.0, False),
    }


def test_one_thread_may_not_be_slower_than_a_peer():
    first = judged(threads=1)["bars"][0]
    assert (first["bar"], first["met"]) == (1.0, True)


def results():
    return {
        "machine": {"processor": "znver4"}, "threads": 2, "warnings": ["busy machine: ..."],
        "versions": {"staticgrad": "0.1.0", "torch": "2.13", "jax": "0.10"},
        "left_out": {"torch_compile": "torch is not installed for python"},
        "rows": {"mlp_tiny": judged(), "mlp_wide": {"what": "", "error": "mlp_wide: the engines disagree"}},
    }  # fmt: skip


def test_the_text_names_what_is_missing_and_what_missed():
    from benchmarks.report import text

    shown = text(results())
    assert "note: busy machine" in shown
    assert "note: mlp_tiny: other processes used 0.50 cores while it was timed" in shown
    assert "note: mlp_tiny: jax keeps a core busy while it waits" in shown
    assert "left out: torch_compile: torch is not installed" in shown
    assert "error: mlp_wide: the engines disagree" in shown
    assert "missed: mlp_tiny: dynamic mode over torch eager 2.25, at most 2" in shown
    assert "mlp_wide  " not in shown  # no line of figures


def test_the_readme_shows_measured_speed_and_keeps_its_text_without(monkeypatch, tmp_path):
    from benchmarks import readme

    page = "a\n<!-- speed -->\noutdated\n<!-- /speed -->\nb\n"
    monkeypatch.setattr(readme, "SPEED", tmp_path / "none.json")
    assert readme.filled(page) == page
    (tmp_path / "speed.json").write_text(json.dumps(results()))
    monkeypatch.setattr(readme, "SPEED", tmp_path / "speed.json")
    made = readme.filled(page)
    assert "outdated" not in made
    assert "| `mlp_tiny` | 32 x 64-64-64-10, tanh | 30 µs | 90 µs (jax) | 0.33 | 1 s, 50 ms |" in made
    assert "docs/images/speed.png" in made
    assert readme.filled(made) == made


def test_the_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    from benchmarks.report import plot

    plot(results(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "mlp_huge"], "--rows: unknown mlp_huge; choose from overhead, mlp_tiny"),
        (["--rows", ""], "--rows: unknown nothing; choose from"),
        (["--engines", "torch,tinygrad"], "--engines: unknown tinygrad; choose from staticgrad"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--rounds", "-1"], "--rounds must be at least 1; got -1"),
        (["--out", "/nowhere/at/all.json"], "--out: there is no folder /nowhere/at"),
        (["--python", "torch"], "--python: expected ENGINE=PATH"),
        (["--python", "tinygrad=python3"], "--python: expected ENGINE=PATH"),
        (["--python", "torch=/nowhere/python"], "--python: /nowhere/python is not a program"),
        (["--compile-only", "--no-compile"], "not allowed with argument"),
    ],
)
def test_wrong_arguments_are_named_before_the_work(words, message, capsys):
    from benchmarks.__main__ import arguments

    with pytest.raises(SystemExit):
        arguments(words)
    assert message in capsys.readouterr().err


def test_a_library_brings_its_interpreter_to_all_its_engines():
    from benchmarks.__main__ import arguments

    options = arguments(["--python", f"torch={sys.executable}", "--rows", "overhead,overhead", "--no-compile"])
    assert options.rows == ("overhead",)
    assert options.pythons.keys() == set(options.engines)


def test_too_few_cores_and_a_busy_machine_are_said(monkeypatch):
    from benchmarks import __main__ as command

    monkeypatch.setattr(command, "usable_cores", lambda: [0, 1])
    monkeypatch.setattr(command.os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    few, busy = command.warnings(4)
    assert few == "too few cores: 4 threads on 2"
    assert busy.startswith("busy machine: a load of 1.50 on 2 cores")
    monkeypatch.setattr(command.os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    assert command.warnings(2) == []


def test_a_peer_that_is_not_installed_is_left_out_and_named(tmp_path):
    """The whole benchmark on the smallest row, with an interpreter that finds no jax."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: no site-packages
    bare.chmod(0o755)
    out = tmp_path / "speed.json"
    command = [
        sys.executable, "-m", "benchmarks", "--rows", "overhead", "--engines", "staticgrad,jax", "--rounds", "1",
        "--threads", "1", "--no-compile", "--out", str(out), "--python", f"jax={bare}",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "left out: jax: jax is not installed for" in done.stdout
    found = json.loads(out.read_text())
    assert found["left_out"].keys() == {"jax"}
    assert found["rows"]["overhead"]["engines"].keys() == {"staticgrad"}
    assert found["rows"]["overhead"]["engines"]["staticgrad"]["median_us"] > 0
