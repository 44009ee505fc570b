"""The kernels of matrix products with vectors, and of small ones: no element is read often enough to need a tile.

Where memory holds what belongs to one result, a team of threads, a warp at most, adds it up. Where neighbours in memory
belong to different results (a row vector by a matrix), each thread of a warp has results of its own, and the warps of a
block share the terms.
"""

from __future__ import annotations

from staticgrad.kernels.cuda.launch import Launch
from staticgrad.kernels.cuda.points import Axes
from staticgrad.kernels.cuda.product_text import Outcome, ProductText, Spot, added, indented, quotient, rest, times
from staticgrad.kernels.cuda.target import Target
from staticgrad.kernels.cuda.tiles import TERMS, Division, lanes_of_product, part_length
from staticgrad.kernels.products import MatrixProduct


def product_by_teams(
    product: MatrixProduct,
    outcome: Outcome,
    division: Division,
    target: Target,
    *,
    partial: int | None = None,
    guarded: bool = False,
) -> Launch:
    """The launch in which a team of threads adds up each result; its arguments are those of `tiled_product`."""
    text = ProductText(product, outcome, target, target.block, partial)
    width = _width_along_k(product)
    team = min(target.warp, 1 << (-(-product.k // (division.parts * width)) - 1).bit_length())
    teams, items = target.block // team, product.batch * product.m * product.n * division.parts
    axes = Axes("result", (0, 1, 2), (product.batch, product.m, product.n))
    (batch,), (row,), (column,) = (axes.terms(strides) for strides in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    (a_row, a_k), (b_column, b_k) = product.strides_of_a, product.strides_of_b
    sums = [f"sum_{i}" for i in range(width)]
    distances = [1 << bit for bit in reversed(range(team.bit_length() - 1))]
    text.lines += [
        f"lane = {rest('thread', team)}",
        f"item = block * {teams} + {quotient('thread', team)}",
        f"inside = item < {items}",
        f"item = min(item, {items - 1})",
        *_part(product, division, "item", items // division.parts, items),
        f"result = {rest('item', items // division.parts, items)}",
        *axes.lines,
        f"from_a = {added(times(batch, product.a.stride), times(row, a_row))}",
        f"from_b = {added(times(batch, product.b.stride), times(column, b_column))}",
        *(f"{name} = {text.zero()}" for name in sums),
        f"k = begin + {times('lane', width)}",
        "while k < end:",
        "    " + _read("x", text.matrix(product.a), f"from_a + {times('k', a_k)}", width),
        "    " + _read("y", text.matrix(product.b), f"from_b + {times('k', b_k)}", width),
        *(f"    {name} = {text.multiply_add(name, f'x_{i}', f'y_{i}')}" for i, name in enumerate(sums)),
        f"    k += {team * width}",
        *(f"sum_0 = {text.plus('sum_0', name)}" for name in sums[1:]),
        *(f"sum_0 = {text.plus('sum_0', f'shuffle_xor(sum_0, {distance})')}" for distance in distances),
        "if inside & (lane == 0):",
        *indented(text.store(Spot(batch, row, column), ["sum_0"])),
    ]
    kernel = text.kernel(guarded=guarded)
    return Launch(kernel, tuple(text.operands), -(-items // teams), target.block)


def product_by_columns(
    product: MatrixProduct,
    outcome: Outcome,
    division: Division,
    target: Target,
    *,
    partial: int | None = None,
    guarded: bool = False,
) -> Launch:
    """The launch for a vector and a matrix that holds each term of all results together; arguments as above."""
    text = ProductText(product, outcome, target, target.block, partial)
    by_row = product.m == 1
    matrix, vector = (product.b, product.a) if by_row else (product.a, product.b)
    _, step = product.strides_of_b if by_row else product.strides_of_a
    _, vector_step = product.strides_of_a if by_row else product.strides_of_b
    extent, warp, warps = max(product.m, product.n), target.warp, target.block // target.warp
    lanes = lanes_of_product(text.dtype.itemsize)
    width = 1 if any(number % lanes for number in (extent, step, matrix.stride, matrix.offset)) else lanes
    tiles = -(-extent // (warp * width))
    text.top.append(f"sums = shared_memory({target.block * width}, {text.dtype.name})")
    sums = [f"sum_{i}" for i in range(width)]
    others = [f"sums[(w * {warp} + lane) * {width} + {i}]" for i in range(width)]
    column = added(times(rest("block", tiles), warp), "lane")
    text.lines += [
        f"warp, lane = quotient(thread, {warp}), rest(thread, {warp})",
        f"first = {times(f'({column})', width)}",
        f"inside = first < {extent}",
        f"first = min(first, {extent - width})",
        f"batch = {rest(quotient('block', tiles), product.batch)}",
        *_part(product, division, "block", tiles * product.batch, tiles * product.batch * division.parts),
        f"from_matrix = {added(times('batch', matrix.stride), 'first')}",
        f"from_vector = {times('batch', vector.stride)}",
        *(f"{name} = {text.zero()}" for name in sums),
        "k = begin + warp",
        "while k < end:",
        "    " + _read("y", text.matrix(matrix), f"from_matrix + {times('k', step)}", width),
        f"    x = {text.matrix(vector)}[from_vector + {times('k', vector_step)}]",
        *(f"    {name} = {text.multiply_add(name, 'x', f'y_{i}')}" for i, name in enumerate(sums)),
        f"    k += {warps}",
        *(f"sums[thread * {width} + {i}] = {name}" for i, name in enumerate(sums)),
        "cuda.syncthreads()",
        "if inside & (warp == 0):",
        f"    for w in range(1, {warps}):",
        *(f"        {name} = {text.plus(name, other)}" for name, other in zip(sums, others, strict=True)),
        *indented(_stores(text, sums, by_row)),
    ]
    kernel = text.kernel(guarded=guarded)
    return Launch(kernel, tuple(text.operands), tiles * product.batch * division.parts, target.block)


def _part(product: MatrixProduct, division: Division, number: str, count: int, below: int) -> list[str]:
    """Lines that tell which terms of the sums are added up: `count` numbers, of those below `below`, to each part."""
    if division.parts == 1:
        return [f"begin, end = int64(0), int64({product.k})"]
    length = part_length(product, TERMS, division.parts)
    return [
        f"part = {quotient(number, count, below)}",
        f"begin = part * {length}",
        f"end = min(begin + {length}, {product.k})",
    ]


def _width_along_k(product: MatrixProduct) -> int:
    """How many neighbours along k are read at once: 1 where they are none, or not aligned, in one of the matrices."""
    (a_row, a_k), (b_column, b_k) = product.strides_of_a, product.strides_of_b
    numbers = [product.k, product.a.offset, product.a.stride, product.b.offset, product.b.stride]
    numbers += [a_row] if product.m > 1 else []
    numbers += [b_column] if product.n > 1 else []
    lanes = lanes_of_product(product.dtype.itemsize)
    return lanes if a_k == b_k == 1 and not any(number % lanes for number in numbers) else 1


def _read(name: str, pointer: str, index: str, width: int) -> str:
    """The line that reads neighbours."""
    names = ", ".join(f"{name}_{i}" for i in range(width))
    return f"{names} = " + (f"load{width}({pointer}, {index})" if width > 1 else f"{pointer}[{index}]")


def _stores(text: ProductText, sums: list[str], by_row: bool) -> list[str]:
    """Lines that store neighbouring results, of one row or of one column."""
    if by_row and text.lanes() == len(sums):
        return text.store(Spot("batch", "0", "first"), sums)
    places = [added("first", i) for i in range(len(sums))]
    spots = [Spot("batch", "0", place) if by_row else Spot("batch", f"({place})", "0") for place in places]
    return [line for spot, total in zip(spots, sums, strict=True) for line in text.store(spot, [total])]
