"""Elementwise ops at once: one kernel for operands of any length, with the bits of a program of these shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builder import Builder
from op_checks import cases

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.op import registry
from staticgrad.graph.rewrite import rewrite
from staticgrad.kernels.cuda import toolkit
from staticgrad.kernels.cuda.any_length import AnyLength, Way, way_of
from staticgrad.kernels.cuda.array import DeviceArray
from staticgrad.kernels.cuda.device import CUDA
from staticgrad.kernels.cuda.operation import machine_code
from staticgrad.kernels.cuda.program import compile_graph
from staticgrad.kernels.cuda.simulator import SMALL, SimulatedGPU
from staticgrad.kernels.kernel import Kernel

pytestmark = pytest.mark.skipif(not toolkit.SIMULATED, reason="the simulator plays the GPU")

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)


class Counting(SimulatedGPU):
    """Notes what is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: list[Kernel] = []

    def compile(self, kernels: Sequence[Kernel]) -> bytes:
        self.compiled += kernels
        return super().compile(kernels)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CUDA:
    gpu = Counting()
    monkeypatch.setattr("staticgrad.kernels.cuda.device._open", lambda ordinal: gpu)
    return CUDA(0)


def compiled(device: CUDA) -> list[Kernel]:
    found: list[Kernel] = device.hardware.compiled  # type: ignore[attr-defined]
    return found


def at_once(device: CUDA, name: str, operands: Sequence[Any], **attributes: Any) -> DeviceArray:
    op = registry[name]
    values = [x if isinstance(x, DeviceArray) or not x.shape else device.place(x) for x in operands]
    result = device.run(op, values, attributes, FLOAT)
    assert isinstance(result, DeviceArray)
    return result


def by_a_program(device: CUDA, name: str, operands: Sequence[Array], **attributes: Any) -> Array:
    b = Builder()
    out = b(name, *(b.argument(x.shape, x.dtype) for x in operands), **attributes)
    program = compile_graph(rewrite(b.graph(out)), device.hardware)
    made = device.empty(out.shape, out.dtype)
    program.run([device.place(x) for x in operands], [made])
    return made.to_host()


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("name", [op.name for op in registry.values() if op.kind == "elementwise"])
def test_an_op_gives_the_bits_of_a_program(device: CUDA, name: str) -> None:
    """Over all shapes that ops are tested with; numbers by value, and as arrays of one element."""
    for case in cases([registry[name]]):
        narrow = [x.astype(np.float32) if x.dtype == np.float64 else x for x in case.operands]
        for operands in {tuple(x.dtype for x in found): found for found in (case.operands, narrow)}.values():
            wanted = by_a_program(device, name, operands, **case.attributes)
            placed = [device.place(x) for x in operands]
            for given in ([*placed[:1], *operands[1:]], placed):
                found = at_once(device, name, given, **case.attributes).to_host()
                assert found.dtype == wanted.dtype
                np.testing.assert_array_equal(found, wanted, err_msg=str(case))


