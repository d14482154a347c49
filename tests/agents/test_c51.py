"""C51: the projection and the loss by hand, the same loop as DQN, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from agents import c51, dqn
from agents.c51 import Args, Categorical, project, train
from agents.replay import Batch
from dynamo_probe.functional import dormancy_scores

Equal = Callable[[Any, Any], bool]
QUICK = Args(log_dir=None, learning_starts=100, epsilon_steps=200, v_max=20.0, atoms=11)


def naive_projection(
    reward: float, discount: float, probabilities: list[float], support: list[float]
) -> list[float]:
    """Share each atom's mass between its two neighbours, in plain floats, by distance."""
    result = [0.0] * len(support)
    for atom, mass in zip(support, probabilities, strict=True):
        value = min(max(reward + discount * atom, support[0]), support[-1])
        for index, place in enumerate(support):
            gap = support[1] - support[0]
            result[index] += mass * max(0.0, 1 - abs(value - place) / gap)
    return result


@settings(max_examples=80, deadline=None)
@given(
    atoms=st.integers(2, 15),
    low=st.floats(-30, 10),
    span=st.floats(0.5, 80),
    rewards=st.lists(st.floats(-40, 40), min_size=1, max_size=5),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_projection_equals_a_naive_one(
    atoms: int, low: float, span: float, rewards: list[float], discount: float, seed: int
):
    support = torch.linspace(low, low + span, atoms, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rewards), atoms)
    mass = torch.rand(shape, generator=generator, dtype=torch.float64).softmax(1)
    given_rewards = torch.tensor(rewards, dtype=torch.float64)
    found = project(given_rewards, torch.full_like(given_rewards, discount), mass, support)
    assert torch.allclose(found.sum(1), torch.ones(len(rewards), dtype=torch.float64))
    for row, reward in enumerate(rewards):
        expected = naive_projection(reward, discount, mass[row].tolist(), support.tolist())
        assert found[row].tolist() == pytest.approx(expected, abs=1e-9)


def test_a_moved_distribution_keeps_its_mean_inside_the_support():
    support = torch.linspace(-5, 5, 21, dtype=torch.float64)
    mass = torch.zeros(1, 21, dtype=torch.float64)
    mass[0, 8:13] = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])
    one = torch.ones(1, dtype=torch.float64)
    found = project(0.83 * one, 0.9 * one, mass, support)
    assert float(found @ support) == pytest.approx(0.83 + 0.9 * float(mass @ support))


class Fixed(nn.Module):
    """Gives the same logits for every observation."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, observations: Tensor) -> Tensor:
        return self.logits.expand(len(observations), -1)


def test_loss_equals_a_hand_computation():
    args = replace(QUICK, atoms=3, v_min=0.0, v_max=2.0, gamma=0.5)
    network = Fixed([0.0, 0.0, 0.0, -9.0, -9.0, 9.0])
    target = Fixed([-50.0, -50.0, 50.0, 50.0, -50.0, -50.0])
    batch = Batch(
        observations=torch.zeros(2, 1),
        actions=torch.tensor([0, 1]),
        rewards=torch.tensor([0.5, 1.0]),
        next_observations=torch.zeros(2, 1),
        continues=torch.tensor([1.0, 0.0]),
    )
    loss, chosen = Categorical(args).loss(batch, network, target)
    # The first goes on: 0.5 + 0.5 * 2, half on atom 1 and half on atom 2, each of mass 1/3.
    # The second ends: its return is the reward, 1.
    weights = [math.exp(x) for x in (-9.0, -9.0, 9.0)]
    expected = [math.log(3), -math.log(weights[1] / sum(weights))]
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-6)
    assert chosen.tolist() == pytest.approx([1.0, 2.0], abs=1e-6)


def test_double_q_lets_the_network_choose_and_the_target_judge():
    args = replace(QUICK, atoms=3, v_min=0.0, v_max=2.0, gamma=0.5)
    network = Fixed([1.0, 2.0, 3.0, -9.0, -9.0, 9.0])
    target = Fixed([-50.0, -50.0, 50.0, 50.0, -50.0, -50.0])
    one = torch.ones(1)
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), one, torch.zeros(1, 1), one)
    losses = [
        Categorical(replace(args, double_q=double)).loss(batch, network, target)[0].item()
        for double in (False, True)
    ]
    log_mass = torch.tensor([1.0, 2.0, 3.0]).log_softmax(0)
    assert losses == pytest.approx([-float(log_mass[2]), -float(log_mass[1])])


def test_network_has_an_output_for_each_atom_and_acts_on_expected_returns(equal: Equal):
    result = train(replace(QUICK, total_steps=150))
    values = result.network.get_submodule("values")
    assert isinstance(values, nn.Linear) and values.out_features == 2 * 11
    rule = Categorical(QUICK)
    observations = torch.randn(5, 4)
    found = rule.values(result.network, observations)
    masses = result.network(observations).view(5, 2, 11).softmax(-1)
    expected = (masses * torch.linspace(0, 20, 11)).sum(-1)
    assert torch.allclose(found, expected)


def test_a_probed_run_equals_the_unprobed_one_bit_for_bit(equal: Equal):
    plain = train(replace(QUICK, total_steps=300))
    probed = train(replace(QUICK, total_steps=300, probe=True, probe_every=7))
    assert equal(plain.network.state_dict(), probed.network.state_dict())
    assert len(probed.readings["dormancy/tau=0.1"][1]) > 20
    scores = dormancy_scores(probed.network, torch.randn(20, 4))
    assert set(scores) == {"fc1", "fc2"}  # the atoms are outputs


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, equal: Equal):
    whole, half, rest = (tmp_path / name for name in ("whole.pt", "half.pt", "rest.pt"))
    args = replace(QUICK, num_envs=2, redo=True, redo_every=50, redo_tau=0.3)
    train(replace(args, total_steps=500, checkpoint=whole))
    train(replace(args, total_steps=234, checkpoint=half))
    train(replace(args, total_steps=500, resume=half, checkpoint=rest))
    assert equal(torch.load(whole, weights_only=True), torch.load(rest, weights_only=True))


def test_a_checkpoint_of_another_agent_is_refused_and_says_whose_it_is(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    dqn.train(dqn.Args(log_dir=None, total_steps=10, checkpoint=path))
    with pytest.raises(ValueError, match=r"is a checkpoint of dqn; resume it with agents\.dqn"):
        train(replace(QUICK, total_steps=20, resume=path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atoms": 1}, "atoms is 1; give 2 or more"),
        ({"v_min": 3.0, "v_max": 3.0}, "is not below v_max"),
        ({"env_id": "Pendulum-v1"}, "use sac or ppo"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train(replace(QUICK, **changes))


def test_command_line_has_the_fields_of_both(capsys: pytest.CaptureFixture, monkeypatch: Any):
    line = "c51 --total-steps 150 --learning-starts 100 --atoms 5 --hidden 8 --log-dir None"
    monkeypatch.setattr("sys.argv", line.split())
    c51.main()
    assert "50 updates" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [1, 2])
def test_learns_cartpole(seed: int):
    result = train(
        Args(log_dir=None, seed=seed, replay_ratio=0.25, learning_rate=3e-3, total_steps=8_000)
    )
    # Random actions give 22.
    assert result.episode_returns[-20:].mean() > 60


def test_support_runs_from_v_min_to_v_max():
    rule = Categorical(replace(QUICK, v_min=-2.0, v_max=6.0, atoms=5))
    assert rule.support.tolist() == [-2.0, 0.0, 2.0, 4.0, 6.0]
