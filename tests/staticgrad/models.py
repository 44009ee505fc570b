"""Small models with a training step each, for suites that must hold for every kind of training.

A trial is built anew, with the same values, each time `Model.build` is called after the random state was set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.nn import functional as F  # noqa: N812
from staticgrad.tensor import Tensor

Array = np.ndarray[Any, Any]
Batch = tuple[Array, ...]
Loss = Callable[..., Tensor]
OptimizerOf = Callable[[Any], optim.Optimizer]

CLASS_WEIGHTS = np.array([0.5, 1, 2, 1.5, 1], np.float32)


@dataclass
class Trial:
    """One training: `step(*batch)` returns the loss; all it changes is in the model, the optimizer and `sg.random`."""

    model: nn.Module
    optimizer: optim.Optimizer
    step: Callable[..., Any]
    batches: list[Batch]


@dataclass(frozen=True)
class Model:
    """A named trial."""

    name: str
    build: Callable[[], Trial]


def trial(
    model: nn.Module,
    loss: Loss,
    optimizer: OptimizerOf,
    batch: Callable[[np.random.Generator], Batch],
    clip: float | None = None,
    micro_batches: int = 1,
) -> Trial:
    """The usual step: gradients of `loss(model, *batch)`, clipped to a norm, then the optimizer."""
    held = optimizer(model.parameters())

    def step(*batch: Any) -> Tensor:
        held.zero_grad()
        total = loss(model, *batch)
        total.backward()
        for _ in range(micro_batches - 1):
            loss(model, *batch).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        held.step()
        return total

    generator = np.random.default_rng(7)
    return Trial(model, held, step, [batch(generator) for _ in range(6)])


# ---------------------------------------------------------------- batches


def features(*shape: int, dtype: Any = np.float32) -> Callable[[np.random.Generator], Batch]:
    """Normal features alone."""
    return lambda generator: (generator.standard_normal(shape).astype(dtype),)


def targets(count: int, inputs: int, outputs: int, dtype: Any = np.float32) -> Callable[[np.random.Generator], Batch]:
    """Normal features (count, inputs) and targets (count, outputs)."""

    def batch(generator: np.random.Generator) -> Batch:
        x = generator.standard_normal((count, inputs)).astype(dtype)
        return x, np.tanh(x[:, :1] + generator.standard_normal((count, outputs))).astype(dtype)

    return batch


def labels(shape: tuple[int, ...], classes: int, dtype: Any = np.float32) -> Callable[[np.random.Generator], Batch]:
    """Normal features of `shape` and a label for each row."""
    return lambda generator: (
        generator.standard_normal(shape).astype(dtype),
        generator.integers(0, classes, shape[0]),
    )


def words(shape: tuple[int, ...], vocabulary: int, classes: int) -> Callable[[np.random.Generator], Batch]:
    """Tokens of `shape`, and a label for each row."""
    return lambda generator: (generator.integers(0, vocabulary, shape), generator.integers(0, classes, shape[0]))


def some_ignored(shape: tuple[int, ...], classes: int) -> Callable[[np.random.Generator], Batch]:
    """`labels` of which the first is to be ignored."""

    def batch(generator: np.random.Generator) -> Batch:
        x, y = labels(shape, classes)(generator)
        y[0] = -100
        return x, y

    return batch


def probabilities(count: int, inputs: int, outputs: int) -> Callable[[np.random.Generator], Batch]:
    """Features, and a distribution over `outputs` for each row."""
    return lambda generator: (
        generator.standard_normal((count, inputs)).astype(np.float32),
        generator.dirichlet(np.ones(outputs), count).astype(np.float32),
    )


def flags(count: int, inputs: int, outputs: int) -> Callable[[np.random.Generator], Batch]:
    """Features, and zeros and ones."""
    return lambda generator: (
        generator.standard_normal((count, inputs)).astype(np.float32),
        generator.integers(0, 2, (count, outputs)).astype(np.float32),
    )


# ---------------------------------------------------------------- losses


def supervised(loss: Callable[..., Tensor], **options: Any) -> Loss:
    """`loss(model(x), y)`."""
    return lambda model, x, y: loss(model(x), y, **options)


def reconstruction(loss: Callable[..., Tensor]) -> Loss:
    """`loss(model(x), x)`."""
    return lambda model, x: loss(model(x), sg.asarray(x))


def divergence(model: nn.Module, x: Any, y: Any) -> Tensor:
    """From the model's distribution to `y`."""
    return F.kl_div(F.log_softmax(model(x), dim=-1), y, reduction="batchmean")


