"""The command line: what each command prints and writes, and what it says to mistakes."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.checkpoint import load_checkpoint
from staticgrad.cli import main
from staticgrad.kernels.cache import DiskCache

QUICK = ["--hidden", "16", "--epochs", "2", "--batch-size", "128"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


# ---------------------------------------------------------------- train


@pytest.mark.parametrize("mode", ["static", "dynamic", "both"])
def test_train_reports_each_mode_and_saves(capsys, tmp_path, mode):
    code, out, _ = run(capsys, "train", *QUICK, "--mode", mode, "--out", tmp_path)
    assert code == 0
    assert "1438 images to train on, 359 held out" in out
    for name in ("static", "dynamic"):
        assert (f"\n{name} " in out) == (mode in (name, "both"))
    assert ("arena" in out) == (mode != "dynamic")
    assert ("step.program" in out) == (mode != "dynamic") == (tmp_path / "step.program").exists()
    weights = sg.load_file(tmp_path / "weights.safetensors")
    assert weights["0.weight"].shape == (16, 64)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_both_modes_learn_the_same(capsys, tmp_path):
    losses = {}
    for mode in ("static", "dynamic"):
        run(capsys, "train", *QUICK, "--mode", mode, "--out", tmp_path / mode, "--no-plot")
        losses[mode] = np.asarray(sg.load_file(tmp_path / mode / "weights.safetensors")["2.weight"])
    np.testing.assert_allclose(losses["static"], losses["dynamic"], rtol=1e-4, atol=1e-6)


def test_resuming_gives_the_bits_of_an_unbroken_run(capsys, tmp_path, monkeypatch):
    options = ["train", *QUICK, "--mode", "static", "--no-plot"]
    assert run(capsys, *options, "--out", tmp_path / "whole")[0] == 0
    from staticgrad.cli import train

    def interrupted(steps, total, label):
        for done, step in enumerate(steps):
            if done == 7:
                signal.raise_signal(signal.SIGINT)
            yield step

    with monkeypatch.context() as patched:
        patched.setattr(train, "progress", interrupted)
        code, out, _ = run(capsys, *options, "--out", tmp_path / "broken")
    assert code == 130
    assert "stopped by Ctrl-C" in out
    assert load_checkpoint(tmp_path / "broken" / "checkpoint.safetensors").step == 7
    code, _, err = run(capsys, *options, "--seed", "3", "--resume", "--out", tmp_path / "broken")
    assert (code, err.count("\n")) == (2, 1)
    assert "--seed 0, not 3" in err
    assert run(capsys, *options, "--resume", "--out", tmp_path / "broken")[0] == 0
    assert len(load_checkpoint(tmp_path / "broken" / "checkpoint.safetensors").extra["losses"]) == 22
    whole = sg.load_file(tmp_path / "whole" / "weights.safetensors")
    resumed = sg.load_file(tmp_path / "broken" / "weights.safetensors")
    for name, tensor in whole.items():
        np.testing.assert_array_equal(np.asarray(tensor), np.asarray(resumed[name]))


def test_ctrl_c_in_a_real_run_keeps_what_was_trained(tmp_path):
    command = [sys.executable, "-m", "staticgrad", "train", "--epochs", "5000", "--mode", "static", "--no-plot"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    first = process.stderr.readline()  # written at a tenth of the steps
    assert first.startswith("static: step 11000 of 110000"), first + process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "go on with --resume" in out
    assert 11000 <= load_checkpoint(tmp_path / "checkpoint.safetensors").step < 110000
    assert np.isfinite(np.asarray(sg.load_file(tmp_path / "weights.safetensors")["0.weight"])).all()


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as stream:
        stream.write(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for stem, count in (("train", 60), ("t10k", 20)):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 5, 5)))
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", np.arange(count) % 3)
    return folder


def test_train_on_idx_files(capsys, tmp_path, idx_folder):
    options = ["--data", idx_folder, "--batch-size", "20", "--epochs", "1", "--out", tmp_path / "out", "--no-plot"]
    code, out, err = run(capsys, "train", *options)
    assert code == 0, err
    assert "60 images to train on, 20 held out" in out


def test_what_is_wrong_with_the_data_is_one_line(capsys, tmp_path, idx_folder):
    code, _, err = run(capsys, "train", "--data", tmp_path / "absent")
    assert (code, err.count("\n")) == (1, 1)
    assert "absent" in err
    code, _, err = run(capsys, "train", "--data", idx_folder / "train-images-idx3-ubyte.gz")
    assert (code, err.count("\n")) == (1, 1)
    assert "Not a directory" in err
    damaged = idx_folder / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:40])
    code, _, err = run(capsys, "train", "--data", idx_folder)
    assert (code, err.count("\n")) == (1, 1)
    assert "train-images-idx3-ubyte.gz" in err


def test_a_folder_that_may_not_be_read(capsys, tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refused)  # the superuser may read everything, so a mode of 000 shows nothing
    code, _, err = run(capsys, "train", "--data", tmp_path)
    assert (code, err) == (1, f"staticgrad train: {tmp_path}: Permission denied\n")


@pytest.mark.parametrize(
    ("count", "labels", "message"), [(0, np.arange(0), "has no test images"), (3, np.full(3, 255), "at least 0")]
)
def test_labels_that_cannot_be_learned(capsys, tmp_path, idx_folder, count, labels, message):
    write_idx(idx_folder / "t10k-images-idx3-ubyte.gz", np.zeros((count, 5, 5)))
    write_idx(idx_folder / "t10k-labels-idx1-ubyte.gz", labels)
    if labels.size:  # the same bytes as int8
        path = idx_folder / "t10k-labels-idx1-ubyte.gz"
        data = bytearray(gzip.decompress(path.read_bytes()))
        data[2] = 9
        path.write_bytes(gzip.compress(bytes(data)))
    code, _, err = run(capsys, "train", "--data", idx_folder, "--out", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert message in err


def test_a_full_disk_is_named_and_loses_nothing(capsys, tmp_path, monkeypatch):
    options = ["train", *QUICK, "--mode", "static", "--no-plot", "--out", tmp_path]
    assert run(capsys, *options)[0] == 0
    before = (tmp_path / "weights.safetensors").read_bytes()
    from staticgrad import saving

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "_write_through", full)
    code, _, err = run(capsys, *options)
    assert code == 1
    assert "No space left on device" in err
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.safetensors",
        "step.program",
        "weights.safetensors",
    ]


def test_ctrl_c_within_a_step_waits_for_its_end(capsys, tmp_path, monkeypatch):
    """A dynamic step that is half done would leave weights that belong to no step."""
    original = sg.optim.Adam.update

    def update(self, *arguments):
        original(self, *arguments)
        if not tmp_path.joinpath("sent").exists():
            tmp_path.joinpath("sent").touch()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sg.optim.Adam, "update", update)
    out = tmp_path / "out"
    code, text, _ = run(capsys, "train", *QUICK, "--mode", "both", "--no-plot", "--out", out)
    assert code == 130
    assert "\nstatic " not in text
    found = load_checkpoint(out / "checkpoint.safetensors")
    assert (found.step, len(found.extra["losses"])) == (1, 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(capsys, tmp_path):
    options = ["train", *QUICK, "--optimizer", "sgd", "--lr", "1e30", "--no-plot", "--out", tmp_path]
    with np.errstate(all="ignore"):
        for mode in ("static", "dynamic"):
            code, _, err = run(capsys, *options, "--mode", mode)
            assert code == 1
            *counted, said = err.splitlines()
            assert all(line.startswith(f"{mode}: step") for line in counted)
            assert "the loss is" in said
            assert "--lr" in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_named_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, _, err = run(capsys, "train", *QUICK, "--out", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert str(tmp_path) in err
    target = tmp_path / "file"
    target.write_text("")
    code, _, err = run(capsys, "train", *QUICK, "--out", target)
    assert (code, err.count("\n")) == (1, 1)


def test_resume_from_a_foreign_checkpoint(capsys, tmp_path):
    sg.save_checkpoint(tmp_path / "checkpoint.safetensors", step=3)
    code, _, err = run(capsys, "train", *QUICK, "--resume", "--out", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert "was not written by this command" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train", "--epochs", "0"], "--epochs: takes integers of at least 1; got '0'"),
        (["train", "--hidden", "8,x"], "--hidden"),
        (["train", "--lr", "-1"], "--lr: takes a number above 0; got '-1'"),
        (["train", "--lr", "inf"], "above 0"),
        (["train", "--seed", "-1"], "--seed: takes integers of at least 0; got '-1'"),
        (["compare", "--save", "report.xyz"], "report.xyz"),
        (["train", "--mode", "fast"], "--mode"),
        (["train", "--batch-size", "5000"], "--batch-size 5000 is more than the 1438 images"),
        (["fly"], "invalid choice"),
        ([], "required"),
    ],
)
def test_wrong_usage_exits_with_2(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *options)
    assert code == 2
    assert message in err


def test_resume_without_a_checkpoint(capsys, tmp_path):
    code, _, err = run(capsys, "train", *QUICK, "--resume", "--out", tmp_path)
    assert code == 1
    assert "there is no checkpoint" in err


def test_a_missing_extra_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = run(capsys, "train", *QUICK, "--mode", "static", "--out", tmp_path)
    assert code == 0
    assert 'pip install "staticgrad[cli]"' in out
    assert "static: step 22 of 22\n" in err


def test_a_terminal_gets_a_progress_bar(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = run(capsys, "train", *QUICK, "--mode", "static", "--no-plot", "--out", tmp_path)
    assert code == 0
    assert "| 0/22 [" in err


@pytest.mark.parametrize("options", [["train", "--hidden", str(10**15)], ["compare", "--width", str(10**15)]])
def test_a_model_that_does_not_fit_into_memory(capsys, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *options)
    assert (code, err.count("\n")) == (1, 1)
    assert "not enough memory" in err


# ---------------------------------------------------------------- the other commands


def test_compare_prints_and_saves(capsys, tmp_path, monkeypatch):
    options = ["--width", "8", "--depth", "1", "--batch", "4", "--inputs", "6", "--repeat", "3"]
    code, out, _ = run(capsys, "compare", *options, "--save", tmp_path / "report.md")
    assert code == 0
    assert "time per call" in out
    assert "arena" in (tmp_path / "report.md").read_text()
    code, out, err = run(capsys, "compare", *options, "--save", tmp_path / "absent" / "report.png")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"no folder {tmp_path / 'absent'}" in err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run(capsys, "compare", *options, "--save", tmp_path / "report.png")
    assert (code, err.count("\n")) == (1, 1)
    assert "pip install" in err


def test_inspect_shows_a_saved_program(capsys, tmp_path):
    scale = sg.asarray([2.0, 3.0])
    double = sg.compile(lambda x: x * scale)
    double(np.ones(2, np.float32))
    double.save(tmp_path / "double.sg")
    code, out, _ = run(capsys, "inspect", tmp_path / "double.sg")
    assert code == 0
    assert "state scale: float32[2]" in out
    assert "mul" in out
    assert "for i0 in range" in out
    code, out, _ = run(capsys, "inspect", tmp_path / "double.sg", "--show", "memory")
    assert code == 0
    assert "for i0 in range" not in out


def test_inspect_the_trained_step_into_a_closed_pipe(capsys, tmp_path):
    run(capsys, "train", *QUICK, "--mode", "static", "--no-plot", "--out", tmp_path)
    command = [sys.executable, "-m", "staticgrad", "inspect", str(tmp_path / "step.program")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "saved program" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


def test_inspect_refuses_what_is_no_program(capsys, tmp_path):
    path = tmp_path / "weights.safetensors"
    sg.save_file({"w": np.ones(3, np.float32)}, path)
    for file, words in ((path, "not a program"), (tmp_path / "absent", "No such file")):
        code, _, err = run(capsys, "inspect", file)
        assert (code, err.count("\n")) == (1, 1)
        assert words in err


def test_doctor_in_words_and_as_json(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "numba" in out
    code, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["numpy"] == np.__version__
    assert found["missing"] == []
    assert "simulator" in found["CUDA"]  # what the tests run on
    assert found["cache"]["works"]
    assert found["cache"]["directory"] == os.environ["STATICGRAD_CACHE_DIR"]
    assert "probe" not in found["cache"]["entries"]


def test_doctor_tells_the_number_of_threads(capsys, monkeypatch):
    from staticgrad.kernels.cpu.threads import thread_count

    for given, expected in (("3", "3 (STATICGRAD_NUM_THREADS)"), ("many", "a whole number from 1 on; got 'many'")):
        monkeypatch.setenv("STATICGRAD_NUM_THREADS", given)
        thread_count.cache_clear()
        code, out, _ = run(capsys, "doctor")
        assert code == 0
        assert expected in out
    thread_count.cache_clear()


def test_doctor_finds_a_cache_folder_that_cannot_serve(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("staticgrad.kernels.cache.default_cache", lambda: DiskCache(tmp_path))
    tmp_path.chmod(0o777)
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "may be written by others" in out
    code, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)["cache"]
    assert not found["works"]
    assert "may be written by others" in found["problem"]


def test_cache_info_and_clear(capsys):
    sg.compile(lambda x: x + 41)(np.ones(3, np.float32))
    code, out, _ = run(capsys, "cache")
    assert code == 0
    assert os.environ["STATICGRAD_CACHE_DIR"] in out


def test_cache_clear_empties_the_folder(capsys, tmp_path, monkeypatch):
    cache = DiskCache(tmp_path / "cache")
    assert cache.put("kernel", "0a", b"code")
    monkeypatch.setattr("staticgrad.cli.cache.default_cache", lambda: cache)
    code, out, _ = run(capsys, "cache", "clear")
    assert (code, out.splitlines()) == (0, ["removed 1 entries", f"cache: {tmp_path / 'cache'}: empty, 0 bytes"])


def test_help_is_quick_to_import():
    script = "import sys, staticgrad.cli; sys.exit(any(n in sys.modules for n in ('numba', 'matplotlib', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
