"""Checks an index inside a kernel: what is out of range is reported, and replaced by an index that is safe to use."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from staticgrad.kernels.intrinsic import intrinsic

_WORD = ir.IntType(64)


def _check(context: Any, builder: Any, signature: Any, arguments: Any, *, from_the_back: bool) -> Any:
    index, extent = (
        context.cast(builder, value, kind, types.int64)
        for value, kind in zip(arguments[:2], signature.args[:2], strict=True)
    )
    status, code = arguments[2:]
    place = index
    if from_the_back:
        negative = builder.icmp_signed("<", index, _WORD(0))
        place = builder.select(negative, builder.add(index, extent), index)
    outside = builder.icmp_unsigned(">=", place, extent)
    with builder.if_then(outside, likely=False):
        # In one step, since a GPU's threads share the status block: of all that find one out of range one reports it.
        before = builder.cmpxchg(status, _WORD(0), builder.load(code), "monotonic", "monotonic")
        with builder.if_then(builder.extract_value(before, 1)):
            for word, value in ((1, index), (2, extent)):
                builder.store(value, builder.gep(status, [_WORD(word)]))
    return builder.select(outside, _WORD(0), place)


def _typed(index: Any, extent: Any, status: Any, code: Any) -> Any:
    whole = isinstance(index, types.Integer) and isinstance(extent, types.Integer)
    return types.int64(index, extent, status, code) if whole else None


@intrinsic
def checked_index(typingctx: Any, index: Any, extent: Any, status: Any, code: Any) -> Any:
    """The index counted from the front, in [0, extent). The first one out of range is written to the status block.

    Args: `status` int64[3], `code` int64[1] with what is written into `status[0]`; `extent` at least 1.
    """
    found = _typed(index, extent, status, code)
    return found and (found, lambda *given: _check(*given, from_the_back=True))


@intrinsic
def checked_position(typingctx: Any, index: Any, extent: Any, status: Any, code: Any) -> Any:
    """`checked_index` for what may not be negative, such as a label."""
    found = _typed(index, extent, status, code)
    return found and (found, lambda *given: _check(*given, from_the_back=False))
