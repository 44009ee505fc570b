"""The disk cache under everything that happens to files: it answers right, or "not there", and never raises."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from staticgrad.kernels import cache as cache_module
from staticgrad.kernels.cache import (
    DiskCache,
    content_key,
    default_cache,
    default_directory,
)

KEY = content_key("an entry")
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to a read-only folder")


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache")


def entry(cache):
    """The one file in the cache."""
    (path,) = cache.directory.iterdir()
    return path


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    return out.strip()


def test_what_is_put_is_got(cache):
    assert cache.get("program", KEY) is None
    assert cache.put("program", KEY, b"payload")
    assert cache.get("program", KEY) == b"payload"
    assert cache.get("kernel", KEY) is None
    assert cache.put("program", KEY, b"")
    assert DiskCache(cache.directory).get("program", KEY) == b""


def test_a_probe_leaves_nothing_and_finds_what_is_wrong(cache):
    assert cache.probe()
    assert cache.info().entries == {}
    cache.directory.chmod(0o777)
    assert not cache.probe()
    assert "may be written by others" in cache.info().reason


def test_info_counts(cache):
    cache.get("program", KEY)
    cache.put("program", KEY, b"12345")
    cache.put("kernel", KEY, b"1")
    cache.put("kernel", content_key("another"), b"1")
    cache.get("program", KEY)
    info = cache.info()
    assert (info.hits, info.misses, info.failures) == (1, 1, 0)
    assert info.entries == {"kernel": 2, "program": 1}
    assert info.bytes == sum(path.stat().st_size for path in cache.directory.iterdir())
    assert (info.enabled, info.reason, info.directory) == (True, "", cache.directory)


def test_clear_empties_the_folder(cache):
    for number in range(5):
        cache.put("kernel", content_key(str(number)), b"x")
    (cache.directory / "77-left.tmp").write_bytes(b"half")
    assert cache.clear() == 5
    assert list(cache.directory.iterdir()) == []
    assert cache.clear() == 0


def test_keys_depend_on_every_part_and_its_place():
    keys = [content_key(*parts) for parts in (["a", "b"], ["b", "a"], ["ab"], ["ab", ""], [""], [])]
    assert len(set(keys)) == len(keys)
    assert content_key("ä") == content_key("ä".encode())
    assert len(KEY) == 64


@pytest.mark.parametrize(("kind", "key"), [("../x", KEY), ("program", "../../etc"), ("a-b", KEY), ("program", "")])
def test_a_name_that_could_leave_the_folder_is_refused(cache, kind, key):
    with pytest.raises(ValueError, match="cache: a kind is a word"):
        cache.get(kind, key)


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path / "own"))
    assert default_directory() == tmp_path / "own"
    monkeypatch.delenv("STATICGRAD_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_directory() == tmp_path / "xdg" / "staticgrad"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert default_directory() == Path.home() / ".cache" / "staticgrad"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_directory() == Path.home() / ".cache" / "staticgrad"
    assert default_cache() is default_cache()
    assert default_cache().directory == default_directory()
    monkeypatch.setenv("STATICGRAD_CACHE_DIR", str(tmp_path / "own"))
    assert default_cache().directory == tmp_path / "own"


def test_without_a_home_there_is_no_cache(monkeypatch):
    monkeypatch.delenv("STATICGRAD_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    cache = DiskCache()
    assert not cache.put("program", KEY, b"x")
    assert cache.get("program", KEY) is None
    assert not cache.info().enabled
    assert "set STATICGRAD_CACHE_DIR" in cache.info().reason
    assert not Path("~").exists()


def test_the_environment_turns_it_off(monkeypatch, cache):
    monkeypatch.setenv("STATICGRAD_CACHE", "0")
    off = DiskCache(cache.directory)
    assert not off.put("program", KEY, b"x")
    assert off.get("program", KEY) is None
    assert (off.info().enabled, off.info().reason) == (False, "STATICGRAD_CACHE=0")
    assert not cache.directory.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"X" + data[1:],
        lambda data: data[:8] + b"\x63" + data[9:],
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: data[:70] + bytes([data[70] ^ 128]) + data[71:],
        lambda data: data[:16] + b"\xff" * 8 + data[24:],
    ],
    ids=["empty", "no header", "truncated", "longer", "magic", "version", "payload bit", "name bit", "length"],
)
def test_a_damaged_entry_is_removed_and_rebuilt(cache, damage):
    cache.put("program", KEY, b"payload" * 10)
    path = entry(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("program", KEY) is None
    assert not path.exists()
    info = cache.info()
    assert info.failures == 1
    assert path.name in info.reason
    assert cache.put("program", KEY, b"again")
    assert cache.get("program", KEY) == b"again"


def test_every_flipped_bit_is_found(cache):
    cache.put("kernel", KEY, b"some payload")
    path = entry(cache)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        path.chmod(0o600)
        assert cache.get("kernel", KEY) is None, position


def test_an_entry_under_another_name_is_not_loaded(cache):
    other = content_key("other")
    cache.put("program", KEY, b"payload")
    path = entry(cache)
    path.rename(path.with_name(f"program-{other}.entry"))
    assert cache.get("program", other) is None
    assert "another key" in cache.info().reason
    cache.put("kernel", KEY, b"payload")
    path = entry(cache)
    path.rename(path.with_name(f"program-{KEY}.entry"))
    assert cache.get("program", KEY) is None


class TestOthersCannotPlantAnEntry:
    def test_files_and_folder_are_private(self, cache):
        old = os.umask(0)
        try:
            cache.put("program", KEY, b"payload")
        finally:
            os.umask(old)
        assert cache.directory.stat().st_mode & 0o777 == 0o700
        assert entry(cache).stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
    def test_a_file_others_may_write_is_not_loaded(self, cache, mode):
        cache.put("program", KEY, b"payload")
        path = entry(cache)
        path.chmod(mode)
        assert cache.get("program", KEY) is None
        assert path.exists()
        assert "may be written by others" in cache.info().reason
        assert cache.put("program", KEY, b"rebuilt")
        assert cache.get("program", KEY) == b"rebuilt"

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
    def test_a_folder_others_may_write_is_not_used(self, cache, mode):
        cache.put("program", KEY, b"payload")
        cache.directory.chmod(mode)
        assert cache.get("program", KEY) is None
        assert not cache.put("program", content_key("other"), b"payload")
        assert "folder" in cache.info().reason
        assert len(list(cache.directory.iterdir())) == 1

    def test_a_file_of_another_user_is_not_loaded(self, cache, monkeypatch):
        cache.put("program", KEY, b"payload")
        check = cache_module._check_owner
        stranger = os.geteuid() + 1

        def as_if_foreign(status, what):
            fields = list(status[:10])
            fields[4] = stranger if not what.startswith("folder") else fields[4]
            check(os.stat_result(fields), what)

        monkeypatch.setattr(cache_module, "_check_owner", as_if_foreign)
        assert cache.get("program", KEY) is None
        assert f"belongs to user {stranger}" in cache.info().reason

    def test_a_folder_of_another_user_is_not_used(self, cache, monkeypatch):
        cache.put("program", KEY, b"payload")
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert cache.get("program", KEY) is None
        assert not cache.put("program", KEY, b"payload")

    def test_symbolic_links_are_not_followed(self, cache, tmp_path):
        cache.put("program", KEY, b"payload")
        path = entry(cache)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert cache.get("program", KEY) is None
        assert "symbolic link" in cache.info().reason
        assert cache.put("program", KEY, b"rebuilt")
        assert cache.get("program", KEY) == b"rebuilt"
        assert not path.is_symlink()

    def test_a_pipe_in_place_of_an_entry_does_not_hang(self, cache):
        cache.put("program", KEY, b"payload")
        path = entry(cache)
        path.unlink()
        os.mkfifo(path, 0o600)
        assert cache.get("program", KEY) is None
        assert "not a regular file" in cache.info().reason

    def test_a_folder_in_place_of_an_entry(self, cache):
        cache.put("program", KEY, b"payload")
        path = entry(cache)
        path.unlink()
        path.mkdir()
        assert cache.get("program", KEY) is None
        assert not cache.put("program", KEY, b"payload")
        assert [found.name for found in cache.directory.iterdir()] == [path.name]


class TestNoPlaceToWrite:
    @not_root
    def test_a_read_only_folder_still_serves(self, cache):
        cache.put("program", KEY, b"payload")
        cache.directory.chmod(0o500)
        assert not cache.put("program", content_key("other"), b"x")
        assert cache.get("program", KEY) == b"payload"
        assert "cannot write" in cache.info().reason
        cache.directory.chmod(0o700)

    def test_a_read_only_file_system(self, cache, monkeypatch):
        cache.put("program", KEY, b"payload")

        def refuse(*arguments, **options):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(tempfile, "mkstemp", refuse)
        monkeypatch.setattr(os, "utime", refuse)
        assert not cache.put("program", content_key("other"), b"x")
        assert cache.get("program", KEY) == b"payload"
        assert "Read-only file system" in cache.info().reason

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("not a folder")
        cache = DiskCache(tmp_path / "file" / "cache")
        assert cache.get("program", KEY) is None
        assert not cache.put("program", KEY, b"x")
        info = cache.info()
        assert (info.failures, info.bytes, info.entries) == (1, 0, {})
        assert cache.clear() == 0

    @pytest.mark.parametrize("call", ["write", "replace"])
    def test_a_full_disk_leaves_nothing_behind(self, cache, monkeypatch, call):
        cache.put("kernel", KEY, b"here already")
        real_write = os.write

        def full(descriptor, *rest):
            if call == "write":
                real_write(descriptor, bytes(rest[0])[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, call, full)
        assert not cache.put("program", KEY, b"x" * 100)
        monkeypatch.undo()
        assert cache.get("program", KEY) is None
        assert cache.get("kernel", KEY) == b"here already"
        assert [path.name for path in cache.directory.iterdir()] == [f"kernel-{KEY}.entry"]
        assert "No space left" in cache.info().reason

    def test_a_limit_on_file_size(self, cache):
        code = """
