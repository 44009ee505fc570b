"""The stand-in of the driver against NVIDIA's own bindings: names, arguments, results and codes are theirs."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuda.bindings import driver as real
from fake_contexts import RESULTS
from fake_driver import FakeDriver

from staticgrad.kernels.cuda import calls

SOURCES = Path(calls.__file__).parent
# With which a library's products become nodes of a graph: `test_product_nodes` has a driver that writes them down.
CAPTURING = {
    "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphAddChildGraphNode", "cuGraphExecChildGraphNodeSetParams",
}  # fmt: skip


def real_arguments(name: str) -> list[str]:
    """The names of a real function's arguments, from the first line of its documentation."""
    line = getattr(real, name).__doc__.splitlines()[0]
    inside = re.sub(r"\[[^][]*\]", "", re.sub(r"\[[^][]*\]", "", line.partition("(")[2].rpartition(")")[0]))
    return [argument.partition(":")[0].split()[-1].lstrip("*") for argument in inside.split(",") if argument.strip()]


def real_results(name: str) -> int:
    """How many results a real function documents beside the code."""
    lines = iter(getattr(real, name).__doc__.splitlines())
    margin = next(len(line) - len("Returns") for line in lines if line.strip() == "Returns")
    section = itertools.takewhile(str.strip, itertools.islice(lines, 1, None))  # behind the line below the heading
    return sum(not line[margin:].startswith(" ") for line in section) - 1


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_the_stand_in_takes_and_gives_what_the_real_function_does(name: str) -> None:
    arguments = list(inspect.signature(getattr(FakeDriver, name)).parameters)[1:]
    assert arguments == real_arguments(name)
    assert RESULTS[name] == real_results(name)


def called() -> Iterator[str]:
    """Every function of the driver that a line of ours names."""
    for path in SOURCES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        yield from re.findall(r"[\"'](cu[A-Z]\w+)[\"']", text)
        yield from re.findall(r"driver\.(cu[A-Z]\w+)", text)


def test_every_function_that_is_called_is_there_and_stood_in_for() -> None:
    names = set(called())
    assert len(names) > 30
    assert {name for name in names if not hasattr(real, name)} == set()
    assert names - RESULTS.keys() == CAPTURING


def test_the_errors_after_which_a_process_must_start_anew_are_those_of_the_manual() -> None:
    said = {int(code): " ".join((code.__doc__ or "").split()) for code in real.CUresult}
    manual = {code for code, text in said.items() if "must be terminated" in text or "cannot be used anymore" in text}
    assert 700 in manual
    assert manual <= calls.FATAL
    assert calls.FATAL - manual == {
        real.CUresult.CUDA_ERROR_ECC_UNCORRECTABLE,
        real.CUresult.CUDA_ERROR_NVLINK_UNCORRECTABLE,
        real.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED,
    }
    assert real.CUresult.CUDA_ERROR_OUT_OF_MEMORY == calls.OUT_OF_MEMORY
    assert real.CUresult.CUDA_ERROR_NOT_INITIALIZED == calls.NOT_INITIALIZED


def test_a_node_takes_what_it_is_given() -> None:
    """The real structure keeps the address of the arguments as a number, and gives the function back."""
    parameters = real.CUDA_KERNEL_NODE_PARAMS()
    parameters.func = real.CUfunction(0x1234)
    parameters.kernelParams = 0x7FFF_0000_1000
    parameters.gridDimX, parameters.blockDimX, parameters.sharedMemBytes = 2**31 - 1, 1024, 0
    assert (int(parameters.func), parameters.kernelParams, parameters.gridDimX) == (0x1234, 0x7FFF_0000_1000, 2**31 - 1)
    assert parameters.extra == 0
