"""Scores against naive float64 loops; the same network in every spelling; what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.functional import (
    constant_units,
    dead_units,
    dormancy_scores,
    dormant_fraction,
    saturated_units,
)
from tests.models import GPT, ConvNet, mlp, plant_dead


def naive_scores(h: Tensor) -> list[float]:
    """Equation 1 of Sokar et al. 2023, one float at a time: [samples, units, ...] -> units."""
    rows = h.movedim(1, -1).reshape(-1, h.shape[1]).tolist()
    means = [sum(abs(row[i]) for row in rows) / len(rows) for i in range(h.shape[1])]
    level = sum(means) / len(means)
    return [mean / level if level else 0.0 for mean in means]


def close(scores: Tensor, naive: list[float]) -> bool:
    expected = torch.tensor(naive, dtype=torch.float64)
    return bool(((scores - expected).abs() <= 1e-6 * expected.clamp(min=1)).all())


@settings(max_examples=40)
@given(
    widths=st.lists(st.integers(1, 17), min_size=2, max_size=4),
    rows=st.integers(1, 40),
    seed=st.integers(0, 10_000),
)
def test_scores_of_an_mlp_equal_a_naive_loop(widths: list[int], rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    net = mlp(5, *widths, 2)
    x = torch.randn(rows, 5)
    scores = dormancy_scores(net, x)
    assert list(scores) == [str(2 * i) for i in range(len(widths))]
    h = x.double()
    for i, layer in enumerate(net.double()):
        h = layer(h)
        if i % 2:
            assert close(scores[str(i - 1)], naive_scores(h.detach()))


@settings(max_examples=25)
@given(
    channels=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    rows=st.integers(1, 5),
    dims=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_scores_of_a_convolutional_network_equal_a_naive_loop(
    channels: list[int], kernel: int, stride: int, rows: int, dims: int, seed: int
) -> None:
    torch.manual_seed(seed)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layers: list[nn.Module] = []
    for before, after in zip([2, *channels[:-1]], channels, strict=True):
        layers += [kind(before, after, kernel, stride=stride, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(rows, 2, *[5] * dims)
    net(x)
    scores = dormancy_scores(net, x)
    h = x.double()
    for i, layer in enumerate(net.double()[: 2 * len(channels)]):
        h = layer(h)
        if i % 2:
            assert close(scores[str(i - 1)], naive_scores(h.detach()))


SPELLINGS = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "in place": lambda x: x.relu_(),
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "product with a mask": lambda x: x * (x > 0),
}


class Functional(nn.Module):
    """The MLP 5-9-7-3 with an activation function that is no module."""

    def __init__(self, activation) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = nn.Linear(5, 9), nn.Linear(9, 7), nn.Linear(7, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.activation(self.b(self.activation(self.a(x)))))


class SharedModule(Functional):
    """The same with one nn.ReLU used twice."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU())


@pytest.mark.parametrize("spelling", [*SPELLINGS, "nn.ReLU", "one shared nn.ReLU"])
def test_every_spelling_of_relu_gives_the_same_scores(spelling: str) -> None:
    net = Functional(F.relu)
    for layer in (net.a, net.b):
        plant_dead(layer, 1, 4)
    x = torch.randn(33, 5, generator=torch.Generator().manual_seed(0))
    h = F.relu(net.a(x))
    expected = [naive_scores(h.detach().double()), naive_scores(F.relu(net.b(h)).detach().double())]
    if spelling == "nn.ReLU":
        other: nn.Module = nn.Sequential(net.a, nn.ReLU(), net.b, nn.ReLU(), net.c)
    else:
        other = SharedModule() if "shared" in spelling else Functional(SPELLINGS[spelling])
        other.load_state_dict(net.state_dict())
    scores = list(dormancy_scores(other, x).values())
    assert [close(s, e) for s, e in zip(scores, expected, strict=True)] == [True, True]
    assert [(s == 0).sum().item() >= 2 for s in scores] == [True, True]


