"""Modules: registration, traversal, state, modes, text."""

import copy
import math
import pickle

import numpy as np
import pytest

import staticgrad as sg
from staticgrad import nn
from staticgrad.graph.errors import DTypeError, ShapeError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Tanh()])
        self.scale = nn.Parameter(np.full(4, 2.0, np.float32))
        self.register_buffer("shift", sg.ones(4))
        self.register_buffer("cache", sg.zeros(1), persistent=False)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x * self.scale + self.shift


def values(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


# ---- registration


def test_names_follow_the_attributes():
    net = Net()
    names = ["scale", "first.weight", "first.bias", "blocks.0.weight", "blocks.0.bias"]
    assert [name for name, _ in net.named_parameters()] == names
    assert [name for name, _ in net.named_parameters("net", recurse=False)] == ["net.scale"]
    assert [name for name, _ in net.named_buffers()] == ["shift", "cache"]
    assert [name for name, _ in net.named_modules()] == ["", "first", "blocks", "blocks.0", "blocks.1"]
    assert [name for name, _ in net.named_children()] == ["first", "blocks"]
    assert list(net.state_dict()) == ["scale", "shift", *names[1:]]
    assert net.get_submodule("blocks.0") is net.blocks[0]
    with pytest.raises(AttributeError, match="no submodule 'third'"):
        net.get_submodule("third.weight")


def test_shared_parameters_count_once_and_save_twice():
    first = nn.Linear(3, 3)
    second = nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second, first)
    assert len(list(model.parameters())) == 3
    assert len(list(model.modules())) == 3
    assert "1.weight" in model.state_dict()
    assert "2.weight" in model.state_dict()


def test_attributes_change_kind_and_go():
    net = Net()
    net.first = nn.Linear(3, 2)
    assert [name for name, _ in net.named_children()] == ["first", "blocks"]  # replaced where it was
    net.shift = nn.Parameter(sg.zeros(4))
    assert [name for name, _ in net.named_buffers()] == ["cache"]
    del net.scale
    assert not hasattr(net, "scale")
    net.extra = None
    net.extra = nn.Identity()
    assert net.extra in list(net.children())
    net.first = None
    assert net.first is None
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'missing'"):
        _ = net.missing
    with pytest.raises(AttributeError, match="missing"):
        del net.missing


def test_buffers_are_assigned_as_tensors():
    net = Net()
    net.cache = sg.ones(2)
    assert "cache" not in net.state_dict()
    assert dict(net.named_buffers())["cache"].shape == (2,)
    with pytest.raises(TypeError, match="register_buffer: shift must be a Tensor or None; got ndarray"):
        net.shift = np.ones(4)


def test_what_cannot_be_registered():
    net = Net()
    with pytest.raises(TypeError, match=r"Net.scale is a parameter and takes a Parameter or None; got Tensor"):
        net.scale = sg.ones(4)
    with pytest.raises(TypeError, match=r"Net.first is a module and takes a Module or None; got int"):
        net.first = 3
    with pytest.raises(KeyError, match="a parameter's name must be a string with no dot"):
        net.register_parameter("a.b", None)
    with pytest.raises(KeyError, match="attribute 'forward' exists already"):
        net.add_module("forward", nn.Identity())
    with pytest.raises(TypeError, match="must be a Parameter or None; got Tensor"):
        net.register_parameter("w", sg.ones(3))
    with pytest.raises(TypeError, match="must be a Module or None; got function"):
        net.add_module("act", nn.functional.relu)

    class Early(nn.Module):
        def __init__(self):
            self.weight = nn.Parameter(sg.ones(3))

    with pytest.raises(AttributeError, match=r"Early: nothing can be assigned before super\(\).__init__\(\)"):
        Early()
    with pytest.raises(NotImplementedError, match="Module: a module needs a forward method"):
        nn.Module()(1)


