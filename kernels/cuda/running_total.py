"""Running totals over the threads of a team: what the threads before each one have, added up in order."""

from __future__ import annotations

from staticgrad.graph.node import DType
from staticgrad.kernels.cuda.structural import CallText, added, neutral, quotient, rest


def in_team(text: CallText, name: str, dtype: DType, team: int) -> list[str]:
    """The lines that set `{name}_before` to the sum over the threads before, and `{name}` to that with its own.

    A team is at most a warp. All threads of the block come here.
    """
    lines = [f"lane = {rest('thread', team, text.threads)}"]
    distance = 1
    while distance < team:
        total = added("other", name, dtype)
        lines += [f"other = shuffle_up({name}, {distance})", f"{name} = select(lane >= {distance}, {total}, {name})"]
        distance *= 2
    if team == 1:
        return [*lines, f"{name}_before = {neutral(dtype)}"]
    return [*lines, f"other = shuffle_up({name}, 1)", f"{name}_before = select(lane >= 1, other, {neutral(dtype)})"]


def in_block(text: CallText, name: str, dtype: DType) -> list[str]:
    """The lines that set `{name}_before` to the sum over the threads before, and `{name}_all` to that of the block."""
    warp = text.call.target.warp
    warps = text.threads // warp
    totals = text.shared(f"totals_{name}", warps, dtype)
    return [
        *in_team(text, name, dtype, warp),
        f"warp = {quotient('thread', warp, text.threads)}",
        f"if lane == {warp - 1}:",
        f"    {totals}[warp] = {name}",
        "cuda.syncthreads()",
        f"{name}_all = {neutral(dtype)}",
        f"others = {neutral(dtype)}",
        f"for w in range({warps}):",
        f"    others = select(w == warp, {name}_all, others)",
        f"    {name}_all = {added(f'{name}_all', f'{totals}[w]', dtype)}",
        f"{name}_before = {added('others', f'{name}_before', dtype)}",
        "cuda.syncthreads()",
    ]
