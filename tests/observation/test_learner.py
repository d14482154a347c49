"""A batch counts when its gradient reaches a step: another network's loss does not, for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional.dormancy import normalised_scores
from tests.models import mlp


def frozen(net: nn.Module, actor: nn.Module, x: Tensor) -> None:
    net.requires_grad_(False)
    net(actor(x)).mean().backward()
    net.requires_grad_(True)


def not_frozen(net: nn.Module, actor: nn.Module, x: Tensor) -> None:
    net(actor(x)).mean().backward()


def only_for_the_actor(net: nn.Module, actor: nn.Module, x: Tensor) -> None:
    net(actor(x)).mean().backward(inputs=list(actor.parameters()))


def as_gradients_of_the_actor(net: nn.Module, actor: nn.Module, x: Tensor) -> None:
    torch.autograd.grad(net(actor(x)).mean(), list(actor.parameters()))


ANOTHERS = [frozen, not_frozen, only_for_the_actor, as_gradients_of_the_actor]


def by_hand(net: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """The activations, and the sum of |dL/dz| of each unit for the mean square of the output."""
    first, last = net[0], net[2]
    z = x.double() @ first.weight.double().T + first.bias.double()
    output = z.relu() @ last.weight.double().T + last.bias.double()
    back = (2 * output / len(x)) @ last.weight.double() * (z > 0)
    return z.relu(), back.abs().sum(0)


@pytest.mark.parametrize("anothers", ANOTHERS)
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("updates", [1, 2])
def test_another_networks_loss_does_not_count(
    anothers: Callable[[nn.Module, nn.Module, Tensor], None], micro_batches: int, updates: int
) -> None:
    torch.manual_seed(0)
    net, actor = mlp(3, 8, 1), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probes = [dp.Dormancy(every=updates, updates=updates), dp.Gradients(every=updates)]
    with dp.watch(net, optimizer, probes, on_error="raise") as watch:
        for turn in range(3):
            activations, gradients = [], torch.zeros(8, dtype=torch.float64)
            for _ in range(updates):
                anothers(net, actor, torch.randn(64, 3))
                anothers(net, actor, torch.randn(64, 3))
                optimizer.zero_grad()
                gradients.zero_()  # `Gradients` reads the last update
                for _ in range(micro_batches):
                    x = torch.randn(16, 3)
                    with torch.no_grad():
                        h, back = by_hand(net, x)
                    activations.append(h)
                    gradients += back
                    net(x).square().mean().backward()
                optimizer.step()
            if turn == 0:  # an instrument fires after the first update, too, and begins anew then
                continue
            history = watch.history
            assert history.latest("dormancy/samples") == 16 * micro_batches * updates
            scores = torch.tensor(history.latest("dormancy/scores/0"))
            assert torch.allclose(scores, normalised_scores(torch.cat(activations).mean(0)))
            units = torch.tensor(history.latest("gradients/scores/activation/0"))
            assert torch.allclose(units, normalised_scores(gradients))


@pytest.mark.parametrize("anothers", [frozen, only_for_the_actor, as_gradients_of_the_actor])
def test_nor_does_it_between_the_networks_own_passes_and_its_step(
    anothers: Callable[[nn.Module, nn.Module, Tensor], None],
) -> None:
    torch.manual_seed(0)
    net, actor = mlp(3, 8, 1), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.randn(16, 3)).square().mean().backward()
            anothers(net, actor, torch.randn(64, 3))
            optimizer.step()
            assert watch.history.latest("dormancy/samples") == 16


def test_two_passes_under_one_loss_both_count() -> None:
    torch.manual_seed(0)
    net = mlp(3, 8, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        for _ in range(2):
            optimizer.zero_grad()
            (net(torch.randn(16, 3)) - net(torch.randn(16, 3))).square().mean().backward()
            optimizer.step()
            assert watch.history.latest("dormancy/samples") == 32


def test_each_optimizer_makes_use_of_its_own_layers_only() -> None:
    """Critic and actor in one model: the actor steps after the clock, in every update."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"critic": mlp(3, 8, 1), "actor": mlp(3, 5, 3)})
    critic, actor = (torch.optim.SGD(net[name].parameters(), 0.01) for name in ("critic", "actor"))
    dormancy = dp.Dormancy(every=4, updates=2)
    with dp.watch(net, [critic, actor], dormancy, on_error="raise") as watch:
        for _ in range(12):
            critic.zero_grad()
            net["critic"](torch.randn(16, 3)).square().mean().backward()
            critic.step()
            actor.zero_grad()
            net["critic"](net["actor"](torch.randn(7, 3))).mean().backward()
            actor.step()
    samples = {n: one.samples for n, one in watch._site.sources[0].recorder.read().items()}
    # The critic's: two of its own. The actor's: that after the clock's step before, and one more.
    assert samples == {"critic.0": 32, "actor.0": 14}


def test_an_update_that_a_scaler_skips_does_not_count() -> None:
    torch.manual_seed(0)
    net = mlp(3, 8, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        for scale in (float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(net(torch.randn(16, 3)).square().mean() * scale).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watch.step == 1
    assert watch.history.latest("dormancy/samples") == 16


def test_a_state_taken_while_gathering_keeps_what_steps_made_use_of() -> None:
    torch.manual_seed(0)
    net, actor = mlp(3, 8, 1), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def update() -> None:
        not_frozen(net, actor, torch.randn(64, 3))
        optimizer.zero_grad()
        net(torch.randn(16, 3)).square().mean().backward()
        optimizer.step()

    with dp.watch(net, optimizer, dp.Dormancy(every=4, updates=3), on_error="raise") as watch:
        update()
        update()
        state = watch.state_dict()
    with dp.watch(net, optimizer, dp.Dormancy(every=4, updates=3), on_error="raise") as watch:
        watch.load_state_dict(state)
        not_frozen(net, actor, torch.randn(64, 3))
        update()
        update()
    assert watch.history.latest("dormancy/samples") == 48


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
