"""The trainability probe: readings, the fixed batch, notes, resume."""

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional.trainability import area, trainability
from tests.models import mlp
from tests.training import train


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(16, 4)).square().mean()


def small() -> tuple[nn.Sequential, torch.optim.Adam]:
    torch.manual_seed(0)
    net = mlp(4, 8, 6, 1)
    return net, torch.optim.Adam(net.parameters(), 1e-2)


def test_the_readings_are_those_of_the_pure_function_on_the_probe_batch() -> None:
    net, optimizer = small()
    x = torch.randn(24, 4)
    probe = dp.Trainability(every=5, updates=6, learning_rate=1e-2)
    with dp.watch(net, optimizer, probe, probe_batch=x, seed=3, on_error="raise") as watch:
        train(net, optimizer, loss, 5)
        site = watch._site
        expected = trainability(
            net, x, updates=6, learning_rate=1e-2, generator=site.generator("trainability", "")
        )
    latest = watch.history.latest
    assert latest("trainability/loss") == expected.losses[-1].item()
    assert latest("trainability/fresh_loss") == expected.fresh_losses[-1].item()
    assert latest("trainability/ratio") == expected.ratio
    assert latest("trainability/area") == area(expected.losses)
    assert latest("trainability/fresh_area") == area(expected.fresh_losses)
    assert watch.history.series("trainability/ratio")[0].tolist() == [1, 5]
    assert watch.history.samples("trainability/ratio") == 24


def test_a_network_that_died_has_lost_its_plasticity() -> None:
    net, optimizer = small()
    probe = dp.Trainability(every=2, updates=150, learning_rate=1e-2)
    x = torch.randn(32, 4)
    with dp.watch(net, optimizer, probe, probe_batch=x, on_error="raise") as watch:
        train(net, optimizer, loss, 1)
        with torch.no_grad():
            net[2].bias.fill_(-99.0)
        train(net, optimizer, loss, 1)
    at_first, dead = watch.history.series("trainability/ratio")[1].tolist()
    assert dead > 1.25 * at_first


def test_modules_that_are_called_by_themselves_are_fitted_by_themselves() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"actor": mlp(4, 8, 2), "critic": mlp(4, 8, 1)})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.randn(7, 4)
    probe = dp.Trainability(every=1, updates=2)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        (net["actor"](x).sum() + net["critic"](x).square().sum()).backward()
        optimizer.step()
    tags = {tag.rpartition("/")[0] for tag in watch.history.tags()}
    assert tags == {"trainability/actor", "trainability/critic"}
    assert watch.history.samples("trainability/actor/loss") == 7


class WithTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 4) * 0.1)
        self.net = mlp(4, 32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x @ self.table)


def test_what_is_drawn_from_a_recorded_distribution_is_told() -> None:
    torch.manual_seed(0)
    net = WithTable()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Trainability(every=1, updates=2), on_error="raise") as watch:
        train(net, optimizer, loss, 1)
    assert "trainability/ratio" in watch.history.tags()
    notes = [event for event in watch.events if event.subject == "trainability"]
    assert [event.detail["parameters"] for event in notes] == [["table"]]


@pytest.mark.parametrize("fresh", ["reset", "recorded"])
def test_weights_initialised_in_another_way_are_pointed_out(fresh: str) -> None:
    torch.manual_seed(0)
    net = mlp(4, 32, 32, 1)
    nn.init.normal_(net[2].weight, std=0.02)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = dp.Trainability(every=1, updates=2, fresh=fresh)  # type: ignore[arg-type]
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        train(net, optimizer, loss, 1)
    notes = [event.detail for event in watch.events if event.subject == "trainability"]
    if fresh == "reset":
        assert [note["parameters"] for note in notes] == [["2.weight"]]
        assert "fresh='recorded'" in notes[0]["reason"]
    else:
        assert notes == []


def test_a_resumed_run_reads_what_the_uninterrupted_one_reads() -> None:
    series = []
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for stops in ((9,), (4, 5)):
        torch.manual_seed(0)
        net = WithTable()
        optimizer = torch.optim.Adam(net.parameters())
        state = None
        for updates in stops:
            probe = dp.Trainability(every=3, updates=3)
            watch = dp.watch(net, optimizer, probe, probe_batch=x, on_error="raise")
            if state is not None:
                watch.load_state_dict(state)
            train(net, optimizer, loss, updates)
            state = watch.state_dict()
            watch.close()
        series.append({t: watch.history.series(t)[1].tolist() for t in watch.history.tags()})
    assert len(series[0]["trainability/ratio"]) == 4
    assert series[0] == series[1]


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="give 'reset' or 'recorded'"):
        dp.Trainability(fresh="new")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="updates is 0"):
        dp.Trainability(updates=0)
