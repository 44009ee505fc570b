"""Reading tables of numbers from CSV."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_csv"]


def read_csv(
    path: str | os.PathLike[str],
    *,
    delimiter: str = ",",
    header: bool | str = "auto",
    dtype: npt.DTypeLike = np.float32,
) -> npt.NDArray[Any]:
    """Read a CSV file in which every field is a number.

    Args:
        path: the file, UTF-8. Empty lines are passed over.
        delimiter: the one character between fields; fields may stand in double quotes.
        header: whether the first line holds names, which are dropped. "auto" takes it as names where not all of its
            fields are numbers.
        dtype: a real dtype, integer or floating.

    Returns:
        An array (rows, columns) of `dtype`; (0, columns) where there is only a header.

    Raises:
        OSError: the file is missing, is a directory or may not be read.
        TypeError: a dtype that is neither integer nor floating.
        ValueError: no lines, a line of another length than the first, a field that is not a number of `dtype`, or
            text that is not UTF-8. The message names the file and the line.
    """
    path = os.fspath(path)
    dtype = np.dtype(dtype)
    if dtype.kind not in "iuf":
        raise TypeError(f"read_csv: dtype must be an integer or a floating dtype; got {dtype}")
    if header not in (True, False, "auto"):
        raise ValueError(f'read_csv: header must be True, False or "auto"; got {header!r}')
    if len(delimiter) != 1:
        raise ValueError(f"read_csv: delimiter must be one character; got {delimiter!r}")
    rows = _split_lines(_read_text(path), delimiter, path)
    if not rows:
        raise ValueError(f"read_csv: {path} has no lines")
    width = len(rows[0][1])
    if header is True or (header == "auto" and not all(_is_number(field) for field in rows[0][1])):
        del rows[0]
    table = np.empty((len(rows), width), dtype)
    with np.errstate(over="raise"):
        for row, (line, fields) in zip(table, rows, strict=True):
            if len(fields) != width:
                raise ValueError(f"read_csv: {path}, line {line}: {len(fields)} fields; the first line has {width}")
            _fill(row, fields, f"{path}, line {line}")
    return table


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"read_csv: {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _split_lines(text: str, delimiter: str, path: str) -> list[tuple[int, list[str]]]:
    """The fields of each line that is not empty, with the number of that line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend(
            (reader.line_num, fields) for fields in reader if len(fields) > 1 or any(field.strip() for field in fields)
        )
    except csv.Error as error:
        raise ValueError(f"read_csv: {path}, line {reader.line_num}: {error}") from error
    return rows


def _fill(row: npt.NDArray[Any], fields: list[str], place: str) -> None:
    number = int if row.dtype.kind in "iu" else float
    for column, field in enumerate(fields):
        try:
            row[column] = number(field)
        except (ValueError, OverflowError, FloatingPointError):
            raise ValueError(
                f"read_csv: {place}, column {column + 1}: {field!r} is not a number of dtype {row.dtype}"
            ) from None


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
