"""Programs in files: they run as the function did, on state of their own; damaged and foreign files are refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim, saved
from staticgrad.graph.errors import CaptureError, DTypeError, FileFormatError, ShapeError
from staticgrad.kernels.cpu import program as cpu_program
from staticgrad.saving import read_arrays, write_arrays

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Record:
    value: Any


def batch() -> dict[str, Any]:
    return {"x": np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4), "y": np.arange(5) % 3}


def training() -> tuple[Any, Any, Any]:
    sg.random.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.25), nn.Linear(5, 3))
    opt = optim.Adam(model.parameters(), lr=0.1)

    def step(batch: Any) -> Any:
        loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        opt.zero_grad()
        loss.backward()
        opt.step()
        return {"loss": loss}

    return sg.compile(step), model, opt


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small program in a file; not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "program.sg"
    weight = sg.tensor([1.0, 2.0])
    compiled = sg.compile(lambda x: x * weight + 1)
    compiled(np.ones(2, np.float32))
    compiled.save(path)
    return path


# ---------------------------------------------------------------- running


def test_a_saved_step_goes_on_training(tmp_path: Path) -> None:
    step, model, opt = training()
    step(batch())
    step.save(tmp_path / "step.sg")
    program = sg.load(tmp_path / "step.sg")
    assert program.scalars == {"lr": 0.1}
    opt.param_groups[0]["lr"] = program.scalars["lr"] = 0.05
    expected = [step(batch())["loss"].item() for _ in range(3)]
    found = [program(batch())["loss"].item() for _ in range(3)]
    assert found == expected
    states = {name: np.asarray(tensor) for name, tensor in program.state.items()}
    for name, tensor in model.state_dict().items():
        assert any(np.array_equal(np.asarray(tensor), state) for state in states.values()), name
    assert program.plan.peak_bytes == step.plan.peak_bytes
    assert "offset" in program.memory()
    assert program.source() == step.source()
    assert repr(program).startswith("<saved program ")


def test_state_is_its_own_and_can_be_written(file: Path) -> None:
    first, second = sg.load(file), sg.load(str(file))
    assert list(first.state) == ["weight"]
    first.state["weight"].copy_(sg.tensor([0.0, 5.0]))
    x = np.ones(2, np.float32)
    assert np.asarray(first(x)).tolist() == [1, 6]
    assert np.asarray(second(x)).tolist() == [2, 3]
    kept = first(x)
    first(x * 3)
    assert np.asarray(kept).tolist() == [1, 6]


def test_structures_go_round(tmp_path: Path) -> None:
    def function(point: Any, records: Any, *, scale: Any) -> Any:
        return Point(point.x * scale, [records[0].value, None]), Record({"a": point.y}), ("text", 2, True, 1.5)

    compiled = sg.compile(function)
    x = np.arange(3.0)
    given: Any = (Point(x, x + 1), [Record(x * 2)])
    compiled(*given, scale=2.0)
    compiled.save(tmp_path / "p")
    found = sg.load(tmp_path / "p")(*given, scale=3.0)
    assert found[0]._fields == ("x", "y")
    assert np.asarray(found[0].x).tolist() == [0, 3, 6]
    assert np.asarray(found[0].y[0]).tolist() == [0, 2, 4]
    assert found[0].y[1] is None
    assert np.asarray(found[1].value["a"]).tolist() == [1, 2, 3]
    assert found[2] == ("text", 2, True, 1.5)


def test_written_arguments(tmp_path: Path) -> None:
    def function(x: Any) -> Any:
        x.copy_(x * 2)
        return x + 1

    compiled = sg.compile(function)
    compiled(np.ones(2))
    compiled.save(tmp_path / "p")
    x = np.ones(2)
    assert np.asarray(sg.load(tmp_path / "p")(x)).tolist() == [3, 3]
    assert x.tolist() == [2, 2]


def test_no_numba_at_run_time(file: Path) -> None:
    code = (
        "import sys, numpy as np, staticgrad as sg\n"
        "program = sg.load(sys.argv[1])\n"
        "print(np.asarray(program(np.ones(2, np.float32))).tolist(), 'numba' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "[2.0, 3.0] False"


def test_arguments_that_do_not_fit(file: Path) -> None:
    program = sg.load(file)
    with pytest.raises(ShapeError, match=r"x must be float32\[2\], as compiled; got float32\[3\]; compile and save"):
        program(np.ones(3, np.float32))
    with pytest.raises(ShapeError, match=r"x must be float32\[2\], as compiled; got float64\[2\]"):
        program(np.ones(2))
    with pytest.raises(DTypeError, match="x must be an array; got str"):
        program("text")
    for arguments in ((), (np.ones(2), 1), ([np.ones(2)],)):
        with pytest.raises(ShapeError, match="arguments must have the structure"):
            program(*arguments)


# ---------------------------------------------------------------- what cannot be saved


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    x = np.ones(2)
    static = sg.compile(lambda x, n: x * n, static_argnames="n")
    static(x, 2)
    with pytest.raises(CaptureError, match="save: a program file takes no static arguments"):
        static.save(tmp_path / "p")
    kept = object()
    returns = sg.compile(lambda x: (x * 2, kept))
    returns(x)
    with pytest.raises(CaptureError, match="save: the function returns a object that is not computed"):
        returns.save(tmp_path / "p")
    keyed = sg.compile(lambda x: {(1, 2): x})
    keyed(x)
    with pytest.raises(CaptureError, match="save: keys of dicts must be text or integers"):
        keyed.save(tmp_path / "p")
    with pytest.raises(CaptureError, match="has not been compiled yet"):
        sg.compile(lambda x: x).save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    compiled = sg.compile(lambda x: x * 2)
    compiled(np.ones(2))
    compiled.save(tmp_path / "p")
    before = (tmp_path / "p").read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(error)) as caught:
            compiled.save(tmp_path / "p")
    if isinstance(error, OSError):
        assert "save: could not write the file, and left what was there" in str(caught.value)
    assert (tmp_path / "p").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    sg.load(tmp_path / "p")


def test_a_directory_in_the_place_of_the_file(tmp_path: Path) -> None:
    compiled = sg.compile(lambda x: x * 2)
    compiled(np.ones(2))
    with pytest.raises((OSError, ValueError), match="save: "):
        compiled.save(tmp_path)
    with pytest.raises(OSError, match="Is a directory"):
        sg.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        sg.load(tmp_path / "missing")


# ---------------------------------------------------------------- damaged and foreign files


def test_damage_anywhere_is_noticed(file: Path, tmp_path: Path) -> None:
    """One byte changed, at many places, also in the weights: an error that names the file."""
    good = file.read_bytes()
    path = tmp_path / "bad"
    places = sorted({*range(64), *np.linspace(0, len(good) - 1, 150).astype(int).tolist()})
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x41]) + good[place + 1 :])
        with pytest.raises(FileFormatError, match=r"load: .*bad"):
            sg.load(path)


def test_truncation_is_noticed(file: Path, tmp_path: Path) -> None:
    good = file.read_bytes()
    path = tmp_path / "short"
    for length in (0, 1, 7, 8, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(FileFormatError, match=r"load: .*short"):
            sg.load(path)
    path.write_bytes(good + b"more")
    with pytest.raises(FileFormatError, match="load: "):
        sg.load(path)


def changed(file: Path, path: Path, **metadata: str) -> Path:
    arrays, found = read_arrays(file, caller="test")
    write_arrays(arrays, path, {**found, **metadata}, caller="test")
    return path


def test_files_of_another_kind(file: Path, tmp_path: Path) -> None:
    sg.save_file({"weight": np.ones(2)}, tmp_path / "weights")
    with pytest.raises(FileFormatError, match=r"is not a program saved by this version.*got 'no format'; files of ten"):
        sg.load(tmp_path / "weights")
    with pytest.raises(FileFormatError, match="got 'staticgrad program 2'"):
        sg.load(changed(file, tmp_path / "later", format="staticgrad program 2"))
    (tmp_path / "text").write_text("import os")
    with pytest.raises(FileFormatError, match="load: "):
        sg.load(tmp_path / "text")
    with pytest.raises(FileFormatError, match="is damaged: its checksum does not match"):
        sg.load(changed(file, tmp_path / "planted", sha256="0" * 64))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("bindings"),
        lambda d: d["bindings"].pop(),
        lambda d: d["bindings"][0].update(index=7),
        lambda d: d["leaves"][0].update(output=9),
        lambda d: d.update(result=["dict", ["a", "b"], ["*"]]),
        lambda d: d.update(arguments=None),
        lambda d: d.update(gradients=[[1, 4]]),
        lambda d: d.update(written=[[0, 5]]),
        lambda d: d.update(name=None, leaves=3),
    ],
)
def test_a_description_that_does_not_fit(file: Path, tmp_path: Path, change: Any) -> None:
    """The checksum is no signature: a description made by other hands is checked before it is used."""
    arrays, metadata = read_arrays(file, caller="test")
    description = json.loads(metadata["description"])
    change(description)
    text = json.dumps(description)
    code = arrays.pop("program").tobytes()
    digest = saved._digest(text, code, arrays)
    path = changed(file, tmp_path / "p", description=text, sha256=digest)
    with pytest.raises(FileFormatError, match=r"load: .*p has a description that does not fit its program"):
        sg.load(path)


def test_another_processor_compiles_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: bytes) -> Any:
        raise ValueError("made for another CPU: znver9")

    monkeypatch.setattr(cpu_program.Program, "from_bytes", staticmethod(refuse))
    with caplog.at_level(logging.WARNING, "staticgrad"):
        program = sg.load(file)
    assert "the saved program is compiled again: made for another CPU: znver9" in caplog.text
    assert np.asarray(program(np.ones(2, np.float32))).tolist() == [2, 3]
