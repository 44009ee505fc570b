"""Run a captured graph again on tensors, op by op: recorded, captured or plain, as the thread's modes say."""

from __future__ import annotations

from collections.abc import Sequence

from staticgrad._context import context
from staticgrad.binding import bind
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.ops import leaf
from staticgrad.tensor import Tensor


def replay(graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of `graph` for tensors in the place of its inputs. Updates are not carried out."""
    values: dict[Node, Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        if node in values:
            continue
        if node.op is leaf.constant:
            array = node.attributes["value"].array()
            values[node] = Tensor(array if context.capture is None else context.capture.constant(array))
        else:
            values[node] = bind(node.op, [values[operand] for operand in node.operands], dict(node.attributes))
    return [values[node] for node in graph.outputs]
