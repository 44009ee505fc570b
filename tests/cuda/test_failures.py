"""What fails on the GPU is an error, and what did not fail goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_sizes import SIZES
from trainings import host

import staticgrad as sg
from staticgrad import nn, optim

BROKEN = Path(__file__).with_name("broken_kernel.py")


def test_an_index_out_of_range_leaves_state_alone() -> None:
    """Many times the same program: failing runs between others, which give what they would have given anyway."""
    rows, columns, count = SIZES.taken[0]
    found = []
    for failing in (False, True):
        sg.random.manual_seed(0)
        table = nn.Embedding(rows, columns)
        opt = optim.SGD(table.parameters(), lr=0.1, momentum=0.9)

        def step(indices: Any, table: Any = table, opt: Any = opt) -> Any:
            loss = (table(indices) ** 2).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        train = sg.compile(step, device="cuda")
        generator = np.random.default_rng(0)
        for _ in range(4):
            indices = generator.integers(0, rows, count)
            if failing:
                wrong = indices.copy()
                wrong[count // 2] = rows
                before = host(table.weight)
                with pytest.raises(IndexError, match=rf"embedding: an index must .*; got {rows}[.;].* Captured at "):
                    train(wrong).item()
                np.testing.assert_array_equal(host(table.weight), before)
            found.append(host(train(indices)))
        found.append(host(table.weight))
    for one, other in zip(found[:5], found[5:], strict=True):
        np.testing.assert_array_equal(other, one)


def test_one_of_many_wrong_indices_is_reported() -> None:
    table = sg.asarray(np.zeros((5, 3), np.float32), device="cuda")
    wrong = np.arange(SIZES.drawn) + 5
    with pytest.raises(IndexError, match=r"take: an index must lie in \[-5, 5\); got \d+") as raised:
        sg.take(table, sg.asarray(wrong, device="cuda"), axis=0).tolist()
    assert int(re.split("[.;]", str(raised.value).split("got ")[1])[0]) in wrong
    assert sg.take(table, sg.asarray([4, -5], device="cuda"), axis=0).shape == (2, 3)


def test_a_kernel_that_writes_out_of_bounds_is_an_error_that_can_be_recovered_from() -> None:
    done = subprocess.run([sys.executable, BROKEN], env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "raised", "read raised", "compute raised", "train raised", "cpu", "gpu after reset", "op after reset", "lost",
    ], done.stdout  # fmt: skip
    assert "ILLEGAL_ADDRESS" in lines[0]
    assert all("sg.cuda.reset()" in line for line in lines[:4])
    assert lines[4:7] == ["cpu: True", "gpu after reset: True", "op after reset: True"]
    assert "was reset" in lines[7]
