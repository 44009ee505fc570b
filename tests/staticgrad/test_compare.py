"""`sg.compare`: what it reports, what it writes, and that it leaves everything as it was."""

import json
import sys

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.comparison import Memory, difference
from staticgrad.observe import Clock, LiveMemory, observed
from staticgrad.snapshot import Snapshot

FEATURES, CLASSES = 6, 3


class Training:
    """A model with dropout, its optimizer and a batch, some steps into training."""

    def __init__(self, steps=2, clear="before"):
        sg.random.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, CLASSES))
        self.optimizer = optim.Adam(self.model.parameters(), lr=1e-2)
        random = np.random.default_rng(0)
        self.batch = random.normal(size=(10, FEATURES)).astype(np.float32), random.integers(0, CLASSES, 10)
        self.clear = clear
        for _ in range(steps):
            self.step(*self.batch)

    def step(self, x, y):
        loss = nn.functional.cross_entropy(self.model(x), y)
        if self.clear == "before":
            self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def everything(self):
        """All state: bytes, identities and versions."""
        tensors = [*self.model.parameters(), sg.random.default_generator.state]
        tensors += [tensor for entries in self.optimizer.state.values() for tensor in entries.values()]
        tensors += [p.grad for p in self.model.parameters() if p.grad is not None]
        held = [(id(t), id(t._value), t._value.tobytes(), t._version[0], t.requires_grad) for t in tensors]
        return held, repr(self.optimizer.param_groups), [array.tobytes() for array in self.batch]


@pytest.mark.parametrize("clear", ["before", "never"])
@pytest.mark.parametrize("steps", [0, 2])
def test_everything_is_left_as_it_was(steps, clear):
    training = Training(steps, clear)
    before = training.everything()
    report = sg.compare(training.step, *training.batch, repeat=3)
    assert training.everything() == before
    kinds = {found.kind for found in report.differences}
    assert kinds == {"result", "state", "gradient"}
    assert all(found.spec.startswith(("float", "uint64")) for found in report.differences), report


def test_training_goes_on_as_if_nothing_had_been():
    def losses(compared):
        training = Training()
        if compared:
            sg.compare(training.step, *training.batch, repeat=2)
        return [training.step(*training.batch).item() for _ in range(3)]

    assert losses(True) == losses(False)


def test_the_two_modes_agree():
    training = Training()
    model, optimizer = training.model, training.optimizer

    def step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    report = sg.compare(step, *training.batch, repeat=2)
    assert report.largest < 1e-4
    by_name = {(found.kind, found.name): found for found in report.differences}
    names = [name for kind, name in by_name if kind == "state"]
    assert any("exp_avg_sq" in name for name in names)
    assert any(name.endswith("0.weight") for name in names)
    gradients = [found for (kind, _), found in by_name.items() if kind == "gradient"]
    assert len(gradients) == 4
    assert all(name.endswith(".grad") for kind, name in by_name if kind == "gradient")
    random = [found for found in report.differences if found.spec.startswith("uint64")]
    assert len(random) == 1  # the generator moved on alike
    assert random[0].equal


def test_numbers_of_the_report():
    training = Training()
    report = sg.compare(training.step, *training.batch, repeat=7)
    assert len(report.dynamic_times) == len(report.static_times) == 7
    assert report.ops > report.kernels >= report.distinct_kernels > 0
    assert report.memory.lower_bound <= report.memory.arena <= report.memory.naive
    assert report.memory.outputs == 4 + 4 * sum(p.size for p in training.model.parameters())
    assert report.memory.dynamic_peak > 0
    assert report.compile_seconds > 0
    assert report.dynamic_seconds > 0
    assert report.speedup == report.dynamic_seconds / report.static_seconds


def test_a_plain_function_without_state():
    report = sg.compare(lambda x, scale: {"y": sg.exp(x) * scale, "n": 3}, sg.ones((4, 5)), scale=2.0, repeat=2)
    assert [(found.kind, found.name) for found in report.differences] == [("result", "result['y']")]
    assert report.ops == 2
    assert report.kernels == 1
    assert report.memory == Memory(dynamic_peak=2 * 80 + 4, arena=0, outputs=80, lower_bound=0, naive=0)


def test_a_compiled_function_is_compared_with_the_function_below():
    compiled = sg.compile(lambda x, n: x * n, static_argnames="n")
    compiled(sg.ones(3), n=2)
    report = sg.compare(compiled, sg.ones(3), n=2, repeat=1)
    assert report.equal
    assert compiled.cache_info().misses == 1
    assert compiled.last.calls == 1


def test_gradients_and_writes_of_arguments():
    x = sg.tensor([1.0, 2.0], requires_grad=True)
    total = np.zeros(2, np.float32)
    buffer = sg.zeros(2)

    def f(x, total, buffer):
        with sg.no_grad():
            buffer.copy_(x * 3)
        sg.sum(x * x).backward()

    report = sg.compare(f, x, total, buffer, repeat=2)
    assert {(found.kind, found.name) for found in report.differences} == {
        ("gradient", "x.grad"),
        ("argument", "buffer"),
    }
    assert report.equal
    assert x.grad is None
    assert buffer.tolist() == [0, 0]
    assert buffer._version == [0]


def test_random_draws_are_the_same_and_put_back():
    sg.random.manual_seed(5)
    before = sg.random.get_state().tobytes()
    report = sg.compare(lambda: sg.random.uniform((5,)), repeat=2)
    assert report.equal
    assert sg.random.get_state().tobytes() == before


