"""Tensor, and the one point where an op meets its operands.

A Tensor holds an array (dynamic mode) or a graph node (under capture), and, where derivatives are wanted, its place
on the tape and its tangents. `bind` applies an op to Tensors in whichever mode the thread is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from staticgrad._context import context
from staticgrad.graph.errors import (
    CaptureError,
    DerivativeError,
    DeviceError,
    DTypeError,
    ShapeError,
    StaticgradError,
    TracedValueError,
)
from staticgrad.graph.location import user_location
from staticgrad.graph.node import DType, Node, Shape, Spec
from staticgrad.graph.op import Op
from staticgrad.graph.ops import arithmetic, transcendental

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
        """Where the elements live: "cpu"."""
        return "cpu"

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
            TracedValueError: the tensor is being captured.
        """
        if self._requires_grad:
            raise DerivativeError("numpy: the tensor requires grad, so writes would go unseen; use t.detach().numpy()")
        return self._concrete("numpy()")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        value = self._concrete("np.asarray")
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

    def _concrete(self, asked: str) -> Array:
        value = self._value
        if isinstance(value, Node):
            raise traced_value_error(asked, value)
        return value

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
        text = np.array2string(value, separator=", ", prefix="Tensor(")
        parts = [text]
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
        Tensor.__init__(out, self._concrete("deepcopy").copy(), requires_grad=self._requires_grad)
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
        """This tensor on a device and in a dtype; itself if both are so already and no copy is asked for."""
        for target in targets:
            if isinstance(target, str) and target.split(":")[0] in ("cpu", "cuda"):
                device = target
            else:
                dtype = target
        check_device(device)
        if dtype is None:
            dtype = self.dtype
        return self.astype(dtype, copy=copy)

    def astype(self, dtype: Any, *, copy: bool = True) -> Tensor:
        """The elements converted to `dtype`."""
        target = check_dtype("astype", dtype)
        if target == self.dtype and not copy:
            return self
        return bind(arithmetic.cast, (self,), {"dtype": target})

    # ------------------------------------------------------------ operators

    def __neg__(self) -> Tensor:
        return bind(arithmetic.neg, (self,), {})

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return bind(arithmetic.absolute, (self,), {})

    def __add__(self, other: Any) -> Tensor:
        return binary(arithmetic.add, self, other)

    def __radd__(self, other: Any) -> Tensor:
        return binary(arithmetic.add, other, self)

    def __sub__(self, other: Any) -> Tensor:
        return binary(arithmetic.sub, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return binary(arithmetic.sub, other, self)

    def __mul__(self, other: Any) -> Tensor:
        return binary(arithmetic.mul, self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return binary(arithmetic.mul, other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return divide(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return binary(arithmetic.floor_divide, self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return binary(arithmetic.floor_divide, other, self)

    def __mod__(self, other: Any) -> Tensor:
        return binary(arithmetic.remainder, self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return binary(arithmetic.remainder, other, self)

    def __pow__(self, other: Any) -> Tensor:
        return power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        from staticgrad.array.linear import matmul

        return matmul(self, other) if isinstance(other, Tensor | np.ndarray) else NotImplemented

    def __rmatmul__(self, other: Any) -> Tensor:
        from staticgrad.array.linear import matmul

        return matmul(other, self) if isinstance(other, Tensor | np.ndarray) else NotImplemented

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return binary(arithmetic.equal, self, other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return binary(arithmetic.not_equal, self, other)

    def __lt__(self, other: Any) -> Tensor:
        return binary(arithmetic.less, self, other)

    def __le__(self, other: Any) -> Tensor:
        return binary(arithmetic.less_equal, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return binary(arithmetic.greater, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return binary(arithmetic.greater_equal, self, other)

    def __and__(self, other: Any) -> Tensor:
        return binary(arithmetic.bitwise_and, self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Tensor:
        return binary(arithmetic.bitwise_or, self, other)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Tensor:
        return binary(arithmetic.bitwise_xor, self, other)

    __rxor__ = __xor__

    def __lshift__(self, other: Any) -> Tensor:
        return binary(arithmetic.left_shift, self, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return binary(arithmetic.left_shift, other, self)

    def __rshift__(self, other: Any) -> Tensor:
        return binary(arithmetic.right_shift, self, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return binary(arithmetic.right_shift, other, self)

    def __invert__(self) -> Tensor:
        op = arithmetic.logical_not if self.dtype.kind == "b" else arithmetic.bitwise_invert
        return bind(op, (self,), {})

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


def _unpickle(value: Array, requires_grad: bool) -> Tensor:
    return Tensor(value, requires_grad=requires_grad)


def traced_value_error(asked: str, node: Node) -> TracedValueError:
    """The error for asking a traced value for its number."""
    return TracedValueError(
        f"{asked}: this value is being captured and has no number yet ({node.spec} from {node.op.name} at "
        f"{node.location}); use sg.where for a choice by value, pass the number through static_argnames if it is the "
        f"same in every call, or move this line out of the compiled function. Captured at {user_location()}"
    )


# ---------------------------------------------------------------- operands


def check_device(device: str | None) -> None:
    """Raise DeviceError for a device that does not exist here."""
    if device is not None and device != "cpu" and not device.startswith("cpu:"):
        raise DeviceError(f"device: this release runs on 'cpu'; got {device!r}")


def check_dtype(name: str, dtype: Any) -> DType:
    """`dtype` as a NumPy dtype, or DTypeError if staticgrad has no such dtype."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise DTypeError(f"{name}: no such dtype: {dtype!r}") from None
    if found.kind not in _SUPPORTED_KINDS or found.itemsize > 8 or found == np.float16:
        raise DTypeError(f"{name}: dtypes are bool, int8 to int64, uint8 to uint64, float32 and float64; got {found}")
    native: DType = found.newbyteorder("=")
    return native


def as_operand(name: str, value: Any) -> Tensor | Scalar:
    """A Tensor as it is, a NumPy array as a Tensor that shares its storage, a number as a weak scalar."""
    if isinstance(value, Tensor | bool | int | float):
        return value
    if isinstance(value, np.generic):
        number = value.item()
        if isinstance(number, bool | int | float):
            return number
    if isinstance(value, np.ndarray):
        check_dtype(name, value.dtype)
        return Tensor(value)
    raise TypeError(f"{name}: operands are Tensors, NumPy arrays or numbers; got {type(value).__name__}")


def common_dtype(name: str, operands: Sequence[Tensor | Scalar]) -> tuple[DType, bool]:
    """The dtype that operands are brought to, and whether it is weak (only numbers took part).

    Floating beats integer beats boolean; within a kind the wider wins; numbers adapt to the tensors.
    """
    strong = [x.dtype for x in operands if isinstance(x, Tensor) and not x._weak]
    weak = [_weak_kind(x) for x in operands if not isinstance(x, Tensor) or x._weak]
    if not strong:
        kind = "f" if "f" in weak else "i" if "i" in weak else "b"
        return np.dtype({"f": np.float64, "i": np.int64, "b": np.bool_}[kind]), True
    common = strong[0]
    for dtype in strong[1:]:
        if dtype != common:
            common = _wider(name, common, dtype)
    if common.kind != "f" and "f" in weak:
        common = DEFAULT_FLOAT
    elif common.kind == "b" and "i" in weak:
        common = DEFAULT_INT
    return common, False


def _weak_kind(x: Tensor | Scalar) -> str:
    if isinstance(x, Tensor):
        return x.dtype.kind
    return "b" if isinstance(x, bool) else "i" if isinstance(x, int) else "f"


def _wider(name: str, first: DType, second: DType) -> DType:
    rank = {"b": 0, "u": 1, "i": 1, "f": 2}
    if rank[first.kind] != rank[second.kind]:
        return first if rank[first.kind] > rank[second.kind] else second
    common: DType = np.promote_types(first, second)
    if common.kind == "f" and first.kind != "f":
        raise DTypeError(f"{name}: {first} and {second} have no common integer dtype; convert one with astype")
    return common


def _scalar_tensor(name: str, value: Scalar, dtype: DType) -> Tensor:
    try:
        array = np.array(value, dtype)
    except OverflowError:
        raise DTypeError(f"{name}: {value} does not fit {dtype}") from None
    capture = context.capture
    return Tensor(array if capture is None else capture.constant(array))


def _operands(op: Op, given: Sequence[Any]) -> list[Tensor]:
    """The operands as Tensors of one dtype where the op wants one."""
    if op.promotes and len(given) == 2:
        pair = _with_number(op.name, *given)
        if pair is not None:
            return pair
    operands = [x if type(x) is Tensor else as_operand(op.name, x) for x in given]
    if not op.promotes:
        return [x if isinstance(x, Tensor) and not x._weak else _settled(op.name, x) for x in operands]
    typed = [x for i, x in enumerate(operands) if i not in op.free] if op.free else operands
    first = typed[0]
    if all(isinstance(x, Tensor) and not x._weak and x._value.dtype == first._value.dtype for x in typed):  # type: ignore[union-attr]
        if not op.free:
            return operands  # type: ignore[return-value]
        dtype, weak = first.dtype, False  # type: ignore[union-attr]
    else:
        dtype, weak = common_dtype(op.name, typed)
        if weak and op.free:  # the condition of a select is no number: the result is a tensor like any other
            dtype, weak = _default_dtype(dtype.kind), False
    return [
        _settled(op.name, x) if i in op.free else _converted(op.name, x, dtype, weak) for i, x in enumerate(operands)
    ]


def _with_number(name: str, x: Any, y: Any) -> list[Tensor] | None:
    """The commonest case at once: a floating tensor and a Python number."""
    if type(y) in (float, int) and type(x) is Tensor and not x._weak and x._value.dtype.kind == "f":
        return [x, _scalar_tensor(name, y, x._value.dtype)]
    if type(x) in (float, int) and type(y) is Tensor and not y._weak and y._value.dtype.kind == "f":
        return [_scalar_tensor(name, x, y._value.dtype), y]
    return None


def _settled(name: str, x: Tensor | Scalar) -> Tensor:
    """A number or weak tensor in the default dtype of its kind."""
    if isinstance(x, Tensor) and not x._weak:
        return x
    return _converted(name, x, _default_dtype(_weak_kind(x)), False)


def _default_dtype(kind: str) -> DType:
    return {"b": np.dtype(np.bool_), "i": DEFAULT_INT, "f": DEFAULT_FLOAT}[kind]


def _converted(name: str, x: Tensor | Scalar, dtype: DType, weak: bool) -> Tensor:
    if not isinstance(x, Tensor):
        out = _scalar_tensor(name, x, dtype)
    elif x.dtype == dtype and x._weak == weak:
        return x
    elif x.dtype == dtype:
        out = x.detach()
    else:
        out = bind(arithmetic.cast, (_strong(x),), {"dtype": dtype})
    out._weak = weak
    return out


def _strong(x: Tensor) -> Tensor:
    if not x._weak:
        return x
    out = x.detach()
    out._weak = False
    return out


# ---------------------------------------------------------------- bind


def bind(op: Op, operands: Sequence[Any], attributes: dict[str, Any]) -> Tensor:
    """Apply `op`: run it now or append it to the graph under capture; record it where derivatives are wanted."""
    tensors = _operands(op, operands)
    try:
        spec = op.infer([Spec(t._value.shape, t._value.dtype) for t in tensors], attributes)
        if context.capture is None:
            out = Tensor(_run(op, tensors, attributes, spec))
        else:
            out = Tensor(context.capture.append(op, tensors, attributes, spec))
    except StaticgradError as error:
        raise _located(error) from error.__cause__
    if op.promotes and tensors[0]._weak and all(t._weak for t in tensors):
        out._weak = True
    if op.kind == "view":
        out._version = tensors[0]._version
    elif context.inference:
        out._version = INFERENCE_VERSION
    if spec.dtype.kind == "f":
        for t in tensors:
            if t._requires_grad and context.grad_enabled:
                from staticgrad.autograd.tape import record

                record(op, tensors, attributes, out)
                break
        for t in tensors:
            if t._tangents is not None:
                from staticgrad.forward import push_forward

                push_forward(op, tensors, attributes, out)
                break
    return out


def _run(op: Op, tensors: Sequence[Tensor], attributes: dict[str, Any], spec: Spec) -> Array:
    values = []
    for t in tensors:
        if type(t._value) is Node:
            raise escaped_error(t._value)
        values.append(t._value)
    observer = context.observer
    with np.errstate(all="ignore"):
        if observer is not None:
            observer.before()
        result: Array = op.reference(*values, **attributes)
        if type(result) is not np.ndarray or result.dtype != spec.dtype:
            result = np.asarray(result, spec.dtype)
        if observer is not None:
            observer.after(values, result)
    return result


def escaped_error(node: Node) -> CaptureError:
    """The error for a traced value that outlived the capture it belongs to."""
    return CaptureError(
        f"{node.op.name}: this value belongs to a graph whose capture has ended ({node.spec}, computed at "
        f"{node.location}); it was kept in a list, an attribute or a global by the compiled function. Return it from "
        f"the function instead. Used at {user_location()}"
    )


def _located(error: StaticgradError) -> StaticgradError:
    """The same error with the user's line at the end of its message."""
    text = str(error)
    if " at " in text.rsplit(". ", 1)[-1] and (".py:" in text or "<" in text):
        return error
    verb = "Called" if context.capture is None else "Captured"
    return type(error)(f"{text}. {verb} at {user_location()}")


Tensor.__bind__ = staticmethod(bind)


def binary(op: Op, x: Any, y: Any) -> Tensor:
    """A binary operator; NotImplemented for what is not an operand, so that Python tries the other side."""
    for value in (x, y):
        if not isinstance(value, Tensor | bool | int | float | np.ndarray | np.generic):
            return NotImplemented  # type: ignore[no-any-return]
    return bind(op, (x, y), {})


def divide(x: Any, y: Any) -> Tensor:
    """x / y; integers are converted to the default floating dtype first."""
    if _integral(x) and _integral(y):
        x = x.astype(DEFAULT_FLOAT) if isinstance(x, Tensor | np.ndarray) else float(x)
        y = y.astype(DEFAULT_FLOAT) if isinstance(y, Tensor | np.ndarray) else float(y)
    return binary(arithmetic.div, x, y)


def _integral(x: Any) -> bool:
    return x.dtype.kind in "iub" if isinstance(x, Tensor | np.ndarray | np.generic) else isinstance(x, int)


def power(x: Any, y: Any) -> Tensor:
    """x ** y. Python exponents from 2 to 8 are repeated multiplications, 0.5 and -1 the cheaper op of the same value.

    Integers to the power of integers stay integers, modulo the range of their dtype.
    """
    if isinstance(x, Tensor) and type(y) in (int, float):
        if x.dtype.kind == "f":
            return _floating_power(x, y)
        if type(y) is int:
            return _integer_power(x.astype(DEFAULT_INT) if x.dtype.kind == "b" else x, y)
    if _integral(x) and _integral(y):
        base, exponent = _operands(arithmetic.mul, (x, y))
        return _power_of_integers(base, exponent)
    return binary(transcendental.power, x, y)


def _floating_power(x: Tensor, y: float) -> Tensor:
    if y == 1:
        return x
    if 2 <= y <= 8 and y == int(y):
        return _repeated(x, int(y))
    if y == -1:
        return bind(transcendental.reciprocal, (x,), {})
    if y == 0.5:
        return bind(transcendental.sqrt, (x,), {})
    return bind(transcendental.power, (x, y), {})


def _integer_power(x: Tensor, n: int) -> Tensor:
    if n < 0:
        raise DTypeError(
            f"pow: integers have no negative powers; got {x.spec} ** {n}; convert to a floating dtype first"
        )
    if n == 0:
        from staticgrad.array.creation import ones_like

        return ones_like(x)
    return _repeated(x, n)


def _repeated(x: Tensor, n: int) -> Tensor:
    """xⁿ for n ≥ 1 by squaring, the highest bit of n first: exact where the products are."""
    out = x
    for bit in bin(n)[3:]:
        out = bind(transcendental.square, (out,), {})
        if bit == "1":
            out = out * x
    return out


def _power_of_integers(x: Tensor, y: Tensor) -> Tensor:
    """xʸ of one integer dtype, bit by bit of y. A negative y gives the integer part: 0, but for x = ±1."""
    one, odd = x * 0 + 1, (y & 1) == 1
    out, square = one, x
    for bit in range(8 * x.dtype.itemsize - (x.dtype.kind == "i")):
        out = bind(arithmetic.select, (((y >> bit) & 1) == 1, out * square, out), {})
        square = square * square
    if x.dtype.kind == "u":
        return out
    sign = bind(arithmetic.select, (odd, x, one), {})
    unit = bind(arithmetic.select, ((x == 1) | (x == -1), sign, one * 0), {})
    return bind(arithmetic.select, (y < 0, unit, out), {})


def alias(x: Tensor) -> Tensor:
    """A second Tensor of the same value, place on the tape and tangents."""
    out = Tensor(x._value, requires_grad=x._requires_grad)
    out._edge = x.gradient_edge() if x._requires_grad else None
    out._version = x._version
    out._weak = x._weak
    out._tangents = dict(x._tangents) if x._tangents else None
    return out
