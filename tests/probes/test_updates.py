"""The update probe against closed forms: what SGD does to weights is known."""

import math

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from tests.models import mlp
from tests.training import train


def norm(*tensors: Tensor) -> float:
    return math.sqrt(sum(t.double().square().sum().item() for t in tensors))


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(16, 4)).square().mean()


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp(4, 8, 6, 1)


def test_an_update_of_sgd_is_the_learning_rate_times_the_gradient() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.25)
    with dp.watch(net, optimizer, dp.Updates(every=1), on_error="raise") as watch:
        for _ in range(3):
            before = {name: p.detach().clone() for name, p in net.named_parameters()}
            train(net, optimizer, loss, 1)
            gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
            expected = 0.25 * norm(*gradients.values()) / norm(*before.values())
            assert watch.history.latest("updates/relative") == pytest.approx(expected, rel=1e-5)
            layer = [f"2.{kind}" for kind in ("weight", "bias")]
            expected = 0.25 * norm(*(gradients[n] for n in layer))
            expected /= norm(*(before[n] for n in layer))
            seen = watch.history.latest("updates/layer/2/relative")
            assert seen == pytest.approx(expected, rel=1e-5)


def test_sizes_and_the_distance_from_the_weights_at_attach() -> None:
    net = small()
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with dp.watch(net, optimizer, dp.Updates(every=5), on_error="raise") as watch:
        train(net, optimizer, loss, 5)
    latest, now = watch.history.latest, [p.detach() for p in net.parameters()]
    away = norm(*(a - b for a, b in zip(now, start, strict=True))) / norm(*start)
    assert latest("updates/distance") == pytest.approx(away, rel=1e-5)
    assert latest("updates/weight_norm") == pytest.approx(norm(*now), rel=1e-6)
    entries = torch.cat([p.flatten() for p in now]).double()
    assert latest("updates/weight_magnitude") == pytest.approx(
        entries.abs().mean().item(), rel=1e-6
    )
    assert latest("updates/layer/4/weight_norm") == pytest.approx(norm(*now[4:]), rel=1e-6)
    assert watch.history.series("updates/relative")[0].tolist() == [1, 5]


def test_a_closure_does_not_count_what_happened_to_the_weights_outside_the_step() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    with dp.watch(net, optimizer, dp.Updates(every=1), on_error="raise") as watch:
        for _ in range(2):
            with torch.no_grad():
                net[0].weight.mul_(2)  # a user's own doing
            optimizer.step(closure)
    assert watch.history.latest("updates/relative") == 0.0
    assert watch.history.latest("updates/layer/0/distance") > 1.0


def test_two_optimizers_each_count_their_own_last_step() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": mlp(4, 8, 1), "b": mlp(4, 6, 1)})
    first = torch.optim.SGD(net["a"].parameters(), 0.5)
    second = torch.optim.SGD(net["b"].parameters(), 0.5)
    moves: dict[str, float] = {}
    with dp.watch(net, [first, second], dp.Updates(every=2), on_error="raise") as watch:
        for names in ("a", "b", "b", "a"):
            optimizer = {"a": first, "b": second}[names]
            optimizer.zero_grad()
            loss(net[names]).backward()
            before = [p.detach().clone() for p in net[names].parameters()]
            optimizer.step()
            after = list(net[names].parameters())
            moves[names] = norm(*(x - y for x, y in zip(after, before, strict=True)))
            moves[f"size of {names}"] = norm(*before)
    expected = math.hypot(moves["a"], moves["b"])
    expected /= math.hypot(moves["size of a"], moves["size of b"])
    assert watch.history.latest("updates/relative") == pytest.approx(expected, rel=1e-5)


def test_weights_that_were_all_zero_have_no_relative_update() -> None:
    net = small()
    nn.init.zeros_(net[4].weight)
    nn.init.zeros_(net[4].bias)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Updates(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: (m(torch.randn(9, 4)) - 1).square().mean(), 1)
    tags = watch.history.tags()
    assert "updates/layer/4/relative" not in tags and "updates/layer/4/distance" not in tags
    assert "updates/layer/4/weight_norm" in tags and "updates/relative" in tags


def test_without_the_distance_no_copy_is_kept() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = dp.Updates(every=2, distance=False)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        train(net, optimizer, loss, 2)
        state = watch.state_dict()["instruments"]["updates"]["state"]
    assert state == {"initial": {}, "before": {}, "told": []}
    assert not any("distance" in tag for tag in watch.history.tags())


def test_a_resumed_run_measures_the_distance_from_the_first_beginning() -> None:
    series = []
    for stops in ((9,), (4, 5)):
        net = small()
        optimizer = torch.optim.Adam(net.parameters())
        state = None
        for updates in stops:
            watch = dp.watch(net, optimizer, dp.Updates(every=3), on_error="raise")
            if state is not None:
                watch.load_state_dict(state)
            train(net, optimizer, loss, updates)
            state = watch.state_dict()
            watch.close()
        series.append({t: watch.history.series(t)[1].tolist() for t in watch.history.tags()})
    assert len(series[0]["updates/distance"]) == 4
    assert series[0] == series[1]


def test_a_parameter_that_joins_later_leaves_the_distance_out_and_says_so() -> None:
    net = small()
    optimizer = torch.optim.SGD(net[0].parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Updates(every=1), on_error="raise") as watch:
        train(net, optimizer, loss, 1)
        optimizer.add_param_group({"params": list(net[2].parameters())})
        train(net, optimizer, loss, 1)
    assert watch.history.series("updates/distance")[0].tolist() == [1]
    assert watch.history.series("updates/relative")[0].tolist() == [1, 2]
    skipped = [event.subject for event in watch.events if event.kind == "skipped"]
    assert "updates: distance" in skipped