def test_a_parameter_is_a_leaf_that_requires_grad():
    parameter = nn.Parameter(sg.ones(3) * 2)
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert repr(parameter).startswith("Parameter containing:")
    assert not nn.Parameter(np.arange(3), requires_grad=False).requires_grad
    with pytest.raises(DTypeError, match="only floating tensors have gradients"):
        nn.Parameter(np.arange(3))


# ---- modes, gradients, conversion


def test_modes_reach_all_modules():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5)))
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    x = sg.ones((4, 2))
    np.testing.assert_array_equal(model(x).detach().numpy(), model(x).detach().numpy())
    assert all(module.training for module in model.train().modules())
    with pytest.raises(ValueError, match="train: mode must be True or False; got 'yes'"):
        model.train("yes")


def test_zero_grad_forgets_or_fills():
    net = Net()
    sg.sum(net(sg.ones((2, 3)))).backward()
    net.zero_grad(set_to_none=False)
    assert all((parameter.grad.numpy() == 0).all() for parameter in net.parameters())
    net.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())
    net.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_conversion_keeps_the_objects():
    net = Net()
    before = values(net)
    parameters = list(net.parameters())
    sg.sum(net(sg.ones((2, 3)))).backward()
    assert net.double() is net
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert {tensor.dtype for tensor in [*net.parameters(), *net.buffers()]} == {np.dtype(np.float64)}
    assert net.scale.grad.dtype == np.float64
    assert net(sg.ones((2, 3), dtype=np.float64)).dtype == np.float64
    net.float()
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(DTypeError, match=r"Module.to: dtype must be floating; got int64"):
        net.to(np.int64)


def test_hooks_see_and_replace():
    model, seen = nn.Sequential(nn.Identity()), []
    x = sg.ones(2)
    first = model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with model.register_forward_hook(lambda module, args, out: seen.append((type(module), args, out.tolist()))):
        model(x)
    assert seen == [(nn.Sequential, (x,), [2, 2])]
    last = model[0].register_forward_hook(lambda module, args, out: out + 1)
    assert model(x).tolist() == [3, 3]
    first.remove()
    assert model(x).tolist() == [2, 2]
    last.remove()
    assert model(x) is x
    with pytest.raises(TypeError, match="Module: a hook must be callable; got int"):
        model.register_forward_hook(3)


def test_apply_visits_children_first():
    seen = []
    nn.Sequential(nn.Sequential(nn.Tanh()), nn.ReLU()).apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Tanh", "Sequential", "ReLU", "Sequential"]


# ---- state


def test_state_goes_round():
    first, second = Net(), Net()
    assert any((a != b).any() for a, b in zip(values(first).values(), values(second).values(), strict=True))
    result = second.load_state_dict(first.state_dict())
    assert result == ([], [])
    for name, value in values(first).items():
        np.testing.assert_array_equal(values(second)[name], value)
    arrays = {name: value.astype(np.float64) + 1 for name, value in values(first).items()}
    second.load_state_dict(arrays)
    np.testing.assert_array_equal(values(second)["scale"], values(first)["scale"] + 1)
    assert second.scale.dtype == np.float32


def test_state_shares_memory():
    net = Net()
    state = net.state_dict()
    with sg.no_grad():
        net.scale.copy_(sg.zeros(4))
    assert (state["scale"].numpy() == 0).all()
    assert not state["scale"].requires_grad


def test_loading_reports_all_faults_and_changes_nothing():
    net = Net()
    before = values(net)
    state = {name: value + 1 for name, value in before.items()}
    state["first.weight"] = np.zeros((4, 5), np.float32)
    state["first.bias"] = np.zeros(4, np.int64)
    state["other"] = state.pop("scale")
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(state)
    message = str(caught.value)
    assert message.startswith("Error(s) in loading state_dict for Net:")
    assert 'Missing key(s) in state_dict: "scale".' in message
    assert 'Unexpected key(s) in state_dict: "other".' in message
    assert "size mismatch for first.weight: copying a param with shape (4, 5) from checkpoint" in message
    assert "the shape in current model is (4, 3)" in message
    assert "dtype mismatch for first.bias" in message
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(TypeError, match="state_dict must be a mapping"):
        net.load_state_dict([1])


