"""The cache on disk: compiled programs and single kernels, found by the hash of everything they depend on.

The cache may be missing, full, read-only, shared between processes or damaged, and nobody's work may suffer: each
operation answers "not there" or "not stored", never raises, and `info()` says why. What is loaded from here is run, so
an entry counts only when it is whole (checksum), is the entry asked for (its key is inside), and could have been
written by this user alone (owner and permissions of the file and of its folder). docs/cache.md has the details.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

FORMAT_VERSION = 1
DEFAULT_LIMIT = 512 * 2**20
STALE_SECONDS = 3600  # a temporary file older than this belongs to a writer that died
_LOOK_EVERY = 1 / 16  # of the limit: bytes written between two looks at the size of the folder
_MAGIC = b"SGCACHE\n"
_HEADER = struct.Struct("<8sIIQ32s")  # magic, format version, length of the name, length of the payload, sha256
_SUFFIX = ".entry"
_TEMPORARY = ".tmp"
_NOT_FOUND = (errno.ENOENT, errno.ENOTDIR)


class CacheInfo(NamedTuple):
    """What `DiskCache.info` reports: the folder's state, and what this process did with it."""

    directory: Path
    enabled: bool
    reason: str  # why the cache is off, or the last trouble it met; empty when all is well
    entries: dict[str, int]  # by kind
    bytes: int
    hits: int
    misses: int
    failures: int


class _Counts:
    def __init__(self) -> None:
        self.hits = self.misses = self.failures = 0
        self.reason = ""


_COUNTS_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not inherit it locked
    os.register_at_fork(
        before=_COUNTS_LOCK.acquire, after_in_parent=_COUNTS_LOCK.release, after_in_child=_COUNTS_LOCK.release
    )


