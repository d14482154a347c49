"""ReGraMa: which units it recycles by each of its scores, and what it leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.treatments.regrama import ReGraMa
from tests.models import ConvNet, mlp
from tests.training import everything, identical, seeded, train


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 4)
    return (model(x) - x[:, :2].sin()).square().mean()


def recycled(watch: dp.Watch) -> dict[int, dict[str, list[int]]]:
    found: dict[int, dict[str, list[int]]] = {}
    for event in watch.events:
        if event.kind == "recycled":
            found.setdefault(event.step, {})[event.subject] = event.detail["units"]
    return found


def below(figures: list[float], tau: float) -> list[int]:
    mean = sum(figures) / len(figures)
    return [unit for unit, figure in enumerate(figures) if figure / mean <= tau]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("score", ["activation-gradient", "weight-gradient"])
def test_the_same_units_go_as_in_a_naive_loop(score: str, make) -> None:
    seeded()
    net = mlp(4, 12, 7, 2).double()
    optimizer = make(net.parameters(), 2e-2)
    updates = 2 if score == "activation-gradient" else 1
    treatment = ReGraMa(0.4, 5, score=score, updates=updates)
    gathered: dict[str, list[list[list[float]]]] = {"0": [], "2": []}
    expected: dict[int, dict[str, list[int]]] = {}
    with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
        for step in range(1, 41):
            x = torch.randn(16, 4, dtype=torch.float64)
            first = net[0](x)
            second = net[2](first.relu())
            error = (net[4](second.relu()) - x[:, :2].sin()).square().mean()
            slopes = torch.autograd.grad(error, [first, second])
            for name, slope in zip(("0", "2"), slopes, strict=True):
                gathered[name].append(slope.abs().tolist())
            optimizer.zero_grad()
            (net(x) - x[:, :2].sin()).square().mean().backward()
            weights = {name: net[int(name)].weight.grad.abs().tolist() for name in gathered}
            optimizer.step()
            if step % 5:
                continue
            for name, batches in gathered.items():
                if score == "weight-gradient":
                    figures = [sum(row) / len(row) for row in weights[name]]
                else:
                    samples = [row for batch in batches[-2:] for row in batch]
                    columns = zip(*samples, strict=True)
                    figures = [sum(column) / len(samples) for column in columns]
                units = below(figures, 0.4)
                if units:
                    expected.setdefault(step, {})[name] = units
    assert recycled(watch) == expected
    assert sum(len(units) for one in expected.values() for units in one.values()) > 5


def test_a_unit_that_is_active_and_gets_no_gradient_is_seen_where_redo_sees_none() -> None:
    seeded()
    net = mlp(4, 12, 2)
    with torch.no_grad():
        net[0].bias.fill_(3.0)
        net[2].weight[:, [2, 9]] = 0.0
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    instruments = [ReGraMa(0.0, every=1), dp.ReDo(0.0, every=1)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        train(net, optimizer, loss, 1)
    assert recycled(watch) == {1: {"0": [2, 9]}}
    assert watch.history.latest("regrama/recycled") == 2
    assert watch.history.latest("redo/recycled") == 0


@pytest.mark.parametrize("score", ["activation-gradient", "weight-gradient"])
def test_exactly_the_recycled_units_change_and_their_state_is_forgotten(score: str) -> None:
    runs = []
    for tau in (None, 0.3):
        seeded()
        net = mlp(4, 12, 2)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        instruments = [dp.Dormancy(4)] if tau is None else [ReGraMa(tau, 4, score=score)]
        with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
            train(net, optimizer, loss, 4)
        runs.append((net, optimizer.state[net[0].weight]["exp_avg"]))
    (plain, old), (net, new) = runs
    units = recycled(watch)[4]["0"]
    kept = [unit for unit in range(12) if unit not in units]
    assert units and kept
    assert not net[2].weight[:, units].any() and not net[0].bias[units].any()
    assert (net[0].weight[units] != plain[0].weight[units]).all()
    assert not new[units].any() and torch.equal(new[kept], old[kept])
    assert torch.equal(net[0].weight[kept], plain[0].weight[kept])
    assert torch.equal(net[2].weight[:, kept], plain[2].weight[:, kept])
    assert torch.equal(net[2].bias, plain[2].bias)


def test_weight_gradients_of_feature_maps_are_read_and_their_units_recycled() -> None:
    seeded()
    net = ConvNet()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    treatment = ReGraMa(0.0, 1, score="weight-gradient")
    with torch.no_grad():
        net.fc.weight.view(12, 5, 9)[:, 3] = 0.0  # nothing comes back to one map of conv2
    with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(4, 2, 10, 10)).square().mean(), 1)
    assert recycled(watch)[1]["conv2"] == [3]
    assert not net.fc.weight.view(12, 5, 9)[:, 3].any()


@pytest.mark.parametrize("choice", ["random", "inverted"])
def test_controls_recycle_as_many_units_as_have_little_gradient(choice: str) -> None:
    counts = []
    for one in ("dormant", choice):
        seeded()
        net = mlp(4, 12, 2)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        with dp.watch(net, optimizer, ReGraMa(0.5, 3, choice=one), on_error="raise") as watch:
            train(net, optimizer, loss, 3)
        counts.append(recycled(watch)[3]["0"])
    assert len(counts[0]) == len(counts[1]) and counts[0] != counts[1]


def test_with_weight_gradients_a_target_network_follows_and_masks_hold() -> None:
    seeded()
    net = mlp(4, 12, 10, 2)
    target = copy.deepcopy(net)
    before = copy.deepcopy(target)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    treatment = ReGraMa(0.4, 3, score="weight-gradient", mirror=target)
    with dp.watch(net, optimizer, [dp.StaticSparse(0.5, include=["2"]), treatment]) as watch:
        train(net, optimizer, loss, 2)
        pruned = net[2].weight == 0
        train(net, optimizer, loss, 1)
    units = recycled(watch)[3]["0"]
    kept = [unit for unit in range(12) if unit not in units]
    assert 0.4 < pruned.float().mean() < 0.6
    assert not net[2].weight[pruned].any()
    assert torch.equal(target[0].weight[units], net[0].weight[units])
    assert torch.equal(target[0].weight[kept], before[0].weight[kept])


@pytest.mark.parametrize("score", ["activation-gradient", "weight-gradient"])
def test_a_resumed_run_equals_the_uninterrupted_one(score: str) -> None:
    def begin(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, dp.Watch]:
        seeded(seed)
        net = mlp(4, 12, 7, 2)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        updates = 3 if score == "activation-gradient" else 1
        treatment = ReGraMa(0.4, 5, score=score, updates=updates)
        return net, optimizer, dp.watch(net, optimizer, treatment, on_error="raise")

    net, optimizer, watch = begin(0)
    train(net, optimizer, loss, 13)  # two of three updates are gathered
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), watch.state_dict()))
    random = torch.get_rng_state()
    train(net, optimizer, loss, 12)
    again, steps, resumed = begin(1)
    for part, state in zip((again, steps, resumed), saved, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random)
    train(again, steps, loss, 12)
    assert max(recycled(watch)) >= 15
    assert [str(e) for e in resumed.events] == [str(e) for e in watch.events]
    assert identical(everything([net], [optimizer])[:-5], everything([again], [steps])[:-5])


def test_where_a_gradient_cannot_be_seen_nothing_is_recycled_and_the_reason_is_told() -> None:
    seeded()
    net = mlp(4, 12, 2)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        error = loss(net)
        error.backward()
        return error

    treatment = ReGraMa(10.0, 1, score="weight-gradient")
    with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
        optimizer.step(closure)
    assert not recycled(watch)
    (event,) = [e for e in watch.events if e.kind == "skipped"]
    assert "take score='activation-gradient'" in event.detail["reason"]


@pytest.mark.parametrize("off", [False, True])
def test_gradients_of_an_earlier_update_are_not_acted_upon(off: bool) -> None:
    seeded()
    net = mlp(4, 12, 10, 2)
    optimizer = torch.optim.SGD(net.parameters(), 1e-2)
    treatment = ReGraMa(100.0, 1, score="weight-gradient")
    treatment.enabled = not off
    with dp.watch(net, optimizer, treatment, on_error="raise") as watch:
        train(net, optimizer, loss, 1)
        treatment.enabled = True
        net[0].requires_grad_(False)
        train(net, optimizer, loss, 1)
    assert set(recycled(watch)) == ({2} if off else {1, 2})
    assert recycled(watch)[2] == {"2": list(range(10))}
    assert "reads the gradients that the optimizer is given" in str(watch.doctor())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": -1.0}, "tau"),
        ({"score": "gradient"}, "give one of activation-gradient, weight-gradient"),
        ({"choice": "all"}, "give one of dormant, random, inverted"),
        ({"updates": 0}, "give 1 or more"),
        ({"score": "weight-gradient", "updates": 2}, "leave updates at 1"),
        ({"init": "he"}, "give one of own, xavier"),
        ({"moments": "all"}, "give one of zero"),
        ({"every": dp.Every(5), "start": 3}, "put them into the schedule"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        ReGraMa(**arguments)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are() -> None:
    net = mlp(4, 12, 2)
    optimizer = torch.optim.Adam(net.parameters())
    with pytest.raises(ValueError, match="there is no layer 'nope'"):
        dp.watch(net, optimizer, ReGraMa(layers=["nope"]))
