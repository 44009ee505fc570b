"""Several threads run one step: each its part, nobody too early, and a fork or a second caller does no harm."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.kernels.addresses import Arena
from staticgrad.kernels.cpu import native, phases, threads
from staticgrad.kernels.cpu.phases import Range, Task, on_threads
from staticgrad.kernels.cpu.steps import Barrier, Check, Copy, Fill, KernelCall, Owned

# every turn adds one to its own element
TURNS_IR = """
define void @turns(ptr %p, i64 %begin, i64 %end) {
entry:
  br label %test
test:
  %i = phi i64 [ %begin, %entry ], [ %next, %work ]
  %more = icmp slt i64 %i, %end
  br i1 %more, label %work, label %exit
work:
  %place = getelementptr i64, ptr %p, i64 %i
  %old = load i64, ptr %place
  %new = add i64 %old, 1
  store i64 %new, ptr %place
  %next = add i64 %i, 1
  br label %test
exit:
  ret void
}"""
# adds the number of threads to one element
JOIN_IR = """
define void @join(ptr %p, i64 %begin, i64 %end) {
  %old = load i64, ptr %p
  %new = add i64 %old, %end
  store i64 %new, ptr %p
  ret void
}"""
KERNELS = {"turns": TURNS_IR, "join": JOIN_IR}


def step_of(steps):
    return native.load(native.build(KERNELS, steps, parallel=True))


@pytest.fixture
def always_shared(monkeypatch):
    """Even the smallest program is for all threads."""
    monkeypatch.setattr(phases, "SHARE_FROM", 0.0)
    for name in ("SHARE_FROM", "PARALLEL_FROM"):
        monkeypatch.setattr(f"staticgrad.kernels.cpu.lower.{name}", 0.0)
    if threads.thread_count() < 2:
        pytest.skip("one core only")


@pytest.mark.parametrize(("extent", "grain"), [(1, 1), (2, 1), (7, 1), (100, 64), (1000, 16), (3, 64)])
def test_every_turn_is_made_once(extent, grain):
    done = np.zeros(extent + 1, np.int64)
    step_of([KernelCall("turns", (Arena(0),), extent, grain)])(done.ctypes.data, 0)
    assert done.tolist() == [1] * extent + [0]


def test_work_of_one_thread_is_done_once():
    done = np.zeros(4, np.int64)
    calls = [Owned(KernelCall("turns", (Arena(8 * i),), 1), i) for i in range(4)]
    step_of(calls)(done.ctypes.data, 0)
    assert done.tolist() == [1, 1, 1, 1]


def test_a_joining_call_knows_the_number_of_threads():
    done = np.zeros(1, np.int64)
    step_of([Owned(KernelCall("join", (Arena(0),), joins=True), 0)])(done.ctypes.data, 0)
    assert done[0] == threads.thread_count()


def test_nobody_passes_a_barrier_alone():
    """A chain through all elements, each link made by another thread than the one before."""
    length = 200
    done = np.zeros(length + 1, np.int64)
    done[0] = 1
    steps = []
    for i in range(length):
        steps += [Owned(Copy(Arena(8 * i), Arena(8 * i + 8), 8), i), Barrier()]
    step = step_of(steps)
    for _ in range(50):
        done[1:] = 0
        step(done.ctypes.data, 0)
        assert done.tolist() == [1] * (length + 1)


def test_a_failed_check_ends_the_run_of_all_threads():
    status = np.zeros(8 * threads.thread_count(), np.int64)
    last = status[8 * (threads.thread_count() - 1) :]
    done = np.zeros(1, np.int64)
    table = np.array([status.ctypes.data], np.uint64)
    from staticgrad.kernels.addresses import Argument

    step = step_of([Check(Argument(0)), Owned(Fill(Arena(0), 8, 1), 0)])
    step(done.ctypes.data, table.ctypes.data)
    assert done[0] != 0
    done[0], last[:3] = 0, (5, 6, 7)
    step(done.ctypes.data, table.ctypes.data)
    assert done[0] == 0
    assert status[:3].tolist() == [5, 6, 7]


def test_python_threads_take_turns():
    step = step_of([KernelCall("turns", (Arena(0),), 500)])
    arrays = [np.zeros(500, np.int64) for _ in range(4)]

    def work(array):
        for _ in range(200):
            step(array.ctypes.data, 0)

    workers = [threading.Thread(target=work, args=(array,)) for array in arrays]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all((array == 200).all() for array in arrays)


def test_a_step_after_a_rest_wakes_the_workers():
    step = step_of([KernelCall("turns", (Arena(0),), 500)])
    done = np.zeros(500, np.int64)
    for _ in range(3):
        step(done.ctypes.data, 0)
        time.sleep(0.01)
    assert (done == 3).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_runs_old_and_new_programs():
    code = """
import os, sys, numpy as np
sys.path.insert(0, sys.argv[1])
import test_threads as t
done = np.zeros(100, np.int64)
step = t.step_of([t.KernelCall("turns", (t.Arena(0),), 100)])
step(done.ctypes.data, 0)
child = os.fork()
if not child:
    step(done.ctypes.data, 0)
    t.step_of([t.KernelCall("turns", (t.Arena(0),), 100)])(done.ctypes.data, 0)
    os._exit(0 if (done == 3).all() else 1)
