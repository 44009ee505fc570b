"""Train a classifier of handwritten digits, op by op and compiled, from the same start."""

import time

import numpy as np

import staticgrad as sg
from staticgrad import nn, optim


def train(compiled: bool, epochs: int) -> tuple[float, float]:
    """Held-out accuracy and seconds of one training."""
    sg.random.manual_seed(0)
    images, labels = sg.data.digits(split="train")
    held_out, held_out_labels = sg.data.digits(split="test")
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10))
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)

    def step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    step = sg.compile(step) if compiled else step
    loader = sg.data.DataLoader(sg.data.TensorDataset(images, labels), batch_size=64, shuffle=True, drop_last=True)
    begun = time.perf_counter()
    for _ in range(epochs):
        for x, y in loader:
            step(x, y)
    seconds = time.perf_counter() - begun
    model.eval()
    with sg.no_grad():
        guess = np.argmax(model(held_out).numpy(), axis=1)
    return float(np.mean(guess == held_out_labels)), seconds


def main(epochs: int = 20) -> dict[str, float]:
    """Train in both modes and print what each took."""
    found = {}
    for name, compiled in (("dynamic", False), ("compiled", True)):
        found[name], seconds = train(compiled, epochs)
        print(f"{name}: {100 * found[name]:.1f} % of the held-out digits, {seconds:.2f} s")
    return found


if __name__ == "__main__":
    main()
