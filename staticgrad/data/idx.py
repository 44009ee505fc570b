"""The IDX format of the MNIST files.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", the section on file formats.
A file is two zero bytes, one byte for the type, one for the number of axes, a big-endian uint32 for the length of
each axis, and then the values, big-endian, the last axis fastest.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["MNIST", "mnist", "read_idx"]

_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20
_MOST_AXES = 64  # what a NumPy array can have


class MNIST(NamedTuple):
    """The four arrays of an MNIST-like data set: images (n, pixels) float32, labels (n,) int64."""

    train_images: npt.NDArray[Any]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[Any]
    test_labels: npt.NDArray[np.int64]


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read one IDX file, plain or gzip-compressed (told by its first bytes, not by its name).

    Args:
        path: the file.

    Returns:
        A new array in the machine's byte order, of dtype uint8, int8, int16, int32, float32 or float64 and of the
        shape that the file declares.

    Raises:
        OSError: the file is missing, is a directory or may not be read.
        ValueError: it is not IDX, ends too early, goes on after its last value, or its gzip data is damaged. The
            message names the file.
    """
    path = os.fspath(path)
    with _opened(path) as stream:
        dtype, shape = _read_header(stream, path)
        expected = math.prod(shape) * dtype.itemsize
        data = _read_at_most(stream, expected + 1)
    declared = f"shape {shape} of {dtype.newbyteorder('=')} needs {expected} bytes of values"
    if len(data) < expected:
        raise ValueError(f"read_idx: {path} is truncated: its {declared}; it holds {len(data)}")
    if len(data) > expected:
        raise ValueError(f"read_idx: {path} goes on after its last value: its {declared}; it holds more")
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=True).reshape(shape)


def mnist(directory: str | os.PathLike[str], *, normalize: bool = True) -> MNIST:
    """Read the four IDX files of MNIST, or of a set with the same names, from a directory.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`; a dot may stand for the hyphen before `idx`, and `.gz` may follow.

    Args:
        directory: the folder that holds them.
        normalize: scale images of uint8 from 0..255 to [0, 1]. Otherwise the values stay, as float32.

    Returns:
        `(train_images, train_labels, test_images, test_labels)`: images float32 (n, rows * columns), labels int64 (n,).

    Raises:
        OSError: the directory or one of the files is missing or may not be read.
        ValueError: a file is no IDX file, has the wrong number of axes or labels that are not integers, or the
            numbers of images and labels, or the sizes of the training and the test images, differ.
    """
    directory = os.fspath(directory)
    names = os.listdir(directory)
    train_images, train_labels = _read_pair(directory, names, "train", normalize)
    test_images, test_labels = _read_pair(directory, names, "t10k", normalize)
    if train_images.shape[1] != test_images.shape[1]:
        raise ValueError(
            f"mnist: training and test images must have the same number of pixels; "
            f"{directory} has {train_images.shape[1]} and {test_images.shape[1]}"
        )
    return MNIST(train_images, train_labels, test_images, test_labels)


def _read_pair(
    directory: str, names: list[str], part: str, normalize: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    images_path = _find(directory, names, f"{part}-images", "idx3-ubyte")
    labels_path = _find(directory, names, f"{part}-labels", "idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3:
        raise ValueError(f"mnist: images need 3 axes (number, rows, columns); {images_path} has shape {images.shape}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"mnist: labels need 1 axis of integers; {labels_path} has shape {labels.shape} of {labels.dtype}"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"mnist: every image needs one label; {images_path} has {len(images)} images "
            f"and {labels_path} {len(labels)} labels"
        )
    scale = 255 if normalize and images.dtype == np.uint8 else 1
    pixels = images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float32)
    return pixels / np.float32(scale), labels.astype(np.int64)


def _find(directory: str, names: list[str], stem: str, suffix: str) -> str:
    candidates = [stem + joint + suffix + ending for ending in ("", ".gz") for joint in "-."]
    for name in candidates:
        if name in names:
            return os.path.join(directory, name)
    raise FileNotFoundError(f"mnist: {directory} must hold {candidates[0]} or {candidates[2]}; it holds neither")


@contextmanager
def _opened(path: str) -> Iterator[BufferedIOBase]:
    """The file's content, decompressed where it is gzip; damage met while reading is a ValueError."""
    with open(path, "rb") as plain:
        if plain.peek(2)[:2] != _GZIP_MAGIC:
            yield plain
            return
        try:
            with gzip.GzipFile(fileobj=plain) as unpacked:
                yield unpacked
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"read_idx: the gzip data of {path} is damaged: {error}") from error


def _read_header(stream: BufferedIOBase, path: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise ValueError(
            f"read_idx: {path} is not an IDX file: it must begin with 00 00, a type "
            f"({', '.join(f'{code:02x}' for code in _DTYPES)}) and the number of axes; "
            f"it begins with {magic.hex(' ') or 'nothing'}"
        )
    dtype, axes = _DTYPES[magic[2]], magic[3]
    if axes > _MOST_AXES:
        raise ValueError(f"read_idx: {path} declares {axes} axes; an array has at most {_MOST_AXES}")
    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise ValueError(
            f"read_idx: {path} is truncated: its header declares {axes} axes and ends before their lengths"
        )
    return dtype, tuple(int(length) for length in np.frombuffer(lengths, ">u4"))


def _read_at_most(stream: BufferedIOBase, limit: int) -> bytearray:
    """Read in pieces, so that a header which declares a huge shape costs no more memory than the file has bytes."""
    data = bytearray()
    while len(data) < limit:
        piece = stream.read(min(_CHUNK, limit - len(data)))
        if not piece:
            break
        data += piece
    return data
