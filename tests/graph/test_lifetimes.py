"""Lifetimes and homes of stored values, on graphs drawn by hand."""

from __future__ import annotations

import pytest
from builder import Builder
from plan_replay import single, singles

from staticgrad.graph.errors import GraphError
from staticgrad.graph.group import Group
from staticgrad.graph.lifetimes import Buffer, Place, aligned, assign_storage, lifetimes


def test_half_open_from_the_writer_to_after_the_last_reader() -> None:
    build = Builder()
    x = build.argument((4,))
    a = build("neg", x)
    b = build("tanh", a)
    c = build("add", a, b)
    graph = build.graph(c)
    assert lifetimes(graph, singles(graph)) == {x: (0, 4), a: (0, 3), b: (1, 3), c: (2, 4)}


def test_a_value_that_nobody_reads_lives_in_its_own_group() -> None:
    build = Builder()
    x = build.argument((4,))
    unread = build("neg", x)
    out = build("tanh", x)
    groups = [single(unread), single(out)]
    graph = build.graph(out)
    assert lifetimes(graph, groups)[unread] == (0, 1)
    assert assign_storage(graph, groups).buffers[0].upper == 1


def test_a_view_keeps_its_owner_alive() -> None:
    build = Builder()
    x = build.argument((2, 3))
    a = build("neg", x)
    flat = build("reshape", a, shape=(6,))
    other = build("tanh", x)
    b = build("tanh", flat)
    graph = build.graph(b, other)
    found = lifetimes(graph, singles(graph))
    assert flat not in found
    assert found[a] == (0, 3)


def test_a_chain_of_in_place_groups_shares_one_buffer() -> None:
    build = Builder()
    node = start = build("neg", build.argument((8,)))
    for _ in range(4):
        node = build("tanh", node)
    out = build("sum", node, axis=(0,))
    graph = build.graph(out)
    storage = assign_storage(graph, singles(graph))
    assert len(storage.buffers) == 1
    assert storage.buffers[0].nodes[0] is start
    assert storage.buffers[0].nodes[-1] is node
    assert (storage.buffers[0].lower, storage.buffers[0].upper) == (0, 6)
    assert len(assign_storage(graph, singles(graph), reuse=False).buffers) == 5


def test_one_buffer_is_not_taken_over_twice() -> None:
    build = Builder()
    x = build.argument((8,))
    a = build("neg", x)
    b, c = build("tanh", a), build("exp", a)
    out = build("add", b, c)
    graph = build.graph(out)
    both = Group("fused", (b, c), (a,), (b, c), ((b, a), (c, a)))
    storage = assign_storage(graph, [single(a), both, single(out)])
    assert storage.homes[b] is storage.homes[a]
    assert storage.homes[c] is not storage.homes[a]


def test_a_value_of_another_size_is_not_taken_over() -> None:
    build = Builder()
    a = build("neg", build.argument((8,)))
    b = build("sum", a, axis=(0,))
    out = build("tanh", b)
    group = Group("fused", (b,), (a,), (b,), ((b, a),))
    graph = build.graph(out)
    storage = assign_storage(graph, [single(a), group, single(out)])
    assert storage.homes[a] is not storage.homes[b]


def test_an_update_goes_over_the_old_content_once_nobody_reads_it() -> None:
    build = Builder()
    x, state = build.argument((8,)), build.state((8,))
    new = build("add", state, x)
    later = build("tanh", state)
    graph = build.graph(later, updates=[(state, new)])
    first, second = singles(graph)
    late = assign_storage(graph, [first, second])
    assert isinstance(late.homes[new], Buffer)
    assert late.copies == [(late.homes[new], Place("input", 1, 0), 32)]
    early = assign_storage(graph, [second, first])
    assert early.homes[new] == Place("input", 1, 0)
    assert early.copies == []


def test_an_update_that_reads_its_state_in_another_order_is_copied() -> None:
    build = Builder()
    state = build.state((3, 3))
    new = build("add", state, build("permute_dims", state, axes=(1, 0)))
    graph = build.graph(updates=[(state, new)])
    storage = assign_storage(graph, singles(graph))
    assert isinstance(storage.homes[new], Buffer)
    assert len(storage.copies) == 1


@pytest.mark.parametrize(("nbytes", "expected"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_aligned(nbytes: int, expected: int) -> None:
    assert aligned(nbytes) == expected


def test_faulty_groups_are_refused() -> None:
    build = Builder()
    x = build.argument((4,))
    a = build("neg", x)
    b = build("tanh", a)
    graph = build.graph(b)
    first, second = singles(graph)
    with pytest.raises(GraphError, match="before it runs"):
        lifetimes(graph, [second, first])
    with pytest.raises(GraphError, match="one group only"):
        lifetimes(graph, [first, first, second])
    with pytest.raises(GraphError, match="a result must be"):
        lifetimes(graph, [first])
