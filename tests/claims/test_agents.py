"""The comparisons of agents: their measures against naive ones, and that they run."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents import dqn
from benchmarks.agents.learning import random_return
from benchmarks.papers import long_run, policy_agents, value_agents
from benchmarks.papers.intervals import interquartile_mean, interval, with_interval
from benchmarks.papers.lives import of_score, overlap, overlap_by_chance
from dynamo_probe.anatomy.wiring import wire
from tests.models import mlp

QUICK = replace(value_agents.CARTPOLE, steps=1_300, read_every=50, prune_episodes=2)


@pytest.mark.parametrize(("n", "a", "b"), [(5, 2, 3), (6, 1, 4), (4, 4, 2)])
def test_chance_overlap_is_the_mean_over_all_sets_of_that_size(n: int, a: int, b: int) -> None:
    def mask(units: tuple[int, ...]) -> torch.Tensor:
        found = torch.zeros(n, dtype=torch.bool)
        found[list(units)] = True
        return found

    then = {"fc": mask(tuple(range(a)))}
    every = [overlap(then, {"fc": mask(units)}) for units in combinations(range(n), b)]
    assert overlap_by_chance(then, {"fc": mask(tuple(range(b)))}) == pytest.approx(
        sum(every) / len(every)
    )


def test_overlap_pools_layers_and_is_nan_without_dormant_units() -> None:
    yes, no = torch.tensor([True, True, False]), torch.tensor([False, False, False])
    assert overlap({"a": yes, "b": no}, {"a": yes, "b": yes}) == 1.0
    assert math.isnan(overlap({"a": no}, {"a": yes}))


def test_controls_take_as_many_units_of_each_layer() -> None:
    scores = {"a": torch.tensor([0.0, 3.0, 1.0, 2.0]), "b": torch.tensor([1.0, 0.0])}
    dormant = {"a": torch.tensor([True, False, True, False]), "b": torch.tensor([False, False])}
    active = of_score(scores, dormant, None)
    assert active["a"].tolist() == [False, True, False, True] and not active["b"].any()
    random = [of_score(scores, dormant, seed)["a"] for seed in range(30)]
    assert all(int(mask.sum()) == 2 for mask in random)
    assert len({tuple(mask.tolist()) for mask in random}) == 6


def test_a_pruned_unit_reaches_nothing_and_the_others_all_that_they_did() -> None:
    torch.manual_seed(0)
    network, x = mlp(4, 6, 5, 2), torch.randn(10, 4)
    masks = {
        "0": torch.tensor([1, 0, 0, 1, 0, 0]).bool(),
        "2": torch.tensor([0, 1, 0, 0, 0]).bool(),
    }
    pruned = value_agents.without(network, wire(network, (x,), {}, ["0", "2"]), masks)
    h = (network[0](x).relu() * ~masks["0"]) @ network[2].weight.T + network[2].bias
    expected = (h.relu() * ~masks["2"]) @ network[4].weight.T + network[4].bias
    assert torch.allclose(pruned(x), expected, atol=1e-6)
    assert not torch.equal(pruned(x), network(x))


@pytest.mark.parametrize("arm", ["base", "frozen target", "redo inverted", "static 90", "width 2"])
def test_every_kind_of_arm_runs_and_fills_its_row(arm: str) -> None:
    found = value_agents.run(arm, 1, setting=QUICK)
    assert found.updates == 300 and len(found.dormant[0.1]) == 7
    assert found.density == pytest.approx(0.1 if arm == "static 90" else 1.0, abs=1e-3)
    assert found.pruned["nothing"][1] == found.pruned["dormant, tau 0"][1]
    shares = [found.pruned[f"dormant, tau {tau:g}"][0] for tau in value_agents.TAUS]
    assert shares == sorted(shares)
    row = asdict(found) | {"dormant": {str(t): x for t, x in found.dormant.items()}}
    row["overlap"] = {str(t): x for t, x in found.overlap.items()}
    text = value_agents.table([row], [arm])
    assert f"| {arm} | 1 |" in text
    assert cell(text, "return without exploration") == f"{found.pruned['nothing'][1]:.1f}"
    unevaluated = value_agents.table([row | {"pruned": {}}], [arm])
    assert cell(unevaluated, "return without exploration") == "-"


def cell(text: str, column: str) -> str:
    header, _, line = text.splitlines()[:3]
    return dict(zip(header.split(" | "), line.split(" | "), strict=True))[column]


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="give one of base, frozen target"):
        value_agents.run("nope", 1, setting=QUICK)
    with pytest.raises(ValueError, match="give one of lr 3e-4"):
        policy_agents.run("nope", 1)


def test_dead_units_of_a_trained_agent_can_be_pruned_for_nothing() -> None:
    found = value_agents.run("base", 3, setting=replace(QUICK, steps=2_500, prune_episodes=5))
    assert found.pruned["dormant, tau 0"][0] > 0.2
    assert found.pruned["dormant, tau 0"][1] == found.pruned["nothing"][1]


def test_ppo_runs_at_a_learning_rate_of_its_own() -> None:
    setting = policy_agents.Setting(steps=1_536, read_every=20, redo_every=30)
    found = policy_agents.run("lr 3e-3, redo", 1, setting=setting)
    assert len(found.dormant[0.1]) > 10 and len(found.returns) == 5
    row = asdict(found) | {"dormant": {str(t): x for t, x in found.dormant.items()}}
    assert "| lr 3e-3, redo | 1 |" in policy_agents.table([row], ["lr 3e-3, redo"])


def test_the_long_run_stops_in_time_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minatar")
    settings = long_run.arguments
    monkeypatch.setattr(
        long_run, "arguments", lambda *given: replace(settings(*given), learning_starts=100)
    )
    more = {"steps": 400, "folder": str(tmp_path), "keep_every": 100}
    assert long_run.run("Asterix", 0.25, True, 1, until=0.0, **more) is None
    first = long_run.run("Asterix", 0.25, True, 1, until=None, **more | {"steps": 200})
    assert first is not None and first["steps"] == 200 and not first["partial"]
    assert not list(tmp_path.iterdir())  # done: nothing is kept
    straight = long_run.run("Asterix", 0.25, True, 2, until=None, **more | {"keep_every": 400})
    pieces = long_run.run("Asterix", 0.25, True, 2, until=None, **more)
    assert straight is not None and pieces is not None
    assert {**straight, "seconds": 0} == {**pieces, "seconds": 0}
    assert "| Asterix | 0.25 | yes | 2 | 200 |" in long_run.table([first, pieces])


def test_random_actions_are_what_the_table_compares_with() -> None:
    # Published for CartPole: about 22 steps.
    assert 18 < random_return("CartPole-v1", 200) < 27


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=40))
def test_interquartile_mean_is_the_mean_of_the_middle_half(values: list[float]) -> None:
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    assert interquartile_mean(values) == pytest.approx(np.mean(middle), abs=1e-9)


def test_the_interval_holds_the_mean_and_narrows_with_more_runs() -> None:
    random = np.random.default_rng(0)
    few, many = random.normal(10, 2, 8).tolist(), random.normal(10, 2, 200).tolist()
    widths = []
    for values in (few, many):
        low, high = interval(values)
        assert low < interquartile_mean(values) < high
        widths.append(high - low)
    # The interquartile mean of a normal sample has 1.09 times the error of the mean.
    assert widths[1] == pytest.approx(2 * 1.96 * 1.09 * 2 / 200**0.5, rel=0.25)
    assert widths[0] > 2 * widths[1]
    assert with_interval([5.0, 5.0]) == "5.0 [5.0, 5.0]"
    assert math.isnan(interval([1.0])[0])


def test_a_frozen_target_stays_the_first_network(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    changes = dict(value_agents.ARMS["frozen target"].changes)
    args = dqn.Args(log_dir=None, progress=False, learning_starts=100, checkpoint=path, **changes)
    dqn.train(replace(args, total_steps=50))
    before = torch.load(path, weights_only=True)["states"]["target"]
    dqn.train(replace(args, total_steps=1_200))
    states = torch.load(path, weights_only=True)["states"]
    assert all(torch.equal(states["target"][name], x) for name, x in before.items())
    assert not torch.equal(states["network"]["fc1.weight"], before["fc1.weight"])
