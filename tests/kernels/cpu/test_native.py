"""The way from a Python kernel to a native step: compile, link, load, call."""

import ctypes
import gc
import os
import pickle
import subprocess
import sys
import threading
from importlib import metadata

import numpy as np
import pytest

from staticgrad.kernels.addresses import Arena, Argument
from staticgrad.kernels.cpu import blas, host, llvm, machine_code, native
from staticgrad.kernels.cpu.machine_code import UnsupportedObjectError
from staticgrad.kernels.cpu.steps import Fill, Gemm, KernelCall
from staticgrad.kernels.products import StoredProduct

FLOAT = np.dtype(np.float32)


def optimised_text(text, symbol):
    with llvm.llvm_lock() as binding:
        return llvm.optimised(binding, binding.parse_assembly(text), symbol)


ADD_IR = optimised_text(
    """
define void @add(ptr noalias %a, ptr noalias %b, ptr noalias %out) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %pa = getelementptr float, ptr %a, i64 %i
  %pb = getelementptr float, ptr %b, i64 %i
  %po = getelementptr float, ptr %out, i64 %i
  %x = load float, ptr %pa
  %y = load float, ptr %pb
  %z = fadd float %x, %y
  store float %z, ptr %po
  %next = add i64 %i, 1
  %done = icmp eq i64 %next, 16
  br i1 %done, label %exit, label %loop
exit:
  ret void
}
""",
    "add",
)
ADD_STEP = KernelCall("add", (Arena(0), Argument(0), Argument(1, 64)))


def call(step, arena, *arrays):
    """Run a loaded step on an arena and a table of arrays."""
    table = (ctypes.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))
    step(arena.ctypes.data, ctypes.addressof(table))


def python(code, **environment):
    """Run a line of Python in a fresh process; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_step_reads_the_arena_and_the_table():
    arena, other, out = np.arange(16, dtype=FLOAT), np.full(16, 2, FLOAT), np.zeros(32, FLOAT)
    call(native.load(native.build({"add": ADD_IR}, [ADD_STEP])), arena, other, out)
    np.testing.assert_array_equal(out[16:], np.arange(16) + 2)
    np.testing.assert_array_equal(out[:16], 0)


def test_a_kernel_the_steps_do_not_call_is_left_out():
    with_it = native.build({"add": ADD_IR}, [Fill(Arena(0), 4)])
    assert len(with_it) == len(native.build({}, [Fill(Arena(0), 4)]))


def test_a_program_without_steps_does_nothing():
    call(native.load(native.build({}, [])), np.zeros(1, FLOAT))


def test_a_missing_kernel_is_named():
    with pytest.raises(ValueError, match="build: every kernel a step calls must be given; add is not"):
        native.build({}, [ADD_STEP])


def test_a_wrong_number_of_pointers_is_refused():
    with pytest.raises(ValueError, match="add takes 3 arguments; a step passes 1"):
        native.build({"add": ADD_IR}, [KernelCall("add", (Arena(0),))])


@pytest.mark.parametrize("name", ["numba_gil_ensure", "PyErr_Occurred", "no_such_function_anywhere"])
def test_a_symbol_no_fresh_process_has_is_refused(name):
    text = f"declare void @{name}()\ndefine void @k() {{\n  call void @{name}()\n  ret void\n}}"
    with pytest.raises(RuntimeError, match=name):
        native.build({"k": text}, [KernelCall("k", ())])


def test_the_c_library_may_be_called():
    text = """
