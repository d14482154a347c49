"""What holds around steps holds in whatever order the instruments are given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dynamo_probe as dp
from tests.training import seeded


def train(treatments: list[dp.Instrument], updates: int) -> tuple[nn.Sequential, torch.optim.Adam]:
    seeded()
    net = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    with dp.watch(net, optimizer, treatments, on_error="raise"):
        for _ in range(updates):
            x = torch.randn(16, 8)
            optimizer.zero_grad()
            (net(x) - x[:, :2].sin()).square().mean().backward()
            optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("sparse_first", [True, False])
def test_a_sparse_layer_keeps_the_norm_that_it_is_projected_to(sparse_first: bool) -> None:
    norms = []
    for updates in (1, 7):
        pruning = dp.GradualMagnitudePruning(0.5, start=2, end=4, every=2)
        treatments = [pruning, dp.NormalizeAndProject(every=1)]
        net, _ = train(treatments if sparse_first else treatments[::-1], updates)
        weight = net[0].weight.detach()
        assert (weight == 0).float().mean() == (0 if updates == 1 else 0.5)
        norms.append(float(weight.double().norm()))
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)


@pytest.mark.parametrize("sparse_first", [True, False])
def test_a_pull_to_the_initial_weights_leaves_no_state_on_pruned_connections(
    sparse_first: bool,
) -> None:
    pruning = dp.GradualMagnitudePruning(0.25, start=2, end=8, every=2)
    treatments = [pruning, dp.L2Init(0.1)]
    # 13: when masks change, at even updates, all is put right.
    net, optimizer = train(treatments if sparse_first else treatments[::-1], 13)
    pruned = net[0].weight.detach() == 0
    assert pruned.float().mean() > 0.5
    assert not optimizer.state[net[0].weight]["exp_avg"][pruned].any()
    assert not optimizer.state[net[0].weight]["exp_avg_sq"][pruned].any()
