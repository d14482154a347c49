"""Continual backpropagation against a naive loop of algorithm 1, and ReGraMa against its score."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.treatments.continual_backprop import ContinualBackprop
from dynamo_probe.treatments.regrama import ReGraMa
from tests.models import ConvNet, mlp, plant_dead
from tests.training import seeded, train


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 4)
    return (model(x) - x[:, :2].sin()).square().mean()


def replaced(watch: dp.Watch) -> dict[int, dict[str, list[int]]]:
    found: dict[int, dict[str, list[int]]] = {}
    for event in watch.events:
        if event.kind == "recycled":
            found.setdefault(event.step, {})[event.subject] = event.detail["units"]
    return found


@pytest.mark.parametrize(
    ("rate", "maturity", "decay"), [(0.01, 10, 0.9), (0.05, 3, 0.99), (0.3, 0, 0.0)]
)
def test_the_same_units_go_at_the_same_updates_as_in_a_naive_loop(rate, maturity, decay) -> None:
    seeded()
    net = mlp(4, 12, 7, 2).double()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    treatment = ContinualBackprop(rate, maturity=maturity, decay=decay)
    layers = {"0": (0, 2, 12), "2": (2, 4, 7)}
    utility = {name: [0.0] * units for name, (_, _, units) in layers.items()}
    age = {name: [0] * units for name, (_, _, units) in layers.items()}
    owed = dict.fromkeys(layers, 0.0)
    expected: dict[int, dict[str, list[int]]] = {}
    with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
        for step in range(1, 61):
            x = torch.randn(16, 4, dtype=torch.float64)
            with torch.no_grad():
                first = net[1](net[0](x))
                hidden = {"0": first, "2": net[3](net[2](first))}
            before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net)
            optimizer.zero_grad()
            (net(x) - x[:, :2].sin()).square().mean().backward()
            gradients = [p.grad.clone() for p in net.parameters()]
            # What the weights are after the step and before anything is replaced.
            twin = before[1]
            steps = torch.optim.Adam(twin.parameters(), 1e-2)
            steps.load_state_dict(before[0])
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter.grad = gradient
            steps.step()
            optimizer.step()
            for name, (_, reader, units) in layers.items():
                outgoing = twin[reader].weight.detach().abs().sum(0)
                for unit in range(units):
                    now = hidden[name][:, unit].abs().mean().item() * outgoing[unit].item()
                    utility[name][unit] = decay * utility[name][unit] + (1 - decay) * now
                    age[name][unit] += 1
                mature = [unit for unit in range(units) if age[name][unit] > maturity]
                owed[name] += len(mature) * rate
                corrected = {u: utility[name][u] / (1 - decay ** age[name][u]) for u in mature}
                chosen = sorted(mature, key=lambda u: corrected[u])[: int(owed[name])]
                owed[name] -= len(chosen)
                for unit in chosen:
                    utility[name][unit], age[name][unit] = 0.0, 0
                if chosen:
                    expected.setdefault(step, {})[name] = sorted(chosen)
    assert replaced(watch) == expected
    assert sum(len(units) for one in expected.values() for units in one.values()) > 5
    ages = [a for name in layers for a in age[name]]
    steps_read, mean_ages = watch.history.series("continual_backprop/age")
    if steps_read[-1] == 60:
        assert mean_ages[-1] == pytest.approx(sum(ages) / len(ages))


def test_exactly_the_replaced_units_change_and_their_optimizer_state_is_forgotten() -> None:
    seeded()
    net = mlp(4, 12, 2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    twin, plant = copy.deepcopy(net), (1, 7)
    for model in (net, twin):
        with torch.no_grad():
            model[0].bias.fill_(1.0)
        plant_dead(model[0], *plant)
    steps = torch.optim.Adam(twin.parameters(), 1e-2)
    seeded(1)
    # 12 units * 1/6 = 2 at the one update after which all are mature.
    with dp.watch(
        net, optimizer, ContinualBackprop(1 / 6 + 1e-9, maturity=4), on_error="raise"
    ) as watch:
        train(net, optimizer, loss, 5)
    seeded(1)
    train(twin, steps, loss, 5)
    assert replaced(watch) == {5: {"0": list(plant)}}
    rows = torch.tensor(plant)
    assert not net[2].weight[:, rows].any() and not net[0].bias[rows].any()
    assert not optimizer.state[net[0].weight]["exp_avg"][rows].any()
    kept = torch.ones(12, dtype=torch.bool)
    kept[rows] = False
    assert torch.equal(net[0].weight[kept], twin[0].weight[kept])
    assert torch.equal(net[2].weight[:, kept], twin[2].weight[:, kept])
    assert torch.equal(net[2].bias, twin[2].bias)


def test_fewer_looks_replace_as_many_units() -> None:
    counts = []
    for every in (1, 5):
        seeded()
        net = mlp(4, 40, 2)
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)
        treatment = ContinualBackprop(0.005, maturity=20, every=every)
        with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
            train(net, optimizer, loss, 200)
        counts.append(watch.history.latest("continual_backprop/recycled_total"))
    assert counts[0] == pytest.approx(0.005 * 40 * 180, abs=4)
    assert counts[1] == pytest.approx(counts[0], abs=4)


def test_feature_maps_are_replaced_whole_with_the_entries_of_their_norm() -> None:
    seeded()
    net = ConvNet()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    treatment = ContinualBackprop(0.2, maturity=2, layers=["conv1"])
    with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(4, 2, 10, 10)).square().mean(), 4)
    units = [u for one in replaced(watch).values() for u in one["conv1"]]
    last = replaced(watch)[max(replaced(watch))]["conv1"]
    assert units and set(watch.events[-1].detail) >= {"units", "ages"}
    assert not net.conv2.weight[:, last].any()
    assert net.norm.weight[last].tolist() == [1.0] * len(last)


def test_regrama_recycles_the_units_whose_gradient_is_small_beside_their_layers() -> None:
    seeded()
    net = mlp(4, 12, 2)
    with torch.no_grad():
        net[0].bias.fill_(3.0)  # every unit is active ...
        net[2].weight[:, [2, 9]] = 0.0  # ... and nothing comes back to two of them
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    x = torch.randn(16, 4)
    z = net[0](x).detach().requires_grad_(True)
    (net[2](z.relu()) - x[:, :2].sin()).square().mean().backward()
    means = z.grad.double().abs().mean(0)
    expected = (means / means.mean() <= 0.5).nonzero().flatten().tolist()
    assert {2, 9} <= set(expected) and len(expected) < 12
    treatment, redo = ReGraMa(0.5, every=1), dp.ReDo(0.0, every=1)
    fixed = lambda m: (m(x) - x[:, :2].sin()).square().mean()  # noqa: E731
    with dp.watch(net, optimizer, [treatment, redo], on_error="raise") as watch:
        train(net, optimizer, fixed, 1)
    assert replaced(watch)[1] == {"0": expected}
    assert watch.history.latest("regrama/recycled") == len(expected)
    # ReDo's score, of activations, sees none of them.
    assert watch.history.latest("redo/recycled") == 0


def test_regrama_says_at_once_where_it_cannot_see_gradients() -> None:
    net = mlp(4, 12, 2)
    optimizer = torch.optim.Adam(net.parameters())
    with pytest.raises(ValueError, match="there is no layer 'nope'"):
        dp.watch(net, optimizer, ReGraMa(layers=["nope"]))
