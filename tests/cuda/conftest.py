"""Tests that need a GPU: they are skipped where there is none.

    NUMBA_ENABLE_CUDASIM=0 pytest tests/cuda

runs them. STATICGRAD_CUDA_TESTS=simulator runs them with small sizes in Numba's simulator instead, which shows that
the tests themselves are right.
"""

from __future__ import annotations

from typing import Any

import pytest
from gpu_sizes import SIMULATED

import staticgrad as sg
from staticgrad.kernels.device import find_device


@pytest.fixture(scope="session", autouse=True)
def hardware() -> Any:
    """The GPU that all tests use."""
    why = sg.cuda.why_unavailable()
    if why:
        pytest.skip(why)
    from staticgrad.kernels.cuda import toolkit

    if toolkit.SIMULATED and not SIMULATED:
        pytest.skip("the GPU is Numba's simulator; NUMBA_ENABLE_CUDASIM=0 asks for a real one")
    if SIMULATED and not toolkit.SIMULATED:
        pytest.skip("STATICGRAD_CUDA_TESTS=simulator needs NUMBA_ENABLE_CUDASIM=1")
    return find_device("cuda").hardware  # type: ignore[attr-defined]
