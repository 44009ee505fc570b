"""Stop a training half-way, go on from its checkpoint, and end with the very same weights."""

import tempfile

import numpy as np

import staticgrad as sg
from staticgrad import nn, optim


def training():
    """A model with dropout, its optimizer and schedule, and the compiled step."""
    sg.random.manual_seed(7)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.2), nn.Linear(32, 1))
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    schedule = optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)

    @sg.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, schedule, step


def run(step, schedule, x, y, numbers) -> None:
    """The steps of the given numbers."""
    for i in numbers:
        step(x[i], y[i])
        schedule.step()


def main(steps: int = 40) -> bool:
    """Whether both ways give equal bits."""
    x = np.random.default_rng(0).normal(size=(steps, 16, 8)).astype(np.float32)
    y = np.sin(x.sum(axis=-1, keepdims=True))
    whole, _, schedule, step = training()
    run(step, schedule, x, y, range(steps))

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/half.safetensors"
        model, optimizer, schedule, step = training()
        run(step, schedule, x, y, range(steps // 2))
        sg.save_checkpoint(path, model=model, optimizer=optimizer, step=steps // 2, extra=schedule.state_dict())
        model, optimizer, schedule, step = training()
        found = sg.load_checkpoint(path, model=model, optimizer=optimizer)
        schedule.load_state_dict(found.extra)
        run(step, schedule, x, y, range(found.step, steps))
    pairs = zip(whole.state_dict().values(), model.state_dict().values(), strict=True)
    same = all(np.array_equal(a, b) for a, b in pairs)
    print(f"resumed after {found.step} of {steps} steps: {'equal bits' if same else 'different weights'}")
    return same


if __name__ == "__main__":
    main()
