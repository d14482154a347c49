"""The utility probe against eq. 1, update by update, in plain Python."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from tests.models import GPT, mlp
from tests.training import train


def small() -> tuple[nn.Sequential, torch.optim.SGD]:
    torch.manual_seed(0)
    net = mlp(4, 6, 1)
    return net, torch.optim.SGD(net.parameters(), 0.1)


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(8, 4)).square().mean()


@pytest.mark.parametrize("outgoing", ["sum", "mean"])
def test_every_update_is_eq_1_with_bias_correction(outgoing: str) -> None:
    torch.manual_seed(0)
    net = mlp(4, 6, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    utility, age = [0.0] * 6, 0
    probe = dp.ContinualBackpropUtility(every=1, outgoing=outgoing)  # type: ignore[arg-type]
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        for _ in range(5):
            x = torch.randn(8, 4)
            h = F.relu(net[0](x)).detach().double()
            train(net, optimizer, lambda m, x=x: m(x).square().mean(), 1)
            age += 1
            for unit in range(6):
                weights = net[2].weight[:, unit].detach().double().abs()
                size = float(weights.sum() if outgoing == "sum" else weights.mean())
                contribution = float(h[:, unit].abs().mean()) * size
                utility[unit] = 0.99 * utility[unit] + 0.01 * contribution
            expected = [u / (1 - 0.99**age) for u in utility]
            seen = watch.history.latest("utility/values/0")
            assert list(seen) == pytest.approx(expected, rel=1e-5)
    relative = np.array(expected) / np.mean(expected)
    assert watch.history.latest("utility/min") == pytest.approx(relative.min(), rel=1e-5)
    assert watch.history.latest("utility/median") == pytest.approx(np.median(relative), rel=1e-5)


def test_observations_that_lie_apart_weigh_as_many_updates_as_lie_between() -> None:
    net, optimizer = small()
    seen = []
    probe = dp.ContinualBackpropUtility(every=4, decay=0.9)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        for step in range(1, 9):
            x = torch.randn(8, 4)
            h = F.relu(net[0](x)).detach().double().mean(0)
            train(net, optimizer, lambda m, x=x: m(x).square().mean(), 1)
            if step in (1, 4, 8):
                seen.append(h * net[2].weight[0].detach().double().abs())
    average = 0.1 * seen[0]
    average = 0.9**3 * average + (1 - 0.9**3) * seen[1]
    average = 0.9**4 * average + (1 - 0.9**4) * seen[2]
    expected = average / (1 - 0.9**8)
    found = torch.tensor(watch.history.latest("utility/values/0"))
    assert torch.allclose(found, expected, rtol=1e-5)


def test_low_utility_is_the_share_below_a_part_of_the_layers_mean() -> None:
    net, optimizer = small()
    with torch.no_grad():
        net[0].bias.fill_(5.0)
        net[2].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1e-3, 1e-3, 0.0]]))
    optimizer.param_groups[0]["lr"] = 0.0
    probe = dp.ContinualBackpropUtility(every=1, below=0.05)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        train(net, optimizer, loss, 1)
    assert watch.history.latest("utility/below=0.05") == 0.5
    assert watch.history.latest("utility/layer/0/below=0.05") == 0.5
    assert watch.history.latest("utility/min") == 0.0


def test_a_unit_that_is_not_finite_once_is_passed_over_and_recovers() -> None:
    net, optimizer = small()
    optimizer.param_groups[0]["lr"] = 0.0
    x = torch.randn(8, 4)
    h = F.relu(net[0](x)).detach().double().mean(0)
    expected = h * net[2].weight[0].detach().double().abs()
    probe = dp.ContinualBackpropUtility(every=1)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        for bias in (0.0, float("nan"), 0.0):
            kept = net[0].bias.detach().clone()
            with torch.no_grad():
                net[0].bias[2] += bias
            net(x).square().mean().backward()
            optimizer.zero_grad()
            optimizer.step()
            with torch.no_grad():
                net[0].bias.copy_(kept)
    found = torch.tensor(watch.history.latest("utility/values/0"))
    assert torch.allclose(found, expected, rtol=1e-6)


def test_layers_without_outgoing_weights_of_their_own_are_told() -> None:
    torch.manual_seed(0)
    net = GPT()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = dp.ContinualBackpropUtility(every=1)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randint(11, (3, 7))).square().mean(), 1)
    assert "utility/layer/blocks.0.up/min" in watch.history.tags()
    assert watch.history.samples("utility/min") == 21


def test_a_resumed_run_reads_what_the_uninterrupted_one_reads() -> None:
    series = []
    for stops in ((9,), (4, 5)):
        net, optimizer = small()
        state = None
        for updates in stops:
            probe = dp.ContinualBackpropUtility(every=3, updates=2)
            watch = dp.watch(net, optimizer, probe, on_error="raise")
            if state is not None:
                watch.load_state_dict(state)
            train(net, optimizer, loss, updates)
            state = watch.state_dict()
            watch.close()
        series.append({t: watch.history.series(t)[1].tolist() for t in watch.history.tags()})
        assert watch.history.samples("utility/min") == 16
    assert len(series[0]["utility/min"]) == 4
    assert series[0] == series[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.0}, "decay is 1.0"),
        ({"outgoing": "max"}, "give 'sum' or 'mean'"),
        ({"below": 0.0}, "below is 0.0"),
        ({"updates": 0}, "updates is 0"),
    ],
)
def test_mistakes_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.ContinualBackpropUtility(**arguments)  # type: ignore[arg-type]