_, how = os.waitpid(child, 0)
step(done.ctypes.data, 0)
sys.exit(how or not (done == 2).all())
"""
    folder = os.path.dirname(__file__)
    assert subprocess.run([sys.executable, "-c", code, folder], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_a_wrong_number_of_threads_is_refused(text, monkeypatch):
    monkeypatch.setenv("STATICGRAD_NUM_THREADS", text)
    with pytest.raises(ValueError, match="STATICGRAD_NUM_THREADS must be a whole number"):
        threads.thread_count.__wrapped__()


def test_the_number_of_threads_can_be_given(monkeypatch):
    monkeypatch.setenv("STATICGRAD_NUM_THREADS", "3")
    assert threads.thread_count.__wrapped__() == 3


# ---------------------------------------------------------------- phases


def fill(start, *, reads=(), cost=0.0):
    return Task(Fill(Arena(start), 8), tuple(reads), (Range("arena", start, start + 8),), cost)


def test_independent_tasks_need_no_barrier_and_are_spread():
    steps = on_threads([fill(0, cost=10.0), fill(8, cost=10.0)], 2)
    assert [step.thread for step in steps] == [0, 1]


def test_short_tasks_that_follow_each_other_stay_with_one_thread():
    steps = on_threads([fill(0, cost=10.0), fill(8, reads=[Range("arena", 0, 8)], cost=10.0)], 2)
    assert [step.thread for step in steps] == [0, 0]


def test_a_task_that_reads_what_two_threads_write_waits():
    steps = on_threads([fill(0, cost=10.0), fill(8, cost=10.0), fill(16, reads=[Range("arena", 0, 16)])], 2)
    assert isinstance(steps[2], Barrier)


def test_slots_that_overlap_are_kept_apart():
    shared = Task(KernelCall("turns", (Arena(0),), 100), (), (Range("arena", 0, 800),), 1e6)
    steps = on_threads([shared, fill(792)], 2)
    assert [type(step) for step in steps] == [KernelCall, Barrier, Owned]


# ---------------------------------------------------------------- whole programs


def mixed(x, w):
    """Rows, sums over rows and columns, extremes, a gather and a product."""
    z = sg.tanh(x @ w)
    soft = sg.softmax(z, axis=-1)
    return soft, sg.sum(soft * z, axis=0), sg.mean(z), sg.max(z, axis=0), sg.any(z > 0.99), sg.argmax(z, axis=1)


def test_a_shared_program_gives_what_one_thread_gives(always_shared, monkeypatch):
    random = np.random.default_rng(0)
    x, w = (sg.asarray(random.standard_normal(shape).astype(np.float32)) for shape in ((300, 40), (40, 33)))
    together = sg.compile(lambda x, w: mixed(x, w), cache=False)
    results = together(x, w)
    monkeypatch.setattr("staticgrad.kernels.cpu.lower.PARALLEL_FROM", np.inf)
    alone = sg.compile(lambda x, w: mixed(x, w), cache=False)
    for ours, other in zip(results, alone(x, w), strict=True):
        np.testing.assert_allclose(ours.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(results, together(x, w), strict=True))


COUNTED = """
import sys, numpy as np
import staticgrad as sg
random = np.random.default_rng(0)
x, w = (sg.asarray(random.standard_normal(shape).astype(np.float32)) for shape in ((900, 80), (80, 96)))

@sg.compile
def step(x, w):
    z = sg.tanh(x @ w)
    return sg.softmax(z, axis=-1), sg.sum(z * z, axis=0), sg.mean(z), sg.argmax(z, axis=1)

wanted = step(x, w)
step.save(sys.argv[1])
for path in sys.argv[2:]:
    for ours, other in zip(wanted, sg.load(path)(x, w), strict=True):
        np.testing.assert_allclose(ours.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)
print("on disk" if step.cache_info().from_disk else "made")
"""


def test_a_program_is_made_for_its_number_of_threads_and_runs_with_any(tmp_path):
    def answer(count, *others):
        environment = {**os.environ, "STATICGRAD_NUM_THREADS": str(count), "STATICGRAD_CACHE_DIR": str(tmp_path / "c")}
        paths = [str(tmp_path / f"{name}.sg") for name in (count, *others)]
        done = subprocess.run(
            [sys.executable, "-c", COUNTED, *paths], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert [answer(1), answer(3, 1), answer(1, 3), answer(3, 1)] == ["made", "made", "on disk", "on disk"]


def test_an_index_out_of_range_is_found_by_any_thread(always_shared):
    table, rows = sg.asarray(np.eye(10, dtype=np.float32)), np.zeros(64, np.int64)
    look_up = sg.compile(lambda table, rows: sg.take(table, rows, axis=0) * 2.0, cache=False)
    for place in (0, 31, 63):
        rows[:] = 0
        rows[place] = 10
        with pytest.raises(IndexError, match="10"):
            look_up(table, rows)
        rows[place] = 9
        np.testing.assert_array_equal(look_up(table, rows).numpy(), 2 * np.eye(10)[rows])
