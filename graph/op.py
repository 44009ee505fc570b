"""What an op is: one frozen definition that both modes, both derivative directions and every backend read.

An op gives its type rule, its NumPy reference, and one derivative rule for each operand and direction. Rules are
written with the public ops, so that one rule serves the dynamic tape, the captured graph and higher orders. A rule
names in its signature what it needs: operand names and `out` are saved values, `<operand>_shape` and
`<operand>_dtype` only types, anything else is an attribute of the node.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from staticgrad.graph.errors import DTypeError, ShapeError
from staticgrad.graph.node import DType, Shape, Spec

Kind = Literal[
    "leaf",  # argument, state, host scalar, constant
    "elementwise",  # one scalar function over broadcast operands
    "view",  # the operand's own storage, read through other strides
    "reduction",  # some axes folded into one value each
    "structural",  # everything with a lowering of its own
]


@dataclass(frozen=True)
class Zero:
    """The derivative exists and is zero everywhere it exists."""


@dataclass(frozen=True)
class NotDifferentiable:
    """The result does not vary smoothly with this operand; derivatives stop here, as for an index."""

    reason: str


@dataclass(frozen=True)
class NotImplementedRule:
    """The derivative exists but staticgrad does not have it; asking for it is an error that gives the reason."""

    reason: str


ZERO = Zero()
Rule = Callable[..., Any]
Answer = Rule | Zero | NotDifferentiable | NotImplementedRule


@dataclass(frozen=True)
class Need:
    """One value that a rule asks for: the operand or result it comes from, or an attribute of the node."""

    name: str
    kind: Literal["operand", "out", "shape", "dtype", "attribute"]
    position: int = -1


def needs_of(rule: Rule, operands: Sequence[str]) -> tuple[Need, ...]:
    """Read from a rule's keyword-only parameters what it needs to be called."""
    needs = []
    for name, parameter in inspect.signature(rule).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        needs.append(_need(name, operands))
    return tuple(needs)


def _need(name: str, operands: Sequence[str]) -> Need:
    if name == "out":
        return Need(name, "out")
    if name in operands:
        return Need(name, "operand", operands.index(name))
    stem, _, kind = name.rpartition("_")
    if kind in ("shape", "dtype") and stem in operands:
        return Need(name, "shape" if kind == "shape" else "dtype", operands.index(stem))
    return Need(name, "attribute")


@dataclass(frozen=True)
class Sample:
    """Operands and attributes on which the op is tested."""

    operands: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorSample:
    """A call that must raise: the arguments, the error's class, and a pattern found in its message."""

    operands: tuple[Any, ...]
    attributes: Mapping[str, Any]
    error: type[Exception]
    match: str


@dataclass(frozen=True)
class Interval:
    """The open range of real numbers in which samples of an operand are drawn."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Op:
    """One op. Instances live in the registry under their name; nothing else defines what the op does.

    Attributes:
        operands: parameter names; one name ending in `*` for an op of any number of operands.
        infer: `(specs, attributes) -> Spec`, raising ShapeError or DTypeError for what the op does not take.
        reference: the NumPy meaning, `(*arrays, **attributes) -> array`; the dynamic mode runs it.
        vjp: for each operand an answer; a rule is called `rule(cotangent, *, ...)` and gives that operand's cotangent.
        jvp: for each operand an answer; a rule is called `rule(tangent, *, ...)`.
        scalar: for elementwise ops the function of scalars that code generators read.
        linear: the tangent is the op itself applied to tangents: of "each" operand in turn (a multilinear op such as
            matmul), or of all operands at once ("joint", such as concat). `jvp` is then not read.
        promotes: operands are brought to one dtype before the op sees them, but for those at the positions `free`.
    """

    name: str
    kind: Kind
    operands: tuple[str, ...]
    infer: Callable[[Sequence[Spec], Mapping[str, Any]], Spec]
    reference: Callable[..., Any]
    vjp: tuple[Answer, ...]
    jvp: tuple[Answer, ...]
    scalar: Callable[..., Any] | None = None
    linear: Literal["no", "each", "joint"] = "no"
    promotes: bool = False
    free: tuple[int, ...] = ()
    commutative: bool = False
    domain: tuple[Interval, ...] = ()
    special: tuple[float, ...] = ()
    samples: Callable[[], list[Sample]] | None = None
    errors: tuple[ErrorSample, ...] = ()
    exempt: Mapping[str, str] = field(default_factory=dict)
    vjp_needs: tuple[tuple[Need, ...], ...] = field(init=False)
    jvp_needs: tuple[tuple[Need, ...], ...] = field(init=False)
    differentiable: tuple[bool, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = self.operands
        object.__setattr__(self, "vjp_needs", tuple(needs_of(r, names) if callable(r) else () for r in self.vjp))
        object.__setattr__(self, "jvp_needs", tuple(needs_of(r, names) if callable(r) else () for r in self.jvp))
        object.__setattr__(self, "differentiable", tuple(not isinstance(r, NotDifferentiable) for r in self.vjp))

    @property
    def variadic(self) -> bool:
        return self.operands[-1:] != () and self.operands[-1].endswith("*")

    def position(self, index: int) -> int:
        """Where the rules of operand `index` stand: all operands of a variadic op share one rule."""
        return min(index, len(self.operands) - 1)

    def __call__(self, *operands: Any, **attributes: Any) -> Any:
        """Apply the op through whatever the operands are: the first one that can bind decides."""
        for operand in operands:
            bind = getattr(type(operand), "__bind__", None)
            if bind is not None:
                return bind(self, operands, attributes)
        raise TypeError(f"{self.name}: at least one operand must be a Tensor; got {operands!r}")

    def __repr__(self) -> str:
        return f"<op {self.name}>"


registry: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Enter `op` in the core set. Two ops of one name are a mistake in the library."""
    if op.name in registry:
        raise ValueError(f"op {op.name} is defined twice")
    registry[op.name] = op
    return op


