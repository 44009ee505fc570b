"""Data sets, their readers and the loader that cuts them into batches.

The readers give NumPy arrays; `DataLoader` gives Tensors.
"""

from staticgrad.data.csv_file import read_csv
from staticgrad.data.dataset import Dataset, Subset, TensorDataset, random_split
from staticgrad.data.digits_set import digits
from staticgrad.data.idx import MNIST, mnist, read_idx
from staticgrad.data.loader import DataLoader

__all__ = [
    "MNIST",
    "DataLoader",
    "Dataset",
    "Subset",
    "TensorDataset",
    "digits",
    "mnist",
    "random_split",
    "read_csv",
    "read_idx",
]
