"""Stop a training half-way, go on from its checkpoint, and end with the very same weights."""

import tempfile
from pathlib import Path

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
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, schedule, step


def main(steps: int = 40) -> bool:
    """Whether both ways give equal bits."""
    x = np.random.default_rng(0).normal(size=(steps, 16, 8)).astype(np.float32)
    y = np.sin(x.sum(axis=-1, keepdims=True))

    model, _, schedule, step = training()
    for i in range(steps):
        step(x[i], y[i])
        schedule.step()
    whole = {name: np.array(tensor) for name, tensor in model.state_dict().items()}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.safetensors"
        model, optimizer, schedule, step = training()
        for i in range(steps // 2):
            step(x[i], y[i])
            schedule.step()
        extra = {"schedule": schedule.state_dict()}
        sg.save_checkpoint(path, model=model, optimizer=optimizer, step=steps // 2, extra=extra)

        model, optimizer, schedule, step = training()
        found = sg.load_checkpoint(path, model=model, optimizer=optimizer)
        schedule.load_state_dict(found.extra["schedule"])
        for i in range(found.step, steps):
            step(x[i], y[i])
            schedule.step()

    same = all(np.array_equal(whole[name], np.array(tensor)) for name, tensor in model.state_dict().items())
    print(f"resumed after {found.step} of {steps} steps: {'equal bits' if same else 'different weights'}")
    return same


if __name__ == "__main__":
    main()
