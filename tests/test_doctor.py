"""The report says what is observed and how, what is not and why."""

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from tests.models import ConvNet, mlp
from tests.training import train


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(4, 2, 10, 10)).square().mean()


def test_every_layer_is_listed_with_its_tap_or_the_reason_why_not() -> None:
    torch.manual_seed(0)
    net = ConvNet()
    optimizer = torch.optim.Adam(net.parameters())
    with dp.watch(net, optimizer, [dp.Dormancy(every=2), dp.ReDo(every=4)]) as watch:
        train(net, optimizer, loss, 5)
    report = watch.doctor()
    layers = {layer.name: layer for layer in report.layers}
    assert layers.keys() == {"conv1", "conv2", "fc", "value", "advantage"}
    assert [layers[name].units for name in ("conv1", "conv2", "fc")] == [6, 5, 12]
    assert all(layers[name].recyclable for name in ("conv1", "conv2", "fc"))
    assert "an output layer" in layers["value"].measured
    fired = {one.name: (one.fired, one.last, one.due) for one in report.instruments}
    assert fired == {"dormancy": (3, 4, 6), "redo": (1, 4, 8)}
    assert report.warnings == ()
    text = str(report)
    assert "every 2 updates and at 1; rides on the training" in text
    assert "No warnings" in text


def test_before_the_first_forward_pass_it_says_what_is_missing() -> None:
    net = mlp(4, 8, 1)
    with dp.watch(net, torch.optim.SGD(net.parameters(), 0.1), dp.Dormancy()) as watch:
        report = watch.doctor()
    assert any("no forward pass" in warning for warning in report.warnings)
    assert any("never fired" in warning for warning in report.warnings)


def test_updates_without_a_forward_pass_of_the_model_are_skipped_with_the_reason() -> None:
    net = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        for _ in range(3):
            net[0].weight.grad = torch.zeros_like(net[0].weight)
            optimizer.step()
    assert watch.history.tags() == []
    assert [(e.kind, e.step) for e in watch.events] == [("skipped", 1)]
    assert "pass probe_batch=" in watch.events[0].detail["reason"]


def test_a_switched_off_or_disabled_instrument_is_a_warning() -> None:
    class Broken(dp.Probe):
        name = "broken"

        def fire(self, site: dp.Site) -> None:
            raise RuntimeError("no luck")

    net = ConvNet()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    redo = dp.ReDo(every=2)
    redo.enabled = False
    with pytest.warns(dp.DynamoProbeWarning), dp.watch(net, optimizer, [Broken(1), redo]) as watch:
        train(net, optimizer, loss, 3)
    warnings = " ".join(watch.doctor().warnings)
    assert "broken is disabled: RuntimeError: no luck" in warnings
    assert "redo is switched off" in warnings
