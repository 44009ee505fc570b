"""Tensor: an array (dynamic mode) or a graph node (under capture), its place on the tape, and its tangents.

Operators apply ops through `Tensor.__bind__`, which `binding.py` sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad._context import context
from staticgrad.graph.errors import (
    CaptureError,
    DerivativeError,
    DTypeError,
    ShapeError,
    TracedValueError,
)
from staticgrad.graph.location import user_location
from staticgrad.graph.node import DType, Node, Shape, Spec
from staticgrad.graph.op import Op
from staticgrad.graph.ops import arithmetic
from staticgrad.kernels.device import device_of, find_device, names_device

if TYPE_CHECKING:
    from staticgrad.autograd.hooks import RemovableHandle
    from staticgrad.autograd.tape import TapeNode

Array = np.ndarray[Any, Any]
Scalar = bool | int | float
DEFAULT_FLOAT: DType = np.dtype(np.float32)
DEFAULT_INT: DType = np.dtype(np.int64)
_SUPPORTED_KINDS = "biuf"
INFERENCE_VERSION = [0]  # the one version of all results of inference_mode(), by which they are known


class Tensor:
    """An n-dimensional array that can be differentiated, captured and compiled.

    Make one with `sg.asarray`, `sg.tensor` or a creation function. Arithmetic follows the Python array API standard,
    gradients (`requires_grad`, `backward`, `grad`) follow PyTorch.
    """

    __slots__ = (
        "__weakref__",
        "_edge",
        "_grad",
        "_hooks",
        "_post_hooks",
        "_requires_grad",
        "_retains_grad",
        "_tangents",
        "_value",
        "_version",
        "_weak",
    )
    __array_ufunc__ = None  # NumPy arrays on the left of an operator defer to Tensor
    __hash__ = object.__hash__

    def __init__(self, value: Array | Node, *, requires_grad: bool = False) -> None:
        self._value = value
        self._requires_grad = requires_grad
        self._edge: TapeNode | Tensor | None = None
        self._grad: Tensor | None = None
        self._version: list[int] = [0]
        self._tangents: dict[int, Tensor] | None = None
        self._hooks: dict[int, Callable[[Tensor], Any]] | None = None
        self._post_hooks: dict[int, Callable[[Tensor], Any]] | None = None
        self._retains_grad = False
        self._weak = False

    # ------------------------------------------------------------ what it is

    @property
    def shape(self) -> Shape:
        """Extents of the axes."""
        return self._value.shape

    @property
    def dtype(self) -> DType:
        """The dtype, a `numpy.dtype`."""
        return self._value.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._value.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._value.size

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return self._value.nbytes

    @property
    def device(self) -> str:
        """Where the elements live: "cpu", "cuda:0", …"""
        value: Any = self._value
        if type(value) is Node:
            capture = context.capture
            return "cpu" if capture is None else capture.device
        return str(value.device)

    @property
    def spec(self) -> Spec:
        """Shape and dtype together."""
        return Spec(self._value.shape, self._value.dtype)

    @property
    def traced(self) -> bool:
        """Whether this tensor stands for a value of a graph under capture."""
        return type(self._value) is Node

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        """The namespace of array functions, as the array API standard asks."""
        import staticgrad

        return staticgrad

    # ------------------------------------------------------------ derivatives

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded for `backward`."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` in place; only floating tensors that no op has made (leaves) may change it."""
        if requires_grad and self.dtype.kind != "f":
            raise DTypeError(f"requires_grad: only floating tensors have gradients; got {self.dtype}")
        if self._edge is not None and not requires_grad:
            raise DerivativeError("requires_grad: only leaves can be switched off; use detach() for a computed tensor")
        self._requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded op made this tensor."""
        return self._edge is None

    @property
    def grad_fn(self) -> TapeNode | None:
        """The tape node that made this tensor, None for a leaf."""
        edge = self._edge
        return None if edge is None or isinstance(edge, Tensor) else edge

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` accumulated, of this tensor's shape and dtype."""
        capture = context.capture
        return self._grad if capture is None else capture.read_grad(self)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad: must be a Tensor or None; got {type(value).__name__}")
            if value.spec != self.spec:
                raise ShapeError(f"grad: must have the tensor's shape and dtype {self.spec}; got {value.spec}")
        if context.capture is None:
            self._grad = value
        else:
            context.capture.write_grad(self, value)

    def gradient_edge(self) -> TapeNode | Tensor:
        """Where a cotangent of this tensor goes: its tape node, or the leaf itself."""
        return self if self._edge is None else self._edge

    def backward(
        self,
        gradient: Any = None,
        *,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        """Accumulate d self / d leaf into the `grad` of every leaf, or of `inputs` only.

        Args:
            gradient: cotangent of self, of its shape; may be left out for one element.
            retain_graph: keep saved values for another backward; defaults to `create_graph`.
            create_graph: record the backward pass itself, for higher derivatives.
            inputs: tensors whose `grad` is filled; all leaves by default.

        Raises:
            DerivativeError: nothing recorded, not one element and no `gradient`, or saved values already freed.
        """
        from staticgrad.autograd.engine import backward

        backward(self, gradient, retain_graph=retain_graph, create_graph=create_graph, inputs=inputs)

    def detach(self) -> Tensor:
        """The same elements, cut off from the tape and from tangents; storage is shared."""
        out = Tensor(self._value)
        out._version = self._version
        out._weak = self._weak
        return out

    def retain_grad(self) -> None:
        """Have `backward` fill `grad` of this computed tensor too."""
        from staticgrad.autograd.hooks import retain_grad

        retain_grad(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `hook(grad)` when this tensor's gradient is complete; what it returns replaces the gradient."""
        from staticgrad.autograd.hooks import register_hook

        return register_hook(self, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `hook(tensor)` after `backward` has accumulated into the `grad` of this leaf."""
        from staticgrad.autograd.hooks import register_post_accumulate_grad_hook

        return register_post_accumulate_grad_hook(self, hook)

    # ------------------------------------------------------------ values out

    def numpy(self) -> Array:
        """The elements as a NumPy array that shares storage.

        Raises:
            DerivativeError: the tensor requires grad (use `detach()` first).
            DeviceError: the tensor lives on another device (use `to("cpu")` first).
            TracedValueError: the tensor is being captured.
        """
        if self._requires_grad:
            raise DerivativeError("numpy: the tensor requires grad, so writes would go unseen; use t.detach().numpy()")
        return self._of_numpy("numpy()")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        value = self._of_numpy("np.asarray")
        if dtype is not None and value.dtype != dtype:
            if copy is False:
                raise ValueError(f"np.asarray: {value.dtype} to {np.dtype(dtype)} needs a copy")
            return value.astype(dtype)
        return value.copy() if copy else value

    def item(self) -> Any:
        """The one element as a Python number."""
        value = self._concrete("item()")
        if value.size != 1:
            raise ShapeError(f"item: takes a tensor of one element; got shape {value.shape}")
        return value.item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        return self._concrete("tolist()").tolist()

    def stored(self, asked: str) -> Any:
        """The array behind the tensor, on its device, for what is called `asked` in the error."""
        value = self._value
        if isinstance(value, Node):
            raise traced_value_error(asked, value)
        if context.capture is not None:
            context.capture.read_elements(self, asked)
        return value

    def _concrete(self, asked: str) -> Array:
        """The elements for Python to look at."""
        value = self.stored(asked)
        return value if type(value) is np.ndarray else device_of(value).host(value)

    def _of_numpy(self, asked: str) -> Array:
        value = self.stored(asked)
        return value if type(value) is np.ndarray else device_of(value).shared(value, asked)

    def __float__(self) -> float:
        return float(self._one("float()"))

    def __int__(self) -> int:
        return int(self._one("int()"))

    def __index__(self) -> int:
        value = self._one("an index")
        if self.dtype.kind not in "iu":
            raise DTypeError(f"index: only integer tensors can index; got {self.dtype}")
        return int(value)

    def __bool__(self) -> bool:
        return bool(self._one("a Python branch (bool())"))

    def _one(self, asked: str) -> Any:
        value = self._concrete(asked)
        if value.size != 1:
            raise ShapeError(
                f"{asked}: the truth or number of {value.size} elements is ambiguous (shape {value.shape}); "
                "use sg.any, sg.all or an index"
            )
        return value.item()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len: a 0-d tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("iter: a 0-d tensor cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))

    def __repr__(self) -> str:
        value = self._value
        if isinstance(value, Node):
            return f"Tensor(<traced {value.spec} from {value.op.name} at {value.location}>)"
        text = np.array2string(device_of(value).host(value), separator=", ", prefix="Tensor(")
        parts = [text]
        if device_of(value).label:
            parts.append(device_of(value).label)
        if value.dtype not in (DEFAULT_FLOAT, DEFAULT_INT, np.dtype(np.bool_)):
            parts.append(f"dtype={value.dtype}")
        if self._edge is not None and self._requires_grad:
            parts.append(f"grad_fn=<{self.grad_fn.name() if self.grad_fn else 'alias'}>")
        elif self._requires_grad:
            parts.append("requires_grad=True")
        return f"Tensor({', '.join(parts)})"

    def __reduce__(self) -> Any:
        if self._edge is not None:
            raise DerivativeError("pickle: only leaves can be pickled; use detach() first")
        return _unpickle, (self._concrete("pickle"), self._requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        out = type(self).__new__(type(self))
        Tensor.__init__(out, self.stored("deepcopy").copy(), requires_grad=self._requires_grad)
        memo[id(self)] = out
        return out

    # ------------------------------------------------------------ writes

    def copy_(self, source: Any) -> Tensor:
        """Write `source`, broadcast and cast to this tensor's type, into its storage.

        Under capture the write becomes an update of the program's state.

        Raises:
            DerivativeError: the tensor requires grad and recording is on (use `sg.no_grad()`).
        """
        from staticgrad.state import write

        write(self, source)
        return self

    def to(self, *targets: Any, dtype: Any = None, device: str | None = None, copy: bool = False) -> Tensor:
        """This tensor on a device and in a dtype; itself if both are so already and no copy is asked for.

        To a GPU the elements are on their way when this returns, and may be changed here; from it, they have arrived.
        Derivatives go back to where the elements came from.
        """
        for target in targets:
            if names_device(target):
                device = target
            else:
                dtype = target
        there = self if device is None else self._moved(find_device(device).name)
        return there.astype(self.dtype if dtype is None else dtype, copy=copy and there is self)

    def _moved(self, device: str) -> Tensor:
        capture = context.capture
        if capture is not None:
            capture.require_device(device)
            return self
        if self.device == device:
            return self
        from staticgrad.autograd.transfer import transferred

        return transferred(self, device)

    def astype(self, dtype: Any, *, copy: bool = True) -> Tensor:
        """The elements converted to `dtype`."""
        from staticgrad.operands import check_dtype

        target = check_dtype("astype", dtype)
        if target == self.dtype and not copy:
            return self
        return Tensor.__bind__(arithmetic.cast, (self,), {"dtype": target})

    # ------------------------------------------------------------ operators

    @staticmethod
    def _apply(op: Op, x: Any, y: Any, other: Any) -> Tensor:
        """A binary operator; NotImplemented if `other` is not an operand, so that Python tries the other side."""
        if isinstance(other, _OPERANDS):
            return Tensor.__bind__(op, (x, y), {})
        return NotImplemented  # type: ignore[no-any-return]

    def __neg__(self) -> Tensor:
        return Tensor.__bind__(arithmetic.neg, (self,), {})

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return Tensor.__bind__(arithmetic.absolute, (self,), {})

    def __add__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.add, self, other, other)

    def __radd__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.add, other, self, other)

    def __sub__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.sub, self, other, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.sub, other, self, other)

    def __mul__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.mul, self, other, other)

    def __rmul__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.mul, other, self, other)

    def __truediv__(self, other: Any) -> Tensor:
        if self._value.dtype.kind == "f":
            return Tensor.__bind__(arithmetic.div, (self, other), {})
        from staticgrad.array.powers import divide

        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        if self._value.dtype.kind == "f":
            return Tensor.__bind__(arithmetic.div, (other, self), {})
        from staticgrad.array.powers import divide

        return divide(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.floor_divide, self, other, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.floor_divide, other, self, other)

    def __mod__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.remainder, self, other, other)

    def __rmod__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.remainder, other, self, other)

    def __pow__(self, other: Any) -> Tensor:
        from staticgrad.array.powers import power

        return power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        from staticgrad.array.powers import power

        return power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        from staticgrad.array.linear import matmul

        return matmul(self, other) if isinstance(other, Tensor | np.ndarray) else NotImplemented

    def __rmatmul__(self, other: Any) -> Tensor:
        from staticgrad.array.linear import matmul

        return matmul(other, self) if isinstance(other, Tensor | np.ndarray) else NotImplemented

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self._apply(arithmetic.equal, self, other, other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self._apply(arithmetic.not_equal, self, other, other)

    def __lt__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.less, self, other, other)

    def __le__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.less_equal, self, other, other)

    def __gt__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.greater, self, other, other)

    def __ge__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.greater_equal, self, other, other)

    def __and__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.bitwise_and, self, other, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.bitwise_or, self, other, other)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.bitwise_xor, self, other, other)

    __rxor__ = __xor__

    def __lshift__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.left_shift, self, other, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.left_shift, other, self, other)

    def __rshift__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.right_shift, self, other, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return self._apply(arithmetic.right_shift, other, self, other)

    def __invert__(self) -> Tensor:
        op = arithmetic.logical_not if self.dtype.kind == "b" else arithmetic.bitwise_invert
        return Tensor.__bind__(op, (self,), {})

    # ------------------------------------------------------------ shapes and reductions

    def __getitem__(self, key: Any) -> Tensor:
        from staticgrad.array.indexing import getitem

        return getitem(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "Tensor: item assignment is not supported; build the new value with sg.where or sg.concat, "
            "or write a whole tensor with copy_"
        )

    @property
    def T(self) -> Tensor:  # noqa: N802  (the array API's name)
        """The transpose of a matrix."""
        if self.ndim != 2:
            raise ShapeError(f"T: takes a matrix; got shape {self.shape}; use mT or permute_dims")
        return self.mT

    @property
    def mT(self) -> Tensor:  # noqa: N802
        """The last two axes swapped."""
        from staticgrad.array.linear import matrix_transpose

        return matrix_transpose(self)

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape; one extent may be -1."""
        from staticgrad.array.manipulation import reshape

        return reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def sum(self, axis: Any = None, *, keepdims: bool = False) -> Tensor:
        """Sum over `axis`, all axes by default."""
        from staticgrad.array.reduction import sum as total

        return total(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, *, keepdims: bool = False) -> Tensor:
        """Mean over `axis`, all axes by default."""
        from staticgrad.array.reduction import mean

        return mean(self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, *, keepdims: bool = False) -> Tensor:
        """Maximum over `axis`, all axes by default."""
        from staticgrad.array.reduction import max as largest

        return largest(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, *, keepdims: bool = False) -> Tensor:
        """Minimum over `axis`, all axes by default."""
        from staticgrad.array.reduction import min as smallest

        return smallest(self, axis=axis, keepdims=keepdims)

    __bind__: Callable[[Op, Sequence[Any], dict[str, Any]], Tensor]


_OPERANDS = (Tensor, float, int, np.ndarray, np.generic)


def _unpickle(value: Array, requires_grad: bool) -> Tensor:
    return Tensor(value, requires_grad=requires_grad)


def traced_value_error(asked: str, node: Node) -> TracedValueError:
    """The error for asking a traced value for its number."""
    return TracedValueError(
        f"{asked}: this value is being captured and has no number yet ({node.spec} from {node.op.name} at "
        f"{node.location}); use sg.where for a choice by value, pass the number through static_argnames if it is the "
        f"same in every call, or move this line out of the compiled function. Captured at {user_location()}"
    )


def escaped_error(node: Node) -> CaptureError:
    """The error for a traced value that outlived the capture it belongs to."""
    return CaptureError(
        f"{node.op.name}: this value belongs to a graph whose capture has ended ({node.spec}, computed at "
        f"{node.location}); it was kept in a list, an attribute or a global by the compiled function. Return it from "
        f"the function instead. Used at {user_location()}"
    )


def alias(x: Tensor) -> Tensor:
    """A second Tensor of the same value, place on the tape and tangents."""
    out = Tensor(x._value, requires_grad=x._requires_grad)
    out._edge = x.gradient_edge() if x._requires_grad else None
    out._version = x._version
    out._weak = x._weak
    out._tangents = dict(x._tangents) if x._tangents else None
    return out
