"""The budget, with a clock that only moves when the test says so."""

import math

import pytest
import torch
from torch import nn

import dynamo_probe as dp
from dynamo_probe import budget as budget_module
from dynamo_probe.observation.statistics import MAGNITUDE
from tests.distributed import on_two_ranks
from tests.models import mlp


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Costly(dp.Probe):
    """Rides, and takes so many seconds for a reading."""

    name = "costly"

    def __init__(self, every: int, seconds: float, clock: Clock) -> None:
        super().__init__(every)
        self.seconds, self.clock = seconds, clock
        self.fired: list[int] = []

    def attach(self, site: dp.Site) -> None:
        self.source = site.observe(self, (MAGNITUDE,))

    def fire(self, site: dp.Site) -> None:
        self.source.read()
        self.clock.now += self.seconds
        self.fired.append(site.step)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(budget_module, "clock", made)
    return made


def run(clock: Clock, updates: int, seconds: float, budget, gathering: float = 0.0, **state):
    """Train with updates of one second, and `gathering` more where the hooks gather."""
    torch.manual_seed(0)
    net = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = Costly(2, seconds, clock)
    with dp.watch(net, optimizer, probe, budget=budget, on_error="raise") as watch:
        if state:
            watch.load_state_dict(state["state"])
        for _ in range(updates):
            net(torch.randn(8, 4)).square().mean().backward()
            clock.now += 1.0 + gathering * probe.source.recorder.gate.on
            optimizer.step()
        saved = watch.state_dict()
    return probe, watch, saved


def stretches(watch: dp.Watch) -> list[tuple[float, dict[str, int]]]:
    notes = [e for e in watch.events if e.subject == "budget"]
    return [(e.detail["spent"], e.detail["stretch"]) for e in notes]


def test_a_reading_that_costs_too_much_is_taken_less_often_and_told(clock: Clock) -> None:
    probe, watch, _ = run(clock, 200, seconds=0.1, budget=0.01)
    # A tenth of a second every 2 updates of a second is 5 %; the span begins within a period.
    spent, stretch = stretches(watch)[0]
    assert spent == pytest.approx(0.05, rel=0.4)
    assert stretch == {"costly": math.ceil(spent / 0.01)}
    late = probe.fired[-4:]
    assert {b - a for a, b in zip(late[:-1], late[1:], strict=True)} == {2 * stretch["costly"]}
    spent = 0.1 * len([f for f in probe.fired if f > 100]) / 100
    assert spent <= 0.012


def test_what_the_hooks_add_to_an_update_counts_too(clock: Clock) -> None:
    _, watch, _ = run(clock, 300, seconds=0.0, budget=0.01, gathering=0.2)
    assert stretches(watch)
    assert stretches(watch)[0][0] == pytest.approx(0.1, rel=0.35)


def test_within_the_budget_nothing_changes(clock: Clock) -> None:
    probe, watch, _ = run(clock, 60, seconds=0.001, budget=0.01)
    assert stretches(watch) == []
    assert probe.fired == list(range(2, 61, 2))


def test_what_was_chosen_can_be_pinned_and_is_part_of_the_state(clock: Clock) -> None:
    pinned, _, _ = run(clock, 40, seconds=0.1, budget={"costly": 3})
    assert pinned.fired == [2, 8, 14, 20, 26, 32, 38]
    _, _, saved = run(clock, 60, seconds=0.1, budget=0.01)
    stretch = saved["instruments"]["costly"]["stretch"]
    resumed, _, _ = run(clock, 60, seconds=0.0, budget=None, state=saved)
    assert stretch >= 5
    assert {b - a for a, b in zip(resumed.fired[1:-1], resumed.fired[2:], strict=True)} == {
        2 * stretch
    }


@pytest.mark.parametrize("wrong", [0, 1, -0.1, {"redo": 2}, {"costly": 0}])
def test_an_impossible_budget_is_refused(clock: Clock, wrong) -> None:
    with pytest.raises(ValueError, match="give a"):
        run(clock, 1, 0.0, budget=wrong)


def uneven(rank: int) -> list[int]:
    clock = Clock()
    budget_module.clock = clock
    model = nn.parallel.DistributedDataParallel(mlp(4, 8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = Costly(2, 0.1 * rank, clock)  # only the second rank is slow
    with dp.watch(model, optimizer, probe, budget=0.01, on_error="raise"):
        for _ in range(60):
            model(torch.randn(8, 4)).square().mean().backward()
            clock.now += 1.0
            optimizer.step()
    return probe.fired


def test_all_ranks_keep_the_budget_of_the_slowest_one() -> None:
    first, second = on_two_ranks(uneven)
    assert first == second
    assert len(first) < 20
