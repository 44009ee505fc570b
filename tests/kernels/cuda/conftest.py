"""A driver without a GPU for the tests of what calls one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fake_driver import FakeDriver
    from races import Watch


@pytest.fixture
def fake() -> Iterator[FakeDriver]:
    """The stand-in of the driver; a test fails that does what a real one would answer by a crash."""
    from fake_driver import FakeDriver

    from staticgrad.kernels.cuda import toolkit

    if not toolkit.SIMULATED:
        pytest.skip("the stand-in of the driver runs kernels in Numba's simulator, which is switched off")
    found = FakeDriver()
    yield found
    gc.collect()
    assert not found.faults


@pytest.fixture(autouse=True)
def watch() -> Iterator[Watch | None]:
    """Watches all launches in the simulator for races, misaligned accesses and reads of what nobody has written."""
    from staticgrad.kernels.cuda import toolkit

    if not toolkit.SIMULATED:
        yield None
        return
    from races import watched

    with watched() as found:
        yield found
