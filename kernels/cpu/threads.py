"""The threads that run a step together: one parallel region per step, with barriers inside it.

The pool is native code and a block of memory that lasts as long as the process. A step that is worth it calls
`staticgrad_pool_run(body, arena, table, pace)`: every thread then runs `body(arena, table, thread, present, parts)`,
the caller as thread 0, and meets the others at `staticgrad_barrier`. The work is cut into as many parts as the pool has
threads, whoever does them, so the results do not depend on who was there. Between steps the workers spin for a moment,
so that the next step of a training loop finds them awake, and then sleep. While one step has the pool, a step of
another Python thread does all of its parts itself.

The workers are daemon threads that never return from native code, so they hold no lock of Python's.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import platform
import sys
import time
from functools import cache
from pathlib import Path

from staticgrad.kernels.cpu.machine_code import Code

POOL, POOL_RUN, BARRIER = "staticgrad_pool", "staticgrad_pool_run", "staticgrad_barrier"
WORKER = "staticgrad_pool_worker"
C_FUNCTIONS = (
    "sched_yield", "clock_gettime", "pthread_mutex_lock", "pthread_mutex_trylock", "pthread_mutex_unlock",
    "pthread_cond_wait", "pthread_cond_broadcast",
)  # fmt: skip
MAX_THREADS = 256
SPINS = 4000  # a pause takes some 20 ns: how long a worker waits for the next step before it sleeps
BARRIER_SPINS = 2000  # and at a barrier before it offers its core to others
PACE_WORDS = 4  # what a program keeps: how far it is in its window, the least times together and alone, the choice
TRIALS_TOGETHER, TRIALS = 4, 6  # runs at the start of a window that are timed: up to here together, up to here alone
WINDOW_TOGETHER, WINDOW_ALONE = 256, 64  # runs until both ways are tried again

# Where in the pool's memory what lies; hot words have a pair of cache lines each.
_JOB, _ARRIVED, _GENERATION, _BODY, _PARKED, _MUTEX, _CONDITION, _TURN = (128 * place for place in range(8))
_THREADS, _PARTS = _BODY + 24, _BODY + 32
_POOL_BYTES = 128 * 8


@cache
def thread_count() -> int:
    """How many threads a step may use: STATICGRAD_NUM_THREADS, or the cores that this process may run on.

    Raises:
        ValueError: the variable is not a whole number from 1 on.
    """
    asked = os.environ.get("STATICGRAD_NUM_THREADS", "")
    if asked:
        if not asked.isdigit() or int(asked) < 1:
            raise ValueError(f"STATICGRAD_NUM_THREADS must be a whole number from 1 on; got {asked!r}")
        return min(int(asked), MAX_THREADS)
    if sys.platform == "win32":  # the pool is written with POSIX threads
        return 1
    return min(_cores(), _quota(), MAX_THREADS)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota() -> int:
    """The cores that the control group grants; threads beyond them would wait for each other in turn."""
    try:
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(granted) // int(period))
    except (OSError, ValueError):
        return MAX_THREADS


def start(code: Code) -> None:
    """Ready a pool that has just been loaded, and have its workers wait for steps; they stay inside it for good."""
    threads, address = thread_count(), code.address(POOL)
    library = ctypes.CDLL(None)
    library.pthread_mutex_init(ctypes.c_void_p(address + _MUTEX), None)
    library.pthread_mutex_init(ctypes.c_void_p(address + _TURN), None)
    library.pthread_cond_init(ctypes.c_void_p(address + _CONDITION), None)
    ctypes.c_int64.from_address(address + _PARTS).value = threads
    ctypes.c_int64.from_address(address + _THREADS).value = threads
    worker = ctypes.CFUNCTYPE(None, ctypes.c_int64)(code.address(WORKER))
    for number in range(1, threads):
        _thread.start_new_thread(worker, (number,))


def forget(code: Code) -> None:
    """After a fork the child has none of the workers: the calling thread does everything."""
    ctypes.c_int64.from_address(code.address(POOL) + _THREADS).value = 1


def pool_ir() -> str:
    """The pool: its memory, and the functions `staticgrad_pool_run`, `staticgrad_barrier` and that of a worker."""
    processor = platform.machine().lower()
    pause, declared = "call i32 @sched_yield()", ""
    if processor in ("x86_64", "amd64", "i686"):
        pause, declared = "call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"
    elif processor in ("aarch64", "arm64"):
        pause, declared = "call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"
    places = {
        "JOB": _JOB, "ARRIVED": _ARRIVED, "GENERATION": _GENERATION, "BODY": _BODY, "PARKED": _PARKED,
        "MUTEX": _MUTEX, "CONDITION": _CONDITION, "TURN": _TURN, "ARENA": _BODY + 8, "TABLE": _BODY + 16,
        "THREADS": _THREADS, "PARTS": _PARTS,
    }  # fmt: skip
    numbers = {
        "SPINS": SPINS, "BARRIER_SPINS": BARRIER_SPINS, "CLOCK": time.CLOCK_MONOTONIC, "TRIALS": TRIALS,
        "TRIALS_TOGETHER": TRIALS_TOGETHER, "WINDOW_TOGETHER": WINDOW_TOGETHER, "WINDOW_ALONE": WINDOW_ALONE,
    }  # fmt: skip
    text = _POOL.replace("PAUSE", pause).replace("DECLARED", declared)
    for name, offset in places.items():
        text = text.replace(f"${name}$", f"getelementptr (i8, ptr @{POOL}, i64 {offset})")
    for name, number in numbers.items():
        text = text.replace(f"${name}$", str(number))
    return f"@{POOL} = global [{_POOL_BYTES} x i8] zeroinitializer, align 128\n{text}"


# run: does the job with all threads or alone, and returns into how many parts it is cut. Cores may lie so far from each
# other, or be so busy with other programs, that one thread alone is quicker. So the first runs of a window are timed,
# some together and some alone; the rest go the faster way, alone only if that is clearly faster.
# A worker counts itself as asleep before it looks for a job a last time, and the caller looks for sleepers after it has
# published the job, both in one total order: no job is missed.
_POOL = """\
DECLARED
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_trylock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)

