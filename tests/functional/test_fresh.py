"""Fresh copies: the right distributions, nothing shared, nothing disturbed."""

import torch
from torch import Tensor, nn

from dynamo_probe.functional.fresh import fresh_copy, own_copy, record_distributions
from dynamo_probe.functional.initial import Initial
from tests.models import ConvNet, mlp
from tests.training import everything, identical, seeded


class Positions(nn.Module):
    """Parameters of its own and no reset_parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(300, 4) * 0.02)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table[: len(x)] * self.scale + x)


def test_a_copy_has_the_values_and_shares_nothing() -> None:
    torch.manual_seed(0)
    net = ConvNet()
    copied = own_copy(net)
    assert identical(everything([net], []), everything([copied], []))
    before = everything([net], [])
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.zero_()
    assert identical(before, everything([net], []))


def test_tied_weights_stay_tied_in_copies() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    for copied in (own_copy(net), fresh_copy(net).model):
        assert copied.get_parameter("1.weight") is copied.get_parameter("0.weight")


def test_a_fresh_copy_is_drawn_as_torch_draws_and_norms_forget() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 500), nn.BatchNorm1d(500), nn.Linear(500, 3))
    with torch.no_grad():
        net[0].weight.mul_(50)
        net[1].weight.fill_(3)
    net(torch.randn(8, 64))
    fresh = fresh_copy(net, seed=1)
    assert fresh.drawn == fresh.kept == ()
    weight = fresh.model.get_parameter("0.weight")
    assert 0.99 / 8 < weight.abs().max().item() <= 1 / 8  # U(-b, b), b = 1 / sqrt(fan_in)
    assert (fresh.model.get_parameter("1.weight") == 1).all()
    assert (fresh.model.get_buffer("1.running_mean") == 0).all()
    assert (net[1].running_mean != 0).any()
    again = fresh_copy(net, seed=1).model
    assert identical(everything([fresh.model], []), everything([again], []))
    other = fresh_copy(net, seed=2).model
    assert not torch.equal(other.get_parameter("0.weight"), weight)


def test_what_has_no_reset_is_drawn_from_what_was_recorded_or_named() -> None:
    torch.manual_seed(0)
    net = Positions()
    recorded = record_distributions(net)
    with torch.no_grad():
        net.table.fill_(7)
        net.scale.fill_(9)
    fresh = fresh_copy(net, recorded)
    assert fresh.drawn == ("table", "scale") and fresh.kept == ()
    table = fresh.model.get_parameter("table")
    assert 0.019 < table.std().item() < 0.021
    assert fresh.model.get_parameter("scale").item() == 2.5
    assert fresh_copy(net).kept == ("table", "scale")


def test_a_weight_that_another_computes_is_not_taken_for_reset() -> None:
    torch.manual_seed(0)
    net = mlp(4, 8, 1)
    nn.utils.parametrizations.weight_norm(net[0])
    kept = fresh_copy(net).kept
    assert set(kept) == {
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    }


def test_recorded_draws_everything_alike() -> None:
    torch.manual_seed(0)
    net = nn.Linear(100, 100)
    nn.init.normal_(net.weight, std=0.02)
    nn.init.zeros_(net.bias)
    recorded = record_distributions(net)
    assert recorded["bias"] == Initial("constant", 0.0)
    fresh = fresh_copy(net, recorded, reset=False)
    assert fresh.drawn == ("weight", "bias")
    assert 0.0195 < fresh.model.get_parameter("weight").std().item() < 0.0205
    assert (fresh.model.get_parameter("bias") == 0).all()


def test_random_states_are_untouched() -> None:
    seeded()
    net = ConvNet()
    before = everything([net], [])
    fresh_copy(net, record_distributions(net), seed=3)
    assert identical(before, everything([net], []))
