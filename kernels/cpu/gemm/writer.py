"""Writes a function of LLVM IR as text: values, addresses, loops and vectors."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

ZERO = "zeroinitializer"
FLOAT = {"float32": "float", "float64": "double"}
_SUFFIX = {"float32": "f32", "float64": "f64"}


class Text:
    """The body of one function whose floats are of one dtype."""

    def __init__(self, dtype: str, lanes: int) -> None:
        self.dtype = dtype
        self.lanes = lanes
        self.scalar = FLOAT[dtype]
        self.itemsize = 4 if dtype == "float32" else 8
        self.lines: list[str] = []
        self.declarations: dict[str, str] = {}
        self.block = "entry"
        self._count = 0

    @property
    def vector(self) -> str:
        """The type of a vector."""
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def flags(self) -> str:
        """The type of a vector of truth values."""
        return f"<{self.lanes} x i1>"

    @property
    def _bytes(self) -> str:
        return f"<{self.lanes} x i8>"

    @contextmanager
    def vectors_of(self, lanes: int) -> Iterator[None]:
        """Inside, vectors have this many lanes."""
        before, self.lanes = self.lanes, lanes
        yield
        self.lanes = before

    # ------------------------------------------------------------ values

    def name(self) -> str:
        """A name that is not taken."""
        self._count += 1
        return f"v{self._count}"

    def value(self, expression: str) -> str:
        """A new value."""
        name = f"%{self.name()}"
        self.lines.append(f"  {name} = {expression}")
        return name

    def declare(self, symbol: str, result: str, parameters: str) -> str:
        """A function from outside."""
        self.declarations.setdefault(symbol, f"declare {result} {symbol}({parameters})")
        return symbol

    def intrinsic(self, name: str, *arguments: str) -> str:
        """Call an intrinsic whose arguments and result are all vectors."""
        function = self.declare(
            f"@{name}.v{self.lanes}{_SUFFIX[self.dtype]}", self.vector, ", ".join([self.vector] * len(arguments))
        )
        passed = ", ".join(f"{self.vector} {argument}" for argument in arguments)
        return self.value(f"call {self.vector} {function}({passed})")

    def splat(self, kind: str, constant: str) -> str:
        """A constant with the same number in every lane."""
        return f"<{', '.join([f'{kind} {constant}'] * self.lanes)}>"

    def number(self, value: float) -> str:
        """A vector constant."""
        if self.dtype == "float32":
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        return self.splat(self.scalar, f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}")

    # ------------------------------------------------------------ addresses, in elements

    def offset(self, pointer: str, elements: int | str, boolean: bool = False) -> str:
        """The address some elements further."""
        if elements in (0, "0"):
            return pointer
        return self.value(f"getelementptr {'i8' if boolean else self.scalar}, ptr {pointer}, i64 {elements}")

    def scaled(self, index: str, factor: int) -> str:
        """An index times a constant."""
        if index.isdigit() or factor == 0:
            return str(int(index) * factor if factor else 0)
        return index if factor == 1 else self.value(f"mul i64 {index}, {factor}")

    def add(self, left: str, right: str) -> str:
        """The sum of two indices."""
        if left.isdigit() and right.isdigit():
            return str(int(left) + int(right))
        if right == "0":
            return left
        return right if left == "0" else self.value(f"add i64 {left}, {right}")

    # ------------------------------------------------------------ memory

    def broadcast(self, pointer: str) -> str:
        """The number at an address in every lane."""
        number = self.value(f"load {self.scalar}, ptr {pointer}, align {self.itemsize}")
        one = self.value(f"insertelement {self.vector} poison, {self.scalar} {number}, i64 0")
        return self.value(f"shufflevector {self.vector} {one}, {self.vector} poison, {self._indices([0] * self.lanes)}")

    def load(self, pointer: str, count: int | None = None, align: int | None = None) -> str:
        """A vector; of `count` elements where that is less than there are lanes, the others zero."""
        align = align or self.itemsize
        if count is None or count == self.lanes:
            return self.value(f"load {self.vector}, ptr {pointer}, align {align}")
        name = f"@llvm.masked.load.v{self.lanes}{_SUFFIX[self.dtype]}.p0"
        function = self.declare(name, self.vector, f"ptr, i32, {self.flags}, {self.vector}")
        arguments = f"ptr {pointer}, i32 {align}, {self._mask(count)}, {self.vector} {ZERO}"
        return self.value(f"call {self.vector} {function}({arguments})")

    def store(self, value: str, pointer: str, count: int | None = None, align: int | None = None) -> None:
        """Store a vector, or its first `count` elements."""
        align = align or self.itemsize
        if count is None or count == self.lanes:
            self.lines.append(f"  store {self.vector} {value}, ptr {pointer}, align {align}")
            return
        name = f"@llvm.masked.store.v{self.lanes}{_SUFFIX[self.dtype]}.p0"
        function = self.declare(name, "void", f"{self.vector}, ptr, i32, {self.flags}")
        self.lines.append(
            f"  call void {function}({self.vector} {value}, ptr {pointer}, i32 {align}, {self._mask(count)})"
        )

    def broadcast_flag(self, pointer: str) -> str:
        """The byte at an address, as a truth value in every lane."""
        byte = self.value(f"load i8, ptr {pointer}, align 1")
        flag = self.value(f"icmp ne i8 {byte}, 0")
        one = self.value(f"insertelement {self.flags} poison, i1 {flag}, i64 0")
        return self.value(f"shufflevector {self.flags} {one}, {self.flags} poison, {self._indices([0] * self.lanes)}")

    def load_flags(self, pointer: str, count: int) -> str:
        """A vector of truth values from `count` bytes."""
        if count == self.lanes:
            read = self.value(f"load {self._bytes}, ptr {pointer}, align 1")
        else:
            name = f"@llvm.masked.load.v{self.lanes}i8.p0"
            function = self.declare(name, self._bytes, f"ptr, i32, {self.flags}, {self._bytes}")
            read = self.value(
                f"call {self._bytes} {function}(ptr {pointer}, i32 1, {self._mask(count)}, {self._bytes} {ZERO})"
            )
        return self.value(f"icmp ne {self._bytes} {read}, {ZERO}")

    def store_flags(self, value: str, pointer: str, count: int) -> None:
        """Store the first `count` truth values as bytes."""
        wide = self.value(f"zext {self.flags} {value} to {self._bytes}")
        if count == self.lanes:
            self.lines.append(f"  store {self._bytes} {wide}, ptr {pointer}, align 1")
            return
        name = f"@llvm.masked.store.v{self.lanes}i8.p0"
        function = self.declare(name, "void", f"{self._bytes}, ptr, i32, {self.flags}")
        self.lines.append(f"  call void {function}({self._bytes} {wide}, ptr {pointer}, i32 1, {self._mask(count)})")

    def shuffle(self, left: str, right: str, indices: Sequence[int]) -> str:
        """The chosen elements of two vectors."""
        return self.value(f"shufflevector {self.vector} {left}, {self.vector} {right}, {self._indices(indices)}")

    def _indices(self, indices: Sequence[int]) -> str:
        return f"<{len(indices)} x i32> <{', '.join(f'i32 {index}' for index in indices)}>"

    def _mask(self, count: int) -> str:
        flags = ", ".join("i1 true" if lane < count else "i1 false" for lane in range(self.lanes))
        return f"{self.flags} <{flags}>"

    # ------------------------------------------------------------ control

    def label(self, name: str) -> None:
        """Begin a block."""
        self.lines.append(f"{name}:")
        self.block = name

    @contextmanager
    def loop(self, begin: str, end: str, step: int) -> Iterator[str]:
        """`for index in range(begin, end, step)`."""
        name = self.name()
        head, body, after = f"head_{name}", f"body_{name}", f"after_{name}"
        index = f"%i_{name}"
        entered = self.block
        self.lines.append(f"  br label %{head}")
        self.label(head)
        place = len(self.lines)
        self.lines.append("")
        more = self.value(f"icmp slt i64 {index}, {end}")
        self.lines.append(f"  br i1 {more}, label %{body}, label %{after}")
        self.label(body)
        yield index
        following = self.value(f"add nsw i64 {index}, {step}")
        self.lines.append(f"  br label %{head}")
        self.lines[place] = f"  {index} = phi i64 [ {begin}, %{entered} ], [ {following}, %{self.block} ]"
        self.label(after)

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """What follows happens only where the condition, an i1, holds."""
        name = self.name()
        self.lines.append(f"  br i1 {condition}, label %then_{name}, label %after_{name}")
        self.label(f"then_{name}")
        yield
        self.lines.append(f"  br label %after_{name}")
        self.label(f"after_{name}")
