"""The CUDA kernels of ops that are no loops over elements, in the simulator, against the ops' references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulated import CODE, launches_of, node_of, run

from staticgrad.graph.op import registry
from staticgrad.kernels.cpu import structural as cpu
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.cuda.structural import lowered_ops
from staticgrad.kernels.cuda.target import Target

pytestmark = pytest.mark.skipif(not toolkit.SIMULATED, reason="Numba compiles for a GPU here; these run its simulator")

SMALL = Target(warp=4, block=8, largest_block=16, processors=2, small=64)
TARGETS = [
    pytest.param(Target(warp=4, block=4, largest_block=4, processors=1, small=8), id="block of 4"),
    pytest.param(SMALL, id="block of 8"),
    pytest.param(Target(warp=4, block=16, largest_block=16, processors=1, small=1024), id="block of 16"),
]
SHIFTS = {4: 0, 8: 1, 16: 4}  # by block: elements before an operand in its storage, so that it is aligned or is not
NUMERIC = ["float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
r = np.random.default_rng(0)


def checked(
    target: Target, name: str, *operands: Any, shift: int | None = None, exact: bool = True, **attributes: Any
) -> int:
    """Compare with the reference, to the bit if `exact`; how many launches there were."""
    node, arrays = node_of(name, operands, attributes, SHIFTS[target.block] if shift is None else shift)
    with np.errstate(all="ignore"):
        expected = registry[name].reference(*map(np.asarray, operands), **attributes)
    found, status = run(node, arrays, target)
    assert not status.any()
    assert found.dtype == expected.dtype
    if exact:
        np.testing.assert_array_equal(found, expected)
        number = expected == expected
        np.testing.assert_array_equal(np.copysign(1, found[number]), np.copysign(1, expected[number]))
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5 if found.dtype == np.float32 else 1e-12, atol=1e-6)
    return len(launches_of(node, target))


def numbers(shape: Any, dtype: Any = "float32") -> Any:
    """Numbers whose sums are exact, of both signs where the dtype has them."""
    low = 0 if np.dtype(dtype).kind in "ub" else -20
    return r.integers(low, 20, size=shape).astype(dtype)


def test_every_op_with_a_kernel_of_its_own_on_the_cpu_has_one_here() -> None:
    assert lowered_ops() == cpu.lowered_ops()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(cpu.lowered_ops()))
def test_samples(name: str, target: Target) -> None:
    op = registry[name]
    assert op.samples is not None
    for sample in op.samples():
        checked(target, name, *sample.operands, exact=name != "cumulative_sum", **sample.attributes)


# ---------------------------------------------------------------- take


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("dtype", [*NUMERIC, "bool"])
def test_take_gives_rows_of_every_dtype(dtype: str, shift: int) -> None:
    x = numbers((5, 8), dtype)
    checked(SMALL, "take", x, np.array([4, -5, 0, 4, -1]), axis=0, shift=shift)
    checked(SMALL, "take", x, np.array([[7, 0], [-1, 3]]), axis=1, shift=shift)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("index", ["int8", "uint8", "int32", "uint64"])
def test_take_by_indices_of_every_kind(index: str, target: Target) -> None:
    x = numbers((3, 6, 5))
    for axis in range(3):
        checked(target, "take", x, r.integers(0, x.shape[axis], (9,)).astype(index), axis=axis)
    checked(target, "take", x[0, 0], np.array(3, index), axis=0)


@pytest.mark.parametrize("target", TARGETS)
def test_take_along_an_axis(target: Target) -> None:
    x = numbers((3, 6, 5))
    for axis, shape in enumerate([(9, 6, 5), (3, 9, 5), (3, 6, 9)]):
        extent = x.shape[axis]
        checked(target, "take_along_axis", x, r.integers(-extent, extent, shape), axis=axis)
    checked(target, "take_along_axis", x > 0, r.integers(0, 5, (3, 6, 1)), axis=2)


def test_nothing_to_take() -> None:
    none = np.zeros((0,), np.int64)
    assert checked(SMALL, "take", numbers((3, 4)), none, axis=0) == 0
    assert checked(SMALL, "take", numbers((0, 4)), none, axis=0) == 0
    assert checked(SMALL, "take", numbers((3, 0)), np.array([1, 2]), axis=0) == 0
    assert checked(SMALL, "take_along_axis", numbers((3, 4)), np.zeros((3, 0), np.int64), axis=1) == 0


# ---------------------------------------------------------------- scatter_add


@pytest.mark.parametrize("dtype", NUMERIC)
def test_scatter_adds_in_every_dtype(dtype: str) -> None:
    indices = np.array([1, -1, 1, 0, 1])
    for shift in (0, 1):
        checked(SMALL, "scatter_add", numbers((5, 8), dtype), indices, shape=(4, 8), axis=0, shift=shift)
    x = np.full((9,), np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 3, dtype)
    checked(SMALL, "scatter_add", x, np.zeros((9,), np.int64), shape=(2,), axis=0)
    checked(SMALL, "scatter_add_along_axis", x[None], np.zeros((1, 9), np.int64), size=4, axis=1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("columns", [1, 3, 20, 70])
@pytest.mark.parametrize("extent", [1, 7, 90])
def test_scatter_of_rows(extent: int, columns: int, target: Target) -> None:
    """One tile of runs or several, one strip of columns or several, one chunk of indices or several."""
    for count in (3, 37):
        indices = r.integers(-extent, extent, (count,))
        checked(target, "scatter_add", numbers((count, columns)), indices, shape=(extent, columns), axis=0)


@pytest.mark.parametrize("target", TARGETS)
def test_scatter_along_inner_axes(target: Target) -> None:
    for axis, shape in enumerate([(5, 3, 4), (3, 5, 4), (3, 4, 5)]):
        x = numbers((*shape[:axis], 17, *shape[axis + 1 :]))
        checked(target, "scatter_add", x, r.integers(0, 5, (17,)), shape=shape, axis=axis)
        checked(target, "scatter_add_along_axis", x, r.integers(-5, 5, x.shape), size=5, axis=axis)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_many_indices_of_few_runs_are_added_in_parts(dtype: str, target: Target) -> None:
    for extent, columns, count in [(1, 1, 150), (3, 4, 90), (2, 30, 64)]:
        x, indices = numbers((count, columns), dtype), r.integers(0, extent, (count,))
        assert checked(target, "scatter_add", x, indices, shape=(extent, columns), axis=0) == 2
    x = numbers((150,), dtype)
    assert checked(target, "scatter_add_along_axis", x, r.integers(0, 3, (150,)), size=3, axis=0) == 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(20, 5), (5, 20), (100, 3), (1, 50)])
def test_scatter_along_an_axis_by_columns_and_by_lists(shape: tuple[int, int], target: Target) -> None:
    for axis in (0, 1):
        checked(target, "scatter_add_along_axis", numbers(shape), r.integers(-9, 9, shape), size=9, axis=axis)


@pytest.mark.parametrize("target", TARGETS)
def test_scatter_adds_in_the_order_of_the_indices(target: Target) -> None:
    """Sums that depend on the order, to the bit."""
    x = r.normal(size=(40, 6)).astype("float32") * np.float32(10) ** r.integers(-6, 6, (40, 1)).astype("float32")
    assert checked(target, "scatter_add", x, r.integers(0, 12, (40,)), shape=(12, 6), axis=0) == 1
    checked(target, "scatter_add_along_axis", x[:16], r.integers(0, 5, (16, 6)), size=5, axis=0)
    lists = x[:20].T.copy()
    checked(target, "scatter_add_along_axis", lists, r.integers(0, 5, lists.shape), size=5, axis=1)


def test_nothing_to_add() -> None:
    none = np.zeros((0,), np.int64)
    assert checked(SMALL, "scatter_add", numbers((0, 4)), none, shape=(3, 4), axis=0) == 1
    assert checked(SMALL, "scatter_add", numbers((2, 0)), np.array([1, 1]), shape=(3, 0), axis=0) == 0
    assert checked(SMALL, "scatter_add", numbers((0, 4)), none, shape=(0, 4), axis=0) == 0
    assert checked(SMALL, "scatter_add_along_axis", numbers((3, 0)), np.zeros((3, 0), int), size=5, axis=1) == 1


# ---------------------------------------------------------------- indices out of range


def reported(target: Target, name: str, *operands: Any, **attributes: Any) -> tuple[Any, list[int]]:
    """The result, and what the kernels report."""
    node, arrays = node_of(name, operands, attributes)
    found, status = run(node, arrays, target)
    return found, status.tolist()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("wrong", [6, -7, 10**12, -(10**12)])
def test_an_index_out_of_range_is_reported_and_does_no_harm(wrong: int, target: Target) -> None:
    x, report = numbers((6, 8)), [CODE, wrong, 6]
    indices = np.array([2, 5, wrong, -6, 1])
    found, status = reported(target, "take", x, indices, axis=0)
    assert status == report
    np.testing.assert_array_equal(found[[0, 1, 3, 4]], x[[2, 5, 0, 1]])
    found, status = reported(target, "scatter_add", x[:5], indices, shape=(6, 8), axis=0)
    assert status == report
    np.testing.assert_array_equal(found[[1, 2, 5]], x[[4, 0, 1]])
    along = np.tile(indices, (6, 1))
    assert reported(target, "take_along_axis", x[:, :6], along, axis=1)[1] == report
    assert reported(target, "scatter_add_along_axis", x[:, :5], along, size=6, axis=1)[1] == report
    many = np.tile(indices, 20)
    assert reported(target, "scatter_add_along_axis", numbers((100,)), many, size=6, axis=0)[1] == report


@pytest.mark.parametrize("target", TARGETS)
def test_one_of_several_wrong_indices_is_reported(target: Target) -> None:
    indices, x = np.array([3, -9, 0, 77, 1, 50]), numbers((6, 6))
    for found in (
        reported(target, "take", x[:3], indices, axis=0),
        reported(target, "scatter_add", x, indices, shape=(3, 6), axis=0),
    ):
        code, index, extent = found[1]
        assert (code, extent) == (CODE, 3)
        assert index in (3, -9, 77, 50)


@pytest.mark.parametrize("target", TARGETS)
def test_what_may_not_be_negative_is_reported(target: Target) -> None:
    x, what = numbers((4, 6)), "test: a label"
    indices = np.array([1, -1, 2, 0])
    assert reported(target, "take", x, indices, axis=0, what=what)[1] == [CODE, -1, 4]
    assert reported(target, "scatter_add", x, indices, shape=(4, 6), axis=0, what=what)[1] == [CODE, -1, 4]
    along = indices[:, None]
    assert reported(target, "take_along_axis", x, along, axis=1, what=what)[1] == [CODE, -1, 6]
    assert reported(target, "scatter_add_along_axis", x[:, :1], along, size=6, axis=1, what=what)[1] == [CODE, -1, 6]


@pytest.mark.parametrize("target", TARGETS)
def test_every_index_into_nothing_is_reported(target: Target) -> None:
    indices, report = np.array([5, 6]), [CODE, 5, 0]
    found, status = reported(target, "take", numbers((0, 3)), indices, axis=0)
    assert status == report
    np.testing.assert_array_equal(found, np.zeros((2, 3)))
    found, status = reported(target, "take_along_axis", numbers((0,)), indices, axis=0)
    assert status == report
    np.testing.assert_array_equal(found, np.zeros((2,)))
    assert reported(target, "scatter_add", numbers((2, 3)), indices, shape=(0, 3), axis=0)[1] == report
    assert reported(target, "scatter_add_along_axis", numbers((2,)), indices, size=0, axis=0)[1] == report


def test_the_first_report_stays() -> None:
    for x in (numbers((3, 2)), numbers((0, 2))):
        node, arrays = node_of("take", (x, np.array([9])), {"axis": 0})
        assert run(node, arrays, SMALL, status=(2, 4, 4))[1].tolist() == [2, 4, 4]


@pytest.mark.parametrize("name", sorted(cpu.lowered_ops()))
def test_a_guarded_kernel_does_nothing_after_an_error(name: str) -> None:
    op = registry[name]
    assert op.samples is not None
    sample = op.samples()[0]
    node, arrays = node_of(name, sample.operands, sample.attributes)
    found, status = run(node, arrays, SMALL, status=(1, 2, 3), guarded=True)
    assert set(found.view(np.uint8).reshape(-1).tolist()) == {0xA5}
    assert status.tolist() == [1, 2, 3]
    found, _ = run(node, arrays, SMALL, guarded=True)
    np.testing.assert_allclose(found, op.reference(*map(np.asarray, sample.operands), **sample.attributes))


# ---------------------------------------------------------------- cumulative_sum


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("dtype", NUMERIC)
def test_running_totals_of_every_dtype(dtype: str, backwards: bool) -> None:
    x = numbers((3, 24), dtype)
    for axis in (0, 1):
        for shift in (0, 1, 2):
            checked(SMALL, "cumulative_sum", x, axis=axis, reverse=backwards, shift=shift)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("extent", [1, 2, 5, 17, 100, 130])
def test_running_totals_of_rows_and_columns(extent: int, backwards: bool, target: Target) -> None:
    for before, after in [(1, 1), (9, 1), (2, 3)]:
        checked(target, "cumulative_sum", numbers((before, extent, after)), axis=1, reverse=backwards)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("backwards", [False, True])
def test_long_rows_and_columns_are_cut_into_parts(backwards: bool, target: Target) -> None:
    row = 64 * target.block  # 4 parts of 4 tiles of 4 neighbours for each thread
    for shape, axis in [((row,), 0), ((row + 1,), 0), ((2, row + 30), 1), ((300, 2), 0), ((2, 257, 2), 1)]:
        assert checked(target, "cumulative_sum", numbers(shape), axis=axis, reverse=backwards) == 3


@pytest.mark.parametrize("target", TARGETS)
def test_running_totals_of_special_numbers(target: Target) -> None:
    x = numbers((40, 5), "float64")
    x[3:5, 0] = -0.0
    x[20, 1], x[30, 1] = np.inf, -np.inf
    x[10, 2] = np.nan
    x[:, 3] = -0.0
    checked(target, "cumulative_sum", x, axis=0)
    checked(target, "cumulative_sum", x.T.copy(), axis=1)


@pytest.mark.parametrize("target", TARGETS)
def test_running_totals_are_as_exact_as_numpys(target: Target) -> None:
    for shape, axis in [((500,), 0), ((70, 3), 0)]:
        checked(target, "cumulative_sum", r.random(shape).astype("float32"), axis=axis, exact=False)


# ---------------------------------------------------------------- argmax, argmin


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("dtype", NUMERIC)
def test_positions_of_extremes_of_every_dtype(dtype: str, name: str) -> None:
    for shape in [(2, 40), (40, 2)]:
        checked(SMALL, name, numbers(shape, dtype), axis=(0,))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 1), (3, 1, 2), (2, 7, 20), (3, 40, 2), (50, 3, 1)])
def test_positions_of_extremes(shape: tuple[int, ...], name: str, target: Target) -> None:
    checked(target, name, numbers(shape), axis=(1,))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_the_first_of_equal_extremes_and_the_first_nan_win(name: str, target: Target) -> None:
    checked(target, name, np.zeros((50, 3)), axis=(0,))
    x = numbers((60, 6), "float64")
    x[[20, 31], 0] = np.nan
    x[7, 1], x[9, 1], x[11, 2] = np.inf, -np.inf, np.nan
    x[:, 3] = np.nan
    x[:, 4] = np.where(np.arange(60) % 2, 0.0, -0.0)
    x[:, 5] = -np.inf
    checked(target, name, x, axis=(0,))
    checked(target, name, x.T.copy()[:, :, None], axis=(1,))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_extremes_of_long_columns_are_found_in_parts(name: str, target: Target) -> None:
    length = 2 * 64 * target.block + 5
    for columns in (1, 3):
        x = numbers((length, columns))
        assert checked(target, name, x, axis=(0,)) == 2
        x[length - 40, 0] = x[length - 7, 0] = np.nan
        checked(target, name, x, axis=(0,))


# ---------------------------------------------------------------- concat, embed


@pytest.mark.parametrize("dtype", [*NUMERIC, "bool"])
def test_joined_operands_of_every_dtype(dtype: str) -> None:
    x, y = numbers((3, 8), dtype), numbers((3, 4), dtype)
    for shift in (0, 1, 2):
        checked(SMALL, "concat", x, y, y, axis=1, shift=shift)
        checked(SMALL, "embed", x, shape=(5, 16), start=(1, 4), step=(1, 1), shift=shift)


@pytest.mark.parametrize("target", TARGETS)
def test_joins_along_every_axis(target: Target) -> None:
    x = numbers((2, 3, 5))
    for axis in range(3):
        checked(target, "concat", x, x, np.concatenate([x, x], axis), axis=axis)
    checked(target, "concat", x, x[:, :0], x, axis=1)
    assert checked(target, "concat", x[:0], x[:0], axis=0) == 0


def test_joins_of_many_operands_take_several_launches() -> None:
    assert checked(SMALL, "concat", *(numbers((2, n % 4)) for n in range(150)), axis=1) == 2


def test_an_operand_joined_with_itself_is_one_pointer() -> None:
    x = numbers((3, 4))
    once, arrays = node_of("concat", (x,), {"axis": 0})
    twice = type(once)(once.op, once.operands * 2, once.attributes, (6, 4), once.dtype)
    np.testing.assert_array_equal(run(twice, arrays, SMALL)[0], np.concatenate([x, x]))
    (only,) = launches_of(twice, SMALL)
    assert len(only.kernel.dtypes) == 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("shape", "start", "step"),
    [
        ((2, 3, 8), (0, 0, 0), (1, 1, 1)),
        ((2, 9, 8), (0, 3, 0), (1, 1, 1)),
        ((5, 3, 8), (1, 0, 0), (1, 1, 1)),
        ((2, 3, 12), (0, 0, 3), (1, 1, 1)),
        ((6, 8, 33), (2, 1, 4), (3, 2, 4)),
        ((2, 3, 8), (1, 2, 7), (-1, -1, -1)),
        ((6, 3, 20), (5, 0, 19), (-4, 1, -2)),
    ],
)
def test_embed_places_and_pads(shape: tuple[int, ...], start: Any, step: Any, target: Target) -> None:
    checked(target, "embed", numbers((2, 3, 8)), shape=shape, start=start, step=step)


def test_embed_at_the_edges() -> None:
    x = numbers((3, 4, 8))
    checked(SMALL, "embed", x[:1, :1], shape=(2, 3, 8), start=(1, 2, 0), step=(-5, 7, 1))
    checked(SMALL, "embed", x[0, 0, 0], shape=(), start=(), step=())
    assert checked(SMALL, "embed", x[:, :0], shape=(3, 4, 8), start=(0, 0, 0), step=(1, 1, 1)) == 1
    assert checked(SMALL, "embed", x[:, :0], shape=(3, 0, 8), start=(0, 0, 0), step=(1, 1, 1)) == 0
