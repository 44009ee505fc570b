"""Tensors and checkpoints in files: what comes back, and that a failure costs nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import staticgrad as sg
from staticgrad.saving import load_file, read_arrays, save_file

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0, 3), (1, 1, 1)])
def test_every_dtype_and_shape_comes_back(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype)
    if array.dtype.kind == "c":
        array = np.asarray(array + 2j, dtype)
    save_file({"x": array}, tmp_path / "x.safetensors")
    arrays, metadata = read_arrays(tmp_path / "x.safetensors", caller="test")
    read = arrays["x"]
    assert not metadata
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)


def test_layouts_names_and_tensors(tmp_path: Path) -> None:
    base = np.arange(24.0).reshape(4, 6)
    arrays = {
        "transposed": base.T,
        "every second": base[::2, ::-3],
        "broadcast": np.broadcast_to(np.float32(3), (2, 2)),
        "big-endian": base.astype(">f4"),
        "grüße.0": base.astype(np.int8),
    }
    tensors = {"tensor": sg.asarray(base), "list": [1, 2, 3]}
    save_file(arrays | tensors, tmp_path / "x")
    read = load_file(tmp_path / "x")
    assert read.keys() == arrays.keys() | tensors.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(read[name]), array)
    np.testing.assert_array_equal(np.asarray(read["tensor"]), base)
    np.testing.assert_array_equal(np.asarray(read["list"]), [1, 2, 3])


def test_an_empty_file_of_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none")
    assert load_file(tmp_path / "none") == {}


def test_the_format_is_safetensors(tmp_path: Path) -> None:
    save_file({"x": np.eye(2, dtype=np.float32)}, tmp_path / "ours", {"made by": "a test"})
    with safetensors.safe_open(tmp_path / "ours", framework="numpy") as file:
        assert file.metadata() == {"made by": "a test"}
        np.testing.assert_array_equal(file.get_tensor("x"), np.eye(2))
    safetensors.numpy.save_file({"y": np.arange(3)}, tmp_path / "theirs")
    np.testing.assert_array_equal(np.asarray(load_file(tmp_path / "theirs")["y"]), [0, 1, 2])


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({3: np.zeros(1)}, None, TypeError, "names of tensors must be text; got 3"),
        ({"__metadata__": np.zeros(1)}, None, ValueError, "reserves the name '__metadata__'"),
        ({"x": np.array(["a"])}, None, TypeError, "'x' is <U1"),
        ({"x": np.array([None])}, None, TypeError, "'x' is object"),
        ({"x": np.zeros(1, "M8[s]")}, None, TypeError, "'x' is datetime64"),
        ({"x": np.zeros(1)}, {"step": 3}, TypeError, "metadata must map text to text; got 'step': 3"),
        ({"x": np.zeros(1)}, {"staticgrad.x": ""}, ValueError, r"must not begin with 'staticgrad\.'"),
    ],
)
def test_save_file_rejects(tmp_path: Path, tensors: Any, metadata: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        save_file(tensors, tmp_path / "x", metadata)
    assert list(tmp_path.iterdir()) == []


# Files that are not what they should be


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"PK\x03\x04 this is a zip archive", "not a whole safetensors file"),
        (struct.pack("<Q", 2**60) + b"{}", "not a whole safetensors file"),
        (struct.pack("<Q", 4) + b"{{{{", "not a whole safetensors file"),
        (with_header(ONE, b"\0\0\0"), "not a whole safetensors file"),
        (with_header(ONE, b"\0\0\0\0\0"), "not a whole safetensors file"),
        (with_header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "not a whole"),
        (with_header({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "NumPy does not have"),
        (with_header(ONE | {"__metadata__": {"staticgrad.complex128": "["}}, bytes(4)), "damaged list of complex128"),
        (with_header(ONE | {"__metadata__": {"staticgrad.complex128": '["y"]'}}, bytes(4)), "damaged list"),
        (with_header(ONE | {"__metadata__": {"staticgrad.complex128": '["x"]'}}, bytes(4)), "not pairs of float64"),
    ],
    ids=["empty", "zip", "long header", "no json", "short", "long", "shape", "bfloat16", "list", "name", "pairs"],
)
def test_foreign_and_damaged_files_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        load_file(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file({"x": np.arange(3.0), "y": np.eye(2)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_file(path)


def test_missing_files_directories_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        load_file(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        load_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="needs a regular file"):
        load_file(tmp_path / "pipe")
    with pytest.raises(ValueError, match="needs a regular file"):
        save_file({}, tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="save_file: could not write"):
        save_file({}, tmp_path / "no folder" / "x")
    with pytest.raises(OSError, match="save_file: could not write"):
        save_file({}, tmp_path)


# Atomicity


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "no"), KeyboardInterrupt()],
    ids=["full disk", "forbidden", "interrupt"],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "x"
    save_file({"x": np.zeros(3)}, path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(error))
        with pytest.raises(type(error)) as caught:
            save_file({"x": np.ones(300)}, path)
    if isinstance(error, OSError):
        assert "save_file: could not write the file, and left what was there" in str(caught.value)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs the device that is always full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def open_full(path: str, *arguments: Any) -> int:
        return opened("/dev/full", os.O_WRONLY) if path.endswith(".tmp") else opened(path, *arguments)

    monkeypatch.setattr(os, "open", open_full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_file({"x": np.ones(10_000)}, tmp_path / "x")
    assert caught.value.errno == errno.ENOSPC


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "x", tmp_path / "link"
    save_file({}, path)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o640)
    link.symlink_to(path)
    save_file({"x": np.ones(2)}, link)
    assert link.is_symlink()
    assert list(load_file(path)) == ["x"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
