"""The part of compiling that is the same on every device: fuse, schedule, plan, and what a program keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.graph.fusion import fuse
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import last_check
from staticgrad.graph.node import Graph, Node
from staticgrad.graph.plan import Plan, make_plan
from staticgrad.graph.schedule import order
from staticgrad.graph.serialize import canonical_order
from staticgrad.graph.timeline import stage


def planned(
    graph: Graph, *, reuse: bool, adapt: Callable[[Sequence[Group]], Sequence[Group]] = lambda groups: groups
) -> Plan:
    """The plan of a graph; `adapt` changes the fused groups to what a device can do."""
    with stage("fuse"):
        groups = adapt(fuse(graph))
    with stage("schedule"):
        groups = order(graph, groups)
    with stage("plan"):
        return make_plan(graph, groups, reuse=reuse)


def facts_of(
    graph: Graph, plan: Plan, *, reuse: bool, own_bytes: int, errors: Sequence[Node], calls: Sequence[str]
) -> dict[str, Any]:
    """What every program knows of itself, as JSON has it; nodes by their number in `canonical_order`.

    Args:
        own_bytes: working memory of kernels behind the arena.
        errors: the nodes whose indices are checked, in the order of their codes.
        calls: what computes each group.
    """
    numbers = {node: number for number, node in enumerate(canonical_order(graph))}
    checked = {node for group in plan.groups[: last_check(plan.groups) + 1] for node in group.writes}
    return {
        "arena": plan.peak_bytes,
        "own": own_bytes,
        "reuse": reuse,
        "constants": [numbers[node] for node in plan.constants],
        "early": [index for index, node in enumerate(graph.outputs) if node in checked],
        "errors": [numbers[node] for node in errors],
        "calls": list(calls),
    }
