"""The time line of a compilation: stages, once each, only where somebody listens."""

import logging

import numpy as np

import staticgrad as sg
from staticgrad.graph.timeline import described, recorded, stage


def test_a_stage_that_runs_twice_is_one_entry():
    with recorded() as found:
        for _ in range(2):
            with stage("first"):
                pass
        with stage("second"):
            pass
    assert list(found) == ["first", "second"]
    assert all(seconds >= 0 for seconds in found.values())


def test_a_stage_outside_is_not_kept():
    with stage("nobody listens"):
        pass
    with recorded() as found:
        pass
    assert found == {}


def test_a_stage_that_fails_is_counted():
    with recorded() as found:
        try:
            with stage("fails"):
                raise ValueError
        except ValueError:
            pass
    assert "fails" in found


def test_the_text_ends_with_the_total():
    assert described({"capture": 0.25, "fuse": 0.5}) == "capture 250 ms, fuse 500 ms, total 0.75 s"


def test_a_compilation_is_logged_and_explained(caplog):
    double = sg.compile(lambda x: x * 2, cache=False)
    with caplog.at_level(logging.INFO, "staticgrad"):
        double(np.ones(3, np.float32))
    assert "is compiled: capture" in caplog.text
    text = double.explain()
    for name in ("capture", "rewrite", "fuse", "schedule", "plan", "lower", "kernels", "link", "load"):
        assert f"{name} " in text