def test_loading_without_strict_takes_what_fits():
    net = Net()
    result = net.load_state_dict({"scale": np.zeros(4, np.float32), "other": np.zeros(2)}, strict=False)
    assert result.unexpected_keys == ["other"]
    assert "first.weight" in result.missing_keys
    assert (net.scale.detach().numpy() == 0).all()
    with pytest.raises(RuntimeError, match="size mismatch for scale"):
        net.load_state_dict({"scale": np.zeros(5, np.float32)}, strict=False)


def test_pickle_and_copy():
    net = Net()
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        for name, value in values(net).items():
            np.testing.assert_array_equal(values(other)[name], value)
        assert all(isinstance(parameter, nn.Parameter) for parameter in other.parameters())
        with sg.no_grad():
            other.scale.copy_(sg.zeros(4))
        assert (net.scale.detach().numpy() == 2).all()


# ---- containers


def test_sequential_is_a_list_and_a_chain():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert model(sg.ones((5, 2))).shape == (5, 1)
    assert len(model) == 3
    assert isinstance(model[-1], nn.Linear)
    assert [type(module).__name__ for module in model[:2]] == ["Linear", "ReLU"]
    model[1] = nn.Tanh()
    model.append(nn.Sigmoid()).insert(0, nn.Identity())
    del model[1]
    assert [type(module).__name__ for module in model] == ["Identity", "Tanh", "Linear", "Sigmoid"]
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3"]
    with pytest.raises(IndexError, match=r"Sequential: index must lie in \[-4, 4\); got 4"):
        _ = model[4]
    with pytest.raises(TypeError, match="Sequential: takes modules, or one dict of them; got function"):
        nn.Sequential(nn.functional.relu)


def test_sequential_of_a_dict_keeps_its_names():
    model = nn.Sequential({"map": nn.Linear(2, 3), "bend": nn.Tanh()})
    assert list(model.state_dict()) == ["map.weight", "map.bias"]
    assert model.bend is model[1]


def test_module_dict():
    table = nn.ModuleDict({"a": nn.Linear(2, 2)})
    table["b"] = nn.Tanh()
    table.update([("c", nn.ReLU())])
    assert list(table) == list(table.keys()) == ["a", "b", "c"]
    assert "a" in table
    assert isinstance(table.pop("b"), nn.Tanh)
    assert [type(module).__name__ for module in table.values()] == ["Linear", "ReLU"]
    del table["c"]
    assert dict(table.items()) == {"a": table["a"]}
    table.clear()
    assert len(table) == 0


# ---- layers


def test_linear_starts_as_in_torch():
    sg.random.manual_seed(1)
    layer = nn.Linear(400, 300)
    for tensor in (layer.weight, layer.bias):
        drawn = tensor.detach().numpy()
        assert np.abs(drawn).max() <= 1 / math.sqrt(400)
    drawn = layer.weight.detach().numpy()
    assert abs(drawn.mean()) < 5 * drawn.std() / math.sqrt(drawn.size)
    assert abs(drawn.std() * math.sqrt(3 * 400) - 1) < 0.01  # the spread of U(-r, r) is r / sqrt(3)
    assert layer.weight.shape == (300, 400)
    assert nn.Linear(2, 3, bias=False).bias is None
    assert nn.Linear(2, 3, dtype=np.float64).weight.dtype == np.float64
    assert nn.Linear(0, 3).weight.shape == (3, 0)


def test_embedding_starts_as_in_torch():
    sg.random.manual_seed(2)
    table = nn.Embedding(500, 100, padding_idx=-1)
    drawn = table.weight.detach().numpy()
    assert (drawn[499] == 0).all()
    assert abs(drawn[:499].mean()) < 0.025
    assert abs(drawn[:499].std() - 1) < 0.02
    assert table(sg.asarray(np.array([[0, 1, 2]]))).shape == (1, 3, 100)


