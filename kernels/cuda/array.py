"""Arrays in a device's memory."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad.graph.errors import ShapeError
from staticgrad.graph.node import DType, Shape

if TYPE_CHECKING:
    from staticgrad.kernels.cuda.hardware import Hardware

Array = np.ndarray[Any, Any]


class Buffer:
    """Bytes of a device's memory, given back when nobody refers to them any more."""

    __slots__ = ("__weakref__", "address", "hardware", "nbytes", "stream")

    def __init__(self, hardware: Hardware, nbytes: int) -> None:
        self.hardware = hardware
        self.nbytes = nbytes
        self.stream: Any = hardware.stream  # the stream that used it last
        self.address = hardware.allocate(nbytes, self.stream) if nbytes else 0

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            self.hardware.free(self.address, self.stream)


class DeviceArray:
    """Elements in order in a device's memory: what NumPy's arrays are to the CPU.

    Attributes:
        shape, dtype: as NumPy has them.
        buffer: keeps the memory; several arrays may share one.
        address: of the first element.
        writable: False for elements that were copied from a view: a write would not reach what was viewed.
    """

    __slots__ = ("__weakref__", "address", "buffer", "dtype", "shape", "writable")

    def __init__(self, buffer: Buffer, shape: Shape, dtype: DType, offset: int = 0) -> None:
        self.buffer = buffer
        self.shape = shape
        self.dtype = dtype
        self.address = buffer.address + offset
        self.writable = True

    @classmethod
    def empty(cls, hardware: Hardware, shape: Shape, dtype: DType) -> DeviceArray:
        """New memory whose content is not defined."""
        return cls(Buffer(hardware, prod(shape) * dtype.itemsize), shape, dtype)

    @classmethod
    def from_host(cls, hardware: Hardware, values: Array) -> DeviceArray:
        """A copy of a NumPy array on the device."""
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("=")).reshape(values.shape)
        made = cls.empty(hardware, values.shape, values.dtype)
        hardware.write(made.address, values)
        return made

    @property
    def hardware(self) -> Hardware:
        """The GPU that has the memory."""
        return self.buffer.hardware

    @property
    def device(self) -> str:
        """The device's name, such as "cuda:0"."""
        return self.buffer.hardware.name

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def to_host(self) -> Array:
        """A copy of the elements as a NumPy array; waits for the device."""
        values = np.empty(self.shape, self.dtype)
        self.hardware.use([self.buffer])
        self.hardware.read(values, self.address)
        return values

    def assign(self, values: Array | DeviceArray) -> None:
        """Overwrite the elements by those of an array of the same shape and dtype, on either device."""
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ShapeError(
                f"cuda: assigning {values.dtype}{list(values.shape)} to {self.dtype}{list(self.shape)}: shapes and "
                "dtypes must be equal"
            )
        self.hardware.use([self.buffer])
        if isinstance(values, DeviceArray):
            self.hardware.use([values.buffer])
            self.hardware.copy(self.address, values.address, self.nbytes)
        else:
            self.hardware.write(self.address, np.ascontiguousarray(values))

    def copy(self) -> DeviceArray:
        """New memory with the same elements."""
        made = DeviceArray.empty(self.hardware, self.shape, self.dtype)
        self.hardware.use([self.buffer, made.buffer])
        self.hardware.copy(made.address, self.address, self.nbytes)
        return made

    def reshaped(self, shape: Shape) -> DeviceArray:
        """The same memory with other axes."""
        if prod(shape) != prod(self.shape):
            raise ShapeError(f"cuda: {self.size} elements have no shape {shape}")
        buffer = self.buffer
        return DeviceArray(buffer, shape, self.dtype, self.address - buffer.address)

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError(f"cuda: NumPy cannot read memory of {self.device}; copy the tensor with .to('cpu') first")

    def __repr__(self) -> str:
        return f"<{self.dtype}{list(self.shape)} on {self.device}>"
