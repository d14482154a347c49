"""Scores that look at activations steer the exchange towards units that never fire."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.treatments.sparse import KeepsSilent, TowardsDormant
from tests.models import GPT, mlp, plant_dead
from tests.training import seeded, train

DEAD = (1, 5)


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(32, 6).abs()
    return F.mse_loss(model(x), x[:, :2].sin())


def exchanged(prune: str | KeepsSilent, grow: str | TowardsDormant) -> tuple[Tensor, Tensor]:
    """Plant silent units in the second layer; return which connections went and which came."""
    seeded()
    model = mlp(6, 16, 16, 2)
    with torch.no_grad():
        model[2].weight[list(DEAD)] = -model[2].weight[list(DEAD)].abs()
        model[2].bias[list(DEAD)] = -1
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    treatment = dp.SET(0.5, every=4, turnover=0.2, prune=prune, grow=grow, include=["2"])
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        train(model, optimizer, loss, 3)
        before = treatment.connections.mask_of("2.weight").clone()
        train(model, optimizer, loss, 1)
        after = treatment.connections.mask_of("2.weight")
    return before & ~after, after & ~before


def test_growing_by_gradient_passes_a_dead_unit_by_and_steering_does_not() -> None:
    _, plain = exchanged("magnitude", "gradient")
    assert not plain[list(DEAD)].any()
    _, steered = exchanged("magnitude", TowardsDormant(tau=0.0))
    assert steered[list(DEAD)].sum() > plain.sum() / 4
    _, none = exchanged("magnitude", TowardsDormant(tau=0.0, strength=0.0))
    assert torch.equal(none, plain)


def test_negative_connections_into_a_silent_unit_go_first() -> None:
    plain, _ = exchanged("magnitude", "random")
    first, _ = exchanged(KeepsSilent(tau=0.0), "random")
    assert first[list(DEAD)].sum() > 2 * plain[list(DEAD)].sum()


def test_the_exchange_stays_exact_and_wakes_units() -> None:
    seeded()
    model = mlp(6, 16, 16, 2)
    plant_dead(model[2], *DEAD)
    with torch.no_grad():
        model[2].bias[list(DEAD)] = -0.01
        model[2].weight[list(DEAD)] = -0.01
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    treatment = dp.RigL(
        0.5, stop=200, every=5, prune=KeepsSilent(), grow=TowardsDormant(), include=["2"]
    )
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        train(model, optimizer, loss, 200)
        assert int(treatment.connections.mask_of("2.weight").sum()) == 128


def test_layers_whose_activations_cannot_be_read_are_scored_by_gradient() -> None:
    seeded()
    model = GPT(depth=1)
    tokens = torch.randint(11, (2, 8))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    treatment = dp.RigL(0.5, stop=50, every=2, grow=TowardsDormant(), include=["*.qkv"])
    with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
        train(model, optimizer,
              lambda m: F.cross_entropy(m(tokens).flatten(0, 1), tokens.flatten()), 6)  # fmt: skip
    assert treatment.regrown > 0
    assert len(watch.history.series("sparsity/regrown")[0]) == 3


def test_a_negative_threshold_or_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        TowardsDormant(strength=-1)
    with pytest.raises(ValueError, match="tau"):
        KeepsSilent(tau=-0.1)
