"""What every op is held to: one function for each check, over the cases that an op's definition gives.

`cases()` makes the cases; other suites run the same ones through `sg.compile`. A check raises AssertionError or
DerivativeError. `exempt` of an op maps the name of a check that it cannot meet to the reason.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.autograd import gradcheck, gradgradcheck
from staticgrad.graph.errors import DTypeError, StaticgradError
from staticgrad.graph.node import Spec
from staticgrad.graph.op import NotImplementedRule, Op, registry
from staticgrad.tensor import Tensor

Array = np.ndarray[Any, Any]
Expected = Callable[..., Any]

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
SHAPES: Mapping[int, Sequence[tuple[tuple[int, ...], ...]]] = {
    1: [((),), ((0,),), ((5,),), ((2, 3),)],
    2: [
        ((), ()),
        ((5,), (5,)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((2, 3), ()),
        ((), (2, 3)),
        ((0, 3), (1, 3)),
        ((2, 1, 3), (4, 1)),
    ],
    3: [((3,), (3,), (3,)), ((2, 1), (3,), (1, 3)), ((2, 1), (3,), ()), ((), (2, 3), (1, 3)), ((0,), (0,), (1,))],
}


@dataclass(frozen=True)
class Case:
    """One call of an op: its operands as arrays, and its attributes."""

    op: Op
    operands: tuple[Array, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        operands = ", ".join(f"{x.dtype}{list(x.shape)}" for x in self.operands)
        attributes = "".join(f", {key}={value}" for key, value in self.attributes.items())
        return f"{self.op.name}({operands}{attributes})"

    def call(self, *operands: Any) -> Tensor:
        """The op applied to `operands`, the case's own by default."""
        result: Tensor = self.op(*[_tensor(x) for x in operands or self.operands], **self.attributes)
        return result

    def spec(self) -> Spec:
        """The type of the result, as the op's definition gives it."""
        return self.op.infer([Spec(x.shape, x.dtype) for x in self.operands], self.attributes)

    def varied(self) -> list[int]:
        """The positions of the operands in which the result varies smoothly."""
        floating = [i for i, x in enumerate(self.operands) if x.dtype.kind == "f"]
        return [i for i in floating if self.op.differentiable[self.op.position(i)]]

    def has_derivative(self) -> bool:
        """Whether differences in float64 can tell the derivative."""
        kinds = {x.dtype for x in self.operands if x.dtype.kind == "f"} | {self.spec().dtype}
        return bool(self.varied()) and kinds == {np.dtype(np.float64)} and "derivatives" not in self.op.exempt


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(np.asarray(x))


def checked_ops() -> list[Op]:
    """Every registered op but those that say why the whole suite does not fit them."""
    return [op for op in registry.values() if "suite" not in op.exempt]


def cases(ops: Iterable[Op] | None = None) -> Iterator[Case]:
    """The cases of the given ops, all checked ops by default: their samples, and draws from their domains."""
    for op in checked_ops() if ops is None else ops:
        for sample in op.samples() if op.samples is not None else ():
            yield Case(op, tuple(np.asarray(x) for x in sample.operands), sample.attributes)
        if op.domain:
            for shapes in SHAPES[len(op.operands)]:
                yield Case(op, _drawn(op, shapes))


def _drawn(op: Op, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    rng = np.random.default_rng(zlib.crc32(f"{op.name}{shapes}".encode()))
    drawn = [rng.uniform(d.low, d.high, shape) for d, shape in zip(op.domain, shapes, strict=True)]
    return tuple(np.asarray(x > 0 if i in op.free else x) for i, x in enumerate(drawn))


# ---------------------------------------------------------------- values


def check_reference(case: Case, expected: Expected) -> None:
    """The result has the type the definition gives, and the values of an independent function."""
    out = np.asarray(case.call())
    spec = case.spec()
    assert (out.shape, out.dtype) == (spec.shape, spec.dtype), f"{case}: {out.dtype}{out.shape}, not {spec}"
    with np.errstate(all="ignore"):
        value = np.asarray(expected(*case.operands, **case.attributes))
    assert value.shape == out.shape, f"{case}: the expectation has shape {value.shape}"
    np.testing.assert_allclose(
        out, value.astype(out.dtype), rtol=_tolerance(out), atol=_tolerance(out), err_msg=str(case)
    )


def _tolerance(out: Array) -> float:
    return 0.0 if out.dtype.kind != "f" else 1e-5 if out.dtype == np.float32 else 1e-14


def check_float32(case: Case) -> None:
    """float32 operands give a float32 result near the float64 one, and float32 gradients."""
    if not any(x.dtype == np.float64 for x in case.operands) or "dtype" in case.attributes:
        return
    narrow = [x.astype(np.float32) if x.dtype == np.float64 else x for x in case.operands]
    wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in narrow]
    out, exact = case.call(*narrow), case.call(*wide)
    assert out.dtype == (np.float32 if exact.dtype == np.float64 else exact.dtype), f"{case}: {out.dtype}"
    np.testing.assert_allclose(np.asarray(out), np.asarray(exact), rtol=2e-5, atol=2e-5, err_msg=str(case))
    if case.has_derivative():
        for x, gradient in zip(narrow, _gradients(case, narrow), strict=True):
            assert gradient is None or gradient.dtype == x.dtype, f"{case}: gradient of {gradient.dtype}"


