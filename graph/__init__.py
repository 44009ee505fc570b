"""The static graph: its nodes and ops, what is done to it before it runs, and the plan of its memory. NumPy only."""

from staticgrad.graph.errors import GraphError, StaticgradError
from staticgrad.graph.interpret import interpret
from staticgrad.graph.location import Location
from staticgrad.graph.node import Graph, Node, Spec
from staticgrad.graph.offsets import plan_offsets
from staticgrad.graph.printer import format_graph
from staticgrad.graph.rewrite import rewrite
from staticgrad.graph.verify import verify

__all__ = [
    "Graph",
    "GraphError",
    "Location",
    "Node",
    "Spec",
    "StaticgradError",
    "format_graph",
    "interpret",
    "plan_offsets",
    "rewrite",
    "verify",
]
