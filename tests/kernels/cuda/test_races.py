"""That what watches the simulator finds the faults of kernels, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from races import Race, Watch

from staticgrad.kernels.cuda import simulator, toolkit
from staticgrad.kernels.cuda.simulator import Memory
from staticgrad.kernels.kernel import Kernel

pytestmark = pytest.mark.skipif(not toolkit.SIMULATED, reason="runs kernels in Numba's simulator; a GPU is in use")

THREADS, COUNT = 8, 32
FLOAT, LONG = np.dtype(np.float32), np.dtype(np.int64)
BEGIN = ["thread = int64(cuda.threadIdx.x)", "block = int64(cuda.blockIdx.x)"]


def launch(*lines: str, grid: int = 1, block: int = THREADS, shift: int = 0, pointers: int = 2) -> None:
    """Run a kernel on p0, numbers that have been written, and p1, which have not; p2 and p3 are status and code."""
    names = [f"p{position}" for position in range(pointers)]
    source = "\n    ".join([f"def kernel({', '.join(names)}):", *BEGIN, *lines]) + "\n"
    kernel = Kernel(source, (FLOAT, FLOAT, LONG, LONG)[:pointers])
    memory = Memory()
    addresses = [memory.allocate(4 * COUNT) for _ in range(pointers)]
    for address in (addresses[0], *addresses[2:]):
        memory.at(address)[:] = 0
    addresses[0] += shift
    simulator.launch(simulator.build(kernel), kernel.dtypes, memory, addresses, grid, block)


def exchanged(barrier: Sequence[str] = ("cuda.syncthreads()",), place: str = f"block * {THREADS}") -> list[str]:
    """Lines in which each thread gives a value to its neighbour through shared memory."""
    return [
        f"s = shared_memory({THREADS}, float32)",
        "s[thread] = 0.0",
        "cuda.syncthreads()",
        "s[thread] = p0[thread]",
        *barrier,
        f"p1[{place} + thread] = s[rest(thread + 1, {THREADS})]",
    ]


def walked(*lines: str) -> list[str]:
    """A loop whose turns follow each other without a barrier at their end."""
    return ["for turn in range(2):", *(f"    {line}" for line in (*exchanged(place=f"turn * {THREADS}"), *lines))]


SOUND = {
    "a barrier between writing and reading": exchanged(),
    "a place for each thread": ["p1[thread] = p0[thread]", "p1[thread] = p1[thread] + p0[thread]"],
    "vectors on their multiples": ["a = load4(p0, thread * 4)", "store4(p1, thread * 4, a[0], a[1], a[2], a[3])"],
    "a value that is read for nothing": ["x = p0[0]", "if thread == 0:", "    p0[0] = x + 1"],
    "a shuffle by all": ["x = shuffle_xor(p0[thread], 1)", "if thread < 2:", "    p1[thread] = x"],
    "barriers in turns": walked("cuda.syncthreads()"),
    "a barrier without an idle warp": ["if thread < 4:", "    cuda.syncthreads()"],
    "a branch that the whole block takes": ["if block == 1:", "    cuda.syncthreads()", "p1[thread + block * 8] = 1"],
}

FAULTS = {
    "no barrier between writing and reading": (exchanged(()), r"thread \d of block 0 reads .* writes it"),
    "no barrier before the next turn": (walked(), r"`p1\[.*after 2 barriers at line 6 `s\[thread\] = 0"),
    "a shuffle in the place of a barrier": (exchanged(["x = shuffle_xor(p0[thread], 1)"]), "writes it after 1"),
    "one place for two threads": (["p1[quotient(thread, 2)] = 1.0"], "writes it .* writes it"),
    "a vector over another thread's place": (
        ["store2(p1, thread * 2, 1.0, 2.0)", "p1[thread] = 3.0"],
        r"`p1\[thread\] = 3.0`, .* `store2",
    ),
    "a value read by all that one replaces": (
        ["x = p0[0]", "p1[thread] = x", "if thread == 0:", "    p0[0] = x + 1"],
        r"line 4 `x = p0",
    ),
    "a value by which all go on that one replaces": (
        ["i = int64(p0[0])", "if thread == 0:", "    p0[0] = 1.0", "p1[i + thread] = 2.0"],
        r"line 4 `i = int64\(p0",
    ),
    "a barrier of a few": (["if thread < 6:", "    cuda.syncthreads()"], "comes to line 5 .* comes to the end"),
    "a warp that goes before the others": (
        ["cuda.syncthreads()", "if thread < 4:", "    cuda.syncthreads()"],
        "barrier 1 of block 0: thread 0 comes to line 6 .* but thread 4 comes to the end",
    ),
    "two barriers for one": (
        ["if thread < 4:", "    cuda.syncthreads()", "else:", "    cuda.syncthreads()"],
        "barrier 0 of block 0: thread 0 comes to line 5 .* but thread 4 comes to line 7",
    ),
    "a shuffle of half a warp": (["if rest(thread, 4) < 2:", "    x = shuffle_xor(thread, 1)"], "shuffle 0 of block 0"),
    "a vector between its multiples": (["a = load2(p0, thread * 2 + 1)"], "not aligned"),
    "a vector that is too wide": (["s = shared_memory(8, float64)", "store4(s, 0, 1.0, 1.0, 1.0, 1.0)"], "of 32 bytes"),
    "a place behind the end": ([f"x = p0[thread + {COUNT - 4}]"], "leaves the allocation"),
    "a vector behind the end": ([f"a = load4(p0, thread * 4 + {COUNT})"], "leaves the allocation"),
    "shared memory that nobody has written": (
        ["s = shared_memory(8, float32)", "if thread:", "    s[thread] = 1.0", "cuda.syncthreads()", "x = s[thread]"],
        "`x = s.*reads what nobody has written",
    ),
    "memory that nobody has written": (["a = load4(p1, thread * 4)"], "reads what nobody has written"),
}  # fmt: skip


@pytest.mark.parametrize("lines", SOUND.values(), ids=SOUND)
def test_sound_kernels_pass(lines: Sequence[str], watch: Watch) -> None:
    launch(*lines, grid=2 if "block" in lines[0] else 1)
    assert watch.launches == 1


@pytest.mark.parametrize(("lines", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(lines: Sequence[str], message: str) -> None:
    with pytest.raises((Race, IndexError), match=message):
        launch(*lines)


def test_blocks_are_not_ordered() -> None:
    """What one block may do behind a barrier another one may not."""
    lines = [
        "if block == 0:",
        "    p1[thread] = 1.0",
        "cuda.syncthreads()",
        "if block:",
        "    p1[thread + 8] = p1[thread]",
    ]
    with pytest.raises(Race, match=r"thread \d of block 1 reads .* of block 0 writes"):
        launch(*lines, grid=2)
    launch(*exchanged(), grid=2)


def test_pointers_are_aligned_to_their_dtype() -> None:
    with pytest.raises(Race, match=r"pointer 0 to float32 is .* not aligned"):
        launch("x = p0[thread]", shift=2)


def test_a_block_is_whole_warps() -> None:
    with pytest.raises(Race, match="end in part of a warp"):
        launch("x = p0[thread]", block=6)


def test_only_indices_are_reported_by_several_threads_at_once() -> None:
    check = "place = checked_index(9, 4, p2, p3)"
    launch(check, pointers=4, grid=2)
    with pytest.raises(Race, match=r"adds to it .*`place = |`place = .* adds to it"):
        launch(check, "if thread == 5:", "    p1[0] = p2[0]", pointers=4)
