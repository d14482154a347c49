"""Being called before a step: only in updates at which an instrument is due."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import dynamo_probe as dp
from tests.models import mlp
from tests.training import train


class Looking(dp.Probe):
    """Notes at which update it was called before a step, and for which optimizer."""

    name = "looking"

    def __init__(self, every: int, fails: bool = False) -> None:
        super().__init__(every)
        self.fails = fails
        self.calls: list[tuple[int, Optimizer, bool]] = []
        self.fired: list[int] = []

    def attach(self, site: dp.Site) -> None:
        site.before_step(self, partial(self.look, site))

    def look(self, site: dp.Site, optimizer: Optimizer, closure: bool) -> None:
        if self.fails:
            raise RuntimeError("a bug before the step")
        self.calls.append((site.step, optimizer, closure))

    def fire(self, site: dp.Site) -> None:
        self.fired.append(site.step)


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(8, 4)).square().mean()


def small() -> tuple[nn.Sequential, torch.optim.SGD]:
    torch.manual_seed(0)
    net = mlp(4, 8, 1)
    return net, torch.optim.SGD(net.parameters(), 0.1)


def test_it_is_called_once_before_each_update_that_is_due() -> None:
    net, optimizer = small()
    probe = Looking(every=3)
    with dp.watch(net, optimizer, [dp.Dormancy(every=2), probe], on_error="raise"):
        train(net, optimizer, loss, 10)
    assert probe.calls == [(2, optimizer, False), (5, optimizer, False), (8, optimizer, False)]
    assert probe.fired == [3, 6, 9]


def test_each_instrument_is_called_on_its_own_schedule_and_other_updates_ask_nobody() -> None:
    net, optimizer = small()
    two, three = Looking(every=2), Looking(every=3)
    three.name = "three"
    asked = []
    with dp.watch(net, optimizer, [two, three], on_error="raise") as watch:
        whom = watch._agenda.due_before
        watch._agenda.due_before = lambda step: asked.append(step) or whom(step)  # type: ignore
        train(net, optimizer, loss, 7)
    assert asked == [2, 3, 4, 6]
    assert [step for step, _, _ in two.calls] == [1, 3, 5]
    assert [step for step, _, _ in three.calls] == [2, 5]


def test_every_optimizer_is_announced_and_a_closure_too() -> None:
    net, first = small()
    second = torch.optim.SGD(net[2].parameters(), 0.1)
    probe = Looking(every=2)
    with dp.watch(net, [first, second], probe, on_error="raise"):
        for _ in range(2):
            loss(net).backward()
            second.step()
            first.step(lambda: loss(net).item())
    assert probe.calls == [(1, second, False), (1, first, True)]


def test_without_anyone_asking_there_is_no_hook_and_after_closing_none_is_left() -> None:
    net, optimizer = small()
    with dp.watch(net, optimizer, dp.Dormancy()):
        assert not optimizer._optimizer_step_pre_hooks
    with dp.watch(net, optimizer, Looking(every=1)):
        assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert not optimizer._optimizer_step_pre_hooks


def test_a_failure_before_the_step_disables_the_instrument_and_training_goes_on() -> None:
    net, optimizer = small()
    probe, other = Looking(every=2, fails=True), Looking(every=2)
    other.name = "other"
    with pytest.warns(dp.DynamoProbeWarning, match="looking failed"):
        watch = dp.watch(net, optimizer, [probe, other])
        train(net, optimizer, loss, 6)
    watch.close()
    assert probe.fired == []
    assert other.fired == [2, 4, 6]
    assert [event.kind for event in watch.events] == ["disabled"]


def test_a_resumed_watch_calls_at_the_same_updates() -> None:
    calls = []
    for stop in (None, 4):
        net, optimizer = small()
        probe = Looking(every=5)
        watch = dp.watch(net, optimizer, probe, on_error="raise")
        train(net, optimizer, loss, stop or 12)
        if stop:
            state = watch.state_dict()
            watch.close()
            probe = Looking(every=5)
            watch = dp.watch(net, optimizer, probe, on_error="raise")
            watch.load_state_dict(state)
            train(net, optimizer, loss, 12 - stop)
        watch.close()
        calls.append([step for step, _, _ in probe.calls])
    assert calls == [[4, 9], [4, 9]]
