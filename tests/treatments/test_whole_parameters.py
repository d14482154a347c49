"""Shrink and perturb, layer resets, L2 Init: formulas by naive loops, and what must not move."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.treatments.l2_init import L2Init
from dynamo_probe.treatments.layer_reset import LayerReset
from dynamo_probe.treatments.shrink_and_perturb import ShrinkAndPerturb
from tests.models import mlp
from tests.training import seeded, train


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 4)
    return (model(x) - x[:, :2].sin()).square().mean()


def frozen(net: nn.Module) -> torch.optim.Optimizer:
    """An optimizer whose steps move nothing: what moves is the treatment's."""
    return torch.optim.SGD(net.parameters(), 0.0)


def test_without_noise_every_parameter_shrinks_by_the_factor_at_each_firing() -> None:
    seeded()
    net = mlp(4, 8, 2)
    before = [p.detach().double() for p in net.parameters()]
    with dp.watch(net, frozen(net), ShrinkAndPerturb(0.5, 0.0, every=2), on_error="raise") as watch:
        train(net, watch._site.optimizers[0], loss, 6)
    for old, new in zip(before, net.parameters(), strict=True):
        assert torch.allclose(new.detach().double(), old / 8, rtol=1e-6)
    # |theta / 2 - theta| / |theta|
    assert watch.history.series("shrink_and_perturb/change")[1].tolist() == [0.5] * 3


def test_fresh_values_have_each_parameters_own_distribution_and_differ_at_each_firing() -> None:
    seeded()
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    nn.init.normal_(net[0].weight, 0.0, 0.5)
    nn.init.uniform_(net[2].weight, -0.3, 0.3)
    nn.init.constant_(net[0].bias, 0.25)
    drawn = []
    with dp.watch(net, frozen(net), ShrinkAndPerturb(0.0, every=1), on_error="raise") as watch:
        for _ in range(2):
            train(net, watch._site.optimizers[0], lambda m: m(torch.randn(2, 64)).sum(), 1)
            drawn.append([p.detach().clone() for p in net.parameters()])
    for weight, bias, second, _ in drawn:
        assert weight.std() == pytest.approx(0.5, rel=0.02)
        assert bias.tolist() == [0.25] * 256
        assert second.abs().max() == pytest.approx(0.3, rel=1e-3)
        assert second.std() == pytest.approx(0.3 / 3**0.5, rel=0.02)
    assert not torch.equal(drawn[0][0], drawn[1][0])


def test_gaussian_noise_has_the_given_deviation_on_biases_too() -> None:
    seeded()
    net = nn.Linear(50, 400)
    before = net.bias.detach().clone()
    treatment = ShrinkAndPerturb(1.0, 0.01, every=1, noise="gaussian")
    hidden = nn.Sequential(net, nn.ReLU(), nn.Linear(400, 1))
    with dp.watch(hidden, frozen(hidden), treatment, on_error="raise") as watch:
        train(hidden, watch._site.optimizers[0], lambda m: m(torch.randn(2, 50)).sum(), 1)
    assert (net.bias.detach() - before).std() == pytest.approx(0.01, rel=0.1)


def test_only_the_layers_that_were_named_move() -> None:
    seeded()
    net = mlp(4, 8, 6, 2)
    before = copy.deepcopy(net.state_dict())
    with dp.watch(net, frozen(net), ShrinkAndPerturb(0.5, every=1, layers=["2"])) as watch:
        train(net, watch._site.optimizers[0], loss, 1)
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"2.weight", "2.bias"}


def test_tied_parameters_move_once() -> None:
    seeded()
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    before = net[0].weight.detach().clone()
    with dp.watch(net, frozen(net), ShrinkAndPerturb(0.5, 0.0, every=1)) as watch:
        train(net, watch._site.optimizers[0], loss, 1)
    assert torch.allclose(net[0].weight.detach(), before / 2)


