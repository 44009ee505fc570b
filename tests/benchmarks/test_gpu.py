"""The benchmark on a GPU, as far as no GPU is needed: its rows, floors, shares, and who takes part."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.graph.errors import DeviceError

FLOORS = {
    "gemm_gflops": 50_000.0, "gemm_tf32_gflops": 400_000.0,
    "copy_gb_per_second": {"16777216": 6000.0, "1073741824": 4000.0},
}  # fmt: skip


# ---------------------------------------------------------------- rows


def test_the_rows_carry_the_bars_that_were_asked_for():
    from benchmarks.gpu_rows import GPU_ROWS

    bars = {name: (row.bar, row.copy_bar) for name, row in GPU_ROWS.items()}
    for name in ("overhead", "mlp_tiny", "deep_chain"):
        assert bars[name] == (0.7, None)
    for name in ("elementwise", "softmax_ce", "adam_100m"):
        assert bars[name] == (1.0, 0.85)
    assert bars["mlp_wide"] == (1.0, None)
    wide = GPU_ROWS["mlp_wide"]
    assert GPU_ROWS["mlp_wide_tf32"].sizes == wide.sizes == {"batch": 8192, "widths": (1024, 1024, 1024, 10)}
    assert (wide.precision, GPU_ROWS["mlp_wide_tf32"].precision) == ("float32", "tf32")


def test_adam_alone_reads_and_writes_everything_once():
    from benchmarks.gpu_rows import GPU_ROWS

    flops, moved = GPU_ROWS["adam_100m"].costs()
    assert (flops, moved) == (16e8, 28e8)


def test_the_steps_of_adam_alone_are_adams():
    """Five steps against the formulas of Kingma and Ba in float64."""
    from benchmarks.engines.staticgrad_engine import build, fetch
    from benchmarks.gpu_rows import GPU_ROWS
    from benchmarks.rows import LEARNING_RATE, small

    row = small(GPU_ROWS["adam_100m"])
    arrays = row.arrays()
    step = build(row, arrays, "")
    for _ in range(5):
        results = step.run()
    for number, result in enumerate(results):
        weight, gradient = arrays[f"{number}.weight"].astype(float), arrays[f"gradient_{number}"].astype(float)
        first, second = np.zeros_like(weight), np.zeros_like(weight)
        for count in range(1, 6):
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            weight -= LEARNING_RATE * first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        np.testing.assert_allclose(fetch(result), weight, atol=1e-6)
        assert np.abs(weight).mean() > 2 * np.abs(arrays[f"{number}.weight"]).mean()


def test_a_row_of_another_precision_needs_a_library_that_offers_it(monkeypatch):
    from benchmarks.engines import NotOfferedError
    from benchmarks.engines.staticgrad_engine import build
    from benchmarks.gpu_rows import GPU_ROWS
    from benchmarks.rows import small

    def refuse(precision):
        raise DeviceError(f"matmul_precision: only cuBLAS computes in {precision!r}")

    monkeypatch.setattr(sg, "cuda", SimpleNamespace(set_matmul_precision=refuse))
    row = small(GPU_ROWS["mlp_wide_tf32"])
    with pytest.raises(NotOfferedError, match="only cuBLAS computes in 'tf32'"):
        build(row, row.arrays(), "", "cuda")


# ---------------------------------------------------------------- floors and shares


def test_floors_of_products_depend_on_the_precision():
    from benchmarks.floors import floor_microseconds

    assert floor_microseconds(1e12, 1000, FLOORS) == pytest.approx(20_000)
    assert floor_microseconds(1e12, 1000, FLOORS, "tf32") == pytest.approx(2500)
    assert floor_microseconds(1e6, 8e9, FLOORS) == pytest.approx(2000)


def test_speeds_count_bytes_read_and_written_and_two_flops_for_a_product():
    from benchmarks.gpu_floors import COPY_BYTES, fitting, gigabytes_per_second, gigaflops

    assert gigabytes_per_second(2**30, 4, 1e-3) == pytest.approx(4 * 1073.741824)
    assert gigaflops(1000, 3, 1e-3) == pytest.approx(6000)
    assert fitting(2**40) == COPY_BYTES
    assert fitting(2**29) == tuple(total for total in COPY_BYTES if total <= 2**28)


def test_the_fastest_of_repeats_counts_and_the_first_never(monkeypatch):
    from benchmarks import gpu_floors

    clock = [0.0]
    lasting = iter([0.001, 5.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0])
    monkeypatch.setattr(gpu_floors.time, "perf_counter", lambda: clock[0])

    def wait() -> None:
        clock[0] += next(lasting)

    assert gpu_floors.fastest(lambda: None, wait) == pytest.approx(3.0)


def found(**engines):
    return {"engines": engines, "left_out": {}, "restless": [], "others_cores": 0.0}


def timed(median):
    return {"median_us": median, "min_us": median, "host_us": 5.0, "first_call_s": 1.5, "device_mib": 100.0}


def test_a_share_of_the_speed_of_a_copy_must_reach_its_bar():
    from benchmarks.gpu_rows import GPU_ROWS
    from benchmarks.report import COPY_SHARE, judged

    copied = 8e8 / 4000 / 1e3  # what a copy of the row's bytes takes
    for times, met in ((1.1, True), (1.25, False)):
        row = judged(GPU_ROWS["elementwise"], found(staticgrad=timed(times * copied), jax=timed(500)), 16, FLOORS)
        assert row["copy_share"] == pytest.approx(1 / times)
        (bar,) = [bar for bar in row["bars"] if bar["figure"] == COPY_SHARE]
        assert (bar["bar"], bar["met"]) == (0.85, met)


def test_without_the_rate_of_its_precision_a_row_has_no_floor():
    from benchmarks.gpu_rows import GPU_ROWS
    from benchmarks.report import judged

    row = GPU_ROWS["mlp_wide_tf32"]
    slower = {name: speed for name, speed in FLOORS.items() if "tf32" not in name}
    engines = found(staticgrad=timed(1000.0))
    assert judged(row, engines, 16, FLOORS)["floor_us"] == pytest.approx(row.costs()[0] / 400_000 / 1e3)
    assert "floor_us" not in judged(row, engines, 16, slower)


# ---------------------------------------------------------------- who takes part


class Process:
    """Stands for a child: it fails where it is told to."""

    def __init__(self, fails: str = "", kind: str = "") -> None:
        self.fails, self.kind, self.closed = fails, kind, False

    def ask(self, do: str) -> None:
        from benchmarks.processes import EngineError

        if do == self.fails:
            raise EngineError(f"{self.kind}: it does not work", kind=self.kind)

    def close(self) -> None:
        self.closed = True


def candidates(**processes):
    from benchmarks.candidates import Candidate, Candidates

    return Candidates([Candidate(name, "", Path(name), process) for name, process in processes.items()])


@pytest.mark.parametrize("together", [False, True])
def test_who_fails_leaves_and_the_others_go_on(together):
    group = candidates(staticgrad=Process(), torch=Process("build", "RuntimeError"), jax=Process())
    failing = group.present[1]
    group.all_do(lambda candidate: candidate.child.ask("build"), list(group.present) if together else None)
    assert [candidate.name for candidate in group.present] == ["staticgrad", "jax"]
    assert group.left_out == {"torch": "RuntimeError: it does not work"}
    assert failing.child.closed


def test_what_staticgrad_lacks_ends_the_row():
    from benchmarks.candidates import LackingError

    group = candidates(staticgrad=Process("build", "NotOfferedError"), jax=Process())
    with pytest.raises(LackingError, match=r"^it does not work$"):
        group.all_do(lambda candidate: candidate.child.ask("build"))


def test_a_failed_form_is_no_reason_to_do_without_the_other():
    from benchmarks.engines import engines_on, variants

    assert variants("torch_compile", False, "cuda") == ("reduce-overhead", "one graph")
    assert variants("jax", True, "cuda") == ("",)
    assert "staticgrad_dynamic" in engines_on("cpu")
    assert "staticgrad_dynamic" not in engines_on("cuda")


def test_children_share_the_gpu_and_no_override_of_precision(monkeypatch, tmp_path):
    from benchmarks.processes import environment

    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    variables = environment(4, tmp_path, "cuda")
    assert variables["JAX_PLATFORMS"] == "cuda"
    assert variables["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert not {"NVIDIA_TF32_OVERRIDE", "XLA_FLAGS"} & set(variables)


def test_a_round_waits_once_and_times_the_start_of_a_few_steps():
    from benchmarks.engines import Step
    from benchmarks.worker import STARTED, Worker

    log = []
    worker = Worker()
    worker.device = "cuda"
    worker.step = Step(lambda: log.append("run"), lambda: log.append("restart"), wait=lambda: log.append("wait"))
    assert worker.do_round(steps=30, warm_up=2).keys() == {"seconds", "host_seconds"}
    runs = [2 * ["run"], 30 * ["run"], STARTED * ["run"]]
    assert log == ["restart", *runs[0], "wait", *runs[1], "wait", *runs[2], "wait"]
