"""The counter-based random bits of J. Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from staticgrad.graph.ops.numpy_math import THREEFRY_PARITY, THREEFRY_ROTATIONS, THREEFRY_ROUNDS
from staticgrad.kernels.intrinsic import intrinsic

_WORD = ir.IntType(32)


def _words(builder: Any, value: Any) -> tuple[Any, Any]:
    """The low and the high 32 bits of a uint64."""
    return builder.trunc(value, _WORD), builder.trunc(builder.lshr(value, value.type(32)), _WORD)


def _rotated(builder: Any, word: Any, amount: int) -> Any:
    return builder.or_(builder.shl(word, _WORD(amount)), builder.lshr(word, _WORD(32 - amount)))


@intrinsic
def threefry2x32(typingctx: Any, key: Any, counter: Any) -> Any:
    """Threefry-2x32 of 20 rounds: 64 random bits for a uint64 key and a uint64 counter, low words first.

    Written as 32-bit LLVM operations: Numba would promote each sum of two uint32 to 64 bits.
    """
    if key != types.uint64 or counter != types.uint64:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = _words(builder, arguments[0])
        keys = (low, high, builder.xor(builder.xor(low, high), _WORD(THREEFRY_PARITY)))
        x, y = _words(builder, arguments[1])
        x, y = builder.add(x, low), builder.add(y, high)
        for number in range(THREEFRY_ROUNDS):
            x = builder.add(x, y)
            y = builder.xor(_rotated(builder, y, THREEFRY_ROTATIONS[number % 8]), x)
            if number % 4 == 3:
                turn = number // 4 + 1
                x = builder.add(x, keys[turn % 3])
                y = builder.add(builder.add(y, keys[(turn + 1) % 3]), _WORD(turn))
        kind = arguments[0].type
        return builder.or_(builder.zext(x, kind), builder.shl(builder.zext(y, kind), kind(32)))

    return types.uint64(key, counter), codegen