def next_token(model: nn.Module, tokens: Any, _: Any) -> Tensor:
    """Each token but the first from the one before it."""
    tokens = sg.asarray(tokens)
    scores = model(tokens[:, :-1])
    return F.cross_entropy(sg.reshape(scores, (-1, scores.shape[-1])), sg.reshape(tokens[:, 1:], (-1,)))


# ---------------------------------------------------------------- models


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh, dropout: float = 0.0, dtype: Any = np.float32) -> nn.Module:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        if layers:
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(inputs, outputs, dtype=dtype))
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """x + W gelu(V layer_norm(x)), shapes (..., width) -> (..., width)."""

    def __init__(self, width: int, hidden: int, dtype: Any = np.float32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.wide = nn.Linear(width, hidden, dtype=dtype)
        self.narrow = nn.Linear(hidden, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(self.norm(x))))


class BagOfWords(nn.Module):
    """The mean of the tokens' embeddings, classified: (rows, tokens) -> (rows, classes)."""

    def __init__(self, vocabulary: int, width: int, classes: int, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width, padding_idx=padding)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Any) -> Tensor:
        return self.head(sg.mean(self.table(tokens), axis=1))


class TiedWords(nn.Module):
    """Scores of the next token by the table that embeds the last: (rows, tokens) -> (rows, tokens, vocabulary)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)

    def forward(self, tokens: Any) -> Tensor:
        return F.tanh(self.mix(self.table(tokens))) @ self.table.weight.T


class Attention(nn.Module):
    """Softmax attention over several heads with a residual: (rows, tokens, width) -> (rows, classes)."""

    def __init__(self, width: int, heads: int, classes: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Any) -> Tensor:
        x = sg.asarray(x)
        rows, tokens, width = x.shape
        joint = sg.reshape(self.project(x), (rows, tokens, 3, self.heads, width // self.heads))
        query, key, value = (sg.permute_dims(joint[:, :, i], (0, 2, 1, 3)) for i in range(3))
        scores = query @ sg.matrix_transpose(key) / (width // self.heads) ** 0.5
        if self.causal:
            places = sg.arange(tokens)
            scores = sg.where(places[:, None] >= places[None, :], scores, -1e9)
        mixed = sg.permute_dims(sg.softmax(scores, axis=-1) @ value, (0, 2, 1, 3))
        x = x + self.out(sg.reshape(mixed, (rows, tokens, width)))
        return self.head(sg.max(x, axis=1))


class Mixer(nn.Module):
    """Linear maps along tokens and along channels in turn: (rows, tokens, width) -> (rows, classes)."""

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.along_tokens = Residual(tokens, 2 * tokens)
        self.along_width = Residual(width, 2 * width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Any) -> Tensor:
        turned = sg.permute_dims(sg.asarray(x), (0, 2, 1))
        x = sg.permute_dims(self.along_tokens(turned), (0, 2, 1))
        return self.head(sg.mean(self.along_width(x), axis=1))


class Gated(nn.Module):
    """Halves of one product, one gating the other, and the input beside the result."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.both = nn.Linear(inputs, 2 * hidden)
        self.head = nn.Linear(hidden + inputs, outputs)

    def forward(self, x: Any) -> Tensor:
        x = sg.asarray(x)
        both = self.both(x)
        hidden = both.shape[-1] // 2
        return self.head(sg.concat([F.sigmoid(both[..., :hidden]) * both[..., hidden:], x], axis=-1))


class Recurrent(nn.Module):
    """An Elman network unrolled over the tokens: (rows, tokens, width) -> (rows, classes)."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.inward = nn.Linear(width, hidden)
        self.around = nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Any) -> Tensor:
        driven = self.inward(sg.asarray(x))
        state = sg.zeros((driven.shape[0], self.hidden))
        for token in range(driven.shape[1]):
            state = F.tanh(driven[:, token] + self.around(state))
        return self.head(state)


class Standardised(nn.Module):
    """A layer whose input is standardised by running statistics, which the step itself moves."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", sg.zeros(inputs))
        self.register_buffer("square", sg.ones(inputs))
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x: Any) -> Tensor:
        x = sg.asarray(x)
        with sg.no_grad():
            self.mean.copy_(self.mean * 0.9 + sg.mean(x, axis=0) * 0.1)
            self.square.copy_(self.square * 0.9 + sg.mean(x * x, axis=0) * 0.1)
        return self.head((x - self.mean) / sg.sqrt(self.square - self.mean**2 + 1e-3))