def test_layer_norm_starts_at_the_identity():
    layer = nn.LayerNorm((2, 3))
    assert (layer.weight.detach().numpy() == 1).all()
    assert (layer.bias.detach().numpy() == 0).all()
    assert nn.LayerNorm(4, elementwise_affine=False).weight is None
    assert nn.LayerNorm(4, bias=False).bias is None
    assert nn.LayerNorm(4)(sg.zeros((2, 4))).shape == (2, 4)


def test_flatten_and_unflatten():
    x = sg.zeros((2, 3, 4, 5))
    assert nn.Flatten()(x).shape == (2, 60)
    assert nn.Flatten(0, 1)(x).shape == (6, 4, 5)
    assert nn.Unflatten(1, (1, 3))(x).shape == (2, 1, 3, 4, 5)
    assert nn.Unflatten(-1, (-1, 1))(x).shape == (2, 3, 4, 5, 1)
    assert nn.Flatten()(sg.zeros((0, 3, 2))).shape == (0, 6)
    with pytest.raises(ShapeError, match="Flatten: start_dim must not lie behind end_dim"):
        nn.Flatten(2, 1)(x)
    with pytest.raises(ShapeError, match=r"Unflatten: \(2, 2\) must multiply to the size of axis 1"):
        nn.Unflatten(1, (2, 2))(x)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"Linear: in_features must be an int of at least 0; got 2.5"):
        nn.Linear(2.5, 3)
    with pytest.raises(ValueError, match="Embedding: num_embeddings must be an int of at least 0; got -1"):
        nn.Embedding(-1, 3)
    with pytest.raises(ValueError, match="padding_idx must lie in"):
        nn.Embedding(3, 3, padding_idx=3)
    with pytest.raises(ValueError, match=r"Dropout: p must be a probability in \[0, 1\]; got 2"):
        nn.Dropout(2)
    with pytest.raises(ShapeError, match="LayerNorm: normalized_shape must name one axis or more"):
        nn.LayerNorm(())
    with pytest.raises(ValueError, match="MSELoss: reduction must be one of"):
        nn.MSELoss("median")
    with pytest.raises(ValueError, match="Hardtanh: min_val must be below max_val"):
        nn.Hardtanh(1.0, 1.0)


# ---- modules call their functions, and print as in PyTorch

MODULES = [
    (nn.ReLU(), "relu", {}, "ReLU()"),
    (nn.ReLU(inplace=True), "relu", {}, "ReLU(inplace=True)"),
    (nn.ReLU6(), "relu6", {}, "ReLU6()"),
    (nn.LeakyReLU(0.2), "leaky_relu", {"negative_slope": 0.2}, "LeakyReLU(negative_slope=0.2)"),
    (nn.ELU(0.5), "elu", {"alpha": 0.5}, "ELU(alpha=0.5)"),
    (nn.SELU(), "selu", {}, "SELU()"),
    (nn.CELU(2.0), "celu", {"alpha": 2.0}, "CELU(alpha=2.0)"),
    (nn.GELU("tanh"), "gelu", {"approximate": "tanh"}, "GELU(approximate='tanh')"),
    (nn.SiLU(), "silu", {}, "SiLU()"),
    (nn.Mish(), "mish", {}, "Mish()"),
    (nn.Sigmoid(), "sigmoid", {}, "Sigmoid()"),
    (nn.Tanh(), "tanh", {}, "Tanh()"),
    (nn.Softplus(2.0), "softplus", {"beta": 2.0}, "Softplus(beta=2.0, threshold=20.0)"),
    (nn.Softsign(), "softsign", {}, "Softsign()"),
    (nn.Hardsigmoid(), "hardsigmoid", {}, "Hardsigmoid()"),
    (nn.Hardswish(), "hardswish", {}, "Hardswish()"),
    (nn.Hardtanh(-2.0, 2.0), "hardtanh", {"min_val": -2.0, "max_val": 2.0}, "Hardtanh(min_val=-2.0, max_val=2.0)"),
    (nn.LogSigmoid(), "logsigmoid", {}, "LogSigmoid()"),
    (nn.Softmax(dim=-1), "softmax", {"dim": -1}, "Softmax(dim=-1)"),
    (nn.LogSoftmax(dim=0), "log_softmax", {"dim": 0}, "LogSoftmax(dim=0)"),
    (nn.Softmin(dim=1), "softmin", {"dim": 1}, "Softmin(dim=1)"),
    (nn.GLU(), "glu", {}, "GLU(dim=-1)"),
]