def _gradients(case: Case, operands: Sequence[Array]) -> list[Array | None]:
    """The gradients of the sum of the result, None for operands that have none."""
    tensors = [Tensor(x) for x in operands]
    for i in case.varied():
        tensors[i].requires_grad_()
    out = case.call(*tensors)
    out.backward(Tensor(np.ones(out.shape, out.dtype)))
    return [None if t.grad is None else np.asarray(t.grad) for t in tensors]


def check_integers(case: Case, expected: Expected) -> None:
    """Every integer dtype either gives what the expectation gives in that dtype, or raises DTypeError."""
    floating = [i for i, x in enumerate(case.operands) if x.dtype == np.float64]
    if not floating or "dtype" in case.attributes:
        return
    for dtype in INTEGERS:
        operands = list(case.operands)
        for i in floating:
            whole = np.rint(operands[i] * 3)
            operands[i] = np.where(whole == 0, 1, np.abs(whole) if dtype[0] == "u" else whole).astype(dtype)
        try:
            spec = case.op.infer([Spec(x.shape, x.dtype) for x in operands], case.attributes)
        except DTypeError:
            continue
        out = np.asarray(case.call(*operands))
        with np.errstate(all="ignore"):
            value = np.asarray(expected(*operands, **case.attributes))
        assert (out.dtype, out.shape) == (spec.dtype, spec.shape), f"{case} in {dtype}: {out.dtype}{out.shape}"
        np.testing.assert_array_equal(out, value.astype(spec.dtype), err_msg=f"{case} in {dtype}")


def check_layouts(case: Case) -> None:
    """Strided, reversed and column-major operands give the values and gradients of contiguous ones."""
    plain = np.asarray(case.call())
    slopes = _gradients(case, case.operands) if case.has_derivative() else []
    for layout in (_spaced, _reversed, np.asfortranarray):
        operands = [np.asarray(layout(x)) if x.ndim else x for x in case.operands]
        np.testing.assert_allclose(np.asarray(case.call(*operands)), plain, rtol=1e-13, atol=1e-14, err_msg=str(case))
        found = _gradients(case, operands) if slopes else []
        for a, b in zip(found, slopes, strict=True):
            if a is not None and b is not None:
                np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14, err_msg=str(case))


def _spaced(x: Array) -> Array:
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _reversed(x: Array) -> Array:
    return x[..., ::-1].copy()[..., ::-1]


def check_operands_unchanged(case: Case) -> None:
    """Neither the op nor its derivatives write into operands, and results share no memory unless the op is a view."""
    operands = [x.copy() for x in case.operands]
    for x in operands:
        x.flags.writeable = False
    out = np.asarray(case.call(*operands))
    if case.op.kind != "view":
        assert not any(np.shares_memory(out, x) for x in operands), f"{case}: the result shares an operand's memory"
    if case.has_derivative():
        for gradient in _gradients(case, operands):
            assert gradient is None or not any(np.shares_memory(gradient, x) for x in operands), f"{case}: shared"
    for x, before in zip(operands, case.operands, strict=True):
        np.testing.assert_array_equal(x, before)


def check_special(op: Op, expected: Expected, dtype: str) -> None:
    """At the definition's special values the result is the expectation's, to the sign of zero; gradients exist."""
    values = np.array(op.special, dtype)
    typed = [i for i in range(len(op.operands)) if i not in op.free]
    grids = iter(np.meshgrid(*[values] * len(typed), indexing="ij"))
    operands = tuple(
        next(grids).copy() if i in typed else np.arange(len(values)) % 2 == 0 for i in range(len(op.operands))
    )
    case = Case(op, operands)
    out = np.asarray(case.call())
    with np.errstate(all="ignore"):
        value = np.asarray(expected(*operands))
    tolerance = 0.0 if out.dtype.kind != "f" else 4 * float(np.finfo(out.dtype).eps)
    np.testing.assert_allclose(out, value.astype(out.dtype), rtol=tolerance, atol=0, err_msg=str(case))
    if out.dtype.kind == "f":
        known = ~np.isnan(out)
        np.testing.assert_array_equal(np.signbit(out[known]), np.signbit(value[known]), err_msg=str(case))
        if case.varied() and "derivatives" not in op.exempt:
            _gradients(case, operands)


