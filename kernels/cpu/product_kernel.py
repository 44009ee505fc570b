"""The kernel of a matrix product with its epilogue: which arrays it takes, and the epilogue as readable Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from staticgrad.graph.epilogue import row_and_column
from staticgrad.graph.group import Group
from staticgrad.graph.members import Access, Members
from staticgrad.graph.node import Node
from staticgrad.kernels.cpu.gemm import Product, Side, emit, gemm_ir, number
from staticgrad.kernels.expressions import BOOL, elementwise_expression, literal
from staticgrad.kernels.kernel import Operand


@dataclass(frozen=True)
class ProductKernel:
    """A generated matrix product. `source` is that of `def epilogue(total, …)`, empty where there is none."""

    product: Product
    source: str = ""

    @property
    def symbol(self) -> str:
        """The name of the kernel; equal kernels have equal names."""
        return "product_" + hashlib.sha256(f"{self.product!r}\n{self.source}".encode()).hexdigest()[:16]

    def llvm(self) -> str:
        """The kernel as LLVM IR, ready for code generation."""
        return gemm_ir(self.product, self.symbol, _compiled(self.source) if self.source else None)


@dataclass(frozen=True)
class ProductCall:
    """A product's kernel with what an epilogue has passed after A and B: C, operands and outputs; then the `sums`."""

    kernel: ProductKernel
    operands: tuple[Operand, ...] = ()
    sums: tuple[Node, ...] = ()


def with_epilogue(plain: Product, product: Node, group: Group, members: Members) -> ProductCall:
    """The call that computes a group around `product`, whose matrices `plain` describes."""
    return _Epilogue(plain, product, group, members).call()


class _Epilogue:
    def __init__(self, plain: Product, product: Node, group: Group, members: Members) -> None:
        self.plain = plain
        self.product = product
        self.group = group
        self.members = [member for node in group.nodes if (member := members.member(node)) is not None]
        self.names: dict[Node, str] = {product: "total"}
        self.loads: dict[tuple[Node, int, tuple[int, int]], str] = {}
        self.operands: list[Operand] = []
        self.sides: list[Side] = []

    def call(self) -> ProductCall:
        lines: list[str] = []
        sums: dict[Node, str] = {}
        for member in self.members:
            values = [self._load(access) for access in member.accesses]
            if member.kind == "reduce":
                sums[member.node] = values[0]
                continue
            name = self.names[member.node] = f"t{len(lines)}"
            lines.append(f"{name} = {elementwise_expression(member.node, values)}")
        stored = self._stored()
        results = ", ".join([self.names[node] for node in stored] + [*sums.values()])
        text = [
            f"def epilogue({', '.join(['total', *self.loads.values()])}):",
            *(f"    {line}" for line in lines),
            f"    return {results}",
        ]
        columns = self.plain.n
        outputs = tuple(Side(columns, 1, node.dtype == BOOL) for node in stored[1:])
        product = replace(self.plain, operands=tuple(self.sides), outputs=outputs, sums=len(sums))
        places = [Operand("storage", node) for node in stored]
        passed = (places[0], *self.operands, *places[1:])
        return ProductCall(ProductKernel(product, "\n".join(text) + "\n"), passed, tuple(sums))

    def _stored(self) -> list[Node]:
        """The values that are stored for each element, one of the product's dtype first: C has that."""
        found = [node for node in self.group.writes if node.size == self.product.size]
        found.sort(key=lambda node: node.dtype == BOOL)
        return found if found and found[0].dtype != BOOL else [self.product, *found]

    def _load(self, access: Access) -> str:
        owner = access.owner
        if owner in self.names:
            return self.names[owner]
        if owner.op.name == "constant" and owner.size == 1:
            return literal(owner.attributes["value"].array().reshape(())[()], owner.dtype)
        strides = row_and_column(access, self.product)
        key = (owner, access.offset, strides)
        if key not in self.loads:
            self.loads[key] = f"a{len(self.loads)}"
            self.operands.append(Operand("storage", owner, access.offset * owner.dtype.itemsize))
            self.sides.append(Side(*strides, owner.dtype == BOOL))
        return self.loads[key]


def _compiled(source: str) -> Callable[..., Any]:
    """The epilogue as a function of vectors."""
    namespace: dict[str, Any] = dict(_names())
    exec(compile(source, "<epilogue>", "exec"), namespace)
    found: Callable[..., Any] = namespace["epilogue"]
    return found


@cache
def _names() -> Mapping[str, Any]:
    """What an epilogue may use: the vector maths, and the dtypes."""
    from staticgrad.kernels import vector_math

    names: dict[str, Any] = {name: partial(emit, getattr(vector_math, name)) for name in vector_math.__all__}
    return names | {"float32": number, "float64": number, "inf": float("inf"), "nan": float("nan")}
