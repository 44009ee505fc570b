"""The same model and training step, dynamic and compiled.

Both modes run the same ops, but a compiled kernel rounds differently from NumPy (its own exp, sums in another order),
so values agree to a few roundings of the largest element, not bit by bit.
"""

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn, optim
from staticgrad.graph.errors import CaptureError
from staticgrad.nn import functional as F  # noqa: N812

ELEMENTWISE = {
    "relu": {},
    "relu6": {},
    "leaky_relu": {},
    "elu": {},
    "selu": {},
    "celu": {"alpha": 2.0},
    "gelu": {},
    "silu": {},
    "mish": {},
    "sigmoid": {},
    "tanh": {},
    "softplus": {"beta": 2.0},
    "softsign": {},
    "hardsigmoid": {},
    "hardswish": {},
    "hardtanh": {},
    "logsigmoid": {},
    "softmax": {"dim": 0},
    "log_softmax": {"dim": -1},
    "softmin": {"dim": 1},
    "glu": {},
}


def activations(x):
    x = x.detach().requires_grad_()
    found = [getattr(F, name)(x, **options) for name, options in ELEMENTWISE.items()]
    found.append(F.gelu(x, approximate="tanh"))
    found.append(F.layer_norm(x, (8,)))
    sum(sg.sum(out * out) for out in found).backward()
    return [*[out.detach() for out in found], x.grad]


def losses(x, y, labels):
    x = x.detach().requires_grad_()
    p, q, weight = F.sigmoid(x), F.softmax(y, dim=1), sg.arange(1, 5, dtype=x.dtype)
    found = [
        F.cross_entropy(x, labels),
        F.cross_entropy(x, labels, weight=weight, label_smoothing=0.1),
        F.cross_entropy(x, q, label_smoothing=0.1),
        F.nll_loss(F.log_softmax(x, dim=1), labels),
        F.mse_loss(x, y),
        F.l1_loss(x, y),
        F.smooth_l1_loss(x, y),
        F.huber_loss(x, y),
        F.binary_cross_entropy(p, q),
        F.binary_cross_entropy_with_logits(x, q, pos_weight=weight),
        F.kl_div(F.log_softmax(x, dim=1), q),
    ]
    sum(found).backward()
    return [*[out.detach() for out in found], x.grad]


def require_close(first, second, dtype):
    rtol, atol = (2e-6, 1e-6) if dtype == "float32" else (1e-13, 1e-14)
    for a, b in zip(first, second, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * np.abs(b).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_are_the_same(dtype):
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(dtype) * 4
    x[0] = [-30, -3, -1, 0, 1, 3, 6, 30]
    require_close(sg.compile(activations)(x), activations(sg.asarray(x)), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_are_the_same(dtype):
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(6, 4)).astype(dtype) for _ in range(2))
    labels = np.array([0, 3, -100, 2, 1, 1])
    compiled = sg.compile(losses)
    require_close(compiled(x, y, labels), losses(sg.asarray(x), sg.asarray(y), sg.asarray(labels)), dtype)


# ---- training


class Net(nn.Module):
    """All layers, and a parameter that is never used."""

    def __init__(self, dtype):
        super().__init__()
        self.table = nn.Embedding(7, 6, padding_idx=0, dtype=dtype)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(18, 16, dtype=dtype), nn.LayerNorm(16, dtype=dtype), nn.GELU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(16, 5, dtype=dtype)
        self.unused = nn.Parameter(np.ones(3, dtype))

    def forward(self, words):
        return self.head(self.body(self.table(words)))


OPTIMIZERS = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01}),
    (optim.AdamW, {"lr": 0.01}),
    (optim.RMSprop, {"lr": 0.01, "momentum": 0.9}),
    (optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1}),
]