import resource, signal, sys
from pathlib import Path
from staticgrad.kernels.cache import DiskCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
cache = DiskCache(Path(sys.argv[1]))
assert not cache.put("program", sys.argv[2], b"x" * 100000)
assert cache.put("kernel", sys.argv[2], b"small")
assert cache.get("kernel", sys.argv[2]) == b"small"
print(sorted(path.name.split("-")[0] for path in cache.directory.iterdir()), cache.info().failures)
"""
        assert finish(start(code, cache.directory, KEY)) == "['kernel'] 1"


def test_a_killed_writer_leaves_no_entry_and_is_swept(cache):
    code = """
import os, sys, time
from pathlib import Path
from staticgrad.kernels import cache
def hang(source, target):
    print("written", flush=True)
    time.sleep(60)
os.replace = hang
cache.DiskCache(Path(sys.argv[1])).put("program", sys.argv[2], b"x" * 1000)
"""
    writer = start(code, cache.directory, KEY)
    assert writer.stdout.readline().strip() == "written"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert cache.get("program", KEY) is None
    left = entry(cache)
    assert left.suffix == ".tmp"
    assert cache.put("program", KEY, b"rebuilt")
    assert left.exists(), "a young temporary file may belong to a living writer"
    old = time.time() - 2 * cache_module.STALE_SECONDS
    os.utime(left, (old, old))
    assert DiskCache(cache.directory).put("kernel", KEY, b"x")
    assert not left.exists()
    assert cache.get("program", KEY) == b"rebuilt"


def test_processes_at_once(cache):
    code = """