declare double @lgamma(double)
define void @k(ptr %p) {
  %x = load double, ptr %p
  %y = call double @lgamma(double %x)
  store double %y, ptr %p
  ret void
}"""
    value = np.array([5.0])
    call(native.load(native.build({"k": text}, [KernelCall("k", (Arena(0),))])), value)
    assert value[0] == pytest.approx(np.log(24.0), rel=1e-15)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b"\x7fELF" + b[4:],
        lambda b: b[:-1],
        lambda b: b + b"x",
        lambda b: b[:14] + b"!" + b[15:],
    ],
    ids=["empty", "magic", "truncated", "longer", "header"],
)
def test_bytes_that_are_no_program_are_refused(damage):
    with pytest.raises(ValueError, match=r"load: .*compile again"):
        native.load(damage(native.build({}, [])))


def test_a_program_for_another_host_is_refused(monkeypatch):
    program = native.build({}, [])
    monkeypatch.setattr(native, "host_key", lambda: "another machine")
    with pytest.raises(ValueError, match=r"compiled for .*; this is another machine; compile it again"):
        native.load(program)


def test_building_is_deterministic():
    assert native.build({"add": ADD_IR}, [ADD_STEP]) == native.build({"add": ADD_IR}, [ADD_STEP])


def test_many_programs_live_side_by_side():
    program = native.build({}, [Fill(Arena(0), 1, 7)])
    steps = [native.load(program) for _ in range(50)]
    arena = np.zeros(1, np.uint8)
    del steps[:49]
    gc.collect()
    call(steps[0], arena)
    assert arena[0] == 7


def test_code_is_freed_with_its_step(monkeypatch):
    freed = []
    release = machine_code._release
    monkeypatch.setattr(machine_code, "_release", lambda start, size: (freed.append(size), release(start, size)))
    step = native.load(native.build({"add": ADD_IR}, [ADD_STEP]))
    assert freed == []
    del step
    assert len(freed) == 1


@pytest.fixture
def through_llvm(monkeypatch):
    """Programs are loaded as on a platform whose object files we do not link ourselves."""

    def refuse(objects, resolve):
        raise UnsupportedObjectError("for a test")

    monkeypatch.setattr(machine_code, "_link", refuse)


def test_llvm_loads_what_we_do_not_link(through_llvm):
    arena, other, out = np.arange(16, dtype=FLOAT), np.full(16, 2, FLOAT), np.zeros(32, FLOAT)
    step = native.load(native.build({"add": ADD_IR}, [ADD_STEP]))
    call(step, arena, other, out)
    np.testing.assert_array_equal(out[16:], arena + 2)
    a, b, c = np.eye(2, dtype=FLOAT), np.full((2, 2), 3, FLOAT), np.zeros((2, 2), FLOAT)
    gemm = Gemm(StoredProduct("float32", 2, 2, 2, False, False, 2, 2, 2), Argument(0), Argument(1), Arena(0))
    call(native.load(native.build({}, [gemm])), c, a, b)
    np.testing.assert_array_equal(c, b)
    shared = native.load(native.build({}, [gemm], parallel=True))
    call(shared, c, a, a)
    np.testing.assert_array_equal(c, a)


def test_freeing_llvm_code_does_not_wait_for_another_thread(through_llvm):
    step = native.load(native.build({}, []))
    inside, leave = threading.Event(), threading.Event()

    def work():
        with llvm.llvm_lock():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    del step
    assert len(llvm._discarded) == 1
    leave.set()
    thread.join()
    native.build({}, [])
    assert llvm._discarded == []


def test_constants_and_jumps_far_away_are_found():
    """Both a table of constants and a function of the C library, which lies further off than a call reaches."""
    text = """
@numbers = private constant [4 x float] [float 1.0, float 2.0, float 3.0, float 4.0]
@count = internal global i64 40
declare float @fmodf(float, float)
define void @far(ptr %p) {
  %old = load i64, ptr @count
  %new = add i64 %old, 2
  store i64 %new, ptr @count
  %at = getelementptr float, ptr @numbers, i64 3
  %x = load volatile float, ptr %at
  %r = call float @fmodf(float %x, float 3.0)
  %n = sitofp i64 %new to float
  %sum = fadd float %r, %n
  store float %sum, ptr %p
  ret void
}"""
    step = native.load(native.build({"far": text}, [KernelCall("far", (Arena(0),))]))
    out = np.zeros(1, FLOAT)
    for expected in (43, 45):
        call(step, out)
        assert out[0] == expected


@pytest.mark.parametrize("damage", [lambda c: b"\x7fELF" + c[4:18] + b"\x03" + c[19:], lambda c: b"MZ" + c[2:]])
def test_another_kind_of_object_file_is_not_linked(damage):
    with llvm.llvm_lock() as binding:
        code = llvm.machine(0).emit_object(binding.parse_assembly("define void @f() {\n  ret void\n}"))
    machine_code._link([code], lambda name: 0)
    with pytest.raises(UnsupportedObjectError):
        machine_code._link([damage(code)], lambda name: 0)


def test_loading_a_program_loads_no_llvm(tmp_path):
    (tmp_path / "program").write_bytes(native.build({"add": ADD_IR}, [ADD_STEP], parallel=True))
    code = f"""
