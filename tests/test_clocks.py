"""Other clocks than updates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import dynamo_probe as dp
from tests.models import mlp


def train(clocks: object, updates: int = 6) -> tuple[dp.Watch, nn.Module]:
    torch.manual_seed(0)
    net = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Dormancy(every=2), clocks=clocks) as watch:  # type: ignore[arg-type]
        for _ in range(updates):
            optimizer.zero_grad()
            net(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    return watch, net


def test_a_clock_is_read_at_the_updates_that_have_readings() -> None:
    ticks = iter(range(100, 1000, 100))
    watch, _ = train({"environment steps": lambda: next(ticks)})
    steps, times = watch.history.series("clock/environment steps")
    assert steps.tolist() == [1, 2, 4, 6]
    assert times.tolist() == [100.0, 200.0, 300.0, 400.0]


@pytest.mark.parametrize("wrong", [lambda: 1 / 0, lambda: "noon", lambda: math.nan])
def test_a_clock_that_fails_is_told_of_once_and_asked_no_more(wrong: object) -> None:
    with pytest.warns(dp.DynamoProbeWarning, match="clock/bad failed") as told:
        watch, net = train({"bad": wrong, "good": lambda: 7})
    assert len(told) == 1
    assert watch.history.series("clock/good")[1].tolist() == [7.0] * 4
    assert "clock/bad" not in watch.history
    assert [e.subject for e in watch.events if e.kind == "disabled"] == ["clock/bad"]
    plain = train(None)[1]
    for mine, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_is_no_clock_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="give a function"):
        train({"steps": 3})
    with pytest.raises(ValueError, match="another name"):
        train({"updates": lambda: 3})