def training(compiled, kind, options, dtype, calls=6):
    """The losses, the state at the end, and how often the step was compiled."""
    sg.random.manual_seed(0)
    model = Net(np.dtype(dtype))
    groups = [{"params": [*model.table.parameters(), *model.body.parameters(), model.unused]}]
    optimizer = kind([*groups, {"params": model.head.parameters(), "lr": options["lr"] / 2}], **options)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def step(words, labels):
        loss = F.cross_entropy(model(words), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    run = sg.compile(step) if compiled else step
    random = np.random.default_rng(1)
    found = []
    for _ in range(calls):
        words, labels = random.integers(0, 7, (8, 3)), random.integers(0, 5, 8)
        found.append(run(sg.asarray(words), sg.asarray(labels)).item())
        scheduler.step()
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    for number, entries in optimizer.state_dict()["state"].items():
        state |= {f"{number}.{name}": tensor.numpy().copy() for name, tensor in entries.items()}
    assert sg.random.get_state()[1] > 0
    return found, state, run


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", None))
def test_training_is_the_same(kind, options, dtype):
    losses_of_dynamic, dynamic, _ = training(False, kind, options, dtype)
    stream = sg.random.get_state()
    losses_of_static, static, run = training(True, kind, options, dtype)
    np.testing.assert_array_equal(sg.random.get_state(), stream)
    np.testing.assert_allclose(losses_of_static, losses_of_dynamic, rtol=1e-6 if dtype == "float32" else 1e-14)
    assert static.keys() == dynamic.keys()
    rounding = 3e-6 if dtype == "float32" else 1e-14
    for name, value in static.items():
        np.testing.assert_allclose(value, dynamic[name], atol=rounding * np.abs(value).max(), rtol=0, err_msg=name)
    assert run.cache_info().misses == 1  # the schedule's new learning rates did not compile again


def test_modes_and_options_are_followed():
    """What Python state a step reads: the mode of dropout, the learning rate, momentum, a gradient that is missing."""
    results = []
    for compiled in (False, True):
        sg.random.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4, dtype=np.float64), nn.Dropout(0.5))
        other = nn.Linear(4, 4, dtype=np.float64)
        optimizer = optim.Adam([*model.parameters(), *other.parameters()], lr=0.1)

        def step(x, both, model=model, other=other, optimizer=optimizer):
            loss = sg.sum(model(x) ** 2)
            if both:
                loss = loss + sg.sum(other(x) ** 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        run = sg.compile(step, static_argnames=("both",)) if compiled else step
        x, found = sg.asarray(np.arange(8.0).reshape(2, 4) / 8), []
        order = (True, False, True, True, False)  # the counters part after the first step
        found += [run(x, both=both).item() for both in order]
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.param_groups[0]["weight_decay"] = 0.5
        found.append(run(x, both=True).item())
        model.eval()
        found.append(run(x, both=True).item())
        model[1].p = 0.9
        model.train()
        found.append(run(x, both=True).item())
        steps = [optimizer.state[parameter]["step"].item() for parameter in optimizer.param_groups[0]["params"]]
        assert steps == [8, 8, 6, 6]
        found += [tensor.detach().numpy() for tensor in (model[0].weight, other.weight)]
        results.append(found)
    for static, dynamic in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(static, dynamic, rtol=1e-12)


def test_a_loss_in_a_compiled_step_checks_its_labels():
    def loss(x, labels):
        return F.cross_entropy(x, labels)

    run = sg.compile(loss)
    x = np.zeros((3, 4), np.float32)
    assert run(x, np.array([0, 1, -100])).item() == pytest.approx(np.log(4), rel=1e-6)
    for label in (4, -1):
        with pytest.raises(IndexError, match=rf"cross_entropy: a label must lie in \[0, 4\); got {label}"):
            run(x, np.array([0, 1, label]))


# ---- changes of a model between calls, and inside them


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.log = []

    def forward(self, x):
        if self.training:
            x = x + 1
        return x * self.factor


def test_a_changed_model_is_compiled_again():
    model = nn.Sequential(Scaled(2.0), nn.Linear(2, 2))
    run, x = sg.compile(model), np.ones((1, 2), np.float32)

    def require_same(programs):
        result = run(x)
        np.testing.assert_allclose(result.detach().numpy(), model(sg.asarray(x)).detach().numpy(), rtol=1e-6)
        assert run.cache_info().misses == programs

    require_same(1)
    require_same(1)
    model[0].factor = 2.0
    require_same(1)
    model[0].factor = 3.0
    require_same(2)
    model[1] = nn.Linear(2, 2)
    require_same(3)
    model.append(nn.Tanh())
    require_same(4)
    model[1].bias = None
    require_same(5)
    handle = model[2].register_forward_hook(lambda module, args, out: out * 2)
    require_same(6)
    handle.remove()
    require_same(7)
    model.eval()
    require_same(8)


def test_parameters_can_be_frozen_and_freed_between_steps():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = optim.SGD(model.parameters(), lr=1.0, momentum=0.9)

    def step(x):
        optimizer.zero_grad()
        loss = sg.sum(model(x))
        loss.backward()
        optimizer.step()
        return loss

    run, x = sg.compile(step), np.ones((1, 2), np.float32)
    for frozen in (False, True, False, False):
        model[0].requires_grad_(not frozen)
        before = [parameter.detach().numpy().copy() for parameter in model.parameters()]
        run(x)
        moved = [(p.detach().numpy() != b).any() for p, b in zip(model.parameters(), before, strict=True)]
        assert moved == [not frozen, not frozen, True, True]
    assert run.cache_info().misses == 3  # the third, since the parameters are no longer stepped in one group


def test_a_failed_capture_leaves_the_counters_right():
    first, second = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer, log = optim.Adam([first, second]), []

    def step(x, both, fails):
        optimizer.zero_grad()
        sg.sum((first + second if both else first) * x).backward()
        optimizer.step()
        if fails:
            log.append(1)

    run = sg.compile(step, static_argnames=("both", "fails"))
    run(np.ones(2), both=True, fails=False)
    with pytest.raises(CaptureError, match="log"):
        run(np.ones(2), both=False, fails=True)
    assert [optimizer.state[parameter]["step"].item() for parameter in (first, second)] == [1, 1]
    run(np.ones(2), both=True, fails=False)
    assert [optimizer.state[parameter]["step"].item() for parameter in (first, second)] == [2, 2]


@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential], ids=["itself", "inside"])
@pytest.mark.parametrize("how", ["list", "number", "tensor"])
def test_a_forward_that_keeps_things_is_refused(wrap, how):
    class Keeps(Scaled):
        def forward(self, x):
            if how == "list":
                self.log.append(1)
            elif how == "number":
                self.factor += 1
            else:
                self.last = x * 2
            return x * 2

    model = wrap(Keeps(1.0))
    with pytest.raises(CaptureError, match=r"compile: the function changes the .*(log|factor|last)"):
        sg.compile(model)(np.ones(2))
    assert all(module.factor == 1 and not module.log for module in model.modules() if isinstance(module, Keeps))
