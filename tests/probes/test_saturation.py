"""The saturation probe against counts on a plain pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from tests.models import mlp
from tests.training import train


class Net(nn.Module):
    """A tanh, a ReLU and a sigmoid layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(5, 6)
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.c(F.relu(self.b(torch.tanh(self.a(x)))))))


def planted() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.a.weight.mul_(4)
        net.a.bias[:2] = 30.0
        net.a.bias[2] = -30.0
        net.c.bias[0] = -30.0
    return net


@pytest.mark.parametrize("on", ["training", "probe"])
def test_shares_by_bound_pooled_over_bounded_layers(on: str) -> None:
    net, x = planted(), torch.randn(40, 4)
    h = torch.tanh(net.a(x)).detach()
    g = torch.sigmoid(net.c(F.relu(net.b(h)))).detach()
    low = torch.cat([(h < -0.98).double().mean(0), (g < 0.01).double().mean(0)])
    high = torch.cat([(h > 0.98).double().mean(0), (g > 0.99).double().mean(0)])
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    probe = dp.Saturation(every=1, on=on)
    with dp.watch(net, optimizer, probe, probe_batch=x, on_error="raise") as watch:
        train(net, optimizer, lambda m: m(x).square().mean(), 1)
    latest = watch.history.latest
    assert latest("saturation/entries_low") == pytest.approx(low.mean().item())
    assert latest("saturation/entries_high") == pytest.approx(high.mean().item())
    assert latest("saturation/entries") == pytest.approx((low + high).mean().item())
    assert latest("saturation/units_high") == 2 / 14
    assert latest("saturation/units_low") == 2 / 14
    assert latest("saturation/units") == ((low + high) > 0.99).double().mean().item() >= 4 / 14
    assert latest("saturation/layer/a/units_low") == 1 / 8
    assert watch.history.samples("saturation/units") == 40


def test_unbounded_layers_are_left_out_and_told_once() -> None:
    net = planted()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Saturation(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(8, 4)).square().mean(), 3)
    assert not any("/layer/b/" in tag for tag in watch.history.tags())
    told = [str(event) for event in watch.events if event.kind == "skipped"]
    assert len(told) == 1 and "saturation: b" in told[0] and "relu" in told[0]


def test_a_network_of_relus_has_no_reading_and_the_reason() -> None:
    torch.manual_seed(0)
    net = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Saturation(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(8, 4)).square().mean(), 1)
    assert watch.history.tags() == []
    assert any("bounded activation function" in str(event) for event in watch.events)


def test_several_updates_are_gathered_into_one_reading() -> None:
    net = planted()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    batches = [torch.randn(n, 4) for n in (5, 6, 7)]
    h = torch.tanh(net.a(torch.cat(batches[1:]))).detach()
    probe = dp.Saturation(every=3, updates=2, margin=0.1)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        for x in batches:
            train(net, optimizer, lambda m, x=x: m(x).square().mean(), 1)
    near = (h.abs() > 0.8).double().mean().item()
    assert watch.history.latest("saturation/layer/a/entries") == pytest.approx(near)
    assert watch.history.samples("saturation/layer/a/entries") == 13


def test_units_that_are_not_finite_take_no_part() -> None:
    net, x = planted(), torch.randn(20, 4)
    with torch.no_grad():
        net.a.bias[0] = float("nan")
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    probe = dp.Saturation(every=1, on=x)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        net(x).square().mean().backward()
        optimizer.zero_grad()
        optimizer.step()
    assert watch.history.latest("saturation/layer/a/units_high") == 1 / 7
    assert "saturation/layer/c/units" not in watch.history.tags()


def test_a_resumed_run_tells_nothing_twice() -> None:
    net = planted()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    state = None
    for _ in range(2):
        watch = dp.watch(net, optimizer, dp.Saturation(every=1), on_error="raise")
        if state is not None:
            watch.load_state_dict(state)
        train(net, optimizer, lambda m: m(torch.randn(8, 4)).square().mean(), 2)
        state = watch.state_dict()
        watch.close()
    assert len([event for event in watch.events if event.kind == "skipped"]) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"margin": 0.5}, ValueError, "margin is 0.5"),
        ({"share": 1.0}, ValueError, "share is 1.0"),
        ({"updates": 0}, ValueError, "updates is 0"),
        ({"on": "test"}, TypeError, "give 'training', 'probe' or a batch"),
    ],
)
def test_mistakes_are_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dp.Saturation(**arguments)  # type: ignore[arg-type]