def content_key(*parts: bytes | str) -> str:
    """SHA-256, in hexadecimal, of the parts; their lengths count, so ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)
    return digest.hexdigest()


def default_cache() -> DiskCache:
    """The cache of this process in the folder that the environment names now."""
    return _cache_of(default_directory(), os.environ.get("STATICGRAD_CACHE"))


@cache
def _cache_of(directory: Path | None, switch: str | None) -> DiskCache:
    return DiskCache()


def default_directory() -> Path | None:
    """`STATICGRAD_CACHE_DIR`, else `staticgrad` under `XDG_CACHE_HOME`, else under `~/.cache`; None without a home."""
    if own := os.environ.get("STATICGRAD_CACHE_DIR"):
        return _absolute(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return _absolute(os.path.join(base if os.path.isabs(base) else "~/.cache", "staticgrad"))


class DiskCache:
    """Entries in one folder, each a file named `kind-key.entry`; safe for any number of processes and threads.

    Args: `directory` defaults to `default_directory()`; `limit_bytes` is the size above which the entries used longest
    ago are removed. `STATICGRAD_CACHE=0` in the environment turns the cache off.
    """

    def __init__(self, directory: Path | None = None, limit_bytes: int = DEFAULT_LIMIT) -> None:
        found = default_directory() if directory is None else Path(directory)
        self.directory = found or Path(os.devnull)
        self.limit_bytes = limit_bytes
        self._counts = _Counts()
        self._disabled = "" if found else "there is no home folder: set STATICGRAD_CACHE_DIR"
        if os.environ.get("STATICGRAD_CACHE", "") == "0":
            self._disabled = "STATICGRAD_CACHE=0"
        self._unseen = limit_bytes  # bytes written since the last look at the folder; the first put looks

    def get(self, kind: str, key: str) -> bytes | None:
        """The payload stored under `key`, or None. A damaged entry is deleted, one from elsewhere is left alone."""
        if self._disabled:
            return None
        name = _entry_name(kind, key)
        try:
            payload = self._read(name)
        except _DamagedError as trouble:
            self._fail(f"{name}: {trouble}; removed")
            with contextlib.suppress(OSError):
                (self.directory / name).unlink()
            payload = None
        except _UntrustedError as trouble:
            self._fail(f"{trouble}; ignored")
            payload = None
        except (OSError, MemoryError) as error:
            if getattr(error, "errno", None) not in _NOT_FOUND:
                self._fail(f"cannot read {self.directory / name}: {error}")
            payload = None
        with _COUNTS_LOCK:
            if payload is None:
                self._counts.misses += 1
            else:
                self._counts.hits += 1
        return payload

    def put(self, kind: str, key: str, payload: bytes) -> bool:
        """Store the payload, whole or not at all; True when it is stored."""
        if self._disabled:
            return False
        name = _entry_name(kind, key)
        try:
            self._prepare()
            self._write(name, payload)
        except _UntrustedError as trouble:
            self._fail(f"{trouble}; nothing stored")
            return False
        except (OSError, MemoryError) as error:
            self._fail(f"cannot write {self.directory / name}: {error}")
            return False
        self._tidy(len(payload))
        return True

    def info(self) -> CacheInfo:
        """Folder, entries by kind, bytes, and what this process found, missed and failed at, with the last reason."""
        entries: dict[str, int] = {}
        total = 0
        for path, status in self._files(_SUFFIX):
            kind = path.name.partition("-")[0]
            entries[kind] = entries.get(kind, 0) + 1
            total += status.st_size
        counts = self._counts
        return CacheInfo(
            directory=self.directory,
            enabled=not self._disabled,
            reason=self._disabled or counts.reason,
            entries=dict(sorted(entries.items())),
            bytes=total,
            hits=counts.hits,
            misses=counts.misses,
            failures=counts.failures,
        )

    def probe(self) -> bool:
        """Store an entry, read it back and delete it; False when that fails, and the reason is in `info()`."""
        key = content_key("probe", str(os.getpid()))
        works = self.put("probe", key, b"probe") and self.get("probe", key) == b"probe"
        with contextlib.suppress(OSError):
            (self.directory / _entry_name("probe", key)).unlink()
        return works

    def clear(self) -> int:
        """Delete all entries and what dead writers left behind; the number of entries deleted."""
        removed = 0
        for path, _ in self._files(_SUFFIX):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
        self._sweep(older_than=0)
        return removed

    def _read(self, name: str) -> bytes:
        """The payload of an entry, opened relative to the folder that was checked, so neither can be swapped."""
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _check_owner(os.fstat(folder), f"folder {self.directory}")
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _UntrustedError(f"{name} is a symbolic link") from error
            raise
        finally:
            os.close(folder)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _UntrustedError(f"{name} is not a regular file")
            _check_owner(status, name)
            payload = _unpack(name, file.read())
            with contextlib.suppress(OSError):
                os.utime(descriptor)  # used now: eviction goes by this time
        return payload

    def _prepare(self) -> None:
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(os.stat(self.directory), f"folder {self.directory}")

    def _write(self, name: str, payload: bytes) -> None:
        """Write beside the target and rename: readers see the old entry, the new one or none, never a part.

        Nothing is forced to the disk: what a machine that loses power leaves torn fails its checksum.
        """
        import tempfile

        descriptor, temporary = tempfile.mkstemp(suffix=_TEMPORARY, prefix=f"{os.getpid()}-", dir=self.directory)
        try:
            with open(descriptor, "wb") as file:
                _write_all(file.fileno(), _pack(name, payload))
            os.replace(temporary, self.directory / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _tidy(self, written: int) -> None:
        """Sweep and evict now and then: at the first write, and after each sixteenth of the limit written."""
        with _COUNTS_LOCK:
            self._unseen += written
            due = self._unseen > self.limit_bytes * _LOOK_EVERY
            if due:
                self._unseen = 0
        if due:
            self._sweep(older_than=STALE_SECONDS)
            self._evict()

    def _evict(self) -> None:
        """Remove the entries used longest ago until the rest fits."""
        files = sorted(self._files(_SUFFIX), key=lambda item: item[1].st_mtime_ns)
        excess = sum(status.st_size for _, status in files) - self.limit_bytes
        for path, status in files:
            if excess <= 0:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            excess -= status.st_size

    def _sweep(self, older_than: float) -> None:
        """Remove temporary files of writers that died."""
        horizon = time.time() - older_than
        for path, status in self._files(_TEMPORARY):
            if status.st_mtime <= horizon:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _files(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        try:
            with os.scandir(self.directory) as found:
                entries = [entry for entry in found if entry.name.endswith(suffix)]
        except OSError:
            return
        for entry in entries:
            with contextlib.suppress(OSError):
                yield Path(entry.path), entry.stat(follow_symlinks=False)

    def _fail(self, reason: str) -> None:
        with _COUNTS_LOCK:
            self._counts.failures += 1
            self._counts.reason = reason


class _DamagedError(Exception):
    """The entry is not what was written."""


class _UntrustedError(Exception):
    """Someone else could have written the entry."""


def _absolute(path: str) -> Path | None:
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        return None
    with contextlib.suppress(OSError):  # the working directory may be gone
        return Path(os.path.abspath(expanded))
    return None


def _entry_name(kind: str, key: str) -> str:
    if not (kind.isidentifier() and key.isalnum() and key.isascii()):
        raise ValueError(f"cache: a kind is a word and a key is hexadecimal; got {kind!r}, {key!r}; use content_key")
    return f"{kind}-{key}{_SUFFIX}"


def _check_owner(status: os.stat_result, what: str) -> None:
    if status.st_uid != os.geteuid():
        raise _UntrustedError(f"{what} belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _UntrustedError(f"{what} may be written by others (mode {stat.S_IMODE(status.st_mode):04o})")


def _pack(name: str, payload: bytes) -> bytes:
    label = name.encode()
    header = _HEADER.pack(_MAGIC, FORMAT_VERSION, len(label), len(payload), _digest(label, payload))
    return b"".join((header, label, payload))


def _unpack(name: str, data: bytes) -> bytes:
    if len(data) < _HEADER.size:
        raise _DamagedError(f"{len(data)} bytes, shorter than a header")
    magic, version, name_length, length, digest = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != FORMAT_VERSION:
        raise _DamagedError("not an entry of this format")
    start = _HEADER.size + name_length
    if len(data) != start + length:
        raise _DamagedError(f"{len(data)} bytes instead of {start + length}")
    label, payload = data[_HEADER.size : start], data[start:]
    if _digest(label, payload) != digest:
        raise _DamagedError("its checksum is wrong")
    if label != name.encode():
        raise _DamagedError("it was stored under another key")
    return payload


def _digest(label: bytes, payload: bytes) -> bytes:
    digest = hashlib.sha256(struct.pack("<Q", len(label)))
    digest.update(label)
    digest.update(payload)
    return digest.digest()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
