"""PPO: its formulas by hand and against torch.distributions, truncation, resume, learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

from agents import ppo
from agents.environments import Environments
from agents.normalisation import RunningMoments
from agents.ppo import Args, Policy, Watched, make_agent, policy_loss, train, value_loss
from agents.rollout import Rollout, advantages, values_after

Equal = Callable[[Any, Any], bool]
QUICK = Args(
    log_dir=None, num_envs=2, rollout=16, epochs=2, batch_size=8, hidden=(16, 16), total_steps=128,
    progress=False,
)  # fmt: skip


def naive_advantages(columns: list[list[float]], gamma: float, lam: float) -> list[float]:
    """Sum (gamma lambda)^l delta_{t+l} up to the end of the episode, in plain floats."""
    rewards, values, nexts, done = columns
    found = []
    for t in range(len(rewards)):
        total, weight = 0.0, 1.0
        for k in range(t, len(rewards)):
            total += weight * (rewards[k] + gamma * nexts[k] - values[k])
            weight *= gamma * lam
            if done[k]:
                break
        found.append(total)
    return found


@settings(max_examples=80, deadline=None)
@given(
    steps=st.integers(1, 12),
    envs=st.integers(1, 3),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_advantages_equal_a_naive_sum(steps: int, envs: int, gamma: float, lam: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    rewards, values, nexts = torch.randn(3, steps, envs, generator=generator, dtype=torch.float64)
    done = torch.rand(steps, envs, generator=generator) < 0.3
    found = advantages(rewards, values, nexts, done.double(), gamma, lam)
    for env in range(envs):
        columns = [x[:, env].tolist() for x in (rewards, values, nexts, done)]
        expected = naive_advantages(columns, gamma, lam)
        assert found[:, env].tolist() == pytest.approx(expected, abs=1e-9)


def test_values_after_a_step_are_those_of_its_true_end():
    gym.register("Steps-v0", lambda **_: Steps())
    try:
        environments = Environments("Steps-v0", 2, ["discrete"])
    finally:
        del gym.registry["Steps-v0"]
    environments.reset(seed=0)
    rollout, lasts = Rollout(4, environments), []
    for time in range(4):
        rollout.values[time] = torch.from_numpy(environments.observations[:, 0])
        step = environments.step(np.zeros(2, dtype=np.int64))
        lasts.append((time, step.done, step.last))
    # The value of an observation is the time it shows; episodes are 3 steps long.
    found = values_after(rollout, lasts, lambda shown: torch.from_numpy(shown[:, :1]))
    assert rollout.values[:, 0].tolist() == [0, 1, 2, 0]
    assert found[:, 0].tolist() == [1, 2, 3, 1]


class Steps(gym.Env):
    """Shows the time within an episode of three steps."""

    observation_space = gym.spaces.Box(0.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return np.full(1, self.time, dtype=np.float32), 1.0, False, self.time == 3, {}


def test_losses_equal_a_hand_computation():
    ratio, gained = torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    # min(r A, clip(r) A): 1.2, 0.5, -1.5, -0.8
    assert policy_loss(ratio, gained, 0.2).item() == pytest.approx(0.6 / 4)
    values, before = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.4])
    returns = torch.tensor([3.0, 0.0])
    assert value_loss(values, before, returns, None).item() == pytest.approx((1 + 0.25) / 4)
    # The first may only have moved to 1.2; the larger error counts.
    assert value_loss(values, before, returns, 0.2).item() == pytest.approx((3.24 + 0.25) / 4)


def policy(continuous: int) -> tuple[Policy, Tensor]:
    torch.manual_seed(0)
    made = Policy(nn.Linear(3, continuous or 4), continuous, log_std=-0.3)
    return made.double(), torch.randn(6, 3, dtype=torch.float64)


@pytest.mark.parametrize("continuous", [0, 2])
def test_log_probabilities_and_entropies_equal_those_of_torch_distributions(continuous: int):
    made, observations = policy(continuous)
    outputs = made.network(observations)
    if continuous:
        expected = Independent(Normal(outputs, made.log_std.exp()), 1)
    else:
        expected = Categorical(logits=outputs)
    actions = expected.sample()
    log_probabilities, entropy = made(observations, actions)
    assert torch.allclose(log_probabilities, expected.log_prob(actions))
    assert torch.allclose(entropy, expected.entropy())


@pytest.mark.parametrize("continuous", [0, 2])
def test_actions_are_drawn_from_the_distribution_whose_log_probability_comes_with_them(
    continuous: int,
):
    made, observations = policy(continuous)
    many = observations[:1].expand(40_000, -1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        actions, log_probabilities = made.act(many, generator)
        again, _ = made(many, actions)
        outputs = made.network(many[:1])[0]
    assert torch.allclose(log_probabilities, again)
    if continuous:
        std = math.exp(-0.3)
        assert torch.allclose(actions.mean(0), outputs, atol=5 * std / 200)
        assert torch.allclose(actions.std(0), torch.full_like(outputs, std), rtol=0.02)
    else:
        shares = torch.bincount(actions, minlength=4) / len(actions)
        error = 5 * (0.25 / 40_000) ** 0.5
        assert torch.allclose(shares.double(), outputs.softmax(0), atol=error)


def test_a_new_policy_is_close_to_uniform_and_its_hidden_layers_are_not_small():
    environments = Environments("CartPole-v1", 1, ["discrete"])
    agent = make_agent(Args(), environments)
    outputs = agent["actor"].network(torch.randn(100, 4))
    assert (outputs.softmax(1) - 0.5).abs().max() < 0.05
    bound = (6 / 4) ** 0.5
    assert 0.8 * bound < agent["actor"].network.fc1.weight.abs().max() <= bound


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_running_moments_equal_those_of_all_rows(sizes: list[int], seed: int):
    random = np.random.default_rng(seed)
    parts = [random.normal(3.0, 2.0, (size, 2)).astype(np.float32) for size in sizes]
    moments = RunningMoments((2,))
    for part in parts:
        moments.update(part)
    rows = np.concatenate(parts).astype(np.float64)
    assert moments.mean == pytest.approx(rows.mean(0), rel=1e-9)
    if len(rows) > 1:
        assert moments.deviation == pytest.approx(rows.std(0), rel=1e-6)
        assert moments.normalised(parts[0]) == pytest.approx(
            (parts[0] - rows.mean(0)) / rows.std(0), abs=1e-5
        )


def test_what_never_varies_is_not_blown_up():
    moments = RunningMoments((1,))
    moments.update(np.full((5, 1), 2.0))
    assert moments.normalised(np.full((1, 1), 2.0)).tolist() == [[0.0]]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, env_id: str, equal: Equal
):
    whole, half, rest = (tmp_path / name for name in ("whole.pt", "half.pt", "rest.pt"))
    args = replace(
        QUICK, env_id=env_id, normalise_observations=True, normalise_rewards=True,
        probe=True, probe_every=5, redo=True, redo_every=9, redo_tau=0.2,
    )  # fmt: skip
    uninterrupted = train(replace(args, total_steps=256, checkpoint=whole))
    train(replace(args, total_steps=96, checkpoint=half))
    resumed = train(replace(args, total_steps=256, resume=half, checkpoint=rest))
    assert equal(torch.load(whole, weights_only=True), torch.load(rest, weights_only=True))
    assert resumed.episode_returns.tolist() == uninterrupted.episode_returns.tolist()


@pytest.mark.parametrize("watched", ["actor", "critic", "both"])
def test_a_probed_run_equals_the_unprobed_one_bit_for_bit(watched: Watched, equal: Equal):
    plain = train(QUICK)
    probed = train(replace(QUICK, probe=True, probe_every=3, watched=watched))
    assert equal(plain.network.state_dict(), probed.network.state_dict())
    layers = {tag.split("/")[2] for tag in probed.readings if tag.startswith("dormancy/layer/")}
    prefix = {"actor": ["network."], "critic": [""], "both": ["actor.network.", "critic."]}
    assert layers == {f"{p}fc{n}" for p in prefix[watched] for n in (1, 2)}


def test_rewards_are_divided_by_the_deviation_of_the_return_of_each_episode(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    gym.register("Steps-v0", lambda **_: Steps())
    try:
        train(replace(QUICK, env_id="Steps-v0", normalise_rewards=True, checkpoint=path, gamma=0.5))
    finally:
        del gym.registry["Steps-v0"]
    earned = torch.load(path, weights_only=True)["states"]["earned"]
    # Every episode earns 1, 1 + 0.5, 1 + 0.5 + 0.25 and begins anew.
    returns = np.tile([1.0, 1.5, 1.75], 22)[:64].repeat(2)
    assert earned["count"] == 128
    assert float(earned["mean"]) == pytest.approx(returns.mean())
    assert float(earned["squares"]) / 128 == pytest.approx(returns.var())


def test_updates_are_the_batches_of_every_epoch_and_steps_whole_rollouts():
    result = train(replace(QUICK, total_steps=40, batch_size=10))
    # Two rollouts of 32 transitions, each 2 epochs of 4 batches, the last of 2.
    assert result.updates == 2 * 2 * 4


def test_a_round_ends_when_the_policy_has_moved_too_far():
    assert train(replace(QUICK, target_kl=1e-12)).updates < train(QUICK).updates


def test_the_learning_rate_falls_in_a_line_where_asked(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    train(replace(QUICK, anneal=True, checkpoint=path))
    groups = torch.load(path, weights_only=True)["states"]["optimizer"]["param_groups"]
    # The last of four rounds begins with a quarter of the steps left.
    assert groups[0]["lr"] == pytest.approx(1e-3 / 4)
    with pytest.raises(ValueError, match="total_steps=128"):
        train(replace(QUICK, anneal=True, resume=path, total_steps=256))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"rollout": 1, "num_envs": 1}, "no advantages to compare"),
        ({"gamma": 1.5}, "gamma is 1.5; give 0 to 1"),
        ({"max_grad_norm": -1.0}, "give more than 0, or None"),
        ({"watched": "trunk"}, "give 'actor', 'critic' or 'both'"),
        ({"env_id": "Lights-v0", "hidden": (8,), "normalise_observations": True}, "for vectors"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train(replace(QUICK, **changes))


def test_images_are_learned_from_as_bits():
    result = train(replace(QUICK, env_id="Lights-v0", hidden=(8,), activation="tanh"))
    assert result.updates == 4 * 2 * 4


def test_log_has_the_fixed_tags_and_the_command_line_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    line = f"ppo --total-steps 512 --rollout 128 --num-envs 2 --hidden 8 --log-dir {tmp_path}"
    monkeypatch.setattr("sys.argv", [*line.split(), "--evaluate-every", "256"])
    ppo.main()
    assert "80 updates" in capsys.readouterr().out
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    assert set(log.Tags()["scalars"]) == {
        "charts/episodic_return",
        "charts/evaluation_return",
        "charts/updates_per_second",
        "losses/entropy",
        "losses/kl",
        "losses/policy",
        "losses/value",
    }
    assert [event.step for event in log.Scalars("charts/evaluation_return")] == [256, 512]


@pytest.mark.parametrize("seed", [1, 2])
def test_learns_cartpole(seed: int):
    result = train(Args(log_dir=None, seed=seed, total_steps=12_000, progress=False))
    # Random actions give 22.
    assert result.episode_returns[-20:].mean() > 120
