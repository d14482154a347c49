"""What the dormancy probe reports beside the share of dormant units."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional import constant_units, saturated_units
from tests.models import GPT, mlp, plant_dead
from tests.training import train


class TwoKinds(nn.Module):
    """A tanh layer and a ReLU layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bounded, self.open, self.out = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.open(torch.tanh(self.bounded(x)))))


@pytest.mark.parametrize("on", ["training", "probe"])
def test_dead_constant_and_saturated_units_equal_the_pure_functions(on: str) -> None:
    torch.manual_seed(0)
    net = TwoKinds()
    with torch.no_grad():
        net.bounded.bias[:3] = 50.0  # saturated, and constant in float32
        net.open.weight[4] = 0
        net.open.bias[4] = 2.0  # constant, and neither dead nor dormant
    plant_dead(net.open, 1)
    x = torch.randn(64, 4)
    h = torch.tanh(net.bounded(x)).detach()
    g = F.relu(net.open(h)).detach()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    probe = dp.Dormancy(every=1, on=on, companions=True)
    with dp.watch(net, optimizer, probe, probe_batch=x, on_error="raise") as watch:
        train(net, optimizer, lambda m: m(x).square().mean(), 1)
    constant = int(constant_units(h).sum() + constant_units(g).sum())
    assert constant >= 5
    assert watch.history.latest("dormancy/constant") == constant / 14
    assert watch.history.latest("dormancy/saturated") == saturated_units(h).sum().item() / 8
    dead = (g == 0).all(0).sum().item()
    assert dead >= 1
    assert watch.history.latest("dormancy/dead") == dead / 14


def test_the_overlap_with_the_last_dormant_set() -> None:
    torch.manual_seed(0)
    net = mlp(4, 20, 1)
    with torch.no_grad():
        net[0].bias.fill_(2)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    with dp.watch(net, optimizer, dp.Dormancy(every=1, tau=0.0), on_error="raise") as watch:
        for dead in ((0, 1, 2, 3), (2, 3, 4)):
            with torch.no_grad():
                net[0].bias.fill_(9)
                net[0].weight.fill_(0.1)
            plant_dead(net[0], *dead)
            train(net, optimizer, lambda m: m(torch.randn(16, 4)).square().mean(), 1)
    assert watch.history.series("dormancy/tau=0.0")[1].tolist() == [0.2, 0.15]
    assert watch.history.latest("dormancy/overlap") == pytest.approx(2 / 3)


def test_one_threshold_may_be_given_as_a_number_and_a_batch_as_where() -> None:
    torch.manual_seed(0)
    net, x = mlp(4, 20, 1), torch.randn(9, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Dormancy(0.05, every=1, on=x), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(16, 4)).square().mean(), 1)
    assert watch.history.samples("dormancy/tau=0.05") == 9


def test_the_positions_of_a_sequence_are_samples() -> None:
    torch.manual_seed(0)
    net = GPT()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randint(11, (3, 7))).square().mean(), 1)
    assert watch.history.samples("dormancy/tau=0.1") == 21


def test_a_frozen_layer_is_left_out_of_a_riding_reading_and_named() -> None:
    torch.manual_seed(0)
    net = mlp(4, 8, 6, 1)
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(16, 4)).square().mean(), 2)
    assert "dormancy/layer/0/tau=0.1" not in watch.history.tags()
    assert "dormancy/layer/2/tau=0.1" in watch.history.tags()
    assert "0 had no sample in 2 readings" in str(watch.doctor())