def test_what_cannot_be_captured_says_so_and_changes_nothing():
    training = Training()
    seen = []

    def branches(x, y):
        seen.append(1)
        loss = training.step(x, y)
        return loss if loss > 0 else -loss

    before = training.everything()
    with pytest.raises(sg.graph.errors.TracedValueError, match=r"branch.*Captured at .*test_compare\.py"):
        sg.compare(branches, *training.batch)
    assert training.everything() == before
    assert seen == []


def test_bad_calls():
    with pytest.raises(TypeError, match="compare: takes a function and its arguments; got int"):
        sg.compare(3)
    with pytest.raises(ValueError, match="compare: repeat must be at least 1; got 0"):
        sg.compare(sg.exp, sg.ones(2), repeat=0)
    with pytest.raises(sg.graph.errors.CaptureError, match="compare: runs and times its function"):
        sg.compile(lambda x: sg.compare(sg.exp, x))(sg.ones(2))
    with pytest.raises(sg.graph.errors.ShapeError, match="matmul"):
        sg.compare(lambda x: x @ x, sg.ones((2, 3)))


# ---------------------------------------------------------------- text and files


@pytest.fixture(scope="module")
def report():
    return sg.compare(lambda x: (sg.sum(sg.tanh(x)), x.mT @ x), sg.ones((30, 40)), repeat=3)


def test_the_table(report):
    text = str(report)
    assert text == repr(report)
    for word in ("time per call", "overhead per op", "ops / kernels", "peak memory", "arena", "compile", "dynamic"):
        assert word in text
    assert "result[1]  float32[40, 40]" in text


def test_the_numbers_are_json(report):
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["ops"] == report.ops
    assert numbers["memory"]["arena"] == report.memory.arena
    assert numbers["differences"][0]["kind"] == "result"
    assert numbers["speedup"] == report.speedup


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("html", b"<!doc"), ("md", b"# ")]
)
def test_files(report, tmp_path, suffix, start):
    path = tmp_path / f"report.{suffix}"
    path.write_text("old")
    report.save(path)
    assert path.read_bytes().startswith(start)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_an_unknown_suffix(report, tmp_path):
    with pytest.raises(ValueError, match=r"suffix must be one of \.png, .*; got 'report\.xls'"):
        report.save(tmp_path / "report.xls")
    assert not list(tmp_path.iterdir())


def test_a_picture_without_matplotlib(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'staticgrad\[viz\]'"):
        report.save(tmp_path / "report.png")
    assert not list(tmp_path.iterdir())


def test_a_page_escapes_what_it_shows(tmp_path):
    report = sg.compare(lambda x: {"<b>": x + 1}, sg.ones(2), repeat=1)
    report.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ulp_counts_the_floats_between(dtype):
    first = np.array([1, -1, 0, 1e-30, np.nan, np.inf], dtype)
    second = first.copy()
    for _ in range(3):
        second[:4] = np.nextafter(second[:4], np.array(2, dtype))
    assert difference("result", "x", first, second).ulp == 3
    around = np.nextafter(np.array([0], dtype), np.array([1], dtype))
    assert difference("result", "x", -around, around).ulp == 2


def test_differences_of_what_is_not_alike():
    x = np.array([1.0, np.nan], np.float32)
    assert difference("result", "x", x, x.copy()).equal
    assert not difference("result", "x", np.zeros(2), -np.zeros(2)).equal
    assert difference("result", "x", np.array([2.0, 1.0]), np.array([2.0, np.nan])).absolute == np.inf
    assert difference("result", "x", None, x).spec == "missing in the dynamic run"
    assert difference("result", "x", x, x.astype(np.float64)).spec == "float32[2] dynamic, float64[2] static"
    counted = difference("result", "x", np.array([4, 8]), np.array([4, 6]))
    assert (counted.absolute, counted.relative) == (2, 0.25)


def test_live_memory_is_exact():
    x = sg.ones((10, 10))
    live = LiveMemory([x._value])
    with observed(live):
        y = x + x  # 400 bytes
        z = y.mT * y  # another 400
        assert live.live_bytes == 800
        del y
        assert live.live_bytes == 400
        z = z[2:4] + 1.0  # 80 bytes and a 0-d one, the latter gone at once
        assert live.live_bytes == 80
    assert live.peak_bytes == 800
    del z
    assert live.live_bytes == 0


def test_the_clock_counts_ops():
    clock = Clock()
    with observed(clock):
        sg.sum(sg.exp(sg.ones(1000)))
    assert clock.ops == 2
    assert clock.seconds > 0
    sg.exp(sg.ones(2))
    assert clock.ops == 2


def test_a_snapshot_puts_back_variables_attributes_and_containers():
    class Holder:
        pass

    holder, listing, counter = Holder(), [sg.ones(2)], 0
    holder.table = {"a": 1}

    def change():
        nonlocal counter
        counter += 1
        holder.table["b"] = 2
        holder.other = listing
        with sg.no_grad():
            listing[0].copy_(5)
        listing.append(counter)

    tensor = listing[0]
    snapshot = Snapshot(change, [])
    change()
    snapshot.restore()
    assert counter == 0
    assert vars(holder) == {"table": {"a": 1}}
    assert len(listing) == 1
    assert listing[0] is tensor
    assert tensor.tolist() == [1, 1]
