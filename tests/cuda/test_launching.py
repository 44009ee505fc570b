"""Programs started on the GPU: replayed as graphs, on several streams, by several Python threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builder import Builder
from gpu_runs import check_same, program_of
from gpu_sizes import SIZES
from simulated import unmerged
from trainings import host

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.node import Graph
from staticgrad.graph.rewrite import rewrite
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.program import Program

Array = np.ndarray[Any, Any]
RUNS = 5


def layer_and_update() -> tuple[Graph, Array, Array]:
    """A product, a softmax and an update of the state: several kernels; with an argument and the state."""
    size, width = SIZES.batch, SIZES.layers[0]
    b = Builder()
    x, w = b.argument((size, width)), b.state((width, width))
    product = b("matmul", x, w)
    active = b("tanh", product)
    total = b("sum", active, axis=(0, 1))
    gradient = b("matmul", x, active, transpose_x=True, transpose_y=False)
    moved = b("sub", b("mul", w, 0.99), b("mul", gradient, 1e-3))
    generator = np.random.default_rng(0)
    graph = rewrite(b.graph(active, total, updates=[(w, moved)]))
    values = generator.standard_normal((size, width)).astype(np.float32)
    weights = (generator.standard_normal((width, width)) / width).astype(np.float32)
    return graph, values, weights


def outputs_of(program: Program) -> list[DeviceArray]:
    return [DeviceArray.empty(program.hardware, node.shape, node.dtype) for node in program.graph.outputs]


def test_a_replayed_graph_gives_what_plain_launches_give() -> None:
    """The first run of a program starts launch by launch, later ones replay a graph: so does one program, run after
    run, against new ones that run once each. Outputs and state lie elsewhere each time."""
    graph, values, weights = layer_and_update()
    program = program_of(graph)
    data, gpu = program.to_bytes(), program.hardware
    assert len([name for name in program.calls if name]) > 1
    states = [DeviceArray.from_host(gpu, weights) for _ in range(2)]
    for turn in range(RUNS):
        given = [values * (turn + 1), DeviceArray.from_host(gpu, values * (turn + 1))][turn % 2]
        found = []
        for number, runs in enumerate((program, Program.from_bytes(data, gpu))):
            if turn == 3:  # state that is replaced between runs
                states[number] = DeviceArray.from_host(gpu, states[number].to_host() * 0.5)
            outputs = outputs_of(runs)
            runs.run([given, states[number]], outputs)
            found.append([array.to_host() for array in (*outputs, states[number])])
        for replayed, plain in zip(*found, strict=True):
            check_same(replayed, plain, f"run {turn}")


def test_merged_launches_give_what_they_give_apart() -> None:
    """A chain that one block does in turn, and a step of training, some of whose launches share a kernel."""
    b = Builder()
    x, y = b.argument((32,)), b.argument((32,))
    chain = x
    for _ in range(60):
        chain = b("tanh", b("mul", chain, y))
    train, _ = train_step()
    train(*batch())
    for graph in (rewrite(b.graph(chain)), train.last.captured.graph):
        merged = program_of(graph)
        with unmerged():
            apart = program_of(graph)
        assert len(merged._facts["steps"]) < len(apart._facts["steps"])
        found = []
        for program in (merged, apart):
            generator = np.random.default_rng(0)
            inputs = [
                DeviceArray.from_host(program.hardware, np.asarray(generator.random(leaf.shape) + 1, leaf.dtype))
                for leaf in graph.inputs
            ]
            for _ in range(RUNS):
                outputs = outputs_of(program)
                program.run(inputs, outputs)
            found.append([array.to_host() for array in (*outputs, *inputs)])
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def train_step() -> tuple[Callable[..., Any], nn.Module]:
    sg.random.manual_seed(0)
    sizes = SIZES.layers
    model = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[-1]))
    opt = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(x: Any, y: Any) -> Any:
        scores = model(x)
        loss = nn.functional.cross_entropy(scores, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss, scores

    return sg.compile(step, device="cuda"), model


def batch(seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((SIZES.batch, SIZES.layers[0])).astype(np.float32)
    return x, generator.integers(0, SIZES.layers[-1], SIZES.batch)


def test_results_belong_to_the_caller() -> None:
    """What a call returned stays as it was, whatever is called later, and may be changed."""
    step, _ = train_step()
    kept = []
    for seed in range(RUNS):
        loss, scores = step(*batch(seed))
        kept.append((loss, host(loss), scores, host(scores)))
    sg.cuda.synchronize()
    for loss, loss_then, scores, scores_then in kept:
        check_same(host(loss), loss_then)
        check_same(host(scores), scores_then)
        scores.detach().copy_(0.0)
    addresses = {scores._value.address for _, _, scores, _ in kept}
    assert len(addresses) == RUNS


def test_arguments_from_the_host_and_from_the_gpu_mix() -> None:
    """The same losses and parameters however the arguments come, in any order."""
    found = []
    for kinds in ("hhhhhh", "dddddd", "hdhhdd", "mmhdmh"):
        step, model = train_step()
        losses = []
        for seed, kind in enumerate(kinds):
            x, y = batch(seed)
            if kind == "h":
                losses.append(step(x, y)[0])
            elif kind == "d":
                losses.append(step(sg.asarray(x, device="cuda"), sg.asarray(y, device="cuda"))[0])
            else:
                losses.append(step(x, sg.asarray(y, device="cuda"))[0])
            x[:] = np.nan  # a host argument was copied when the call returned
        found.append([*map(host, losses), *map(host, model.parameters())])
    for other in found[1:]:
        for one, value in zip(found[0], other, strict=True):
            check_same(value, one)


def test_state_replaced_and_written_between_calls() -> None:
    """Parameters loaded and overwritten from outside are what the next call reads."""
    step, model = train_step()
    reference, twin = train_step()
    start = {name: host(tensor) for name, tensor in model.state_dict().items()}
    for _ in range(3):
        step(*batch())
    model.load_state_dict(start)
    reference(*batch(1))  # another history, then the same state by another way
    for name, tensor in twin.state_dict().items():
        with sg.no_grad():
            tensor.copy_(start[name])
    found = [host(step(*batch(2))[1]), host(reference(*batch(2))[1])]
    check_same(found[0], found[1])


# ---------------------------------------------------------------- streams


def chain(steps: int = 8) -> Any:
    """A function whose products take a while, so that what does not wait for it comes too early."""

    def function(x: Any, w: Any) -> Any:
        for _ in range(steps):
            x = sg.tanh(x @ w)
        return x

    return sg.compile(function)


def operands() -> tuple[Array, Array]:
    width = SIZES.layers[0]
    generator = np.random.default_rng(0)
    return (
        generator.standard_normal((SIZES.batch, width)).astype(np.float32),
        (generator.standard_normal((width, width)) / width**0.5).astype(np.float32),
    )


def test_what_another_stream_computes_is_waited_for() -> None:
    """x goes from stream to stream and back; every tensor in between is dropped, and its memory used again."""
    x, w = (sg.asarray(values, device="cuda") for values in operands())
    function = chain()
    wanted = x
    for _ in range(2 * RUNS):
        wanted = function(wanted, w)
    wanted = host(wanted)
    for _ in range(3):
        value = x
        for _ in range(RUNS):
            with sg.cuda.stream():
                value = function(value, w)
                noise = value * 0.0 - 1.0  # takes memory that another stream may have given back
            value = function(value, w)
            del noise
        check_same(host(value), wanted)


def test_streams_beside_each_other() -> None:
    """Several independent chains, and one sum of them all on yet another stream."""
    x, w = (sg.asarray(values, device="cuda") for values in operands())
    functions = [chain(), chain()]
    wanted = [host(functions[0](x * float(number), w)) for number in range(RUNS)]
    results = []
    for number in range(RUNS):
        with sg.cuda.stream() as stream:
            results.append(functions[number % 2](x * float(number), w))
    stream.synchronize()
    with sg.cuda.stream():
        total = results[0]
        for result in results[1:]:
            total = total + result
    for result, value in zip(results, wanted, strict=True):
        check_same(host(result), value)
    expected = wanted[0]
    for value in wanted[1:]:
        expected = expected + value
    check_same(host(total), expected)


def test_training_on_streams_in_turn() -> None:
    """State that one stream updates is read by the next."""
    found = []
    for streams in (False, True):
        step, model = train_step()
        losses = []
        for seed in range(RUNS):
            if streams and seed % 2:
                with sg.cuda.stream():
                    losses.append(step(*batch(seed))[0])
            else:
                losses.append(step(*batch(seed))[0])
        found.append([*map(host, losses), *map(host, model.parameters())])
    for one, other in zip(*found, strict=True):
        check_same(other, one)


# ---------------------------------------------------------------- Python threads


def in_threads(work: Callable[[int], Any], count: int = 4) -> list[Any]:
    """What `work` gives for each number, each in a Python thread of its own."""
    found: list[Any] = [None] * count
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = work(number)
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


@pytest.mark.parametrize("own_stream", [False, True])
def test_one_program_from_several_python_threads(own_stream: bool) -> None:
    x, w = operands()
    function = chain(2)
    weights = sg.asarray(w, device="cuda")

    def work(number: int) -> list[Array]:
        results = []
        for turn in range(RUNS):
            given = sg.asarray(x * float(number + turn), device="cuda")
            if own_stream:
                with sg.cuda.stream():
                    results.append(host(function(given, weights)))
            else:
                results.append(host(function(given, weights)))
        return results

    wanted = [work(number) for number in range(4)]
    for one, other in zip(in_threads(work), wanted, strict=True):
        for value, expected in zip(one, other, strict=True):
            check_same(value, expected)


def test_programs_and_ops_of_several_python_threads() -> None:
    """Each thread compiles, trains a model of its own and runs ops one by one."""
    x, _ = operands()
    wanted = np.tanh(x.astype(np.float64)).sum()

    def work(number: int) -> tuple[float, Array]:
        scale = sg.ones((), device="cuda")

        def step(value: Any) -> Any:
            scale.copy_(scale * 0.5)
            return sg.sum(sg.tanh(value)) * scale

        compiled = sg.compile(step, device="cuda")
        losses = np.array([compiled(x).item() for _ in range(RUNS)])
        there = sg.asarray(x, device="cuda")
        return float(sg.sum(sg.tanh(there)).item()), losses

    for total, losses in in_threads(work):
        np.testing.assert_allclose(total, wanted, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(losses, total * 0.5 ** np.arange(1, RUNS + 1), rtol=1e-5)
