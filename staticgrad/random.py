"""Random numbers: a counter-based generator whose stream is the same in both modes.

The state is two words, a key (the seed) and a counter. Element i of a draw is a pure function of the key and
counter + i (Threefry-2x32, see `graph/ops/random.py`), so a draw can be fused into the kernel that uses it; each draw
moves the counter on by the number of elements it took.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from staticgrad._context import context
from staticgrad.array.creation import _shape, asarray
from staticgrad.array.elementwise import cos, log, minimum, sqrt
from staticgrad.autograd.modes import no_grad
from staticgrad.binding import bind
from staticgrad.capture_state import composite
from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.ops import leaf
from staticgrad.graph.ops.random import random_bits
from staticgrad.graph.ops.shape import reshape
from staticgrad.kernels.device import find_device
from staticgrad.operands import check_dtype
from staticgrad.tensor import DEFAULT_FLOAT, Array, Tensor

_WORD = np.dtype(np.uint64)
_BLOCK = 2**15  # elements drawn at a time where ops run at once: what they pass through stays in the cache


class Generator:
    """A stream of random numbers. `state` is a tensor of (key, counter), captured like any other state."""

    def __init__(self, seed: int = 0) -> None:
        self.state = Tensor(np.array([seed % 2**64, 0], np.uint64))

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of `seed` from its beginning."""
        self.set_state(np.array([seed % 2**64, 0], np.uint64))
        return self

    def set_state(self, words: Array) -> None:
        """Continue from a key and a counter."""
        if context.capture is None and not find_device("cpu").holds(self.state._value):
            self.state._value = np.empty(2, _WORD)  # what there was may be lost, with a GPU that has failed
        with no_grad():
            self.state.copy_(words)

    def bits(self, count: int) -> Tensor:
        """`count` words of 64 random bits (uint64), and the counter moved on."""
        return self._words(count, 1)[0]

    def pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """The words at even and at odd places of the next 2·`count`: two for each element, however draws are split."""
        first, second = self._words(count, 2)
        return first, second

    def _words(self, count: int, each: int) -> list[Tensor]:
        if context.capture is None:  # a program on another device may have taken the state there
            self.state._value = find_device("cpu").place(self.state._value)
        key, counter = self.state[0], self.state[1]
        position = bind(leaf.iota, (), {"size": count, "dtype": _WORD})
        start = counter + position * each if each > 1 else counter + position
        words = [random_bits(key, start + i if i else start) for i in range(each)]
        with no_grad():
            self.state.copy_(self.state + asarray([0, each * count], dtype=_WORD))
        return words


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the default generator."""
    return default_generator.manual_seed(seed)


def get_state() -> Array:
    """The default generator's (key, counter), uint64."""
    return np.array(default_generator.state.to("cpu"))


def set_state(state: Any) -> None:
    """Put the default generator back to a state from `get_state`."""
    array = np.asarray(state)
    if array.shape != (2,) or array.dtype != np.uint64:
        raise ShapeError(f"set_state: a state is two uint64 words; got {array.dtype}{list(array.shape)}")
    default_generator.set_state(array)


def _floating(name: str, dtype: Any) -> np.dtype[Any]:
    found = DEFAULT_FLOAT if dtype is None else check_dtype(name, dtype)
    if found.kind != "f":
        raise DTypeError(f"{name}: draws floating numbers; got dtype {found}")
    return found


def _unit(words: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """Words to [0, 1) with all the bits that the dtype holds."""
    if dtype.itemsize == 4:
        return (words >> 40).astype(np.int32).astype(dtype) * 2.0**-24
    return (words >> 11).astype(np.int64).astype(dtype) * 2.0**-53


@composite("uniform")
def uniform(
    shape: Any = (), *, low: float = 0.0, high: float = 1.0, dtype: Any = None, generator: Generator | None = None
) -> Tensor:
    """Numbers drawn evenly from [low, high)."""
    if not low <= high:
        raise ValueError(f"uniform: low must not be above high; got [{low}, {high})")
    kind = _floating("uniform", dtype)
    source = generator or default_generator

    def draw(count: int) -> Tensor:
        unit = _unit(source.bits(count), kind)
        if (low, high) == (0.0, 1.0):
            return unit
        last = float(np.nextafter(kind.type(high), kind.type(low)))
        return minimum(unit * (high - low) + low, last)  # the sum may round up to high

    return _drawn(draw, _shape(shape), kind)


@composite("normal")
def normal(
    shape: Any = (), *, mean: float = 0.0, std: float = 1.0, dtype: Any = None, generator: Generator | None = None
) -> Tensor:
    """Numbers drawn from the normal distribution, by the transform of Box and Muller (1958)."""
    if not std >= 0:
        raise ValueError(f"normal: std must not be negative; got {std}")
    kind = _floating("normal", dtype)
    source = generator or default_generator

    def draw(count: int) -> Tensor:
        if kind.itemsize == 4:
            words = source.bits(count)
            radius = _unit_above_zero(words & 0xFFFFFFFF, kind)
            angle = _unit(words, kind)
        else:
            first, second = source.pairs(count)
            radius = 1.0 - _unit(first, kind)
            angle = _unit(second, kind)
        found = sqrt(log(radius) * -2.0) * cos(angle * (2 * math.pi))
        return found if (mean, std) == (0.0, 1.0) else found * std + mean

    return _drawn(draw, _shape(shape), kind)


def _unit_above_zero(low_words: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """32-bit words to (0, 1]."""
    return (low_words.astype(np.int64) + 1).astype(dtype) * 2.0**-32


def _drawn(draw: Callable[[int], Tensor], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """`draw(count)` for all elements of the shape; many are drawn a block at a time, which gives the same numbers."""
    count = math.prod(shape)
    if count <= _BLOCK or not context.plain:
        return _shaped(draw(count), shape)
    # The C library gives freed memory back to the system, to be cleared and mapped again for the next block, until it
    # has seen a larger piece come and go.
    np.empty(2**24, np.uint8)
    found = np.empty(count, dtype)
    for start in range(0, count, _BLOCK):
        part = found[start : start + _BLOCK]
        part[:] = draw(part.size)._value
    return Tensor(found.reshape(shape))


def _shaped(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    return flat if flat.shape == shape else reshape(flat, shape=shape)


@composite("bernoulli")
def bernoulli(p: float | Tensor, shape: Any = (), *, generator: Generator | None = None) -> Tensor:
    """Booleans that are true with probability p."""
    return uniform(shape, generator=generator) < p


@composite("randint")
def randint(low: int, high: int, shape: Any = (), *, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Integers drawn evenly from [low, high), int64 by default; the range must be below 2³²."""
    if not 0 < high - low < 2**32:
        raise ShapeError(f"randint: the range [low, high) must hold 1 to 2**32 - 1 integers; got [{low}, {high})")
    extents = _shape(shape)
    words = (generator or default_generator).bits(math.prod(extents))
    scaled = ((words >> 32) * (high - low)) >> 32
    return _shaped((scaled.astype(np.int64) + low).astype(dtype or np.int64, copy=False), extents)


def permutation(n: int, *, generator: Generator | None = None) -> Tensor:
    """The numbers 0 … n-1 in random order (dynamic mode only: it sorts)."""
    keys = np.asarray((generator or default_generator).bits(n))
    return Tensor(np.argsort(keys, kind="stable"))