# ---------------------------------------------------------------- dtype classes


def _floating(dtype: DType) -> bool:
    return dtype.kind == "f"


def _integer(dtype: DType) -> bool:
    return dtype.kind in "iu"


def _boolean(dtype: DType) -> bool:
    return dtype.kind == "b"


dtype_classes: dict[str, Callable[[DType], bool]] = {
    "floating": _floating,
    "integer": _integer,
    "boolean": _boolean,
    "numeric": lambda dtype: _floating(dtype) or _integer(dtype),
    "uint64": lambda dtype: dtype == np.uint64,
    "integer or boolean": lambda dtype: _integer(dtype) or _boolean(dtype),
    "any": lambda dtype: True,
}


def require_dtype(name: str, dtype: DType, allowed: str) -> None:
    """Raise DTypeError unless `dtype` is of the class `allowed`."""
    if not dtype_classes[allowed](dtype):
        raise DTypeError(f"{name}: takes a {allowed} dtype; got {dtype}; convert it first with astype")


def broadcast_shapes(name: str, shapes: Sequence[Shape]) -> Shape:
    """The common shape of `shapes` under NumPy's broadcasting, or ShapeError naming the op."""
    longest = shapes[0]
    for shape in shapes:
        if len(shape) > len(longest):
            longest = shape
    if all(shape in ((), longest) for shape in shapes):
        return longest
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(shape) for shape in shapes)
        raise ShapeError(
            f"{name}: operands must broadcast to one shape; got {listed}; "
            "axes are aligned from the right and must be equal or 1"
        ) from None


# ---------------------------------------------------------------- elementwise ops

Result = str  # "same", "boolean", "attribute" or a dtype's name


def elementwise(
    name: str,
    *,
    scalar: Callable[..., Any],
    partials: Sequence[Answer],
    dtype: str = "floating",
    result: Result = "same",
    reference: Callable[..., Any] | None = None,
    free: Sequence[int] = (),
    **options: Any,
) -> Op:
    """Define and register an elementwise op from one scalar function and its partial derivatives.

    `scalar` holds one return expression in its operands and `vm` functions. `partials[i]` gives d out / d operand i
    from saved values (its keyword-only parameters), or is a whole rule if it takes the change as a positional
    parameter, or is one of the three answers. `result` is "same" (the operands' dtype), "boolean", "attribute" (the
    node's attribute `dtype`), or the name of a dtype. Operands at the positions `free` are booleans and take no part
    in promotion (such as the condition of `select`).
    """
    operands = tuple(n for n, p in inspect.signature(scalar).parameters.items() if p.kind is not p.KEYWORD_ONLY)
    typed = [i for i in range(len(operands)) if i not in free]
    accepted: set[DType] = set()  # asking again costs more than the rest of the rule

    def infer(specs: Sequence[Spec], attributes: Mapping[str, Any]) -> Spec:
        first = specs[typed[0]]
        shape, common = first
        if common not in accepted:
            require_dtype(name, common, dtype)
            accepted.add(common)
        for i in free:
            require_dtype(name, specs[i].dtype, "boolean")
        for i in typed[1:]:
            if specs[i].dtype != common:
                raise DTypeError(f"{name}: operands must have one dtype; got {common} and {specs[i].dtype}")
        for spec in specs:
            if spec.shape != shape:
                shape = broadcast_shapes(name, [spec.shape for spec in specs])
                break
        if result == "same":
            return first if shape is first.shape else Spec(shape, common)
        if result == "attribute":
            return Spec(shape, np.dtype(attributes["dtype"]))
        return Spec(shape, np.dtype(np.bool_ if result == "boolean" else result))

    rules = tuple(_rule(partial, operands) for partial in partials)
    return register(
        Op(
            name,
            "elementwise",
            operands,
            infer,
            reference or scalar,
            vjp=rules,
            jvp=rules,
            scalar=scalar,
            promotes=options.pop("promotes", len(typed) > 1),
            free=tuple(free),
            **options,
        )
    )


def _rule(partial: Answer, operands: Sequence[str]) -> Answer:
    if not callable(partial):
        return partial
    takes_change = any(p.kind is not p.KEYWORD_ONLY for p in inspect.signature(partial).parameters.values())
    return partial if takes_change else _scaled(partial, operands)


def _scaled(partial: Rule, operands: Sequence[str]) -> Rule:
    """The rule `change * partial`: the same for cotangents and tangents, since partials are real and diagonal."""
    names = [need.name for need in needs_of(partial, operands)]
    constant = None if names else partial()

    def rule(change: Any, **saved: Any) -> Any:
        if constant == 1:
            return change
        if constant == -1:
            return -change
        return change * partial(**saved)

    parameters = [inspect.Parameter("change", inspect.Parameter.POSITIONAL_ONLY)]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    rule.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    rule.__name__ = rule.__qualname__ = partial.__name__
    return rule


# ---------------------------------------------------------------- every other op


def structural(
    name: str,
    *,
    operands: Sequence[str],
    infer: Callable[..., Spec],
    reference: Callable[..., Any],
    vjp: Sequence[Answer],
    jvp: Sequence[Answer] = (),
    kind: Kind = "structural",
    **options: Any,
) -> Op:
    """Define and register an op with rules of its own; `infer(*specs, **attributes)` gives the type."""

    def typed(specs: Sequence[Spec], attributes: Mapping[str, Any]) -> Spec:
        return infer(*specs, **attributes)

    return register(Op(name, kind, tuple(operands), typed, reference, tuple(vjp), tuple(jvp), **options))