def two_networks() -> Trial:
    """A network, its moving average that gives the targets, and a pair of scores that change places at each step."""
    model = nn.ModuleDict({"online": mlp(5, 7, 3), "average": mlp(5, 7, 3).requires_grad_(False)})
    model.register_buffer("first", sg.zeros(3))
    model.register_buffer("second", sg.ones(3))
    online, average = model["online"], model["average"]
    optimizer = optim.Adam(online.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Tensor:
        loss = F.mse_loss(online(x), average(x) + y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with sg.no_grad():
            for slow, fast in zip(average.parameters(), online.parameters(), strict=True):
                slow.copy_(slow * 0.75 + fast * 0.25)
            first, second = model.first * 1.0, model.second + loss
            model.first.copy_(second)
            model.second.copy_(first)
        return loss

    generator = np.random.default_rng(7)
    return Trial(model, optimizer, step, [targets(9, 5, 3)(generator) for _ in range(6)])


# ---------------------------------------------------------------- the table


def usual(
    name: str,
    network: Callable[[], nn.Module],
    loss: Loss,
    optimizer: OptimizerOf,
    batch: Callable[[np.random.Generator], Batch],
    **options: Any,
) -> Model:
    """A model with the usual step; `options` are those of `trial`."""
    return Model(name, lambda: trial(network(), loss, optimizer, batch, **options))


def made(kind: type[optim.Optimizer], **options: Any) -> OptimizerOf:
    """An optimizer with these options, of parameters given later."""
    return lambda parameters: kind(parameters, **options)


cross_entropy = supervised(F.cross_entropy)
momentum = made(optim.SGD, lr=0.05, momentum=0.9)
nesterov = made(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
adam = made(optim.Adam, lr=0.01)
adamw = made(optim.AdamW, lr=0.01)
rmsprop = made(optim.RMSprop, lr=0.005)
adagrad = made(optim.Adagrad, lr=0.05)
f64 = np.float64

MODELS = (
    usual("line", lambda: nn.Linear(1, 1), supervised(F.mse_loss), made(optim.SGD, lr=0.1), targets(1, 1, 1)),
    usual("linear regression", lambda: nn.Linear(13, 1), supervised(F.mse_loss), momentum, targets(7, 13, 1)),
    usual(
        "linear regression in float64",
        lambda: nn.Linear(13, 1, dtype=f64),
        supervised(F.l1_loss),
        nesterov,
        targets(7, 13, 1, f64),
    ),
    usual("tanh 1", lambda: mlp(13, 7, 3), cross_entropy, made(optim.SGD, lr=0.1), labels((7, 13), 3)),
    usual("relu 2", lambda: mlp(7, 13, 13, 3, activation=nn.ReLU), cross_entropy, nesterov, labels((5, 7), 3)),
    usual("gelu 3", lambda: mlp(7, 16, 9, 13, 4, activation=nn.GELU), cross_entropy, adam, labels((13, 7), 4)),
    usual("silu 4", lambda: mlp(5, 7, 7, 7, 7, 2, activation=nn.SiLU), cross_entropy, adamw, labels((8, 5), 2)),
    usual("tanh 4", lambda: mlp(6, 8, 8, 8, 8, 1), supervised(F.mse_loss), rmsprop, targets(9, 6, 1)),
    usual("one wide", lambda: mlp(1, 64, 1, activation=nn.SiLU), supervised(F.huber_loss), adam, targets(33, 1, 1)),
    usual(
        "one row", lambda: mlp(3, 1, 7, 2, activation=nn.GELU), supervised(F.smooth_l1_loss), adagrad, targets(1, 3, 2)
    ),
    usual("tanh in float64", lambda: mlp(7, 13, 5, dtype=f64), cross_entropy, adam, labels((6, 7), 5, f64)),
    usual("clipped", lambda: mlp(7, 13, 3, activation=nn.ReLU), cross_entropy, momentum, labels((6, 7), 3), clip=0.1),
    usual(
        "centred RMSprop",
        lambda: mlp(7, 9, 3),
        cross_entropy,
        made(optim.RMSprop, lr=0.002, momentum=0.9, centered=True),
        labels((6, 7), 3),
    ),
    usual(
        "Adam with its largest moments",
        lambda: mlp(7, 9, 3),
        cross_entropy,
        made(optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.01),
        labels((6, 7), 3),
    ),
    usual("gradients added up", lambda: mlp(7, 9, 3), cross_entropy, adam, labels((6, 7), 3), micro_batches=3),
    usual("dropout", lambda: mlp(7, 32, 16, 3, dropout=0.25), cross_entropy, adam, labels((12, 7), 3)),
    usual(
        "dropout in float64",
        lambda: mlp(7, 13, 3, activation=nn.ReLU, dropout=0.5, dtype=f64),
        cross_entropy,
        momentum,
        labels((5, 7), 3, f64),
    ),
    usual(
        "residual blocks",
        lambda: nn.Sequential(nn.Linear(5, 16), Residual(16, 24), Residual(16, 24), nn.Linear(16, 3)),
        cross_entropy,
        adamw,
        labels((7, 5), 3),
        clip=1.0,
    ),
    usual(
        "residual block in float64",
        lambda: nn.Sequential(Residual(7, 13, f64), nn.LayerNorm(7, dtype=f64), nn.Linear(7, 2, dtype=f64)),
        supervised(F.mse_loss),
        adagrad,
        targets(5, 7, 2, f64),
    ),
    usual("bag of words", lambda: BagOfWords(11, 6, 3), cross_entropy, adam, words((5, 7), 11, 3)),
    usual(
        "padded bag of words", lambda: BagOfWords(11, 6, 3, padding=0), cross_entropy, momentum, words((5, 7), 11, 3)
    ),
    usual("tied words", lambda: TiedWords(13, 7), next_token, adamw, words((3, 6), 13, 2)),
    usual(
        "softmax regression",
        lambda: nn.Linear(13, 5),
        lambda model, x, y: F.cross_entropy(model(x), y, weight=sg.asarray(CLASS_WEIGHTS), label_smoothing=0.1),
        momentum,
        some_ignored((9, 13), 5),
    ),
    usual(
        "soft labels",
        lambda: mlp(6, 7, 5),
        supervised(F.cross_entropy, label_smoothing=0.2, reduction="sum"),
        adagrad,
        probabilities(5, 6, 5),
    ),
    usual("divergence", lambda: mlp(6, 7, 5), divergence, momentum, probabilities(7, 6, 5)),
    usual(
        "flags",
        lambda: mlp(6, 7, 4, activation=nn.ReLU),
        lambda model, x, y: F.binary_cross_entropy_with_logits(model(x), y, pos_weight=sg.asarray(CLASS_WEIGHTS[:4])),
        adagrad,
        flags(7, 6, 4),
    ),
    usual(
        "flags by probabilities",
        lambda: mlp(6, 7, 1),
        lambda model, x, y: F.binary_cross_entropy(sg.sigmoid(model(x)), y),
        rmsprop,
        flags(7, 6, 1),
    ),
    usual("autoencoder", lambda: mlp(12, 5, 2, 5, 12), reconstruction(F.mse_loss), adam, features(9, 12)),
    usual(
        "robust autoencoder",
        lambda: mlp(12, 5, 12, activation=nn.SiLU),
        reconstruction(F.huber_loss),
        rmsprop,
        features(9, 12),
        clip=0.5,
    ),
    usual("attention", lambda: Attention(6, 2, 3, causal=False), cross_entropy, momentum, labels((3, 5, 6), 3)),
    usual("causal attention", lambda: Attention(8, 2, 3, causal=True), cross_entropy, adam, labels((2, 7, 8), 3)),
    usual("mixer", lambda: Mixer(5, 8, 3), cross_entropy, adamw, labels((4, 5, 8), 3)),
    usual("gated", lambda: Gated(7, 13, 3), cross_entropy, nesterov, labels((6, 7), 3)),
    usual("recurrent", lambda: Recurrent(4, 9, 3), cross_entropy, adam, labels((5, 6, 4), 3), clip=1.0),
    usual("standardised", lambda: Standardised(7, 3), cross_entropy, momentum, labels((6, 7), 3)),
    Model("two networks", two_networks),
)