SHAPES: list[tuple[tuple[int, ...], ...]] = [
    ((3, 7), (3, 7)),
    ((5, 8), (8,)),  # a row under a matrix
    ((5, 7), (1, 7)),
    ((5, 8), (5, 1)),  # a column beside a matrix
    ((5, 7), (5, 1)),
    ((2, 3, 4), (3, 1)),  # the bias of channels
    ((2, 3, 5), (1, 3, 1)),
    ((2, 1, 3, 4), (3, 4)),
    ((4, 1), (1, 3)),
    ((3, 4), (1, 1)),
    ((1, 3, 1), (1, 1, 1)),
    ((70,), (1,)),
    ((0, 3), (3,)),
    ((2, 3, 4), (2, 1, 4)),  # which no kernel for any length takes
    ((), ()),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bool", "int8"])
def test_operands_lie_in_many_ways(device: CUDA, shapes: Sequence[tuple[int, ...]], dtype: str) -> None:
    random = np.random.default_rng(0)
    x, y = (np.asarray(random.integers(0, 100, shape)).astype(dtype) for shape in shapes)
    for one, other in ((x, y), (y, x)):
        found = at_once(device, "not_equal" if dtype == "bool" else "sub", [device.place(one), other])
        np.testing.assert_array_equal(found.to_host(), one != other if dtype == "bool" else one - other)
    condition = np.asarray(random.integers(0, 2, shapes[1]), np.bool_)
    found = at_once(device, "select", [condition, device.place(x), y])
    np.testing.assert_array_equal(found.to_host(), np.where(condition, x, y))


def test_large_numbers_of_elements_are_divided_in_64_bits() -> None:
    """The kernel for more than 2^31 elements, here on few."""
    gpu = SimulatedGPU()
    x, y = np.arange(15, dtype=np.float32).reshape(3, 5), np.arange(5, dtype=np.float32)
    kernel = AnyLength(registry["sub"], (FLOAT, FLOAT), (Way("each"), Way("cycle", False)), (), False).kernel(SMALL)
    assert "rest(" not in kernel.source
    a, b = (DeviceArray.from_host(gpu, values) for values in (x, y))
    out = DeviceArray.empty(gpu, x.shape, FLOAT)
    function = gpu.load(gpu.compile([kernel]), {kernel.symbol: kernel})[kernel.symbol]
    gpu.starter(function, kernel, SMALL.block)(gpu.stream, 1, [a.address, b.address, out.address, 15, 5])
    np.testing.assert_array_equal(out.to_host(), x - y)


@pytest.mark.parametrize("value", [-0.0, np.inf, np.nan, 1e-45, 3.4028235e38], ids=str)
def test_numbers_arrive_as_they_are(device: CUDA, value: float) -> None:
    x = np.array([1.0, -1.0, 0.0], np.float32)
    found = at_once(device, "copysign", [x, np.array(value, np.float32)]).to_host()
    np.testing.assert_array_equal(np.signbit(found), np.signbit(np.copysign(x, np.float32(value))))
    sums = at_once(device, "maximum", [np.full(3, -np.inf, np.float32), np.array(value, np.float32)]).to_host()
    np.testing.assert_array_equal(sums, np.full(3, value, np.float32))
    large = np.array(2**63 - 1, np.int64)
    assert at_once(device, "sub", [np.ones(2, np.int64), large]).to_host().tolist() == [2 - 2**63] * 2


def test_a_broadcast_array_is_a_copy_that_is_not_written(device: CUDA) -> None:
    x = np.arange(3, dtype=np.float32)
    spread = at_once(device, "broadcast_to", [x.reshape(3, 1)], shape=(2, 3, 4))
    np.testing.assert_array_equal(spread.to_host(), np.broadcast_to(x.reshape(3, 1), (2, 3, 4)))
    assert not spread.writable
    with pytest.raises(ValueError, match="copy of a view"):
        device.assign(spread, spread)
    target = device.empty((2, 3), FLOAT)
    device.assign(target, np.array(5.5))  # a number of another dtype
    np.testing.assert_array_equal(target.to_host(), np.full((2, 3), 5.5, np.float32))
    device.assign(target, np.arange(3))
    np.testing.assert_array_equal(target.to_host(), [[0, 1, 2]] * 2)


# ---------------------------------------------------------------- ways


@pytest.mark.parametrize(
    ("shape", "result", "way"),
    [
        ((2, 3), (2, 3), (Way("each"), ())),
        ((2, 1, 3), (2, 1, 3), (Way("each"), ())),
        ((1, 1), (2, 3), (Way("one"), ())),
        ((8,), (5, 8), (Way("cycle", True), (8,))),
        ((3, 2), (5, 3, 2), (Way("cycle", False), (6,))),
        ((5, 1), (5, 8), (Way("run", True), (8,))),
        ((5, 1), (5, 6), (Way("run", False), (6,))),
        ((3, 1, 1), (2, 3, 4, 5), (Way("block", True), (20, 3))),
        ((3, 1), (2, 3, 5), (Way("block", False), (5, 3))),
        ((2, 1, 4), (2, 3, 4), None),
    ],
)
def test_how_an_operand_lies(shape: tuple[int, ...], result: tuple[int, ...], way: Any) -> None:
    assert way_of(shape, result, 4) == way


# ---------------------------------------------------------------- what is compiled


def test_another_length_compiles_nothing(device: CUDA) -> None:
    for count in (3, 4, 64, 1000):
        x = np.ones((count, 4), np.float32)
        at_once(device, "exp", [x])
        at_once(device, "add", [x, np.ones(4, np.float32)])
        at_once(device, "mul", [x, np.array(count, np.float32)])
        at_once(device, "sub", [x, np.ones((count, 1), np.float32)])
        assert [kernel.source.split('"""')[1].split()[0] for kernel in compiled(device)] == ["exp", "add", "mul", "sub"]
    at_once(device, "exp", [np.ones(3, np.float64)])
    assert len(compiled(device)) == 5


def test_a_training_compiles_its_elementwise_ops_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last, smaller batch: what is compiled anew are sums and products, whose kernels have their shapes inside."""
    gpu: Any = sg.kernels.device.find_device("cuda")
    found: list[str] = []
    original = SimulatedGPU.compile

    def noted(self: SimulatedGPU, kernels: Sequence[Kernel]) -> bytes:
        found.extend(kernel.source.split('"""')[1].split("\n")[0] for kernel in kernels)
        return original(self, kernels)

    monkeypatch.setattr(SimulatedGPU, "compile", noted)
    monkeypatch.setattr(gpu, "_operations", {})
    gpu._elementwise._starter.cache_clear()
    sg.random.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Sigmoid()).to("cuda")
    opt = optim.Adam(model.parameters(), lr=0.1)
    kinds = []
    for batch in (6, 4, 3):
        x = sg.asarray(np.ones((batch, 5), np.float32), device="cuda")
        y = sg.asarray(np.ones((batch, 3), np.float32), device="cuda")
        loss = ((model(x) - y) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        kinds.append(list(found))
        found.clear()
    elementwise = {op.name for op in registry.values() if op.kind == "elementwise"} | {"broadcast_to"}
    assert len([name for name in kinds[0] if name in elementwise]) > 10
    for later in kinds[1:]:
        assert later
        assert not elementwise & {name for names in later for name in names.split()}


def test_machine_code_is_kept_on_disk(device: CUDA) -> None:
    gpu: Any = device.hardware
    gpu.identity = "one kind"
    kernel = AnyLength(registry["exp"], (FLOAT,), (Way("each"),), (), True).kernel(gpu.target)
    gpu.compile = lambda kernels: b"code of " + kernels[0].symbol.encode()
    assert machine_code(gpu, kernel) == b"code of " + kernel.symbol.encode()
    gpu.compile = lambda kernels: b"another"
    assert machine_code(gpu, kernel) == b"code of " + kernel.symbol.encode()
    gpu.identity = "another kind"
    assert machine_code(gpu, kernel) == b"another"
