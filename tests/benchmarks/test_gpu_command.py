"""The benchmark on a GPU: its command line, what it keeps, the GPU's description, the page and the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import staticgrad as sg

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
FLOORS = {"gemm_gflops": 50_000.0, "copy_gb_per_second": {"1073741824": 4000.0}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "mlp_huge"], "--rows: unknown mlp_huge; choose from overhead, mlp_tiny, mlp_wide, elementwise"),
        (["--engines", "staticgrad_dynamic"], "--engines: unknown staticgrad_dynamic; choose from staticgrad, torch"),
        (["--compile-only"], "--compile-only and --plot are for the CPU"),
        (["--plot"], "--compile-only and --plot are for the CPU"),
    ],
)
def test_wrong_arguments_are_named_before_the_work(words, message, capsys):
    from benchmarks.__main__ import arguments

    with pytest.raises(SystemExit):
        arguments(["--device", "cuda", *words])
    assert message in capsys.readouterr().err


def test_defaults_depend_on_the_device():
    from benchmarks.__main__ import arguments, round_seconds

    cuda, quick, cpu = (arguments(words) for words in (["--device", "cuda"], ["--device", "cuda", "--quick"], []))
    assert (cuda.out.name, cpu.out.name) == ("cuda.json", "speed.json")
    assert (cuda.rounds, quick.rounds, cpu.rounds) == (9, 3, 15)
    assert "adam_100m" in cuda.rows
    assert "adam_100m" not in cpu.rows
    assert round_seconds(quick) < round_seconds(cuda) < round_seconds(cpu)


def test_without_a_gpu_one_line_says_why(monkeypatch, capsys):
    from benchmarks import __main__ as command

    monkeypatch.setattr(command.gpu, "asked", lambda: {"missing": "staticgrad finds no GPU"})
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cuda"])
    assert command.main() == 1
    captured = capsys.readouterr()
    assert captured.err == "error: --device cuda: staticgrad finds no GPU\n"
    assert captured.out == ""


def timed(median):
    return {"median_us": median, "min_us": median, "host_us": 5.0, "first_call_s": 1.5, "device_mib": 100.0}


def options_for(command, tmp_path, *words):
    out = tmp_path / "cuda.json"
    return command.arguments(["--device", "cuda", "--rows", "overhead,mlp_tiny,deep_chain", "--out", str(out), *words])


@pytest.fixture
def command(monkeypatch):
    """The benchmark with a GPU that is not there and rows that take a second of a clock of their own."""
    from benchmarks import __main__ as command

    clock = [0.0]

    def row_results(row, settings):
        clock[0] += 1.0
        return {"engines": {"staticgrad": timed(10.0), "jax": timed(20.0)}, "left_out": {}}

    chip = {"gpu": "NVIDIA H200", "driver": "580.1", "CUDA": "13.0", "packages": {}}
    monkeypatch.setattr(command.gpu, "asked", lambda: dict(chip))
    monkeypatch.setattr(command, "available", lambda settings: ({"staticgrad": "0.1.0", "jax": "0.11"}, {}))
    monkeypatch.setattr(command, "floors", lambda threads, device: FLOORS)
    monkeypatch.setattr(command, "row_results", row_results)
    monkeypatch.setattr(command.time, "perf_counter", lambda: clock[0])
    return command


def test_no_row_begins_that_would_end_too_late(command, tmp_path):
    results = command.run(options_for(command, tmp_path, "--seconds", "2.5"), tmp_path)
    assert [("skipped" in row) for row in results["rows"].values()] == [False, False, True]
    assert "not run: deep_chain: little was left of 2.5 s" in command.report.text(results)


def test_a_row_that_staticgrad_lacks_something_for_is_no_error(command, tmp_path, monkeypatch):
    def row_results(row, settings):
        raise command.LackingError("staticgrad has no such thing")

    monkeypatch.setattr(command, "row_results", row_results)
    results = command.run(options_for(command, tmp_path), tmp_path)
    assert not any("error" in row for row in results["rows"].values())
    assert "missing: mlp_tiny: staticgrad has no such thing" in command.report.text(results)


def test_what_was_measured_before_a_stop_is_kept(command, tmp_path, monkeypatch):
    measure = command.row_results

    def row_results(row, settings):
        if row.name == "mlp_tiny":
            raise KeyboardInterrupt
        return measure(row, settings)

    monkeypatch.setattr(command, "row_results", row_results)
    options = options_for(command, tmp_path)
    results = command.run(options, tmp_path)
    assert list(results["rows"]) == list(json.loads(options.out.read_text())["rows"]) == ["overhead"]
    assert "note: stopped from outside during mlp_tiny" in command.report.text(results)


def test_the_table_and_the_page_show_what_was_measured(command, tmp_path, monkeypatch):
    from benchmarks import readme

    monkeypatch.setattr(readme, "ON_GPU", tmp_path / "cuda.json")
    page = "a\n<!-- gpu -->\nold\n<!-- /gpu -->\nb\n"
    without = readme.speed_page(page)
    assert without == f"a\n<!-- gpu -->\n{readme.NOT_YET}<!-- /gpu -->\nb\n"
    command.run(options_for(command, tmp_path), tmp_path)
    filled = readme.speed_page(without)
    assert readme.NOT_YET not in filled
    assert "NVIDIA H200, driver 580.1, CUDA 13.0" in filled
    lines = [line.split() for line in filled.splitlines()]
    assert ["mlp_tiny", "10", "(10)", "20", "(20)", "0.5", "0.7"] in [line[:7] for line in lines]
    assert ["mlp_tiny", "5", "/", "1.5", "/", "100"] in [line[:6] for line in lines]
    assert readme.speed_page(filled) == filled


def test_committed_results_are_of_a_full_run():
    from benchmarks import readme

    if not readme.ON_GPU.exists():
        assert readme.NOT_YET in readme.SPEED_PAGE.read_text(encoding="utf-8")
        return
    results = json.loads(readme.ON_GPU.read_text())
    assert results["device"] == "cuda"
    assert not results["quick"]


# ---------------------------------------------------------------- the GPU


@dataclass(frozen=True)
class Properties:
    name: str = "NVIDIA H200"
    multiprocessors: int = 132


def test_the_machine_is_described(monkeypatch):
    from benchmarks import gpu

    stub = SimpleNamespace(is_available=lambda: True, get_device_properties=Properties)
    monkeypatch.setattr(sg, "cuda", stub, raising=False)
    monkeypatch.setattr(gpu, "driver", lambda: "580.1")
    described = gpu.describe()
    assert (described["gpu"], described["driver"]) == ("NVIDIA H200", "580.1")
    assert described["properties"] == {"multiprocessors": 132}
    assert described["packages"]["numpy"] == np.__version__
    json.dumps(described)


def test_why_there_is_no_gpu_is_said(monkeypatch):
    from benchmarks import gpu

    monkeypatch.setattr(sg, "cuda", SimpleNamespace(is_available=lambda: False), raising=False)
    assert "sg.cuda.is_available() is False" in gpu.describe()["missing"]
    monkeypatch.setattr(gpu, "_version", lambda name: None)
    assert "numba-cuda is not installed" in gpu.describe()["missing"]


# ---------------------------------------------------------------- the script


def test_the_script_is_written_as_bash_reads_it():
    assert os.access(SCRIPT, os.X_OK)
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def run_script(tmp_path, body, **variables):
    """The script with a Python that runs `body`, a shell script; its commands are in commands.txt."""
    stub = tmp_path / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$2 $3 $4 $5" >> "{tmp_path}/commands.txt"\n{body}\n')
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{variables.pop('PATH', os.environ['PATH'])}"
    environment = {**os.environ, "PATH": path, "OUT": str(tmp_path / "out"), **variables}
    environment.pop("PYTHON", None)
    done = subprocess.run(
        ["bash", SCRIPT, "--rows", "overhead"], check=False, capture_output=True, text=True, env=environment, cwd="/"
    )
    commands = (tmp_path / "commands.txt").read_text()
    logs = {log.name: log.read_text() for log in (tmp_path / "out").iterdir()}
    return done, commands, logs


def test_every_part_runs_and_leaves_its_log(tmp_path):
    done, commands, logs = run_script(tmp_path, 'echo "$0 said $2"')
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pytest tests/cuda -q" in commands
    assert "benchmarks --device cuda --seconds" in commands
    assert logs.keys() == {"gpu_packages.txt", "gpu_tests.txt", "gpu_benchmarks.txt"}
    assert logs["gpu_tests.txt"].endswith("said pytest\n")
    assert "== benchmarks: done" in done.stdout


def test_failing_tests_do_not_keep_the_benchmarks_from_running(tmp_path):
    done, commands, logs = run_script(tmp_path, 'test "$2" != pytest || exit 3')
    assert done.returncode == 1
    assert "benchmarks --device cuda" in commands
    assert "== tests: ended with 3" in logs["gpu_tests.txt"]


@pytest.mark.parametrize(("wheel", "given"), [(False, ""), (True, ""), (False, "/elsewhere")])
def test_the_compiler_comes_from_a_toolkit_where_there_is_no_wheel(wheel, given, tmp_path):
    toolkit = tmp_path / "toolkit" / "bin"
    toolkit.mkdir(parents=True)
    (toolkit / "nvcc").touch(0o755)
    path = f"{toolkit}{os.pathsep}{os.environ['PATH']}"
    body = f'case "$2" in *nvidia-nvvm*) exit {int(not wheel)};; esac; echo "toolkit: $CUDA_HOME"'
    _, _, logs = run_script(tmp_path, body, PATH=path, CUDA_HOME=given, CUDA_PATH="")
    expected = given or ("" if wheel else str(toolkit.parent))
    assert logs["gpu_tests.txt"] == f"toolkit: {expected}\n"


def test_a_part_that_hangs_is_stopped(tmp_path):
    done, commands, logs = run_script(tmp_path, 'test "$2" != pytest || exec sleep 60', TEST_SECONDS="1")
    assert done.returncode == 1
    assert "== tests: stopped after 1 s" in logs["gpu_tests.txt"]
    assert "benchmarks --device cuda" in commands


def test_the_script_stays_within_ten_minutes():
    text = SCRIPT.read_text(encoding="utf-8")
    limits = [int(text.split(f"{name}:-")[1].split("}")[0]) for name in ("TEST_SECONDS", "BENCHMARK_SECONDS")]
    parts = text.count('\npart "')
    assert parts == 3
    assert sum(limits) + 20 + 10 * parts < 600
