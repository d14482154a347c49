"""Plasticity injection: nothing before, the same output after, and only the fresh head learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.treatments.plasticity_injection import Injectable, PlasticityInjection
from tests.models import mlp
from tests.training import seeded, train


def network(wrapped: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 8), mlp(8, 6, 2)
    return nn.Sequential(encoder, nn.ReLU(), Injectable(head) if wrapped else head)


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 4)
    return (model(x) - x[:, :2].sin()).square().mean()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_before_the_injection_the_run_is_that_of_the_plain_head_bit_for_bit(decay: float) -> None:
    results = []
    for wrapped in (True, False):
        net = network(wrapped)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=decay)
        seeded(1)
        if wrapped:
            with dp.watch(net, optimizer, PlasticityInjection(99), on_error="raise"):
                train(net, optimizer, loss, 6)
        else:
            train(net, optimizer, loss, 6)
        results.append([p.detach() for p in net.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["adam", "adamw", "momentum"])
def test_the_output_stays_at_the_injection_and_only_the_fresh_head_learns_after_it(kind) -> None:
    net = network()
    optimizer = {
        "adam": lambda p: torch.optim.Adam(p, 1e-2),
        "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
        "momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    }[kind](net.parameters())
    x = torch.randn(64, 4)
    seeded(1)
    with dp.watch(net, optimizer, PlasticityInjection(5), probe_batch=x, on_error="raise") as watch:
        train(net, optimizer, loss, 4)
        module = net[2]
        assert isinstance(module, Injectable)
        # One more update by hand on a copy gives the head that is going to be frozen.
        twin = copy.deepcopy(net)
        steps = type(optimizer)(twin.parameters(), lr=1e-2)
        steps.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        seeded(2)
        train(twin, steps, loss, 1)
        seeded(2)
        train(net, optimizer, loss, 1)
        assert torch.allclose(net(x), twin(x), atol=1e-6)
        for old, trained in zip(module.old.parameters(), twin[2].head.parameters(), strict=True):
            assert torch.equal(old, trained)
        heads = zip(module.head.parameters(), module.anchor.parameters(), strict=True)
        assert all(torch.equal(fresh, anchor) for fresh, anchor in heads)
        assert watch.history.latest("plasticity_injection/output_change") < 1e-5
        copies = (module.old, module.anchor)
        frozen = [p.detach().clone() for part in copies for p in part.parameters()]
        fresh = [p.detach().clone() for p in module.head.parameters()]
        encoder = net[0].weight.detach().clone()
        train(net, optimizer, loss, 5)
    after = [p for part in copies for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))
    moved = zip(fresh, module.head.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)
    assert not torch.equal(encoder, net[0].weight)
    # h(x) + old(x) - anchor(x), by hand.
    h = net[1](net[0](x))
    by_hand = module.head(h) + module.old.inner(h) - module.anchor.inner(h)
    assert torch.allclose(net(x), by_hand, atol=1e-6)


def test_the_fresh_head_is_drawn_from_the_initial_distribution_and_the_optimizer_forgets() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 200), nn.ReLU(), Injectable(nn.Linear(200, 100)))
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    with dp.watch(net, optimizer, PlasticityInjection(4), on_error="raise"):
        train(net, optimizer, lambda m: m(torch.randn(8, 4)).square().mean(), 4)
    head = net[2].head
    bound = 200**-0.5
    assert 0.98 * bound < head.weight.abs().max() < 1.02 * bound
    state = optimizer.state[head.weight]
    assert int(state["step"]) == 0 and not state["exp_avg"].any()
    assert int(optimizer.state[net[0].weight]["step"]) == 4


def test_a_target_network_keeps_its_function_and_a_copy_brings_it_up_to_date() -> None:
    net = network()
    target = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    x = torch.randn(32, 4)
    before = target(x)
    with dp.watch(net, optimizer, PlasticityInjection(5, mirror=target), on_error="raise"):
        train(net, optimizer, loss, 5)
        assert torch.allclose(target(x), before, atol=1e-6)
        assert not torch.equal(target[2].head[0].weight, before)
        assert target[2].injected
        target.load_state_dict(net.state_dict())
        assert torch.equal(target(x), net(x))
        train(net, optimizer, loss, 3)


def test_units_of_the_frozen_copies_are_not_counted_and_the_reason_is_given() -> None:
    net = network()
    module = net[2]
    assert isinstance(module, Injectable)
    module.injected = True  # as after a resume
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with dp.watch(net, optimizer, dp.Dormancy(every=2), on_error="raise") as watch:
        train(net, optimizer, loss, 2)
        report = str(watch.doctor())
    layers = {t for t in watch.history.tags() if t.startswith("dormancy/scores/")}
    assert layers == {"dormancy/scores/0", "dormancy/scores/2.head.0"}
    assert "it is a frozen copy of a layer" in report


def test_a_model_that_is_not_prepared_is_told_how() -> None:
    net = mlp(4, 6, 2)
    with pytest.raises(ValueError, match=r"model\.head = dp\.Injectable\(model\.head\)"):
        dp.watch(net, torch.optim.Adam(net.parameters()), PlasticityInjection(5))
    with pytest.raises(ValueError, match="no parameters"):
        Injectable(nn.ReLU())
    with pytest.raises(ValueError, match="Dropout, whose noise"):
        Injectable(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    with pytest.raises(ValueError, match="running statistics"):
        Injectable(nn.BatchNorm1d(3))


def test_a_checkpoint_of_the_model_alone_says_that_it_was_injected_into() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with dp.watch(net, optimizer, PlasticityInjection(2), on_error="raise"):
        train(net, optimizer, loss, 4)
    again = network()
    again.load_state_dict(net.state_dict())
    x = torch.randn(8, 4)
    assert torch.equal(again(x), net(x))
