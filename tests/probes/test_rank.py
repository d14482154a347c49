"""The rank probe against numpy's singular values of the features of a plain pass."""

import numpy as np
import pytest
import torch
from torch import nn

import dynamo_probe as dp
from tests.models import ConvNet, mlp
from tests.training import train


def naive(features: np.ndarray) -> dict[str, float]:
    sigma = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = sigma / sigma.sum()
    share = share[share > 0]
    power = sigma**2
    return {
        "effective": float(np.exp(-(share * np.log(share)).sum())),
        "stable": float(power.sum() / power[0]),
        "participation": float(power.sum() ** 2 / (power**2).sum()),
        "srank": float(1 + np.argmax(np.cumsum(sigma) / sigma.sum() >= 0.99)),
    }


def test_the_last_hidden_layer_on_the_probe_batch() -> None:
    torch.manual_seed(0)
    net, x = mlp(6, 12, 9, 2), torch.randn(40, 6)
    optimizer = torch.optim.Adam(net.parameters())
    with dp.watch(net, optimizer, dp.Rank(every=3), probe_batch=x, on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(8, 6)).square().mean(), 3)
    expected = naive(net[:4](x).detach().numpy())
    assert {tag.split("/")[1] for tag in watch.history.tags()} == {"2"}
    for figure, value in expected.items():
        assert watch.history.latest(f"rank/2/{figure}") == pytest.approx(value, rel=1e-5)
    assert watch.history.samples("rank/2/effective") == 40
    assert watch.history.series("rank/2/effective")[0].tolist() == [1, 3]


def test_all_layers_and_every_position_of_a_convolution_is_a_sample() -> None:
    torch.manual_seed(0)
    net, x = ConvNet(), torch.randn(3, 2, 10, 10)
    optimizer = torch.optim.Adam(net.parameters(), 0.0)
    probe = dp.Rank(every=1, layers="all", batch=x)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(4, 2, 10, 10)).square().mean(), 1)
    net.eval()
    h = torch.relu(net.norm(net.conv1(x))).movedim(1, -1).reshape(-1, 6)
    expected = naive(h.detach().numpy())
    for figure, value in expected.items():
        assert watch.history.latest(f"rank/conv1/{figure}") == pytest.approx(value, rel=1e-4)
    assert watch.history.samples("rank/conv1/stable") == 300


def test_features_that_are_not_finite_are_skipped_with_the_reason() -> None:
    net = mlp(6, 12, 2)
    with torch.no_grad():
        net[0].bias[0] = float("nan")
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    with dp.watch(net, optimizer, dp.Rank(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(8, 6)).square().mean(), 2)
    assert watch.history.tags() == []
    assert [(e.kind, e.detail["reason"]) for e in watch.events] == [
        ("skipped", "the features of 0 are not finite")
    ]


def test_an_unknown_layer_is_named_with_the_known_ones() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(ValueError, match="this model has"):
        dp.watch(
            net,
            optimizer,
            dp.Rank(layers=["fc"]),
            probe_batch=torch.randn(3, 6),
            on_error="raise",
        )
