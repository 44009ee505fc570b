"""What holds for every test: a cache of its own for the run, fixed seeds, and nothing left behind."""

from __future__ import annotations

import os
import random as python_random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import specialize
from staticgrad.graph import Graph, rewrite, verify

# "cuda" is the simulator in the tests, unless they are told to use a GPU: read when Numba is first imported.
os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

_CACHE = "STATICGRAD_CACHE_DIR"
_made_here = pytest.StashKey[str]()

try:
    import hypothesis
except ModuleNotFoundError:  # a machine with a GPU may lack it: the tests in tests/cuda do without
    pass
else:
    hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """One new cache folder for the run; the workers of xdist are started later and inherit its name."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    if not hasattr(config, "workerinput"):
        os.environ[_CACHE] = config.stash[_made_here] = tempfile.mkdtemp(prefix="staticgrad-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache folder with the run that made it."""
    folder = config.stash.get(_made_here, None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _verified_rewrite(graph: Graph) -> Graph:
    verify(graph)
    rewritten = rewrite(graph)
    verify(rewritten)
    return rewritten


@pytest.fixture(autouse=True, scope="session")
def every_captured_graph_is_verified() -> Iterator[None]:
    """Verify what tests capture, before and after it is rewritten."""
    specialize.rewrite, before = _verified_rewrite, specialize.rewrite
    yield
    specialize.rewrite = before


def _settings() -> dict[str, Any]:
    """The process-wide settings that a test must leave as it found them."""
    return {
        "the working directory": os.getcwd(),
        "NumPy's error handling": np.geterr(),
        "NumPy's print options": {key: value for key, value in np.get_printoptions().items() if key != "formatter"},
        "the recursion limit": sys.getrecursionlimit(),
        "bare imports of graph or kernels": [name for name in ("graph", "kernels") if name in sys.modules],
        "the grad mode": sg.is_grad_enabled(),
    }


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Seed every generator, restore staticgrad's afterwards, and fail a test that changed what others share."""
    drawn = sg.random.get_state()
    sg.random.manual_seed(0)
    python_random.seed(0)
    np.random.seed(0)
    settings, environment = _settings(), _environment()
    yield
    left, variables = _settings(), _environment()
    _restore(settings, environment)
    sg.random.set_state(drawn)
    changed = [name for name in settings if left[name] != settings[name]]
    changed += sorted({f"${key}" for key, _ in environment.items() ^ variables.items()})
    if changed:
        pytest.fail(f"the test leaves changed: {', '.join(changed)}")


def _restore(settings: dict[str, Any], environment: dict[str, str]) -> None:
    """Keep one leak from failing every test after it."""
    os.environ.update(environment)
    for key in _environment().keys() - environment.keys():
        del os.environ[key]
    os.chdir(settings["the working directory"])
    np.seterr(**settings["NumPy's error handling"])
    sg.set_grad_enabled(settings["the grad mode"])
