"""A kernel that writes where there is no memory, and what works afterwards: run by `test_failures.py`.

It is a program of its own because what a GPU had in its memory is lost after such a failure. Prints one line for each
thing that held.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kernels" / "cuda")]

import numpy as np  # noqa: E402
from gpu_sizes import SIMULATED  # noqa: E402

import staticgrad as sg  # noqa: E402
from staticgrad.graph.errors import DeviceError  # noqa: E402
from staticgrad.kernels.cuda import device as cuda_device  # noqa: E402
from staticgrad.kernels.cuda.hardware import BoundLaunch  # noqa: E402
from staticgrad.kernels.device import find_device  # noqa: E402
from staticgrad.kernels.kernel import Kernel  # noqa: E402

BROKEN = '''def kernel(p0):
    """writes far behind its operand

    p0: float32, written
    """
    p0[int64(cuda.threadIdx.x) + (1 << 44)] = float32(1.0)
'''


def play_the_gpu() -> None:
    """As the tests' fixture does in the simulator."""
    from fake_driver import FakeDriver, open_gpu

    driver = FakeDriver()
    cuda_device._open = lambda ordinal: open_gpu(driver, ordinal)


def trained(device: str) -> float:
    """The loss after some steps."""
    sg.random.manual_seed(0)
    layer = sg.nn.Sequential(sg.nn.Linear(20, 3), sg.nn.Dropout(0.5))  # the random state goes to the GPU too
    optimizer = sg.optim.SGD(layer.parameters(), lr=0.1)

    def step(x: sg.Tensor) -> sg.Tensor:
        loss = (layer(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    compiled = sg.compile(step, device=device)
    x = np.random.default_rng(0).standard_normal((16, 20)).astype(np.float32)
    return [compiled(x).item() for _ in range(4)][-1]


def fail() -> None:
    """Run the kernel."""
    gpu = find_device("cuda").hardware  # type: ignore[attr-defined]
    kernel = Kernel(BROKEN, (np.dtype(np.float32),))
    functions = gpu.load(gpu.compile([kernel]), {kernel.symbol: kernel})
    held = sg.ones((4,), device="cuda")
    gpu.sequence([BoundLaunch(functions[kernel.symbol], [held._value.address], 1, 8)]).run()
    sg.cuda.synchronize()


def main() -> None:
    """Fail, and go on."""
    if SIMULATED:
        play_the_gpu()
    wanted = trained("cuda")
    before = sg.ones((4,), device="cuda")
    try:
        fail()
    except DeviceError as error:
        print(f"raised: {error}")
    for name, use in (("read", before.tolist), ("compute", lambda: before + 1.0), ("train", lambda: trained("cuda"))):
        try:
            use()
        except DeviceError as error:
            print(f"{name} raised: {error}")
    print(f"cpu: {abs(trained('cpu') - wanted) < 1e-5}")
    sg.cuda.reset()
    print(f"gpu after reset: {trained('cuda') == wanted}")
    print(f"op after reset: {(sg.ones((4,), device='cuda') + 1.0).tolist() == [2.0] * 4}")
    try:
        before.tolist()
    except DeviceError as error:
        print(f"lost: {error}")


if __name__ == "__main__":
    main()
