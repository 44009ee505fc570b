"""The tape: one node for each recorded op, with its edges and exactly the values its rules ask for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from staticgrad._context import context
from staticgrad.graph.errors import DerivativeError
from staticgrad.graph.location import UNKNOWN, Location
from staticgrad.graph.node import Spec
from staticgrad.graph.op import Need, NotImplementedRule, Op, Zero
from staticgrad.graph.ops.shape import sum_to
from staticgrad.tensor import INFERENCE_VERSION, Tensor

_serial = itertools.count()


class TapeNode:
    """What `backward` needs of one recorded op. `edges[i]` leads to where operand i's cotangent goes, None if nowhere.

    `saved` maps the names of rule parameters to tensors; the op's own result is saved without its place on the tape
    (else every node would keep itself alive) and gets it back when a rule asks for it.
    """

    __slots__ = (
        "__weakref__",
        "attributes",
        "edges",
        "freed",
        "hooks",
        "location",
        "op",
        "result",
        "retained",
        "saved",
        "scope",
        "serial",
        "specs",
        "versions",
    )

    def __init__(self, op: Op, attributes: Mapping[str, Any], edges: Sequence[Any], specs: Sequence[Spec]) -> None:
        self.op = op
        self.attributes = attributes
        self.edges = tuple(edges)
        self.specs = tuple(specs)
        self.saved: dict[int, Tensor] = {}
        self.versions: dict[int, int] = {}
        self.result: Tensor | None = None
        self.freed = False
        self.hooks: dict[int, Callable[[Tensor], Any]] | None = None
        self.retained: Any = None
        self.serial = next(_serial)
        self.location: Location = UNKNOWN
        self.scope = ""

    def name(self) -> str:
        """The op's name with "Backward", as PyTorch has it."""
        return f"{self.op.name.title().replace('_', '')}Backward"

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """For each operand where its cotangent goes, and 0 (every op has one result)."""
        return tuple((edge, 0) for edge in self.edges)

    def __repr__(self) -> str:
        return f"<{self.name()}>"

    def free(self) -> None:
        """Drop the saved values."""
        self.saved = {}
        self.result = None
        self.freed = True

    def pull(self, cotangent: Tensor, useful: Collection[int] | None = None) -> Iterable[tuple[Any, Tensor]]:
        """The cotangents of the operands as (edge, value): of all, or of those whose edges' ids are `useful`."""
        if self.freed:
            raise DerivativeError(
                f"backward: the values saved by {self.op.name} were freed by an earlier backward; "
                "pass retain_graph=True to the first one to go through the graph again"
            )
        found: list[tuple[Any, Tensor]] = []
        op = self.op
        last = len(op.vjp) - 1
        for i, edge in enumerate(self.edges):
            if edge is None or (useful is not None and id(edge) not in useful):
                continue
            position = i if i < last else last
            rule = op.vjp[position]
            if callable(rule):
                value = rule(cotangent, **self._arguments(op.vjp_needs[position], i))
                found.append((edge, sum_to(value, self.specs[i].shape)))
            elif isinstance(rule, NotImplementedRule):
                raise DerivativeError(f"{op.name}: this derivative is not implemented: {rule.reason}")
            elif isinstance(rule, Zero):
                found.append((edge, _zeros(self.specs[i], cotangent.device)))
        return found

    def _arguments(self, needs: Sequence[Need], index: int) -> dict[str, Any]:
        """What a rule is called with; an attribute that the op was not given is left to the rule's default."""
        found: dict[str, Any] = {}
        for need in needs:
            name, kind = need.name, need.kind
            if kind == "operand":
                found[name] = self._unpacked(need.position)
            elif kind == "out":
                found[name] = self._own_result()
            elif kind == "shape":
                found[name] = self.specs[need.position].shape
            elif kind == "dtype":
                found[name] = self.specs[need.position].dtype
            elif name in self.attributes or name in ("position", "extents"):
                found[name] = attribute(name, self.attributes, index, self.specs)
        return found

    def _unpacked(self, position: int) -> Tensor:
        saved = self.saved[position]
        if saved._version[0] != self.versions[position]:
            raise self._changed(saved, self.versions[position], f"operand {self.op.operands[position]}")
        return saved

    def _own_result(self) -> Tensor:
        if self.result is None:
            raise DerivativeError(f"backward: {self.op.name} did not keep its result")
        if self.result._version[0] != self.versions[-1]:
            raise self._changed(self.result, self.versions[-1], "result")
        out = Tensor(self.result._value, requires_grad=True)
        out._edge = self
        out._version = self.result._version
        out._tangents = self.result._tangents
        return out

    def _changed(self, saved: Tensor, version: int, what: str) -> DerivativeError:
        return DerivativeError(
            f"backward: the {what} of {self.op.name} ({saved.spec}) was changed in place after it was saved for "
            f"the backward pass (version {saved._version[0]}, saved at {version}); change it after backward, or "
            "work on a copy"
        )


def _zeros(spec: Spec, device: str) -> Tensor:
    from staticgrad.array.creation import zeros

    return zeros(spec.shape, dtype=spec.dtype, device=device)


def attribute(name: str, attributes: Mapping[str, Any], index: int, specs: Sequence[Spec]) -> Any:
    """A rule's attribute; for variadic ops also which operand is meant and the extents of all along the axis."""
    if name == "position" and name not in attributes:
        return index
    if name == "extents" and name not in attributes:
        return tuple(spec.shape[attributes["axis"]] for spec in specs)
    return attributes[name]


_new_tuple = tuple.__new__  # makes a Spec in half the time of Spec(...)
_saving: dict[tuple[Op, int], tuple[tuple[int, ...], bool]] = {}


def _to_save(op: Op, mask: int) -> tuple[tuple[int, ...], bool]:
    """Operand positions, and whether the result, that the rules of the operands in `mask` ask for."""
    needs = [need for i, found in enumerate(op.vjp_needs) if mask >> i & 1 for need in found]
    positions = tuple(sorted({need.position for need in needs if need.kind == "operand"}))
    known = _saving[op, mask] = (positions, any(need.kind == "out" for need in needs))
    return known


def record(op: Op, operands: Sequence[Tensor], attributes: Mapping[str, Any], out: Tensor) -> None:
    """Put `out = op(*operands)` on the tape, if a derivative can flow to some operand."""
    edges: list[Any] = []
    specs: list[Spec] = []
    mask = place = 0
    differentiable = op.differentiable
    last = len(differentiable) - 1
    for operand in operands:
        value = operand._value
        specs.append(_new_tuple(Spec, (value.shape, value.dtype)))
        if operand._requires_grad and differentiable[place]:
            edges.append(operand if operand._edge is None else operand._edge)
            mask |= 1 << place
        else:
            edges.append(None)
        if place < last:
            place += 1
    if not mask:
        return
    node = TapeNode(op, attributes, edges, specs)
    positions, keeps_result = _saving.get((op, mask)) or _to_save(op, mask)
    for position in positions:
        saved = operands[position]
        if saved._version is INFERENCE_VERSION:
            raise DerivativeError(
                f"{op.name}: operand {op.operands[position]} ({saved.spec}) was made under inference_mode() and cannot "
                "be saved for backward; make it under no_grad() instead, or clone it with astype(copy=True)"
            )
        node.saved[position] = saved
        node.versions[position] = saved._version[0]
    if keeps_result:
        node.result = out.detach()
        node.versions[-1] = out._version[0]
    capture = context.capture
    if capture is not None:
        node.location = capture.last_location
        node.scope = capture.scope
    out._edge = node
    out._requires_grad = True
