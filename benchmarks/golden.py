"""Make the numbers from PyTorch that the tests of `staticgrad.nn` and `staticgrad.optim` compare with.

Run it with a Python that has torch 2.13 (the project itself never imports torch):

    python benchmarks/golden.py

Each file `tests/data/torch_*.npz` holds its arrays and, under the key `cases`, a JSON list that says how the
numbers came about: the function, its options, which arrays went in. The tests walk that list, so a new case is
one line here. Values are computed in float64 from inputs that float32 holds exactly: one set serves both.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"

Arrays = dict[str, np.ndarray]
Case = tuple[str, str, Arrays, dict[str, Any]]  # name, function, tensor arguments, other options


def main() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    write_functions("torch_activations.npz", activation_cases())
    write_functions("torch_losses.npz", loss_cases())
    write_functions("torch_layers.npz", layer_cases())
    write_optimizers("torch_optimizers.npz", OPTIMIZERS)
    write_schedulers("torch_schedulers.npz", SCHEDULERS)


# ---- values and gradients of functions ---------------------------------------------------------------------


def activation_cases() -> list[Case]:
    """Every activation on a grid that holds all kinks (multiples of 1/4 in [-8, 8]) and large arguments."""
    grid = np.concatenate([np.arange(-8, 8.25, 0.25), [-1000, -100, -50, -22, -20, 20, 22, 50, 100, 1000]])
    rows = np.random.default_rng(0).normal(size=(4, 3, 6)) * 3
    rows[0, 0] += 1000  # a softmax that would overflow without its maximum
    rows = rounded(rows)
    plain = {
        "relu": [{}],
        "relu6": [{}],
        "leaky_relu": [{}, {"negative_slope": 0.25}],
        "elu": [{}, {"alpha": 0.5}],
        "selu": [{}],
        "celu": [{}, {"alpha": 2.0}],
        "gelu": [{}, {"approximate": "tanh"}],
        "silu": [{}],
        "mish": [{}],
        "sigmoid": [{}],
        "tanh": [{}],
        "softplus": [{}, {"beta": 2.0, "threshold": 5.0}],
        "softsign": [{}],
        "hardsigmoid": [{}],
        "hardswish": [{}],
        "hardtanh": [{}, {"min_val": -2.0, "max_val": 0.5}],
        "logsigmoid": [{}],
    }
    cases: list[Case] = []
    for function, choices in plain.items():
        cases += [(case_name(function, options), function, {"input": grid}, options) for options in choices]
    for function in ("softmax", "log_softmax", "softmin"):
        cases += [(f"{function}-dim={dim}", function, {"input": rows}, {"dim": dim}) for dim in (0, 1, -1)]
    cases += [(f"glu-dim={dim}", "glu", {"input": rows}, {"dim": dim}) for dim in (0, -1)]
    cases.append(("prelu-one", "prelu", {"input": rows, "weight": np.array([0.25])}, {}))
    cases.append(("prelu-channels", "prelu", {"input": rows, "weight": np.array([0.25, -0.5, 1.5])}, {}))
    cases.append(("prelu-at-zero", "prelu", {"input": np.zeros(3), "weight": np.array([0.25])}, {}))
    return cases


def loss_cases() -> list[Case]:
    """Every loss with every reduction and the options that change its value."""
    random = np.random.default_rng(1)
    logits = rounded(random.normal(size=(6, 5)) * 2)
    images = rounded(random.normal(size=(2, 4, 3, 2)) * 2)
    labels = np.array([0, 4, 2, 2, 1, 3])
    masked = np.array([0, -100, 2, 2, -100, 3])
    pixels = random.integers(0, 4, size=(2, 3, 2))
    weight = rounded(random.uniform(0.5, 2, size=5))
    pixel_weight = rounded(random.uniform(0.5, 2, size=4))
    target = rounded(random.normal(size=(6, 5)))
    probability = rounded(random.dirichlet(np.ones(5), size=6))
    pixel_probability = rounded(random.dirichlet(np.ones(4), size=(2, 3, 2)).transpose(0, 3, 1, 2))
    binary = (random.uniform(size=(6, 5)) < 0.5).astype(np.float64)
    inside = rounded(random.uniform(0.05, 0.95, size=(6, 5)))
    saturated = np.array([0.0, 0.0, 1.0, 1.0, 0.25, 2.0**-50, 2.0**-20])
    saturated_target = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.25])
    large = np.array([-1000.0, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0, 1000.0])
    large_target = np.array([0.0, 1.0, 0.5, 1.0, 0.25, 0.0, 1.0, 0.0, 1.0])
    kinked = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    zeros = np.zeros(7)
    log_target = rounded(np.log(probability))

    cases: list[Case] = []

    def add(name: str, function: str, tensors: Arrays, **options: Any) -> None:
        for reduction in ("none", "mean", "sum"):
            chosen = {**options, "reduction": reduction}
            cases.append((f"{function}-{name}-{reduction}", function, tensors, chosen))

    pair = {"input": logits, "target": labels}
    add("labels", "cross_entropy", pair)
    add("weight", "cross_entropy", {**pair, "weight": weight})
    add("masked", "cross_entropy", {"input": logits, "target": masked})
    add("ignored", "cross_entropy", pair, ignore_index=2)
    add("smooth", "cross_entropy", pair, label_smoothing=0.1)
    add("all", "cross_entropy", {"input": logits, "target": masked, "weight": weight}, label_smoothing=0.2)
    add("one", "cross_entropy", {"input": logits[0], "target": np.array(3)})
    add("images", "cross_entropy", {"input": images, "target": pixels, "weight": pixel_weight}, label_smoothing=0.1)
    add("large", "cross_entropy", {"input": rounded(logits * 400), "target": labels})
    add("probability", "cross_entropy", {"input": logits, "target": probability})
    add(
        "probability-all",
        "cross_entropy",
        {"input": logits, "target": probability, "weight": weight},
        label_smoothing=0.3,
    )
    add("probability-images", "cross_entropy", {"input": images, "target": pixel_probability})
    add("probability-one", "cross_entropy", {"input": logits[0], "target": probability[0]})
    add("labels", "nll_loss", pair)
    add("weight", "nll_loss", {"input": logits, "target": masked, "weight": weight})
    add("images", "nll_loss", {"input": images, "target": pixels}, ignore_index=1)
    add("plain", "mse_loss", {"input": logits, "target": target})
    add("plain", "l1_loss", {"input": logits, "target": target})
    add("kinks", "l1_loss", {"input": kinked, "target": zeros})
    add("plain", "smooth_l1_loss", {"input": logits, "target": target})
    add("kinks", "smooth_l1_loss", {"input": kinked, "target": zeros}, beta=0.5)
    add("zero-beta", "smooth_l1_loss", {"input": kinked, "target": zeros}, beta=0.0)
    add("plain", "huber_loss", {"input": logits, "target": target})
    add("kinks", "huber_loss", {"input": kinked, "target": zeros}, delta=0.5)
    add("plain", "binary_cross_entropy", {"input": inside, "target": binary})
    add("weight", "binary_cross_entropy", {"input": inside, "target": probability, "weight": weight})
    add("saturated", "binary_cross_entropy", {"input": saturated, "target": saturated_target})
    add("plain", "binary_cross_entropy_with_logits", {"input": logits, "target": binary})
    add("large", "binary_cross_entropy_with_logits", {"input": large, "target": large_target})
    add("weight", "binary_cross_entropy_with_logits", {"input": logits, "target": probability, "weight": weight})
    add("pos", "binary_cross_entropy_with_logits", {"input": logits, "target": binary, "pos_weight": weight})
    add("plain", "kl_div", {"input": log_target[::-1].copy(), "target": probability})
    add("zero", "kl_div", {"input": log_target, "target": binary})
    add("log", "kl_div", {"input": log_target[::-1].copy(), "target": log_target}, log_target=True)
    batched = {"input": log_target[::-1].copy(), "target": probability}
    cases.append(("kl_div-batchmean", "kl_div", batched, {"reduction": "batchmean"}))
    return cases


def layer_cases() -> list[Case]:
    random = np.random.default_rng(2)

    def normal(*shape: int) -> np.ndarray:
        return rounded(random.normal(size=shape))

    rows, weight, bias = normal(4, 6), normal(5, 6), normal(5)
    table, indices = normal(7, 3), np.array([[0, 6, 2], [2, 2, 5]])
    deep = normal(2, 3, 4, 6)
    return [
        ("linear", "linear", {"input": rows, "weight": weight, "bias": bias}, {}),
        ("linear-no-bias", "linear", {"input": rows, "weight": weight}, {}),
        ("linear-one-row", "linear", {"input": rows[0], "weight": weight, "bias": bias}, {}),
        ("linear-deep", "linear", {"input": deep, "weight": weight, "bias": bias}, {}),
        ("embedding", "embedding", {"input": indices, "weight": table}, {}),
        ("embedding-padding", "embedding", {"input": indices, "weight": table}, {"padding_idx": 2}),
        ("embedding-padding-negative", "embedding", {"input": indices, "weight": table}, {"padding_idx": -2}),
        ("embedding-scalar", "embedding", {"input": np.array(3), "weight": table}, {}),
        (
            "layer_norm",
            "layer_norm",
            {"input": deep, "weight": normal(6), "bias": normal(6)},
            {"normalized_shape": [6]},
        ),
        (
            "layer_norm-two-axes",
            "layer_norm",
            {"input": deep, "weight": normal(4, 6), "bias": normal(4, 6)},
            {"normalized_shape": [4, 6], "eps": 0.125},
        ),
        ("layer_norm-plain", "layer_norm", {"input": rows}, {"normalized_shape": [6]}),
        ("layer_norm-no-bias", "layer_norm", {"input": rows, "weight": normal(6)}, {"normalized_shape": [6]}),
    ]


def write_functions(file: str, cases: list[Case]) -> None:
    """Evaluate each case and its vector-Jacobian product with a fixed cotangent."""
    arrays: Arrays = {}
    listing = []
    for number, (name, function, tensors, options) in enumerate(cases):
        arguments = {key: torch.from_numpy(np.asarray(value)) for key, value in tensors.items()}
        wanted = [key for key, value in arguments.items() if value.is_floating_point()]
        if "target" in arguments:  # a loss: PyTorch has no derivative for its weights
            wanted = [key for key in wanted if key in ("input", "target")]
        for key in wanted:
            arguments[key] = arguments[key].clone().requires_grad_()
        out = getattr(functional, function)(**arguments, **options)
        cotangent = torch.from_numpy(rounded(np.random.default_rng(number).normal(size=tuple(out.shape))))
        grads = torch.autograd.grad(out, [arguments[key] for key in wanted], cotangent)
        found = {key: grad.numpy() for key, grad in zip(wanted, grads, strict=True)}
        found = {key: grad for key, grad in found.items() if np.isfinite(grad).all()}  # of targets at 0
        for key, value in tensors.items():
            arrays[f"{name}/{key}"] = compact(value)
        arrays[f"{name}/cotangent"] = compact(cotangent.numpy())
        arrays[f"{name}/out"] = out.detach().numpy()
        arrays |= {f"{name}/grad/{key}": grad for key, grad in found.items()}
        listing.append(
            {"name": name, "function": function, "tensors": list(tensors), "options": options, "grads": list(found)}
        )
    save(file, listing, arrays)


# ---- optimizers and schedulers -----------------------------------------------------------------------------

STEPS = 12
SHAPES = [(3, 4), (5,), (2, 2)]
OPTIMIZERS: list[tuple[str, str, dict[str, Any]]] = [
    ("sgd", "SGD", {}),
    ("sgd-momentum", "SGD", {"lr": 0.1, "momentum": 0.9}),
    ("sgd-nesterov", "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("sgd-dampening", "SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("sgd-maximize", "SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("adam", "Adam", {}),
    ("adam-decay", "Adam", {"lr": 0.05, "betas": [0.8, 0.95], "eps": 1e-4, "weight_decay": 0.1}),
    ("adam-amsgrad", "Adam", {"lr": 0.05, "amsgrad": True}),
    ("adam-maximize", "Adam", {"lr": 0.05, "maximize": True, "weight_decay": 0.1}),
    ("adamw", "AdamW", {}),
    ("adamw-decay", "AdamW", {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True}),
    ("adamw-maximize", "AdamW", {"lr": 0.05, "maximize": True}),
    ("rmsprop", "RMSprop", {}),
    ("rmsprop-momentum", "RMSprop", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}),
    ("rmsprop-centered", "RMSprop", {"lr": 0.02, "centered": True, "alpha": 0.9, "eps": 1e-4}),
    ("rmsprop-all", "RMSprop", {"lr": 0.02, "centered": True, "momentum": 0.5, "maximize": True}),
    ("adagrad", "Adagrad", {}),
    (
        "adagrad-decay",
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-4},
    ),
    ("adagrad-maximize", "Adagrad", {"lr": 0.1, "maximize": True}),
]


def write_optimizers(file: str, optimizers: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Run each optimizer on a fixed sequence of gradients, three ways, in both precisions.

    plain: one group. groups: a second group with ten times the learning rate. skipped: the first parameter has no
    gradient in steps 0, 1 and 5, and the last one never has any.
    """
    random = np.random.default_rng(3)
    arrays: Arrays = {}
    for index, shape in enumerate(SHAPES):
        arrays[f"parameter/{index}"] = compact(rounded(random.normal(size=shape)))
        arrays[f"grad/{index}"] = compact(rounded(random.normal(size=(STEPS, *shape))))
    listing = []
    for name, kind, options in optimizers:
        for way in ("plain", "groups", "skipped"):
            for dtype in ("float32", "float64"):
                case = f"{name}-{way}-{dtype}"
                history = run_optimizer(kind, options, way, dtype, arrays)
                for index, values in enumerate(history):
                    arrays[f"{case}/{index}"] = values[-1] if way != "plain" else values
                listing.append({"name": case, "optimizer": kind, "options": options, "way": way, "dtype": dtype})
    save(file, listing, arrays)


