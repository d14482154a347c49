"""Continual backpropagation against a naive loop of algorithm 1."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.observation.running_utility import RunningUtility
from dynamo_probe.treatments.continual_backprop import ContinualBackprop
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
    ("rate", "maturity", "decay", "every", "bias_correction"),
    [
        (0.01, 10, 0.9, 1, True),
        (0.05, 3, 0.99, 1, True),
        (0.05, 3, 0.99, 1, False),
        (0.3, 0, 0.0, 1, True),
        (0.02, 7, 0.95, 4, True),
    ],
)
def test_the_same_units_go_at_the_same_updates_as_in_a_naive_loop(
    rate, maturity, decay, every, bias_correction
) -> None:
    seeded()
    net = mlp(4, 12, 7, 2).double()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    treatment = ContinualBackprop(
        rate, maturity=maturity, decay=decay, every=every, bias_correction=bias_correction
    )
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
            if step % every:
                continue
            kept = decay**every
            for name, (_, reader, units) in layers.items():
                outgoing = twin[reader].weight.detach().abs().sum(0)
                for unit in range(units):
                    now = hidden[name][:, unit].abs().mean().item() * outgoing[unit].item()
                    utility[name][unit] = kept * utility[name][unit] + (1 - kept) * now
                    age[name][unit] += every
                mature = [unit for unit in range(units) if age[name][unit] > maturity]
                owed[name] += len(mature) * rate * every
                corrected = {
                    u: utility[name][u] / (1 - decay ** age[name][u] if bias_correction else 1)
                    for u in mature
                }
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


def test_target_networks_get_the_replaced_units_and_nothing_else() -> None:
    seeded()
    net = mlp(4, 12, 7, 2)
    target = copy.deepcopy(net)
    before = copy.deepcopy(target)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    treatment = ContinualBackprop(0.1, maturity=2, mirror=target)
    with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
        train(net, optimizer, loss, 3)  # the first update at which units are mature
    units = replaced(watch)[3]
    assert set(units) == {"0"} and len(units["0"]) == 1
    (unit,) = units["0"]
    others = [u for u in range(12) if u != unit]
    assert torch.equal(target[0].weight[unit], net[0].weight[unit])
    assert not target[2].weight[:, unit].any() and target[0].bias[unit] == 0
    assert torch.equal(target[0].weight[others], before[0].weight[others])
    assert torch.equal(target[2].weight[:, others], before[2].weight[:, others])
    for name in ("2.bias", "4.weight", "4.bias"):
        assert torch.equal(target.get_parameter(name), before.get_parameter(name))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_momentum_of_replaced_units_is_forgotten_and_that_of_others_kept(nesterov) -> None:
    buffers = []
    for rate in (0.0, 0.1):
        seeded()
        net = mlp(4, 10, 2)
        optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9, nesterov=nesterov)
        treatment = ContinualBackprop(rate, maturity=2)
        with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
            train(net, optimizer, loss, 3)
        buffers.append(optimizer.state[net[0].weight]["momentum_buffer"])
    (unit,) = replaced(watch)[3]["0"]
    assert not buffers[1][unit].any() and buffers[0][unit].all()
    others = [u for u in range(10) if u != unit]
    assert torch.equal(buffers[1][others], buffers[0][others])


def test_connections_that_are_pruned_stay_pruned() -> None:
    seeded()
    net = mlp(4, 12, 10, 2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    sparse = dp.StaticSparse(0.3, include=["0", "2"])
    with dp.watch(net, optimizer, [sparse, ContinualBackprop(0.1, maturity=2)]) as watch:
        train(net, optimizer, loss, 1)
        masks = {name: net.get_parameter(name) != 0 for name in ("0.weight", "2.weight")}
        train(net, optimizer, loss, 15)
    assert len(replaced(watch)) > 5
    for name, mask in masks.items():
        assert 0.2 < mask.float().mean() < 0.6
        assert not net.get_parameter(name)[~mask].any()


def test_nothing_falls_due_while_it_is_off() -> None:
    seeded()
    net = mlp(4, 10, 2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    treatment = ContinualBackprop(0.05, maturity=0)
    with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
        train(net, optimizer, loss, 1)
        treatment.enabled = False
        train(net, optimizer, loss, 30)
        treatment.enabled = True
        train(net, optimizer, loss, 1)
        # Half a unit from before and half a unit from now, the least useful of the ten.
        assert {step: len(one["0"]) for step, one in replaced(watch).items()} == {32: 1}
        assert watch.events[-1].detail["ages"] == [32]


def test_a_resumed_run_replaces_the_same_units_later(tmp_path) -> None:
    def begin(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, dp.Watch]:
        seeded(seed)
        net = mlp(4, 12, 7, 2)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        treatment = ContinualBackprop(0.03, maturity=5, every=2)
        return net, optimizer, dp.watch(net, optimizer, treatment, on_error="raise")

    net, optimizer, watch = begin(0)
    train(net, optimizer, loss, 17)  # in the middle of a period, with fractions saved up
    torch.save(
        [net.state_dict(), optimizer.state_dict(), watch.state_dict(), torch.get_rng_state()],
        tmp_path / "checkpoint",
    )
    train(net, optimizer, loss, 20)
    again, steps, resumed = begin(1)
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    for part, state in zip((again, steps, resumed), saved, strict=False):
        part.load_state_dict(state)
    torch.set_rng_state(saved[3])
    train(again, steps, loss, 20)
    assert max(replaced(watch)) > 30
    assert [str(e) for e in resumed.events] == [str(e) for e in watch.events]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_unit_that_is_not_finite_for_once_is_passed_over() -> None:
    running = RunningUtility(0.5)
    now = torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64)
    assert running.observe("a", now, 1).tolist() == [4, 4, 4]
    now[1] = float("nan")
    assert running.observe("a", now, 2).tolist() == [4, 4, 4]
    running.restart("a", torch.tensor([True, False, False]))
    later = running.observe("a", torch.tensor([8.0, 8.0, float("inf")], dtype=torch.float64), 4)
    # 1/4 of what was there stays over two updates; the fresh unit's average is all its own.
    assert later.tolist() == pytest.approx([8, (1 * 0.5 + 0.75 * 8) / (1 - 1 / 8), 4])
    assert later.tolist()[1] == pytest.approx((2 * 0.25 + 0.75 * 8) / (1 - 0.5 * 0.25))


def test_the_doctor_tells_that_no_unit_was_due_yet() -> None:
    net = mlp(4, 10, 2)
    optimizer = torch.optim.Adam(net.parameters())
    with dp.watch(net, optimizer, ContinualBackprop(1e-3, maturity=0)) as watch:
        train(net, optimizer, loss, 5)
        assert "no unit was due yet: the most that a layer has saved up is 0.05" in str(
            watch.doctor()
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replacement_rate": -0.1}, "give 0 to 1"),
        ({"maturity": -1}, "give 0 or more"),
        ({"decay": 1.0}, "below 1"),
        ({"outgoing": "max"}, "outgoing is 'max'; give one of sum, mean"),
        ({"init": "he"}, "init is 'he'"),
        ({"moments": "all"}, "moments is 'all'"),
        ({"read_every": 0}, "give 1 or more"),
        ({"every": 0}, "every|period"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        ContinualBackprop(**arguments)
