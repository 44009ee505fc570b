"""Copies a panel of a transposed B into one piece, the way the tiles read it."""

from __future__ import annotations

from staticgrad.kernels.cpu.gemm.product import Product
from staticgrad.kernels.cpu.gemm.writer import ZERO, Text

SIDE_BYTES = 32  # of the blocks that are transposed in registers: wider ones are no faster and slow to compile


def pack_transposed(text: Text, product: Product, source: str, panel: str, columns: int) -> None:
    """Write `columns` rows of the stored B, from `source` on, as columns of the panel, and zeros beyond them.

    The panel is k rows of whole vectors. Square blocks are transposed in registers; the last one along k starts early
    enough to be whole.
    """
    width = -(-columns // text.lanes) * text.lanes
    with text.vectors_of(min(text.lanes, SIDE_BYTES // text.itemsize)):
        whole = columns - columns % text.lanes
        if whole:
            with text.loop("0", str(whole), text.lanes) as column:
                start = text.offset(source, text.scaled(column, product.ldb))
                _strip(text, product, start, text.offset(panel, column), width, text.lanes)
        for first in range(whole, width, text.lanes):
            start = text.offset(source, min(first, columns - 1) * product.ldb)
            _strip(text, product, start, text.offset(panel, first), width, max(0, columns - first))


def _strip(text: Text, product: Product, source: str, target: str, width: int, valid: int) -> None:
    """Transpose `valid` rows of k elements, at most a vector of them."""
    lanes, k = text.lanes, product.k
    if k <= lanes:
        _block(text, product.ldb, source, target, width, valid, k)
        return
    with text.loop("0", str(k), lanes) as turn:
        place = turn
        if k % lanes:
            inside = text.value(f"icmp slt i64 {turn}, {k - lanes}")
            place = text.value(f"select i1 {inside}, i64 {turn}, i64 {k - lanes}")
        target_row = text.offset(target, text.scaled(place, width))
        _block(text, product.ldb, text.offset(source, place), target_row, width, valid, lanes)


def _block(text: Text, leading: int, source: str, target: str, width: int, valid: int, depth: int) -> None:
    rows = [text.load(text.offset(source, row * leading), depth) for row in range(valid)]
    rows += [ZERO] * (text.lanes - valid)
    for row, value in enumerate(transposed(text, rows)[:depth]):
        text.store(value, text.offset(target, row * width))


def transposed(text: Text, rows: list[str]) -> list[str]:
    """As many vectors as there are lanes, transposed by exchanging ever larger squares across the diagonal."""
    lanes = text.lanes
    rows = list(rows)
    distance = 1
    while distance < lanes:
        upper = [lane + lanes - distance if lane & distance else lane for lane in range(lanes)]
        lower = [lane + lanes if lane & distance else lane + distance for lane in range(lanes)]
        for row in range(lanes):
            pair = rows[row], rows[row ^ distance]
            if not row & distance and pair != (ZERO, ZERO):
                rows[row], rows[row + distance] = text.shuffle(*pair, upper), text.shuffle(*pair, lower)
        distance *= 2
    return rows