def run_optimizer(kind: str, options: dict[str, Any], way: str, dtype: str, arrays: Arrays) -> list[np.ndarray]:
    parameters = [
        torch.nn.Parameter(torch.from_numpy(arrays[f"parameter/{index}"].astype(dtype))) for index in range(len(SHAPES))
    ]
    groups: Any = parameters
    if way == "groups":
        faster = 10 * options.get("lr", 0.001)
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": faster}]
    optimizer = getattr(torch.optim, kind)(groups, **options)
    history: list[list[np.ndarray]] = [[] for _ in SHAPES]
    for step in range(STEPS):
        for index, parameter in enumerate(parameters):
            skipped = way == "skipped" and ((index == 0 and step in (0, 1, 5)) or index == 2)
            grad = arrays[f"grad/{index}"][step].astype(dtype)
            parameter.grad = None if skipped else torch.from_numpy(grad)
        optimizer.step()
        for index, parameter in enumerate(parameters):
            history[index].append(parameter.detach().numpy().copy())
    return [np.stack(values) for values in history]


SCHEDULERS: list[tuple[str, str, dict[str, Any]]] = [
    ("step", "StepLR", {"step_size": 3, "gamma": 0.5}),
    ("multistep", "MultiStepLR", {"milestones": [2, 5, 5, 9], "gamma": 0.5}),
    ("exponential", "ExponentialLR", {"gamma": 0.9}),
    ("cosine", "CosineAnnealingLR", {"T_max": 8, "eta_min": 0.01}),
    ("linear", "LinearLR", {"start_factor": 0.25, "total_iters": 5}),
    ("constant", "ConstantLR", {"factor": 0.25, "total_iters": 4}),
]


