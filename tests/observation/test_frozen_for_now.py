"""A layer that is frozen while another network's loss runs through it is not measured then."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dynamo_probe as dp
from dynamo_probe.functional.dormancy import normalised_scores
from tests.models import mlp


def expected_scores(net: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    h = (x.double() @ net[0].weight.double().T + net[0].bias.double()).relu()
    return normalised_scores(h.mean(0))


@pytest.mark.parametrize("freezes", [True, False])
def test_only_passes_with_learned_weights_count(freezes: bool) -> None:
    torch.manual_seed(0)
    net = mlp(3, 8, 1)
    actor = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probes = [dp.Dormancy(every=1), dp.Gradients(every=1)]
    with dp.watch(net, optimizer, probes, on_error="raise") as watch:
        for _ in range(3):
            x = torch.randn(16, 3)
            with torch.no_grad():
                wanted = expected_scores(net, x)
            net.requires_grad_(not freezes)
            net(actor(torch.randn(64, 3))).mean().backward()  # the actor's loss
            net.requires_grad_(True)
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            found = torch.tensor(watch.history.latest("dormancy/scores/0"))
            samples = watch.history.latest("dormancy/samples")
            assert samples == (16 if freezes else 80)
            assert torch.allclose(found, wanted, rtol=1e-5) is freezes


def test_a_layer_that_is_never_learned_is_measured_all_the_same() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    net[1].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        net(torch.randn(16, 3)).square().mean().backward()
        optimizer.step()
    assert watch.history.latest("dormancy/samples") == 16
    assert len(watch.history.latest("dormancy/scores/1")) == 8
