"""The kernel that adds up the parts of a matrix product, always in the same order, and stores what is wanted of it."""

from __future__ import annotations

from staticgrad.kernels.cuda.launch import GRID, Launch, blocks_for
from staticgrad.kernels.cuda.points import Axes
from staticgrad.kernels.cuda.product_text import Outcome, ProductText, Spot, indented, times
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.products import MatrixProduct


def joined_product(
    product: MatrixProduct, outcome: Outcome, parts: int, partial: int, target: Target, *, guarded: bool = False
) -> Launch:
    """The launch that makes a product of its parts; of none if there was nothing to add up.

    Args:
        partial: where in the working memory the parts lie, in bytes.
        guarded: do nothing where an earlier kernel has reported an error.
    """
    text = ProductText(product, outcome, target, target.block)
    size, lanes = product.batch * product.m * product.n, text.lanes()
    axes = Axes("e", (0, 1, 2), (product.batch, product.m, product.n))
    (batch,), (row,), (column,) = (axes.terms(strides) for strides in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    totals = [f"sum_{i}" for i in range(lanes)]
    step = target.block * lanes
    body = [*axes.lines, *_added(text, totals, parts, partial, size), *text.store(Spot(batch, row, column), totals)]
    text.lines += [
        f"e = {times(f'(block * {target.block} + thread)', lanes)}",
        f"while e < {size}:",
        *indented([*body, f"e += {GRID} * {step}"]),
    ]
    kernel = text.kernel(guarded=guarded)
    return Launch(kernel, tuple(text.operands), blocks_for(size // lanes, target.block, 2**20), target.block)


def _added(text: ProductText, totals: list[str], parts: int, partial: int, size: int) -> list[str]:
    """Lines that add up the parts of some neighbouring elements."""
    lanes = len(totals)
    if not parts:
        return [f"{total} = {text.zero()}" for total in totals]
    pointer = text.pointer("own", text.product.c.owner, text.dtype, partial)
    others = [f"part_{i}" for i in range(lanes)]
    adds = [f"{total} = {text.plus(total, other)}" for total, other in zip(totals, others, strict=True)]
    first, other = (
        f"load{lanes}({pointer}, {place})" if lanes > 1 else f"{pointer}[{place}]" for place in ("e", f"e + w * {size}")
    )
    return [
        f"{', '.join(totals)} = {first}",
        f"for w in range(1, {parts}):",
        f"    {', '.join(others)} = {other}",
        *indented(adds),
    ]