@pytest.mark.parametrize(
    ("moments", "cleared", "step"), [("keep", False, 3), ("zero", True, 3), ("zero+step", True, 0)]
)
def test_the_optimizer_forgets_as_much_as_was_asked_for(moments, cleared: bool, step: int) -> None:
    seeded()
    net = mlp(4, 8, 2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with dp.watch(net, optimizer, ShrinkAndPerturb(every=3, moments=moments)):
        train(net, optimizer, loss, 3)
    for state in optimizer.state.values():
        assert bool((state["exp_avg"] == 0).all()) is cleared
        assert bool((state["exp_avg_sq"] == 0).all()) is cleared
        assert int(state["step"]) == step


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, {"4"}), (2, {"4", "2"}), (3, {"4", "2", "0"}), (["0"], {"0"})]
)
def test_layers_are_counted_from_the_output_and_the_rest_is_bit_identical(layers, expected) -> None:
    seeded()
    net = mlp(4, 8, 6, 2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    twin = copy.deepcopy(net)
    twin_optimizer = torch.optim.Adam(twin.parameters(), 1e-2)
    seeded(1)
    with dp.watch(net, optimizer, LayerReset(layers, 4), on_error="raise"):
        train(net, optimizer, loss, 4)
    seeded(1)
    train(twin, twin_optimizer, loss, 4)
    own = dict(twin.named_parameters())
    for name, parameter in net.named_parameters():
        state, other = optimizer.state[parameter], twin_optimizer.state[own[name]]
        if name.partition(".")[0] in expected:
            assert not torch.isin(parameter.detach(), own[name].detach()).any()
            assert int(state["step"]) == 0 and not state["exp_avg"].any()
        else:
            assert torch.equal(parameter, own[name])
            assert all(torch.equal(state[key], other[key]) for key in state)


def test_a_reset_layer_gets_the_values_of_a_fresh_one() -> None:
    seeded()
    net = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 2))
    nn.init.kaiming_uniform_(net[0].weight, nonlinearity="relu")
    nn.init.zeros_(net[0].bias)
    optimizer = torch.optim.Adam(net.parameters(), 0.3)
    with dp.watch(net, optimizer, LayerReset(["0"], 5), on_error="raise"):
        train(net, optimizer, loss, 5)
    bound = (6 / 4) ** 0.5
    assert not net[0].bias.any()
    assert 0.98 * bound < net[0].weight.abs().max() < 1.01 * bound


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_pull_equals_a_naive_loop_with_sgd(momentum: float) -> None:
    seeded()
    net = mlp(4, 6, 2).double()
    rate, strength = 0.05, 0.3
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=momentum)
    initial = [p.detach().numpy().copy() for p in net.parameters()]
    current = [p.copy() for p in initial]
    velocity = [np.zeros_like(p) for p in initial]
    with dp.watch(net, optimizer, L2Init(strength, 3), on_error="raise") as watch:
        for _ in range(6):
            optimizer.zero_grad()
            net(torch.randn(8, 4, dtype=torch.float64)).square().mean().backward()
            gradients = [p.grad.numpy().copy() for p in net.parameters()]
            optimizer.step()
            for i, gradient in enumerate(gradients):
                gradient = gradient + 2 * strength * (current[i] - initial[i])
                velocity[i] = momentum * velocity[i] + gradient
                current[i] = current[i] - rate * velocity[i]
    for found, expected in zip(net.parameters(), current, strict=True):
        assert found.detach().numpy() == pytest.approx(expected, rel=1e-12)
    distance = sum(((a - b) ** 2).sum() for a, b in zip(current, initial, strict=True)) ** 0.5
    assert watch.history.latest("l2_init/distance") == pytest.approx(distance)


@pytest.mark.parametrize("fused", [False, True])
def test_the_pull_equals_a_term_of_the_loss_with_adam(fused: bool) -> None:
    seeded()
    net = mlp(4, 6, 2)
    twin = copy.deepcopy(net)
    initial = [p.detach().clone() for p in net.parameters()]
    optimizers = [torch.optim.Adam(n.parameters(), 1e-2, fused=fused) for n in (net, twin)]
    with dp.watch(net, optimizers[0], L2Init(0.1), on_error="raise"):
        for step in range(5):
            for number, (model, optimizer) in enumerate(zip((net, twin), optimizers, strict=True)):
                seeded(step)
                optimizer.zero_grad()
                total = loss(model)
                if number:
                    pairs = zip(model.parameters(), initial, strict=True)
                    total = total + 0.1 * sum((p - p0).square().sum() for p, p0 in pairs)
                total.backward()
                optimizer.step()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_pull_is_scaled_with_the_loss_under_a_gradient_scaler() -> None:
    results = []
    for scaled in (False, True):
        for fused in (False, True):
            seeded()
            net = mlp(4, 6, 2)
            optimizer = torch.optim.Adam(net.parameters(), 1e-2, fused=fused)
            scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
            with dp.watch(net, optimizer, L2Init(0.5), on_error="raise"):
                for _ in range(4):
                    optimizer.zero_grad()
                    scaler.scale(loss(net)).backward()
                    scaler.step(optimizer)
                    scaler.update()
            results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    for one in results[1:]:
        assert torch.allclose(one, results[0], atol=1e-6)


def test_the_pull_says_that_a_closure_is_beyond_it_and_training_goes_on() -> None:
    seeded()
    net = mlp(4, 6, 2)
    optimizer = torch.optim.LBFGS(net.parameters(), 0.1, max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    with pytest.warns(dp.DynamoProbeWarning, match="put strength"):
        with dp.watch(net, optimizer, L2Init(0.1)) as watch:
            optimizer.step(closure)
            optimizer.step(closure)
    assert [e.subject for e in watch.events if e.kind == "disabled"] == ["l2_init"]


def test_parameters_without_a_gradient_are_left_alone() -> None:
    seeded()
    net = mlp(4, 6, 2)
    spare = nn.Parameter(torch.ones(3))
    net.register_parameter("spare", spare)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, L2Init(0.5), on_error="raise"):
        train(net, optimizer, loss, 2)
    assert spare.grad is None and spare.tolist() == [1.0] * 3
