"""Tensors in files: the safetensors format, written so that a reader never meets half a file."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from staticgrad.data.convert import to_array, to_tensor

if TYPE_CHECKING:
    from staticgrad.tensor import Tensor

__all__ = ["load_file", "read_arrays", "replace_file", "save_file", "write_arrays"]

Array = npt.NDArray[Any]

_PAIRS = "staticgrad.complex128"  # metadata: the names of the complex128 tensors, which the format has no dtype for


def save_file(
    tensors: Mapping[str, Tensor | npt.ArrayLike],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors to one safetensors file.

    The file is written beside `path` under another name, brought to the disk, and then moved to `path`: whoever reads
    `path`, also after a crash, finds the old file or the new one. complex128 is kept as float64 with a last axis of
    length 2, which `load_file` undoes.

    Args:
        tensors: Tensors or arrays of any shape and layout, by name. bool, integers, float16 to float64, complex.
        path: the file to write or replace.
        metadata: text to keep with them.

    Raises:
        TypeError: a name or a metadata entry that is not text, or a dtype that the format does not have.
        ValueError: a name or a metadata key that is reserved, or a `path` that is not a regular file.
        OSError: the file cannot be written; the old one is intact.
    """
    reserved = [key for key in metadata or {} if isinstance(key, str) and key.startswith("staticgrad.")]
    if reserved:
        raise ValueError(f"save_file: metadata keys must not begin with 'staticgrad.'; got {reserved}")
    write_arrays(tensors, path, metadata or {}, caller="save_file")


def load_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, of whatever origin, by name.

    Raises:
        OSError: the file is missing, is a directory or may not be read.
        ValueError: it is not a whole safetensors file, or has a dtype that NumPy does not (bfloat16, float8). The
            message names the file and the fault.
        TypeError: it has a dtype that a Tensor does not.
    """
    arrays, _ = read_arrays(path, caller="load_file")
    tensors = {}
    for name, array in arrays.items():
        try:
            tensors[name] = to_tensor(array)
        except TypeError as error:
            raise TypeError(f"load_file: {os.fspath(path)} holds {name!r} of {array.dtype}: {error}") from error
    return tensors


def write_arrays(
    tensors: Mapping[str, Tensor | npt.ArrayLike],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    *,
    caller: str,
) -> None:
    """`save_file` for the package itself: any metadata key is free, and `caller` opens the errors."""
    from safetensors.numpy import save

    arrays = {_checked_name(name, caller): _storable(name, to_array(value), caller) for name, value in tensors.items()}
    for key, text in metadata.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"{caller}: metadata must map text to text; got {key!r}: {text!r}")
    paired = [name for name, array in arrays.items() if array.dtype == np.complex128]
    for name in paired:
        arrays[name] = arrays[name].reshape(-1).view(np.float64).reshape(*arrays[name].shape, 2)
    notes = dict(metadata) | ({_PAIRS: json.dumps(paired)} if paired else {})
    replace_file(path, save(arrays, notes or None), caller=caller)


def read_arrays(path: str | os.PathLike[str], *, caller: str) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the metadata of a safetensors file; raises as `load_file`, with `caller` before the message."""
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    _must_be_regular(path, caller)
    with open(path, "rb"):
        pass  # what the system says about a missing or closed file is clearer than what the format's reader says
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            arrays: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{caller}: {path} is not a whole safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{caller}: {path} holds a dtype that NumPy does not have: {error}") from error
    for name in _paired_names(metadata.pop(_PAIRS, "[]"), arrays, path, caller):
        pairs = arrays[name]
        arrays[name] = pairs.reshape(-1).view(np.complex128).reshape(pairs.shape[:-1])
    return arrays, metadata


def replace_file(path: str | os.PathLike[str], data: bytes, *, caller: str) -> None:
    """Put `data` in the place of the file at `path` in one step; whatever goes wrong before it leaves the old file."""
    target = os.path.realpath(path)  # a link stays, and what it points to is replaced
    _must_be_regular(target, caller)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            _write_through(temporary, data, like=target)
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C too
            _remove(temporary)
            raise
    except OSError as error:
        reason = f"{caller}: could not write the file, and left what was there: {error.strerror}"
        raise OSError(error.errno, reason, os.fspath(path)) from error
    _sync_folder(folder)


def _write_through(path: str, data: bytes, *, like: str) -> None:
    """Write a new file to the disk itself, with the permissions of the one that it is to replace."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with open(descriptor, "wb") as stream:
        if os.path.exists(like):
            os.fchmod(descriptor, stat.S_IMODE(os.stat(like).st_mode))
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return  # it was never made, or the folder is gone


def _sync_folder(folder: str) -> None:
    """Make the new name last through a power cut, on the file systems that can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _must_be_regular(path: str, caller: str) -> None:
    """Refuse pipes and devices; a directory is left to the system, which names it."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(f"{caller}: needs a regular file; {path} is a device, a pipe or a socket")


def _checked_name(name: Any, caller: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{caller}: names of tensors must be text; got {name!r}")
    if name == "__metadata__":
        raise ValueError(f"{caller}: the format reserves the name '__metadata__'; rename that tensor")
    return name


def _storable(name: str, array: Array, caller: str) -> Array:
    """The array in C order and the machine's byte order; complex128 passes, to be stored as pairs."""
    known = array.dtype.kind in "biufc" and (array.dtype.itemsize <= 8 or array.dtype == np.complex128)
    if not known:
        raise TypeError(f"{caller}: tensors must be bool, integer, floating or complex; {name!r} is {array.dtype}")
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _paired_names(text: str, arrays: Mapping[str, Array], path: str, caller: str) -> list[str]:
    try:
        names = json.loads(text)
        if all(arrays[name].dtype == np.float64 and arrays[name].shape[-1] == 2 for name in names):
            return list(names)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{caller}: {path} has a damaged list of complex128 tensors") from error
    raise ValueError(f"{caller}: {path} lists complex128 tensors that are not pairs of float64")