import sys
from pathlib import Path
from staticgrad.kernels.cache import DiskCache, content_key
cache, me = DiskCache(Path(sys.argv[1])), sys.argv[2]
wrong = 0
for turn in range(40):
    shared, own = content_key("shared", str(turn % 3)), content_key(me, str(turn))
    assert cache.put("program", shared, (str(turn % 3) * 50000).encode())
    assert cache.put("kernel", own, me.encode() * 1000)
    found = cache.get("program", shared)
    wrong += found != (str(turn % 3) * 50000).encode()
    wrong += cache.get("kernel", own) != me.encode() * 1000
print(wrong, cache.info().failures)
"""
    writers = [start(code, cache.directory, name) for name in "abcd"]
    assert [finish(writer) for writer in writers] == ["0 0"] * 4
    assert cache.info().entries == {"kernel": 160, "program": 3}
    assert all(path.suffix == ".entry" for path in cache.directory.iterdir())


def test_threads_at_once(cache):
    wrong = []

    def work(name):
        for turn in range(30):
            key = content_key(str(turn % 5))
            if not cache.put("kernel", key, key.encode() * 100) or cache.get("kernel", key) != key.encode() * 100:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.info().hits == 180


def test_the_entries_used_longest_ago_go_first(tmp_path):
    cache = DiskCache(tmp_path / "cache", limit_bytes=3500)
    keys = [content_key(str(number)) for number in range(4)]
    for age, key in enumerate(keys[:3]):
        cache.put("kernel", key, b"x" * 1000)
        then = time.time() - 100 + age
        os.utime(cache.directory / f"kernel-{key}.entry", (then, then))
    assert cache.get("kernel", keys[0]) is not None  # used now, so the next one is the oldest
    cache.put("kernel", keys[3], b"x" * 1000)
    assert [cache.get("kernel", key) is not None for key in keys] == [True, False, True, True]
    assert cache.info().bytes <= 3500


def test_an_entry_above_the_limit_by_itself_is_dropped(tmp_path):
    cache = DiskCache(tmp_path / "cache", limit_bytes=100)
    cache.put("kernel", KEY, b"x" * 1000)
    assert cache.info().bytes == 0


def test_an_interrupt_leaves_nothing_behind(cache, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.put("program", KEY, b"x")
    assert list(cache.directory.iterdir()) == []


def test_the_cache_needs_neither_numba_nor_llvm():
    code = "import sys; import staticgrad.kernels.cache; print({'numba', 'llvmlite', 'scipy'} & set(sys.modules))"
    assert finish(start(code)) == "set()"