# ---------------------------------------------------------------- derivatives


def _inputs(case: Case) -> list[Tensor]:
    tensors = [Tensor(x.copy()) for x in case.operands]
    for i in case.varied():
        tensors[i].requires_grad_()
    return tensors


def check_first_order(case: Case) -> None:
    """Reverse mode against five-point differences, forward mode against reverse mode."""
    gradcheck(case.call, _inputs(case))


def check_second_order(case: Case) -> None:
    """Derivatives of the gradient, in both modes, against five-point differences of the gradient."""
    gradgradcheck(case.call, _inputs(case))


def check_mixed_orders(case: Case) -> None:
    """H·v by forward over reverse equals reverse over forward, and vᵀH·v forward over forward."""
    rng = np.random.default_rng(3)
    varied = case.varied()
    primals = [Tensor(case.operands[i].copy()) for i in varied]
    directions = [Tensor(rng.standard_normal(x.shape)) for x in primals]
    weight = Tensor(rng.standard_normal(case.spec().shape))

    def scalar(*moved: Tensor) -> Tensor:
        operands: list[Any] = list(case.operands)
        for i, x in zip(varied, moved, strict=True):
            operands[i] = x
        return sg.sum(case.call(*operands) * weight)

    def along(*moved: Tensor) -> Tensor:
        tangent: Tensor = sg.jvp(scalar, moved, directions)[1]
        return tangent

    every = tuple(range(len(varied)))
    forward_over_reverse = sg.jvp(sg.grad(scalar, every), primals, directions)[1]
    reverse_over_forward = sg.grad(along, every)(*primals)
    _, twice = sg.jvp(along, primals, directions)
    for a, b in zip(forward_over_reverse, reverse_over_forward, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-10, err_msg=str(case))
    total = sum(
        float(np.sum(np.asarray(a) * np.asarray(d))) for a, d in zip(forward_over_reverse, directions, strict=True)
    )
    np.testing.assert_allclose(float(twice), total, rtol=1e-9, atol=1e-9, err_msg=str(case))


# ---------------------------------------------------------------- errors and the definition itself


def check_errors(op: Op) -> None:
    """Every error sample raises its error, with its pattern, and with the caller's line at the end."""
    for sample in op.errors:
        tensors = [_tensor(x) for x in sample.operands]
        with pytest.raises(sample.error, match=sample.match) as caught:
            op(*tensors, **sample.attributes)
        line = caught.traceback[0].lineno + 1
        assert isinstance(caught.value, StaticgradError), f"{op.name}: {caught.type.__name__} is not the library's"
        message = str(caught.value)
        assert message.endswith(f"{__file__}:{line}"), f"{op.name}: no line of the caller at the end of {message!r}"


def check_definition(op: Op) -> None:
    """The definition has cases, error samples and a derivative answer for each operand and mode, or says why not."""
    assert op.samples is not None or op.domain, f"{op.name}: neither samples nor a domain"
    assert op.errors or "errors" in op.exempt, f"{op.name}: no error samples"
    assert len(op.vjp) == len(op.operands), f"{op.name}: one reverse answer for each operand"
    if op.linear == "no":
        assert len(op.jvp) == len(op.operands), f"{op.name}: one forward answer for each operand"
    if op.kind == "elementwise" and op.domain and op.differentiable[-1]:
        assert op.special, f"{op.name}: no special values"
    unimplemented = any(isinstance(answer, NotImplementedRule) for answer in (*op.vjp, *op.jvp))
    assert not unimplemented or "derivatives" in op.exempt, f"{op.name}: a rule that is missing must be in exempt"
    known = {"derivatives", "second order", "errors", "integers"}
    assert set(op.exempt) <= known, f"{op.name}: exempt from {set(op.exempt) - known}, which are no checks"
    assert all(len(reason) > 10 for reason in op.exempt.values()), f"{op.name}: an exemption needs its reason"


def grouped(found: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by the name of their op."""
    return {name: list(group) for name, group in itertools.groupby(found, key=lambda case: case.op.name)}
