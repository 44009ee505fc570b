"""Views as strides: resolving and layouts, held to NumPy's own strides."""

from __future__ import annotations

import numpy as np
import pytest
from builder import Builder
from hypothesis import given
from hypothesis import strategies as st

from staticgrad.graph.members import Members
from staticgrad.graph.node import Node
from staticgrad.graph.views import boundaries, collapse, contiguous_strides, is_copy, nested, resolve, split


def elements(view: Node) -> np.ndarray:
    """The positions in the owner's storage that a view reads, by its strides."""
    found = resolve(view)
    index = np.indices(found.shape)
    return found.offset + sum((step * axis for step, axis in zip(found.strides, index, strict=True)), np.zeros_like(1))


def test_a_slice_of_a_transpose_reads_through_strides() -> None:
    b = Builder()
    x = b.argument((4, 6))
    view = b("slice", b("permute_dims", x, axes=(1, 0)), start=(5, 0), stop=(-1, 4), step=(-2, 1))
    expected = np.arange(24).reshape(4, 6).T[5::-2, 0:4]
    np.testing.assert_array_equal(elements(view), expected)
    assert resolve(view).owner is x


def test_a_reshape_that_strides_cannot_express_is_a_copy() -> None:
    b = Builder()
    x = b.argument((4, 6))
    transposed = b("permute_dims", x, axes=(1, 0))
    flat = b("reshape", transposed, shape=(24,))
    assert is_copy(flat)
    assert resolve(flat).owner is flat
    assert not is_copy(b("reshape", transposed, shape=(2, 3, 4)))
    assert not is_copy(b("reshape", b("broadcast_to", x, shape=(2, 4, 6)), shape=(2, 24)))


def test_views_of_a_copy_belong_to_the_copy() -> None:
    b = Builder()
    flat = b("reshape", b("permute_dims", b.argument((4, 6)), axes=(1, 0)), shape=(24,))
    assert resolve(b("reshape", flat, shape=(2, 12))).owner is flat


@given(st.integers(0, 2**32))
def test_random_chains_of_views(seed: int) -> None:
    r = np.random.default_rng(seed)
    b = Builder()
    x = view = b.argument((2, 3, 4))
    array = np.arange(24).reshape(2, 3, 4)
    for _ in range(5):
        kind = r.integers(4)
        if kind == 0:
            axes = tuple(int(i) for i in r.permutation(view.ndim))
            view, array = b("permute_dims", view, axes=axes), array.transpose(axes)
        elif kind == 1:
            shape = tuple(int(n) for n in r.permutation([*view.shape, 1]))
            view, array = b("reshape", view, shape=shape), array.reshape(shape)
        elif kind == 2 and view.ndim < 5:
            view, array = b("broadcast_to", view, shape=(2, *view.shape)), np.broadcast_to(array, (2, *array.shape))
        elif view.size:
            start = tuple(int(r.integers(0, n)) for n in view.shape)
            view = b("slice", view, start=start, stop=view.shape, step=(2,) * view.ndim)
            array = array[tuple(slice(low, None, 2) for low in start)]
    if resolve(view).owner is x:
        np.testing.assert_array_equal(elements(view), array)


def test_a_long_chain_of_views_is_resolved_without_recursion() -> None:
    b = Builder()
    view = x = b.argument((2, 3))
    for _ in range(5000):
        view = b("permute_dims", view, axes=(1, 0))
    assert resolve(view).owner is x
    assert Members().resolve(view).strides == contiguous_strides((2, 3))


def test_layouts_merge_what_one_stride_serves() -> None:
    assert collapse((2, 3, 4), (12, 4, 1)) == ((24, 1),)
    assert collapse((2, 3, 4), (3, 1, 0)) == ((6, 1), (4, 0))
    assert collapse((2, 1, 4), (4, 9, 1)) == ((8, 1),)
    assert collapse((5, 7), (0, 0)) == ((35, 0),)


@pytest.mark.parametrize("layout", [((24, 1),), ((6, 1), (4, 0)), ((2, 0), (12, 1)), ((2, 5), (3, 1), (4, -3))])
def test_a_split_layout_reads_the_same_elements(layout: tuple[tuple[int, int], ...]) -> None:
    assert boundaries(layout) <= {4, 12}
    strides = split(layout, (2, 3, 4))
    whole = np.zeros((), int)
    for extent, stride in layout:
        whole = np.add.outer(whole, np.arange(extent) * stride)
    parts = np.zeros((), int)
    for extent, stride in zip((2, 3, 4), strides, strict=True):
        parts = np.add.outer(parts, np.arange(extent) * stride)
    np.testing.assert_array_equal(parts.ravel(), whole.ravel())


def test_cuts_that_are_no_nest() -> None:
    assert nested([2, 6], 12)
    assert not nested([4, 6], 24)
    assert not nested([5], 24)
