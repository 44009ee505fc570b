"""The handwritten digits that ship with the package.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", 1998, UCI Machine Learning Repository,
DOI 10.24432/C50P49, CC BY 4.0: the test set. See digits/ATTRIBUTION.txt.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from staticgrad.data.idx import read_idx

__all__ = ["digits"]

_DIRECTORY = Path(__file__).parent / "digits"
_LARGEST_PIXEL = 16


def digits(
    *, normalize: bool = True, split: str | None = None, test_fraction: float = 0.2, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The 1,797 handwritten digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak, 1998).

    Args:
        normalize: scale the pixels from 0..16 to [0, 1].
        split: None for all images in their original order; "train" or "test" for one side of a shuffled split. The
            two sides of one seed and fraction share no image and together hold all.
        test_fraction: the share of images on the test side, between 0 and 1; neither side may be empty.
        seed: which shuffled split.

    Returns:
        `(images, labels)`: float32 (n, 64), row by row, and int64 (n,) from 0 to 9; new arrays, free to change.

    Raises:
        ValueError: an unknown split, or a fraction that leaves one side without an image.

    Example:
        >>> import staticgrad as sg
        >>> images, labels = sg.data.digits(split="test")
        >>> images.shape, labels.shape
        ((359, 64), (359,))
    """
    images = read_idx(_DIRECTORY / "images-idx3-ubyte.gz").reshape(-1, 64).astype(np.float32)
    labels = read_idx(_DIRECTORY / "labels-idx1-ubyte.gz").astype(np.int64)
    if normalize:
        images /= _LARGEST_PIXEL
    if split is None:
        return images, labels
    if split not in ("train", "test"):
        raise ValueError(f'digits: split must be None, "train" or "test"; got {split!r}')
    chosen = _side(len(labels), split, test_fraction, seed)
    return images[chosen], labels[chosen]


def _side(count: int, split: str, test_fraction: float, seed: int) -> npt.NDArray[np.int64]:
    tests = round(count * test_fraction) if 0 < test_fraction < 1 else 0
    if not 0 < tests < count:
        raise ValueError(f"digits: test_fraction must leave images on both sides of {count}; got {test_fraction}")
    order = np.random.default_rng(seed).permutation(count)
    return order[:tests] if split == "test" else order[tests:]
