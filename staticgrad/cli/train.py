"""Train a classifier of images: on the digits that come with the package, or on IDX files.

The network is a multilayer perceptron with ReLU. In the mode "both" it is trained twice from the same start, op by op
and compiled, to show what each takes. Ctrl-C ends the training and keeps what was trained; --resume goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.checkpoint import load_checkpoint, save_checkpoint
from staticgrad.cli.messages import CommandError, numbers, positive, progress, rate

INTERRUPTED = 130
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": optim.SGD,
    "rmsprop": optim.RMSprop,
    "adagrad": optim.Adagrad,
}
Array = npt.NDArray[Any]


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `staticgrad train`."""
    command.add_argument(
        "--data", type=Path, help="folder of IDX files named as MNIST's; the packaged digits if absent"
    )
    command.add_argument("--hidden", type=numbers, default=[256], help="widths of the hidden layers")
    command.add_argument("--epochs", type=positive, help="passes over the training set (60; with --data 20)")
    command.add_argument("--batch-size", type=positive, default=64, help="images in a step")
    command.add_argument("--lr", type=rate, default=2e-3, help="learning rate at the start; it falls to 0 as a cosine")
    command.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adam", help="the optimizer")
    command.add_argument("--seed", type=int, default=0, help="of initial weights, order of batches and held-out images")
    command.add_argument("--mode", choices=["static", "dynamic", "both"], default="both", help="how to train")
    command.add_argument("--out", type=Path, default=Path("runs/train"), help="folder for weights, checkpoint, picture")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    command.add_argument("--no-plot", action="store_true", help="draw no picture of the losses")


@dataclass
class Images:
    """Images as rows of float32 in [0, 1], and their labels."""

    train: Array
    train_labels: Array
    test: Array
    test_labels: Array


@dataclass
class Outcome:
    """What one training gave: losses by step, held-out accuracy, steps per second without the first step."""

    mode: str
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    seconds: float = 0.0
    timed_steps: int = 0
    interrupted: bool = False

    @property
    def steps_per_second(self) -> float:
        return self.timed_steps / self.seconds if self.seconds else 0.0


def run(options: argparse.Namespace) -> int:
    """Train, report, and save; the exit code is 130 if Ctrl-C ended the training."""
    images = load_images(options)
    options.out.mkdir(parents=True, exist_ok=True)
    modes = ["dynamic", "static"] if options.mode == "both" else [options.mode]
    if options.resume and options.mode == "both":
        modes = ["static"]
    outcomes: list[Outcome] = []
    for mode in modes:
        trainer = Trainer(images, options, mode)
        if options.resume:
            trainer.resume(options.out / "checkpoint.safetensors")
        outcomes.append(trainer.train())
        if mode == "static" and trainer.outcome.losses:
            print(_plan_summary(trainer.step))
        trainer.save(options.out)
        if outcomes[-1].interrupted:
            break
    print(_table(outcomes, images))
    print(f"saved in {options.out}: weights.safetensors, checkpoint.safetensors")
    if not options.no_plot:
        print(_plot(outcomes, options.out / "loss.png"))
    return INTERRUPTED if outcomes[-1].interrupted else 0


def load_images(options: argparse.Namespace) -> Images:
    """The packaged digits, a fifth of them held out, or the IDX files of `--data`."""
    if options.data is None:
        train, train_labels = sg.data.digits(split="train", seed=options.seed)
        test, test_labels = sg.data.digits(split="test", seed=options.seed)
        return Images(np.asarray(train), np.asarray(train_labels), np.asarray(test), np.asarray(test_labels))
    found = sg.data.mnist(options.data)
    return Images(found.train_images, found.train_labels, found.test_images, found.test_labels)