define void @staticgrad_barrier(i64 %threads) noinline {
entry:
  %alone = icmp sle i64 %threads, 1
  br i1 %alone, label %exit, label %meet
meet:
  %generation = load atomic i64, ptr $GENERATION$ acquire, align 8
  %before = atomicrmw add ptr $ARRIVED$, i64 1 acq_rel
  %count = add i64 %before, 1
  %last = icmp eq i64 %count, %threads
  br i1 %last, label %open, label %wait
open:
  store atomic i64 0, ptr $ARRIVED$ monotonic, align 8
  %next = add i64 %generation, 1
  store atomic i64 %next, ptr $GENERATION$ release, align 8
  br label %exit
wait:
  %spins = phi i64 [ 0, %meet ], [ %more, %again ]
  %now = load atomic i64, ptr $GENERATION$ acquire, align 8
  %opened = icmp ne i64 %now, %generation
  br i1 %opened, label %exit, label %turn
turn:
  %more = add i64 %spins, 1
  %long = icmp sgt i64 %spins, $BARRIER_SPINS$
  br i1 %long, label %yield, label %rest
yield:
  call i32 @sched_yield()
  br label %again
rest:
  PAUSE
  br label %again
again:
  br label %wait
exit:
  ret void
}

define i64 @staticgrad_pool_run(ptr %body, ptr %arena, ptr %table, ptr %pace) {
entry:
  %start = alloca [2 x i64], align 8
  %stop = alloca [2 x i64], align 8
  %together_best = getelementptr i64, ptr %pace, i64 1
  %alone_best = getelementptr i64, ptr %pace, i64 2
  %choice = getelementptr i64, ptr %pace, i64 3
  %run = load atomic i64, ptr %pace monotonic, align 8
  %begins = icmp eq i64 %run, 0
  br i1 %begins, label %reset, label %compare
reset:
  store atomic i64 4611686018427387904, ptr %together_best monotonic, align 8
  store atomic i64 4611686018427387904, ptr %alone_best monotonic, align 8
  br label %go
compare:
  %decides = icmp eq i64 %run, $TRIALS$
  br i1 %decides, label %decide, label %go
decide:
  %a = load atomic i64, ptr %alone_best monotonic, align 8
  %t = load atomic i64, ptr %together_best monotonic, align 8
  %tenth = sdiv i64 %t, 10
  %limit = sub i64 %t, %tenth
  %faster_alone = icmp slt i64 %a, %limit
  %decided = zext i1 %faster_alone to i64
  store atomic i64 %decided, ptr %choice monotonic, align 8
  br label %go
go:
  %chosen = load atomic i64, ptr %choice monotonic, align 8
  %chosen_alone = icmp ne i64 %chosen, 0
  %window = select i1 %chosen_alone, i64 $WINDOW_ALONE$, i64 $WINDOW_TOGETHER$
  %more = add i64 %run, 1
  %ends = icmp sge i64 %more, %window
  %next = select i1 %ends, i64 0, i64 %more
  store atomic i64 %next, ptr %pace monotonic, align 8
  %trial = icmp slt i64 %run, $TRIALS$
  %trial_alone = icmp sge i64 %run, $TRIALS_TOGETHER$
  %alone = select i1 %trial, i1 %trial_alone, i1 %chosen_alone
  %threads = load i64, ptr $THREADS$, align 8
  %parts = load i64, ptr $PARTS$, align 8
  %few = icmp sle i64 %threads, 1
  %single = or i1 %alone, %few
  br i1 %trial, label %clock, label %begin
clock:
  call i32 @clock_gettime(i32 $CLOCK$, ptr %start)
  br label %begin
begin:
  br i1 %single, label %by_one, label %try
try:
  %taken = call i32 @pthread_mutex_trylock(ptr $TURN$)
  %busy = icmp ne i32 %taken, 0
  br i1 %busy, label %by_one, label %publish
by_one:
  call void %body(ptr %arena, ptr %table, i64 0, i64 1, i64 %parts)
  br label %done
publish:
  store ptr %body, ptr $BODY$, align 8
  store ptr %arena, ptr $ARENA$, align 8
  store ptr %table, ptr $TABLE$, align 8
  %job = atomicrmw add ptr $JOB$, i64 1 seq_cst
  %parked = load atomic i64, ptr $PARKED$ seq_cst, align 8
  %asleep = icmp ne i64 %parked, 0
  br i1 %asleep, label %wake, label %work
wake:
  call i32 @pthread_mutex_lock(ptr $MUTEX$)
  call i32 @pthread_cond_broadcast(ptr $CONDITION$)
  call i32 @pthread_mutex_unlock(ptr $MUTEX$)
  br label %work
work:
  call void %body(ptr %arena, ptr %table, i64 0, i64 %parts, i64 %parts)
  call void @staticgrad_barrier(i64 %parts)
  call i32 @pthread_mutex_unlock(ptr $TURN$)
  br label %done
done:
  br i1 %trial, label %count, label %exit
count:
  call i32 @clock_gettime(i32 $CLOCK$, ptr %stop)
  %s0 = load i64, ptr %start, align 8
  %s1 = load i64, ptr %stop, align 8
  %n0p = getelementptr i64, ptr %start, i64 1
  %n1p = getelementptr i64, ptr %stop, i64 1
  %n0 = load i64, ptr %n0p, align 8
  %n1 = load i64, ptr %n1p, align 8
  %seconds = sub i64 %s1, %s0
  %whole = mul i64 %seconds, 1000000000
  %rest = sub i64 %n1, %n0
  %took = add i64 %whole, %rest
  %best = select i1 %alone, ptr %alone_best, ptr %together_best
  %old = load atomic i64, ptr %best monotonic, align 8
  %better = icmp slt i64 %took, %old
  %new = select i1 %better, i64 %took, i64 %old
  store atomic i64 %new, ptr %best monotonic, align 8
  br label %exit
exit:
  ret i64 %parts
}