SMOOTH = {
    "silu by hand": lambda x: x * torch.sigmoid(x),
    "gelu by hand": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "dropout after": lambda x: F.dropout(F.elu(x), training=False),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_other_activation_functions_are_read_after_the_function(name: str) -> None:
    net, x = Functional(SMOOTH[name]), torch.randn(20, 5)
    scores = dormancy_scores(net, x)
    h = SMOOTH[name](net.a(x)).detach()
    assert close(scores["a"], naive_scores(h.double()))
    assert close(scores["b"], naive_scores(SMOOTH[name](net.b(h)).detach().double()))


def test_batchnorm_before_dropout_and_pooling_after_and_dueling_heads() -> None:
    torch.manual_seed(0)
    net, x = ConvNet(), torch.randn(4, 2, 10, 10)
    net.norm.running_mean.uniform_(-1, 1)
    scores = dormancy_scores(net, x)
    net.eval()
    h1 = F.relu(net.norm(net.conv1(x)))
    h2 = F.relu(net.conv2(net.pool(h1)))
    h3 = F.relu(net.fc(h2.flatten(1)))
    assert list(scores) == ["conv1", "conv2", "fc"]
    for name, h in zip(scores, (h1, h2, h3), strict=True):
        assert close(scores[name], naive_scores(h.detach().double()))


@pytest.mark.parametrize("gated", [False, True])
def test_the_mlp_of_a_transformer_block_also_gated(gated: bool) -> None:
    torch.manual_seed(0)
    net, tokens = GPT(gated=gated), torch.randint(11, (3, 7))
    seen = []
    handle = net.blocks[1].down.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    scores = dormancy_scores(net, tokens)
    handle.remove()
    name = "blocks.1.gate" if gated else "blocks.1.up"
    assert list(scores) == [name.replace("1", "0", 1), name]
    assert close(scores[name], naive_scores(seen[-1].flatten(0, 1).detach().double()))


def test_a_silent_layer_scores_zero_everywhere_and_is_dormant_at_tau_zero() -> None:
    net = mlp(4, 6, 6, 1)
    plant_dead(net[0], *range(6))
    scores = dormancy_scores(net, torch.randn(8, 4))
    assert scores["0"].eq(0).all()
    assert dormant_fraction({"0": scores["0"]}, 0) == 1.0


def test_scores_do_not_depend_on_the_scale_of_the_activations() -> None:
    net, x = mlp(4, 6, 1).double(), torch.randn(8, 4, dtype=torch.float64)
    before = dormancy_scores(net, x)["0"]
    with torch.no_grad():
        net[0].weight.mul_(1e-30)
        net[0].bias.mul_(1e-30)
    assert torch.allclose(dormancy_scores(net, x)["0"], before, rtol=1e-12)


def test_units_that_are_not_finite_are_neither_dormant_nor_alive() -> None:
    net = mlp(4, 6, 1)
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.fill_(1)
        net[0].bias[2], net[0].bias[3] = float("nan"), float("inf")
    plant_dead(net[0], 5)
    scores = dormancy_scores(net, torch.rand(8, 4))["0"]
    assert scores.isnan().tolist() == [False, False, True, True, False, False]
    assert torch.isclose(scores[scores.isfinite()].mean(), torch.tensor(1.0).double())
    assert dormant_fraction({"0": scores}, 0.1) == 1 / 4


def test_the_pooled_fraction_counts_units_not_layers() -> None:
    scores = {"small": torch.tensor([0.0, 2.0]), "large": torch.ones(6)}
    assert dormant_fraction(scores, 0.1) == 1 / 8  # the mean over layers would be 1/4


def test_the_threshold_is_inclusive() -> None:
    assert dormant_fraction(torch.tensor([0.1, 1.9], dtype=torch.float64), 0.1) == 0.5


@pytest.mark.parametrize("tau", [-0.1, float("nan")])
def test_a_threshold_below_zero_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match="give 0 or more"):
        dormant_fraction(torch.ones(3), tau)


@pytest.mark.parametrize(
    "net", [nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), nn.Sequential()]
)
def test_a_model_without_a_hidden_layer_is_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="no hidden layer"):
        dormancy_scores(net, torch.randn(3, 4))


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        dormancy_scores(mlp(4, 3, 1), torch.randn(0, 4))


def test_scoring_changes_nothing_of_the_model_nor_of_the_random_state() -> None:
    net = ConvNet()
    net.drop.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    dormancy_scores(net, torch.zeros(4, 2, 10, 10))
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_dead_constant_and_saturated_units_by_hand() -> None:
    h = torch.tensor([[0.0, 2.0, 0.999, 0.5], [0.0, 2.0, -0.999, 0.6], [0.0, 2.0, 1.0, 0.999]])
    assert dead_units(h).tolist() == [True, False, False, False]
    assert constant_units(h).tolist() == [True, True, False, False]
    assert saturated_units(h[:, [0, 2, 3]]).tolist() == [False, True, False]
    assert not saturated_units(h, (0.0, math.inf)).any()