import sys
from pathlib import Path
from staticgrad.kernels.cpu import native
native.load((Path({str(tmp_path)!r}) / "program").read_bytes())
print(any(name.startswith(("llvmlite", "numba")) for name in sys.modules))
"""
    expected = "False" if sys.platform == "linux" and os.uname().machine == "x86_64" else "True"
    assert python(code).strip() == expected


def test_programs_with_equal_names_do_not_mix():
    double = ADD_IR.replace("fadd", "fmul")
    steps = [native.load(native.build({"add": text}, [ADD_STEP])) for text in (ADD_IR, double)]
    arena, other = np.full(16, 3, FLOAT), np.full(16, 5, FLOAT)
    results = []
    for step in steps:
        out = np.zeros(32, FLOAT)
        call(step, arena, other, out)
        results.append(out[16])
    assert results == [8, 15]


def test_keys_name_what_code_depends_on():
    key = host.toolchain_key()
    assert key.startswith(host.host_key())
    for name in ("numba", "numpy", "llvmlite"):
        assert f"/{name}-{metadata.version(name)}/" in key
    for name in ("python-", "source-"):
        assert f"/{name}" in key
    assert python("from staticgrad.kernels.cpu import host; print(host.toolchain_key())").strip() == key


def test_threads_may_build_load_and_call_at_once():
    failures = []

    def work(number):
        try:
            step = native.load(native.build({"add": ADD_IR}, [ADD_STEP]))
            for _ in range(200):
                arena, other, out = np.full(16, number, FLOAT), np.ones(16, FLOAT), np.zeros(32, FLOAT)
                call(step, arena, other, out)
                if not (out[16:] == number + 1).all():
                    failures.append(number)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_forked_child_calls_and_builds():
    code = """
import os, threading, warnings, ctypes
warnings.simplefilter("ignore")
from staticgrad.kernels.cpu import native
from staticgrad.kernels.addresses import Arena
from staticgrad.kernels.cpu.steps import Fill
program = native.build({}, [Fill(Arena(0), 4, 1)])
step = native.load(program)
stop = threading.Event()
def churn():
    while not stop.is_set():
        native.build({}, [Fill(Arena(0), 4, 1)] * 50)
thread = threading.Thread(target=churn)
thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        buffer = ctypes.create_string_buffer(4)
        for entry in (step, native.load(native.build({}, [Fill(Arena(0), 4, 1)]))):
            entry(ctypes.addressof(buffer), 0)
        os._exit(0 if buffer.raw == b"\\1\\1\\1\\1" else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
print("ok")
"""
    assert python(code).strip() == "ok"


def test_a_program_crosses_processes_without_numba(tmp_path):
    a, b = np.arange(6, dtype=FLOAT).reshape(2, 3), np.ones((3, 2), FLOAT)
    gemm = Gemm(StoredProduct("float32", 2, 2, 3, False, False, 3, 2, 2), Argument(0), Argument(1), Arena(0))
    (tmp_path / "program").write_bytes(native.build({"add": ADD_IR}, [gemm]))
    (tmp_path / "data").write_bytes(pickle.dumps((a, b)))
    code = f"""
import ctypes, pickle, sys
from pathlib import Path
folder = Path({str(tmp_path)!r})
from staticgrad.kernels import cache
from staticgrad.kernels.cpu import native
step = native.load((folder / "program").read_bytes())
assert "numba" not in sys.modules and "scipy.linalg" not in sys.modules
import numpy as np
a, b = pickle.loads((folder / "data").read_bytes())
out = np.zeros((2, 2), np.float32)
table = (ctypes.c_void_p * 2)(a.ctypes.data, b.ctypes.data)
step(out.ctypes.data, ctypes.addressof(table))
assert (out == a @ b).all(), out
assert native.compile_count() == 0
print("ok")
"""
    assert python(code).strip() == "ok"


@pytest.mark.parametrize("asked", [None, "24"])
def test_patience_of_openblas_is_set_only_while_it_is_loaded(monkeypatch, asked):
    if asked is None:
        monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    else:
        monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", asked)
    with blas._idle_threads_asleep():
        assert os.environ["OPENBLAS_THREAD_TIMEOUT"] == (asked or "20")
    assert os.environ.get("OPENBLAS_THREAD_TIMEOUT") == asked
