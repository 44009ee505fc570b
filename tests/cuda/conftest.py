"""Tests that need a GPU: they are skipped where nobody asks for one.

    NUMBA_ENABLE_CUDASIM=0 pytest tests/cuda

asks for one. STATICGRAD_CUDA_TESTS=simulator runs them with small sizes in Numba's simulator instead, which shows that
the tests themselves are right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from gpu_sizes import SIMULATED

import staticgrad as sg
from staticgrad.graph.errors import DeviceError
from staticgrad.kernels.device import find_device, forget


@pytest.fixture(scope="session", autouse=True)
def hardware() -> Iterator[Any]:
    """The GPU that all tests use; in the simulator one on a stand-in of NVIDIA's driver, which must find no fault."""
    with pytest.MonkeyPatch.context() as patch:
        driver = _simulated(patch) if SIMULATED else None
        why = sg.cuda.why_unavailable()
        if why and os.environ.get("NUMBA_ENABLE_CUDASIM") == "0":
            pytest.fail(why)  # a real one was asked for
        if why:
            pytest.skip(why)
        from staticgrad.kernels.cuda import toolkit

        if toolkit.SIMULATED and not SIMULATED:
            pytest.skip("the GPU is Numba's simulator; NUMBA_ENABLE_CUDASIM=0 asks for a real one")
        yield find_device("cuda").hardware  # type: ignore[attr-defined]
        sg.cuda.synchronize()
        forget("cuda:0")
        if driver is not None:
            assert not driver.faults


@pytest.fixture(autouse=True)
def a_failure_stays_with_its_test(hardware: Any) -> Iterator[None]:
    """Begin anew with a GPU that a test has left unusable, so that the tests after it tell something too."""
    yield
    try:
        sg.cuda.synchronize()
    except DeviceError as error:
        sg.cuda.reset()
        pytest.fail(f"the GPU has failed: {error}")


def _simulated(patch: pytest.MonkeyPatch) -> Any:
    """Have "cuda" be played; the driver that plays it."""
    from fake_driver import FakeDriver, open_gpu

    from staticgrad.kernels.cuda import device as cuda_device

    driver = FakeDriver()
    patch.setattr(cuda_device, "_open", lambda ordinal: open_gpu(driver, ordinal))
    forget("cuda:0")
    return driver
