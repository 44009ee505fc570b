"""Train a classifier of images: on the digits that come with the package, or on IDX files.

The network is a multilayer perceptron with ReLU. In the mode "both" it is trained twice from the same start, op by op
and compiled, to show what each takes. Ctrl-C ends the training and keeps what was trained; --resume goes on from there.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import os
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
from staticgrad.cli.messages import CommandError, numbers, positive, rate, seed
from staticgrad.cli.stopping import Stop, deferred_interrupts
from staticgrad.data.loader import epoch_order
from staticgrad.progress import progress
from staticgrad.saving import replace_file

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
    command.add_argument(
        "--hidden", type=numbers, default="256", metavar="N,N", help="widths of the hidden layers (%(default)s)"
    )
    command.add_argument("--epochs", type=positive, help="passes over the training set (60; with --data 20)")
    command.add_argument("--batch-size", type=positive, default=64, help="images in a step (%(default)s)")
    command.add_argument(
        "--lr", type=rate, default=2e-3, help="learning rate at the start (%(default)s); it falls to 0 as a cosine"
    )
    command.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adam", help="the optimizer (%(default)s)")
    command.add_argument(
        "--seed", type=seed, default=0, help="of initial weights, order of batches and held-out images (%(default)s)"
    )
    command.add_argument(
        "--mode", choices=["static", "dynamic", "both"], default="both", help="how to train (%(default)s)"
    )
    command.add_argument(
        "--out", type=Path, default=Path("runs/train"), help="folder for weights, checkpoint, picture (%(default)s)"
    )
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    command.add_argument("--check", action="store_true", help="compare each compiled step with NumPy, and find NaNs")
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
    """What one training gave: losses by step, held-out accuracy, steps per second without the first step.

    The losses include those from before the checkpoint that a run went on from; the time does not.
    """

    mode: str
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    seconds: float = 0.0
    timed_steps: int = 0

    @property
    def steps_per_second(self) -> float:
        return self.timed_steps / self.seconds if self.seconds else 0.0


def run(options: argparse.Namespace) -> int:
    """Train, report, and save; the exit code is 130 if Ctrl-C ended the training."""
    images = load_images(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if not os.access(options.out, os.W_OK | os.X_OK):  # better known now than after the training
        raise CommandError(f"--out: {options.out} may not be written to")
    outcomes: list[Outcome] = []
    with deferred_interrupts() as stop:
        for mode in _modes(options):
            trainer = Trainer(images, options, mode)
            if options.resume:
                trainer.resume(options.out / "checkpoint.safetensors")
                print(f"going on after step {trainer.done}, {mode}")
            outcomes.append(trainer.train(stop))
            if mode == "static" and trainer.step.cache_info().currsize:
                print(_plan_summary(trainer.step))
            saved = trainer.save(options.out)
            if stop.requested:
                break
    print(_table(outcomes, images))
    if stop.requested:
        print("stopped by Ctrl-C; go on with --resume")
    print(f"saved in {options.out}: {', '.join(saved)}")
    if not options.no_plot:
        print(_plot(outcomes, options.out / "loss.png"))
    return INTERRUPTED if stop.requested else 0


def _modes(options: argparse.Namespace) -> list[str]:
    """The modes in turn; a checkpoint is one run, so a run that goes on from it is one too."""
    if options.mode != "both":
        return [options.mode]
    return ["static"] if options.resume else ["dynamic", "static"]


def load_images(options: argparse.Namespace) -> Images:
    """The packaged digits, a fifth of them held out, or the IDX files of `--data`."""
    if options.data is None:
        train, train_labels = sg.data.digits(split="train", seed=options.seed)
        test, test_labels = sg.data.digits(split="test", seed=options.seed)
        return Images(np.asarray(train), np.asarray(train_labels), np.asarray(test), np.asarray(test_labels))
    found = sg.data.mnist(options.data)
    for part, labels in (("training", found.train_labels), ("test", found.test_labels)):
        if not labels.size:
            raise CommandError(f"--data: {options.data} has no {part} images")
        if labels.min() < 0:
            raise CommandError(f"--data: labels must be at least 0; the {part} labels hold {labels.min()}")
    return Images(found.train_images, found.train_labels, found.test_images, found.test_labels)


class Trainer:
    """A model, its optimizer and one training step, in one of the two modes."""

    def __init__(self, images: Images, options: argparse.Namespace, mode: str) -> None:
        self.images = images
        self.batch_size = options.batch_size
        self.epochs = options.epochs or (20 if options.data else 60)
        self.seed = options.seed
        self.settings = {
            "--data": str(options.data.resolve()) if options.data else "digits",
            "--hidden": ",".join(map(str, options.hidden)),
            "--epochs": self.epochs,
            "--batch-size": options.batch_size,
            "--lr": options.lr,
            "--optimizer": options.optimizer,
            "--seed": options.seed,
        }
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
        self.step: Any = sg.compile(self._step, check=options.check) if static else self._step
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
        first, begin = divmod(self.done, self.steps)
        for epoch in range(first, self.epochs):
            order = epoch_order(len(self.images.train), self.seed, epoch)
            for i in range(begin if epoch == first else 0, self.steps):
                yield order[i * self.batch_size : (i + 1) * self.batch_size]

    def train(self, stop: Stop | None = None) -> Outcome:
        """All steps that are left, or those before `stop` is requested.

        Raises:
            CommandError: the loss is no longer finite.
        """
        outcome, total = self.outcome, self.epochs * self.steps - self.done
        for i, chosen in enumerate(progress(self.batches(), total, outcome.mode)):
            if stop is not None and stop.requested:
                break
            begun = time.perf_counter()
            loss = self.step(self.images.train[chosen], self.images.train_labels[chosen]).item()
            self.schedule.step()
            if i > 0:  # the first step of a compiled function compiles it
                outcome.seconds += time.perf_counter() - begun
                outcome.timed_steps += 1
            self.done += 1
            outcome.losses.append(loss)
            if not math.isfinite(loss):
                raise CommandError(
                    f"the loss is {loss} at step {self.done}; this run is not saved; lower --lr, or learn with "
                    "--check which op made the first NaN"
                )
        outcome.accuracy = self.accuracy()
        return outcome

    def accuracy(self) -> float:
        """The share of held-out images that are named right."""
        found = np.asarray(self.predict(self.images.test))
        return float(np.mean(found == self.images.test_labels))

    def save(self, folder: Path) -> list[str]:
        """Write the weights, a checkpoint from which `resume` goes on, and the compiled step for `inspect`.

        Returns:
            The names of the files.
        """
        extra = {"settings": self.settings, "schedule": self.schedule.state_dict(), "losses": self.outcome.losses}
        names = ["checkpoint.safetensors", "weights.safetensors"]
        save_checkpoint(folder / names[0], model=self.model, optimizer=self.optimizer, step=self.done, extra=extra)
        sg.save_file(self.model.state_dict(), folder / names[1])
        if self.outcome.mode == "static" and self.step.cache_info().currsize:
            names.append("step.program")
            self.step.save(folder / names[2])
        return names

    def resume(self, path: Path) -> None:
        """Take over the state that `save` wrote.

        Raises:
            CommandError: there is none, or it was trained with other settings.
        """
        if not path.exists():
            raise CommandError(f"--resume: there is no checkpoint {path}; train without --resume first")
        extra = load_checkpoint(path, random=False).extra
        if not isinstance(extra, dict) or not {"settings", "schedule", "losses"} <= extra.keys():
            raise CommandError(f"--resume: {path} was not written by this command")
        saved = extra["settings"]
        differing = [
            f"{name} {saved.get(name)}, not {value}"
            for name, value in self.settings.items()
            if saved.get(name) != value
        ]
        if differing:
            raise CommandError(f"--resume: the run in {path.parent} was begun with {'; '.join(differing)}", code=2)
        self.done = load_checkpoint(path, model=self.model, optimizer=self.optimizer).step
        self.schedule.load_state_dict(extra["schedule"])
        self.outcome.losses = list(extra["losses"])


def perceptron(widths: list[int]) -> nn.Sequential:
    """Linear layers between the widths, with ReLU between the layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _plan_summary(step: Any) -> str:
    plan = step.plan
    kernels = len(step.last.program.sources)
    ops = sum(node.op.kind != "leaf" for node in step.graph.nodes)
    return (
        f"the step: {ops} ops in {len(plan.groups)} calls of {kernels} kernels and BLAS; "
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
    if len(outcomes) > 1 and "OPENBLAS_NUM_THREADS" not in os.environ:
        lines.append("threads of NumPy's BLAS may slow small dynamic steps: compare with OPENBLAS_NUM_THREADS=1")
    return "\n".join([f"{len(images.train)} images to train on, {len(images.test)} held out", *lines])


def _plot(outcomes: list[Outcome], path: Path) -> str:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return 'no picture of the losses: matplotlib is not installed (pip install "staticgrad[cli]")'
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for outcome, style in zip(outcomes, ("-", "--"), strict=False):
        axes.plot(outcome.losses, style, label=outcome.mode, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="cross entropy of the training batches")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    replace_file(path, picture.getvalue(), caller="train")
    return f"losses: {path}"