def write_schedulers(file: str, schedulers: list[tuple[str, str, dict[str, Any]]]) -> None:
    """The learning rates of two groups (0.5 and 0.1) at the start and after each of twenty steps."""
    arrays: Arrays = {}
    listing = []
    for name, kind, options in schedulers:
        first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": [second], "lr": 0.1}])
        scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **options)
        rates = [[group["lr"] for group in optimizer.param_groups]]
        for _ in range(20):
            optimizer.step()
            scheduler.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
        arrays[name] = np.array(rates)
        listing.append({"name": name, "scheduler": kind, "options": options})
    save(file, listing, arrays)


# ---- small things ------------------------------------------------------------------------------------------


def case_name(function: str, options: dict[str, Any]) -> str:
    return "-".join([function, *(f"{key}={value}" for key, value in options.items())])


def rounded(values: np.ndarray) -> np.ndarray:
    """The nearest values that float32 holds, as float64."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def compact(values: np.ndarray) -> np.ndarray:
    """float32 where nothing is lost by it."""
    values = np.asarray(values)
    if values.dtype == np.float64 and np.array_equal(values, values.astype(np.float32)):
        return values.astype(np.float32)
    return values


def save(file: str, listing: list[dict[str, Any]], arrays: Arrays) -> None:
    np.savez_compressed(DATA / file, cases=np.array(json.dumps(listing)), torch=np.array(torch.__version__), **arrays)
    print(f"{file}: {len(listing)} cases, {(DATA / file).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
