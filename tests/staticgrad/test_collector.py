"""The garbage collector is paused while a program is made, and never for longer."""

from __future__ import annotations

import gc

import pytest

import staticgrad as sg
from staticgrad.collector import collection_paused
from staticgrad.tensor import Tensor


def test_paused_during_a_capture_only() -> None:
    def function(x: Tensor) -> Tensor:
        return x + (2.0 if gc.isenabled() else 1.0)

    assert sg.compile(function, cache=False)(sg.zeros(1)).item() == 1.0
    assert gc.isenabled()


def test_restored_after_a_capture_that_fails() -> None:
    def function(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sg.compile(function)(sg.zeros(1))
    assert gc.isenabled()


def test_left_off_where_it_was_off() -> None:
    gc.disable()
    try:
        with collection_paused:
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_last_one_to_leave_resumes_it() -> None:
    with collection_paused:
        with collection_paused:
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
