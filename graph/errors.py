"""The errors staticgrad raises: one class for each kind of mistake, each also a built-in kind.

Messages read `op: the rule; what came; what to do. Captured at file:line`.
"""

from __future__ import annotations


class StaticgradError(Exception):
    """Base of every error that staticgrad itself raises."""


class ShapeError(StaticgradError, ValueError):
    """Shapes, axes or sizes that do not fit an op's rule."""


class DTypeError(StaticgradError, TypeError):
    """A dtype that an op does not take."""


class IndexRangeError(StaticgradError, IndexError):
    """An index or a label outside the range of the axis it selects from."""


class DeviceError(StaticgradError, ValueError):
    """A device that does not exist, or operands that live on different devices."""


class OutOfMemoryError(StaticgradError, MemoryError):
    """A device has less memory free than was asked for."""


class CaptureError(StaticgradError, RuntimeError):
    """Something that a static graph cannot hold, such as a Python branch on a traced value."""


class TracedValueError(CaptureError, TypeError):
    """A traced value asked for the number it does not have yet."""


class DerivativeError(StaticgradError, RuntimeError):
    """A derivative that does not exist, is not implemented, or was asked for in a wrong way."""


class GraphError(StaticgradError, RuntimeError):
    """A graph or a plan that breaks its own rules: a fault of staticgrad, not of its user."""


class NumericError(StaticgradError, FloatingPointError):
    """A result that is not finite, or that differs between the dynamic and the static run."""


class FileFormatError(StaticgradError, ValueError):
    """A file that is damaged, foreign, or of a version that this release does not read."""


class RecompileLimitError(StaticgradError, RuntimeError):
    """A compiled function that was compiled more often than its limit allows."""