define void @staticgrad_pool_worker(i64 %thread) {
entry:
  br label %idle
idle:
  %done = phi i64 [ 0, %entry ], [ %found, %job ]
  br label %spin
spin:
  %spins = phi i64 [ 0, %idle ], [ %more, %pause ]
  %seen = load atomic i64, ptr $JOB$ acquire, align 8
  %new = icmp ne i64 %seen, %done
  br i1 %new, label %job, label %wait
wait:
  %more = add i64 %spins, 1
  %tired = icmp sgt i64 %spins, $SPINS$
  br i1 %tired, label %park, label %pause
pause:
  PAUSE
  br label %spin
park:
  call i32 @pthread_mutex_lock(ptr $MUTEX$)
  atomicrmw add ptr $PARKED$, i64 1 seq_cst
  br label %look
look:
  %late = load atomic i64, ptr $JOB$ seq_cst, align 8
  %came = icmp ne i64 %late, %done
  br i1 %came, label %rise, label %sleep
sleep:
  call i32 @pthread_cond_wait(ptr $CONDITION$, ptr $MUTEX$)
  br label %look
rise:
  atomicrmw sub ptr $PARKED$, i64 1 seq_cst
  call i32 @pthread_mutex_unlock(ptr $MUTEX$)
  br label %job
job:
  %found = phi i64 [ %seen, %spin ], [ %late, %rise ]
  %body = load ptr, ptr $BODY$, align 8
  %arena = load ptr, ptr $ARENA$, align 8
  %table = load ptr, ptr $TABLE$, align 8
  %parts = load i64, ptr $PARTS$, align 8
  call void %body(ptr %arena, ptr %table, i64 %thread, i64 %parts, i64 %parts)
  call void @staticgrad_barrier(i64 %parts)
  br label %idle
}
"""