class Trainer:
    """A model, its optimizer and one training step, in one of the two modes."""

    def __init__(self, images: Images, options: argparse.Namespace, mode: str) -> None:
        self.images = images
        self.batch_size = options.batch_size
        self.epochs = options.epochs or (20 if options.data else 60)
        self.seed = options.seed
        self.outcome = Outcome(mode)
        if self.batch_size > len(images.train):
            raise CommandError(f"--batch-size {self.batch_size} is more than the {len(images.train)} images", code=2)
        sg.random.manual_seed(options.seed)
        classes = int(images.train_labels.max()) + 1
        widths = [images.train.shape[1], *options.hidden, classes]
        self.model = perceptron(widths)
        self.optimizer = OPTIMIZERS[options.optimizer](self.model.parameters(), lr=options.lr)
        self.steps = len(images.train) // self.batch_size
        self.schedule = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=self.epochs * self.steps)
        self.done = 0
        static = mode == "static"
        self.step: Any = sg.compile(self._step) if static else self._step
        self.predict: Any = sg.compile(self._predict) if static else self._predict

    def _step(self, x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def _predict(self, x: Any) -> Any:
        with sg.no_grad():
            return sg.argmax(self.model(x), axis=1)

    def batches(self) -> Iterator[Array]:
        """Positions of the images of each step still to do, in an order that depends on seed and epoch only."""
        for epoch in range(self.done // self.steps, self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images.train))
            for i in range(self.done % self.steps, self.steps):
                yield order[i * self.batch_size : (i + 1) * self.batch_size]

    def train(self) -> Outcome:
        """All steps that are left; Ctrl-C ends them early, between two steps."""
        outcome, total = self.outcome, self.epochs * self.steps - self.done
        try:
            for chosen in progress(self.batches(), total, outcome.mode):
                begun = time.perf_counter()
                loss = self.step(self.images.train[chosen], self.images.train_labels[chosen])
                outcome.losses.append(loss.item())
                self.done += 1
                self.schedule.step()
                if len(outcome.losses) > 1:  # the first step of a compiled function compiles it
                    outcome.seconds += time.perf_counter() - begun
                    outcome.timed_steps += 1
        except KeyboardInterrupt:
            outcome.interrupted = True
        outcome.accuracy = self.accuracy()
        return outcome

    def accuracy(self) -> float:
        """The share of held-out images that are named right."""
        found = np.asarray(self.predict(self.images.test))
        return float(np.mean(found == self.images.test_labels))

    def save(self, folder: Path) -> None:
        """Write the weights, and a checkpoint from which `resume` goes on."""
        sg.save_file(self.model.state_dict(), folder / "weights.safetensors")
        save_checkpoint(
            folder / "checkpoint.safetensors",
            model=self.model,
            optimizer=self.optimizer,
            step=self.done,
            extra={"schedule": self.schedule.state_dict()},
        )

    def resume(self, path: Path) -> None:
        """Take over the state that `save` wrote."""
        if not path.exists():
            raise CommandError(f"--resume: there is no checkpoint {path}; train without --resume first")
        found = load_checkpoint(path, model=self.model, optimizer=self.optimizer)
        self.done = found.step
        self.schedule.load_state_dict(found.extra["schedule"])


def perceptron(widths: list[int]) -> nn.Sequential:
    """Linear layers between the widths, with ReLU between the layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _plan_summary(step: Any) -> str:
    plan = step.plan
    kernels = len(step.last.program.sources)
    return (
        f"the step: {len(step.graph.nodes)} ops in {len(plan.groups)} calls of {kernels} kernels and BLAS; "
        f"arena {plan.peak_bytes:,} bytes (lower bound {plan.lower_bound_bytes:,}, without reuse {plan.naive_bytes:,})"
    )


def _table(outcomes: list[Outcome], images: Images) -> str:
    lines = [f"{'mode':<10}{'steps':>8}{'last loss':>12}{'held-out accuracy':>20}{'steps per second':>18}"]
    for outcome in outcomes:
        last = f"{outcome.losses[-1]:.4f}" if outcome.losses else "-"
        right = f"{100 * outcome.accuracy:.2f} %"
        lines.append(
            f"{outcome.mode:<10}{len(outcome.losses):>8}{last:>12}{right:>20}{outcome.steps_per_second:>18,.0f}"
        )
    if any(outcome.interrupted for outcome in outcomes):
        lines.append("stopped by Ctrl-C; go on with --resume")
    return "\n".join([f"{len(images.train)} images to train on, {len(images.test)} held out", *lines])


def _plot(outcomes: list[Outcome], path: Path) -> str:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return 'no picture of the losses: matplotlib is not installed (pip install "staticgrad[cli]")'
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for outcome, style in zip(outcomes, ("-", "--"), strict=False):
        axes.plot(outcome.losses, style, label=outcome.mode, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="cross entropy of the training batches")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"losses: {path}"
