"""Data sets, readers and batches."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from staticgrad.data import (
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    digits,
    mnist,
    random_split,
    read_csv,
    read_idx,
)

IDX_CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def numbers(batch: Any) -> list[int]:
    return [int(value) for value in np.asarray(batch)]


class Squares(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": np.full((2,), index), "y": float(index * index), "name": f"item {index}"}


# TensorDataset and Subset


def test_tensor_dataset_gives_tuples_and_shares_memory() -> None:
    x, y = np.arange(6.0).reshape(3, 2), np.arange(3)
    dataset = TensorDataset(x, y)
    assert len(dataset) == 3
    first, label = dataset[-1]
    np.testing.assert_array_equal(np.asarray(first), [4, 5])
    assert np.asarray(label).shape == ()
    assert np.shares_memory(np.asarray(dataset.tensors[0]), x)
    nested = TensorDataset(*dataset.tensors)
    np.testing.assert_array_equal(np.asarray(nested[1][0]), [2, 3])


def test_tensor_dataset_names_unequal_lengths() -> None:
    with pytest.raises(ValueError, match=r"one length; got lengths \[3, 4\]"):
        TensorDataset(np.zeros(3), np.zeros((4, 2)))


@pytest.mark.parametrize(("arrays", "message"), [((), "at least one array"), ((np.float32(1),), "array 0 has shape")])
def test_tensor_dataset_rejects(arrays: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorDataset(*arrays)


@pytest.mark.parametrize("index", [3, -4])
def test_items_outside_the_data_set(index: int) -> None:
    dataset = TensorDataset(np.arange(3))
    with pytest.raises(IndexError, match="outside the 3 items"):
        dataset[index]
    with pytest.raises(IndexError, match="outside the 3 items"):
        Subset(dataset, [0, 1, 2])[index]
    with pytest.raises(IndexError, match="within the 3 items"):
        Subset(dataset, [0, index])


def test_iterating_a_data_set_stops_at_its_end() -> None:
    assert [numbers(x) for (x,) in TensorDataset(np.eye(2))] == [[1, 0], [0, 1]]


def test_subset_of_a_subset() -> None:
    dataset = TensorDataset(np.arange(10) * 10)
    inner = Subset(Subset(dataset, [9, 7, 5, -7]), [3, 0])
    assert [int(np.asarray(inner[i][0])) for i in range(2)] == [30, 90]
    (batch,) = next(iter(DataLoader(inner, batch_size=2)))
    assert numbers(batch) == [30, 90]


@pytest.mark.parametrize("indices", [[0.5], [[0, 1]], [True, False]])
def test_subset_rejects_what_is_no_index(indices: Any) -> None:
    with pytest.raises(ValueError, match="one axis of integers"):
        Subset(TensorDataset(np.arange(3)), indices)


# random_split


@pytest.mark.parametrize(
    ("lengths", "sizes"), [((7, 3), [7, 3]), ((0.5, 0.25, 0.25), [6, 2, 2]), ((10, 0), [10, 0]), ((1,), [10])]
)
def test_random_split_cuts_into_disjoint_parts(lengths: tuple[float, ...], sizes: list[int]) -> None:
    dataset = TensorDataset(np.arange(10))
    parts = random_split(dataset, lengths, seed=3)
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(10))
    again = random_split(dataset, lengths, seed=3)
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(parts, again, strict=True))


def test_random_split_depends_on_the_seed() -> None:
    dataset = TensorDataset(np.arange(100))
    assert not np.array_equal(random_split(dataset, [100], 0)[0].indices, random_split(dataset, [100], 1)[0].indices)


@pytest.mark.parametrize("lengths", [(7, 4), (0.5, 0.4), (), (11, -1)])
def test_random_split_rejects(lengths: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="random_split: lengths must"):
        random_split(TensorDataset(np.arange(10)), lengths)


# DataLoader


def test_loader_in_order_keeps_the_short_last_batch() -> None:
    loader = DataLoader(TensorDataset(np.arange(10), np.zeros((10, 2), np.float32)), batch_size=4)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        assert [numbers(x) for x, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert batches[0][1].dtype == np.float32


def test_loader_drops_the_short_last_batch() -> None:
    loader = DataLoader(TensorDataset(np.arange(10)), batch_size=4, drop_last=True)
    assert [len(numbers(x)) for (x,) in loader] == [4, 4]
    assert len(loader) == 2


def test_shuffle_differs_by_epoch_and_repeats_from_run_to_run() -> None:
    def passes(seed: int, first: int = 0) -> list[list[int]]:
        loader = DataLoader(TensorDataset(np.arange(50)), batch_size=50, shuffle=True, seed=seed)
        loader.epoch = first
        return [numbers(x) for _ in range(3 - first) for (x,) in loader]

    orders = passes(1)
    assert orders == passes(1)
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders + passes(2)}) == 6
    assert passes(1, first=1) == orders[1:]


def test_batches_do_not_alias_the_data() -> None:
    x = np.zeros((4, 2))
    for (batch,) in DataLoader(TensorDataset(x), batch_size=2):
        assert not np.shares_memory(np.asarray(batch), x)


def test_loader_stacks_mappings_and_keeps_text() -> None:
    batch = next(iter(DataLoader(Squares(), batch_size=3)))
    np.testing.assert_array_equal(np.asarray(batch["x"]), [[0, 0], [1, 1], [2, 2]])
    assert numbers(batch["y"]) == [0, 1, 4]
    assert batch["y"].dtype == np.float32
    assert batch["name"] == ["item 0", "item 1", "item 2"]


def test_loader_stacks_sequences_and_named_tuples() -> None:
    class Pair(NamedTuple):
        x: Any
        y: int

    pairs = [Pair(np.float64(i), i) for i in range(2)]
    batch = next(iter(DataLoader(pairs, batch_size=2)))
    assert isinstance(batch, Pair)
    assert batch.x.dtype == np.float64
    assert batch.y.dtype == np.int64


def test_loader_uses_collate_fn() -> None:
    loader = DataLoader([3, 4, 5], batch_size=2, collate_fn=sum)
    assert list(loader) == [7, 5]


def test_loader_asks_a_subclass_for_its_items() -> None:
    class Negated(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return -np.asarray(super().__getitem__(index)[0])

    assert numbers(next(iter(DataLoader(Negated(np.arange(3)), batch_size=3)))) == [0, -1, -2]


def test_loader_names_unequal_shapes() -> None:
    with pytest.raises(ValueError, match=r"one shape; got \[\(1,\), \(2,\)\]; pass a collate_fn"):
        next(iter(DataLoader([np.zeros(1), np.zeros(2)], batch_size=2)))


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "must hold at least one item; it is empty"),
        (3, {"batch_size": 0}, "batch_size must be at least 1; got 0"),
        (3, {"batch_size": 4, "drop_last": True}, "batch_size 4 is more than the 3 items"),
        (3, {"seed": -1}, "seed must be at least 0; got -1"),
    ],
)
def test_loader_rejects(count: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataLoader(TensorDataset(np.arange(count)), **options)


def test_loader_rejects_a_fractional_batch() -> None:
    with pytest.raises(TypeError):
        DataLoader(TensorDataset(np.arange(3)), batch_size=1.5)  # type: ignore[arg-type]


# digits


def test_digits_are_the_published_set() -> None:
    images, labels = digits(normalize=False)
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((1797, 64), np.float32, (1797,), np.int64)
    assert (images.min(), images.max(), images.sum(), labels.sum()) == (0, 16, 561718, 8070)
    np.testing.assert_array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    np.testing.assert_array_equal(images[0, :8], [0, 0, 5, 13, 9, 1, 0, 0])


def test_digits_split_holds_every_image_once() -> None:
    images, _ = digits()
    train, train_labels = digits(split="train", seed=4)
    test, test_labels = digits(split="test", seed=4)
    assert (len(train), len(test)) == (1438, 359)
    assert images.max() == 1
    together = np.concatenate([train, test])
    np.testing.assert_array_equal(np.sort(together.sum(1)), np.sort(images.sum(1)))
    assert sorted(np.unique(test_labels)) == sorted(np.unique(train_labels)) == list(range(10))
    assert not np.array_equal(test, digits(split="test", seed=5)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, 'None, "train" or "test"; got \'valid\''),
        ({"split": "test", "test_fraction": 0.0}, "test_fraction must leave images on both sides"),
        ({"split": "test", "test_fraction": 1.0}, "test_fraction must leave images on both sides"),
    ],
)
def test_digits_reject(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits(**options)


def test_digits_carry_their_attribution() -> None:
    import staticgrad.data

    text = (Path(staticgrad.data.__file__).parent / "digits" / "ATTRIBUTION.txt").read_text()
    assert "Alpaydin" in text
    assert "10.24432/C50P49" in text
    assert "CC BY 4.0" in text


# IDX


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", IDX_CODES)
@pytest.mark.parametrize("shape", [(2, 3), (4,), (), (0, 5)])
def test_read_idx(tmp_path: Path, dtype: str, shape: tuple[int, ...], packed: bool) -> None:
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype)
    data = idx_bytes(array, IDX_CODES[dtype])
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(data) if packed else data)
    read = read_idx(path)
    assert read.dtype == array.dtype.newbyteorder("=")
    assert read.dtype.isnative
    assert read.flags.writeable
    np.testing.assert_array_equal(read, array)


GOOD = idx_bytes(np.zeros((2, 3), np.uint8))
PACKED = gzip.compress(GOOD, mtime=0)
HUGE = bytes([0, 0, 0x0E, 4]) + b"\xff" * 16


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file.*begins with nothing"),
        (b"\x89PNG\r\n\x1a\n", "not an IDX file.*begins with 89 50 4e 47"),
        (b"\0\0\x0a\x01" + GOOD[4:], "not an IDX file"),
        (GOOD[:9], "truncated: its header declares 2 axes"),
        (GOOD[:-1], r"truncated: its shape \(2, 3\) of uint8 needs 6 bytes of values; it holds 5"),
        (GOOD + b"\0", "goes on after its last value"),
        (HUGE, r"truncated: .* it holds 0"),
        (b"\0\0\x08\xff" + b"\0" * 2000, "declares 255 axes"),
        (PACKED[:-9], "gzip data of .* is damaged"),
        (PACKED[:-8] + bytes(8), "gzip data of .* is damaged"),
        (PACKED[:10] + b"\xff" * 20, "gzip data of .* is damaged"),
    ],
    ids=[
        *("empty", "picture", "unknown type", "no lengths", "short", "long", "huge", "axes"),
        *("packed short", "checksum", "packed block"),
    ],
)
def test_read_idx_names_file_and_fault(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "broken-idx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def write_mnist(folder: Path, *, joint: str = "-", packed: bool = False, **changed: np.ndarray | None) -> None:
    arrays: dict[str, np.ndarray | None] = {
        "train_images": np.arange(48, dtype=np.uint8).reshape(3, 4, 4) * 5,
        "train_labels": np.arange(3, dtype=np.uint8),
        "t10k_images": np.full((2, 4, 4), 255, np.uint8),
        "t10k_labels": np.arange(2, dtype=np.uint8),
    }
    for name, array in (arrays | changed).items():
        if array is None:
            continue
        axes = 3 if name.endswith("images") else 1
        data = idx_bytes(array)
        path = folder / f"{name.replace('_', '-')}{joint}idx{axes}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("joint", ["-", "."])
def test_mnist_finds_its_files(tmp_path: Path, joint: str, packed: bool) -> None:
    write_mnist(tmp_path, joint=joint, packed=packed)
    data = mnist(tmp_path)
    assert data.train_images.shape == (3, 16)
    assert data.test_images.shape == (2, 16)
    assert data.train_images.dtype == np.float32
    assert data.train_labels.dtype == np.int64
    np.testing.assert_array_equal(data.test_images, 1)
    np.testing.assert_array_equal(mnist(tmp_path, normalize=False).test_images, 255)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": np.zeros((3, 4), np.uint8)}, r"images need 3 axes.*shape \(3, 4\)"),
        ({"t10k_labels": np.zeros((2, 1), np.uint8)}, "labels need 1 axis of integers"),
        ({"train_labels": np.zeros(4, np.uint8)}, "has 3 images and .* 4 labels"),
        ({"t10k_images": np.zeros((2, 5, 5), np.uint8)}, "same number of pixels.*16 and 25"),
    ],
)
def test_mnist_names_what_does_not_fit(tmp_path: Path, changed: dict[str, np.ndarray], message: str) -> None:
    write_mnist(tmp_path, **changed)
    with pytest.raises(ValueError, match=message):
        mnist(tmp_path)


def test_mnist_names_what_is_missing(tmp_path: Path) -> None:
    write_mnist(tmp_path, t10k_images=None)
    with pytest.raises(FileNotFoundError, match="must hold t10k-images-idx3-ubyte or t10k-images"):
        mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        mnist(tmp_path / "no-such-folder")
    with pytest.raises(NotADirectoryError, match="train-images"):
        mnist(tmp_path / "train-images-idx3-ubyte")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every directory")
def test_mnist_in_an_unreadable_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(PermissionError, match=tmp_path.name):
            mnist(tmp_path)
    finally:
        tmp_path.chmod(0o700)


# CSV


def test_read_csv_with_and_without_header(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\r\n1,2.5\r\n\r\n-3e2, 4\r\n")
    np.testing.assert_array_equal(read_csv(path), np.array([[1, 2.5], [-300, 4]], np.float32))
    path.write_text('1;"2"\n3;nan')
    table = read_csv(path, delimiter=";", dtype=np.float64)
    assert table.dtype == np.float64
    np.testing.assert_array_equal(table, [[1, 2], [3, np.nan]])
    assert read_csv(path, delimiter=";", header=True).shape == (1, 2)
    path.write_text("7\n9223372036854775807\n")
    assert read_csv(path, dtype=np.int64)[1, 0] == 2**63 - 1
    path.write_text("x,y\n")
    assert read_csv(path).shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "has no lines"),
        ("\n \n", {}, "has no lines"),
        ("1,2\n3\n", {}, "line 2: 1 fields; the first line has 2"),
        ("a,b\n1,2\n\n3,4,5\n", {}, "line 4: 3 fields; the first line has 2"),
        ("a,b\n1,2\n3,x\n", {}, "line 3, column 2: 'x' is not a number of dtype float32"),
        ("1,2\n3,\n", {}, "line 2, column 2: '' is not"),
        ("a,b\n1,2\n", {"header": False}, "line 1, column 1: 'a' is not"),
        ("1\n2.5\n", {"dtype": np.int32}, "line 2, column 1: '2.5' is not a number of dtype int32"),
        ("1\n300\n", {"dtype": np.uint8}, "line 2, column 1: '300' is not a number of dtype uint8"),
        ("1\n1e50\n", {}, "line 2, column 1: '1e50' is not a number of dtype float32"),
        ('1,2\n"3,4\n', {}, "line 2: unexpected end of data"),
        ("1\n", {"header": "maybe"}, "header must be"),
        ("1\n", {"delimiter": ", "}, "delimiter must be one character"),
    ],
)
def test_read_csv_names_line_and_fault(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_csv(path, **options)


def test_read_csv_rejects_bytes_and_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"1,2\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"is not UTF-8 text.*at byte 4"):
        read_csv(path)
    with pytest.raises(TypeError, match="integer or a floating dtype; got bool"):
        read_csv(path, dtype=bool)
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        read_csv(tmp_path / "absent.csv")
