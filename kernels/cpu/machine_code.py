"""Object files made runnable: each section copied into memory, each reference to a symbol filled in.

LLVM can do this too, but a process that only runs programs then has to load LLVM first, which takes 20 ms and 40 MB.
What LLVM emits for x86-64 on Linux needs a few kinds of references; where anything else is met, or on another platform,
LLVM does the work.

Format: System V ABI, AMD64 supplement, chapter 4, "Object Files".
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

Resolve = Callable[[str], int]
_HEADER, _SECTION, _SYMBOL, _REFERENCE = (
    struct.Struct(text) for text in ("<16sHHIQQQIHHHHHH", "<IIQQQQIIQQ", "<IBBHQQ", "<QQq")
)
_SYMBOLS, _REFERENCES, _EMPTY, _UNWIND = 2, 4, 8, 0x70000001  # kinds of sections
_WRITTEN, _LOADED = 1, 2  # flags of sections
_ABSOLUTE, _RELATIVE, _CALL = 1, 2, 4  # kinds of references: R_X86_64_64, _PC32, _PLT32
_THROUGH_TABLE = (9, 41, 42)  # _GOTPCREL, _GOTPCRELX, _REX_GOTPCRELX: relative to where the address stands
_UNDEFINED = 0
_JUMP = b"\xff\x25\x00\x00\x00\x00"  # jmp *(the 8 bytes that follow)
_JUMP_BYTES = 16
PAGE = mmap.PAGESIZE


class UnsupportedObjectError(Exception):
    """An object file that needs what is not done here."""


class Code(NamedTuple):
    """Machine code in memory: where its symbols are, and what frees it."""

    symbols: Mapping[str, int]
    free: Callable[[], None]

    def address(self, symbol: str) -> int:
        """Where a symbol of the code is."""
        return self.symbols[symbol]


def load(objects: Sequence[bytes], symbols: Sequence[str], resolve: Resolve, externals: Sequence[str]) -> Code:
    """Object files, linked with each other and with what `resolve` knows of the `externals`, ready to be called.

    Args: `symbols` are those that will be asked for.
    """
    try:
        return _link(objects, resolve)
    except (UnsupportedObjectError, OSError):  # OSError: this system does not grant memory for code in this way
        from staticgrad.kernels.cpu.llvm import load_with_llvm

        return load_with_llvm(objects, symbols, {name: resolve(name) for name in externals})


# ---------------------------------------------------------------- reading


@dataclass(eq=False, repr=False)
class _Section:
    kind: int
    flags: int
    data: bytes
    size: int
    alignment: int
    link: int
    info: int
    place: int = -1  # from the start of the memory


class _Object(NamedTuple):
    sections: list[_Section]
    symbols: list[tuple[str, int, int, bool]]  # name, section, value, visible outside


def _read(data: bytes) -> _Object:
    found = _HEADER.unpack_from(data)
    if not found[0].startswith(b"\x7fELF\x02\x01") or found[1] != 1 or found[2] != 62:
        raise UnsupportedObjectError("not a relocatable object for x86-64")
    start, size, count = found[6], found[11], found[12]
    sections = []
    for number in range(count):
        _, kind, flags, _, offset, nbytes, link, info, alignment, _ = _SECTION.unpack_from(data, start + number * size)
        content = b"" if kind == _EMPTY else data[offset : offset + nbytes]
        sections.append(_Section(kind, flags, content, nbytes, max(1, alignment), link, info))
    read = _Object(sections, [])
    for section in sections:
        if section.kind == _SYMBOLS:
            names = sections[section.link].data
            for name, info, _, index, value, _ in _SYMBOL.iter_unpack(section.data):
                text = names[name : names.index(b"\0", name)].decode()
                read.symbols.append((text, index, value, info >> 4 != 0))
    return read


# ---------------------------------------------------------------- placing


def _link(objects: Sequence[bytes], resolve: Resolve) -> Code:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UnsupportedObjectError(sys.platform)
    read = [_read(data) for data in objects]
    loaded = [s for found in read for s in found.sections if s.flags & _LOADED and s.kind != _UNWIND]
    end = 0
    for section in (s for s in loaded if not s.flags & _WRITTEN):
        end = section.place = -(-end // section.alignment) * section.alignment
        end += section.size
    jumps = -(-end // _JUMP_BYTES) * _JUMP_BYTES
    outside = _names_outside(read)
    slots = jumps + len(outside) * _JUMP_BYTES
    fixed = end = -(-(slots + 8 * _table_references(read)) // PAGE) * PAGE
    for section in (s for s in loaded if s.flags & _WRITTEN):
        end = section.place = -(-end // section.alignment) * section.alignment
        end += section.size
    end = -(-max(end, 1) // PAGE) * PAGE
    memory = bytearray(end)
    for section in loaded:
        memory[section.place : section.place + len(section.data)] = section.data
    start = _reserve(end)
    try:
        addresses = {name: start + jumps + number * _JUMP_BYTES for number, name in enumerate(outside)}
        for number, name in enumerate(outside):
            place = jumps + number * _JUMP_BYTES
            memory[place : place + 14] = _JUMP + struct.pack("<Q", resolve(name))
        symbols = _addresses(read, start)
        table = _Table(start, slots, memory)
        for found in read:
            _fill_in(found, start, memory, symbols | addresses, table)
        ctypes.memmove(start, bytes(memory), end)
        if fixed and _c().mprotect(ctypes.c_void_p(start), fixed, mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError("the system refuses to run code from this memory")
    except BaseException:
        _release(start, end)
        raise
    return Code(symbols, lambda: _release(start, end))


def _names_outside(read: Sequence[_Object]) -> list[str]:
    """What no object defines, each once."""
    inside = {name for found in read for name, index, _, _ in found.symbols if index != _UNDEFINED}
    return list(
        dict.fromkeys(
            name for found in read for name, index, _, _ in found.symbols if index == _UNDEFINED and name not in inside
            if name
        )
    )  # fmt: skip


def _table_references(read: Sequence[_Object]) -> int:
    kinds = (
        info & 0xFFFFFFFF
        for found in read
        for section in found.sections
        if section.kind == _REFERENCES
        for _, info, _ in _REFERENCE.iter_unpack(section.data)
    )
    return sum(kind in _THROUGH_TABLE for kind in kinds)


class _Table:
    """Addresses in memory, for code that reads where a symbol is."""

    def __init__(self, start: int, slots: int, memory: bytearray) -> None:
        self._start, self._next, self._memory = start, slots, memory
        self._known: dict[int, int] = {}

    def slot(self, target: int) -> int:
        """Where the address `target` stands."""
        if target not in self._known:
            self._memory[self._next : self._next + 8] = struct.pack("<Q", target)
            self._known[target] = self._start + self._next
            self._next += 8
        return self._known[target]


def _addresses(read: Sequence[_Object], start: int) -> dict[str, int]:
    return {
        name: start + found.sections[index].place + value
        for found in read
        for name, index, value, visible in found.symbols
        if visible and index != _UNDEFINED and index < len(found.sections)
    }


def _fill_in(found: _Object, start: int, memory: bytearray, known: Mapping[str, int], table: _Table) -> None:
    for section in found.sections:
        if section.kind != _REFERENCES or found.sections[section.info].place < 0:
            continue
        base = found.sections[section.info].place
        for offset, info, addend in _REFERENCE.iter_unpack(section.data):
            name, index, value, visible = found.symbols[info >> 32]
            target = known[name] if visible else start + found.sections[index].place + value
            place, kind = base + offset, info & 0xFFFFFFFF
            if kind in _THROUGH_TABLE:
                target = table.slot(target)
            if kind in (_RELATIVE, _CALL, *_THROUGH_TABLE):
                distance = target + addend - (start + place)
                if not -(2**31) <= distance < 2**31:
                    raise UnsupportedObjectError(f"{name} is too far away")
                memory[place : place + 4] = struct.pack("<i", distance)
            elif kind == _ABSOLUTE:
                memory[place : place + 8] = struct.pack("<Q", target + addend)
            else:
                raise UnsupportedObjectError(f"a reference of kind {kind}")


# ---------------------------------------------------------------- memory


@cache
def _c() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


def _reserve(nbytes: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = _c().mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if start is None or start == ctypes.c_void_p(-1).value:
        raise OSError("no memory for the code of a program")
    return int(start)


def _release(start: int, nbytes: int) -> None:
    _c().munmap(start, nbytes)


def free_with(owner: Any, code: Code) -> None:
    """Free the code when `owner` is gone; not at exit, when a daemon thread may still be inside."""
    weakref.finalize(owner, code.free).atexit = False