@pytest.mark.parametrize(("module", "function", "options", "text"), MODULES, ids=[entry[3] for entry in MODULES])
def test_activation_modules_are_their_functions(module, function, options, text):
    x = sg.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    expected = getattr(nn.functional, function)(x, **options)
    np.testing.assert_array_equal(module(x).numpy(), expected.numpy())
    assert repr(module) == text


def test_prelu_trains_its_weight():
    module = nn.PReLU(4, init=0.5)
    assert repr(module) == "PReLU(num_parameters=4)"
    sg.sum(module(-sg.ones((3, 4)))).backward()
    np.testing.assert_array_equal(module.weight.grad.numpy(), np.full(4, -3.0))


PROBABILITY = np.array([[0.2, 0.8], [0.5, 0.5]])
LOSSES = [
    (nn.MSELoss(), "mse_loss", PROBABILITY, {}),
    (nn.L1Loss("sum"), "l1_loss", PROBABILITY, {"reduction": "sum"}),
    (nn.SmoothL1Loss(beta=0.1), "smooth_l1_loss", PROBABILITY, {"beta": 0.1}),
    (nn.HuberLoss(delta=0.1), "huber_loss", PROBABILITY, {"delta": 0.1}),
    (nn.BCELoss(), "binary_cross_entropy", PROBABILITY, {}),
    (nn.BCEWithLogitsLoss(), "binary_cross_entropy_with_logits", PROBABILITY, {}),
    (nn.KLDivLoss("batchmean"), "kl_div", PROBABILITY, {"reduction": "batchmean"}),
    (nn.CrossEntropyLoss(label_smoothing=0.1), "cross_entropy", np.array([0, 1]), {"label_smoothing": 0.1}),
    (nn.NLLLoss(ignore_index=1), "nll_loss", np.array([0, 1]), {"ignore_index": 1}),
]


@pytest.mark.parametrize(("module", "function", "target", "options"), LOSSES, ids=[entry[1] for entry in LOSSES])
def test_loss_modules_are_their_functions(module, function, target, options):
    x = sg.asarray(np.array([[0.1, 0.6], [0.9, 0.3]]))
    expected = getattr(nn.functional, function)(x, sg.asarray(target), **options)
    np.testing.assert_array_equal(module(x, sg.asarray(target)).numpy(), expected.numpy())
    assert repr(module) == f"{type(module).__name__}()"


def test_weights_of_losses_are_buffers():
    weight = sg.asarray(np.array([1.0, 3.0], np.float32))
    loss = nn.CrossEntropyLoss(weight)
    assert list(loss.state_dict()) == ["weight"]
    positive = nn.BCEWithLogitsLoss(pos_weight=weight)
    assert list(positive.state_dict()) == ["pos_weight"]


def test_text_is_as_in_torch():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(0.1), nn.Flatten()), nn.LayerNorm(3))
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Linear(in_features=2, out_features=3, bias=True)\n"
        "  (1): Sequential(\n"
        "    (0): Dropout(p=0.1, inplace=False)\n"
        "    (1): Flatten(start_dim=1, end_dim=-1)\n"
        "  )\n"
        "  (2): LayerNorm((3,), eps=1e-05, elementwise_affine=True)\n"
        ")"
    )
    assert repr(nn.Embedding(4, 2, padding_idx=1)) == "Embedding(4, 2, padding_idx=1)"
    assert repr(nn.ModuleDict({"a": nn.Identity()})) == "ModuleDict(\n  (a): Identity()\n)"
    assert repr(nn.Unflatten(1, (2, 3))) == "Unflatten(dim=1, unflattened_size=(2, 3))"
