"""PPO as a whole: a first round against a naive one; what its switches do in a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical
from torch.nn.utils import clip_grad_norm_

from agents import ppo, runs
from agents.environments import Environments
from agents.ppo import Args, make_agent, make_instruments, train
from agents.rollout import Rollout

QUICK = Args(
    log_dir=None, num_envs=2, rollout=16, epochs=2, batch_size=8, hidden=(16, 16), total_steps=128,
    progress=False,
)  # fmt: skip


def shown(episode: int, time: int) -> np.ndarray:
    return np.array([np.sin(3 * episode + time), np.cos(time * time)], dtype=np.float32)


class Walk(gym.Env):
    """Even episodes terminate after 3 steps, odd ones are truncated after 4."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)
    episode, time = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return shown(self.episode, 0), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        even = self.episode % 2 == 0
        ends = self.time == (3 if even else 4)
        seen = shown(self.episode, self.time)
        return seen, float(self.time + action), ends and even, ends and not even, {}


class Lever(gym.Env):
    """Takes continuous actions within uneven bounds; one reward is very large."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(np.float32([-1, 2]), np.float32([3, 2.5]), dtype=np.float32)
    time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return shown(0, self.time), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        # A float32 rounding beyond the bounds is the environment's own business.
        assert (action >= self.action_space.low - 1e-5).all(), action
        assert (action <= self.action_space.high + 1e-5).all(), action
        return shown(0, self.time), 1e6 if self.time == 390 else -0.01, False, False, {}


@pytest.fixture(autouse=True)
def more_environments() -> Iterator[None]:
    gym.register("Walk-v0", lambda **_: Walk())
    gym.register("Lever-v0", lambda **_: Lever(), max_episode_steps=10)
    yield
    del gym.registry["Walk-v0"], gym.registry["Lever-v0"]


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """The rollouts that trainings make."""
    made: list[Rollout] = []

    def make(*given: Any) -> Rollout:
        made.append(Rollout(*given))
        return made[-1]

    monkeypatch.setattr(ppo, "Rollout", make)
    return made


def test_the_gradient_of_a_first_round_equals_a_naive_one(tmp_path: Path, rollouts: list[Rollout]):
    path, steps, gamma, lam = tmp_path / "checkpoint.pt", 12, 0.9, 0.8
    args = replace(
        QUICK, env_id="Walk-v0", num_envs=1, rollout=steps, total_steps=steps, epochs=1,
        batch_size=steps, gamma=gamma, gae_lambda=lam, value_coefficient=0.3,
        entropy_coefficient=0.7, max_grad_norm=0.05, checkpoint=path,
    )  # fmt: skip
    train(args)
    actions = rollouts[0].actions[:, 0].tolist()

    environments = Environments("Walk-v0", 1, ["discrete"])
    agent = make_agent(args, environments).double()
    actor, critic = agent["actor"].network, agent["critic"]
    # By the rules of `Walk`: what was seen, what was seen next, and how it went on.
    where = [(e, t) for e in range(4) for t in range(3 if e % 2 == 0 else 4)][:steps]
    seen = torch.from_numpy(np.stack([shown(e, t) for e, t in where])).double()
    after = torch.from_numpy(np.stack([shown(e, t + 1) for e, t in where])).double()
    terminates = [e % 2 == 0 and t == 2 for e, t in where]
    ends = [end or (e % 2 == 1 and t == 3) for end, (e, t) in zip(terminates, where, strict=True)]
    rewards = [t + 1 + action for (_, t), action in zip(where, actions, strict=True)]
    with torch.no_grad():
        before, following = critic(seen)[:, 0].tolist(), critic(after)[:, 0].tolist()
    gained = []
    for t in range(steps):
        total, weight = 0.0, 1.0
        for k in range(t, steps):
            bootstrap = 0.0 if terminates[k] else gamma * following[k]
            total += weight * (rewards[k] + bootstrap - before[k])
            weight *= gamma * lam
            if ends[k]:
                break
        gained.append(total)
    advantage = torch.tensor(gained, dtype=torch.float64)
    returns = advantage + torch.tensor(before, dtype=torch.float64)
    compared = (advantage - advantage.mean()) / advantage.std()
    policy = Categorical(logits=actor(seen))
    log_now = policy.log_prob(torch.tensor(actions))
    loss = -((log_now - log_now.detach()).exp() * compared).mean()
    loss = loss + 0.3 * 0.5 * (critic(seen)[:, 0] - returns).square().mean()
    loss = loss - 0.7 * policy.entropy().mean()
    loss.backward()
    norm = clip_grad_norm_(agent.parameters(), 0.05)
    assert norm > 0.1

    # After one update Adam's first moment is a tenth of the gradient.
    kept = torch.load(path, weights_only=True)["states"]["optimizer"]["state"]
    for index, parameter in enumerate(agent.parameters()):
        expected = parameter.grad.float()  # type: ignore[union-attr]
        assert torch.allclose(kept[index]["exp_avg"] * 10, expected, rtol=1e-3, atol=1e-6)


def test_actions_stay_within_the_bounds_however_wide_the_policy():
    train(replace(QUICK, env_id="Lever-v0", log_std=2.0))


def test_an_evaluation_normalises_as_the_training_did_and_neither_explores_nor_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, found = tmp_path / "checkpoint.pt", []
    observations = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 3

    def evaluate(policy: Callable, *_: Any, **__: Any) -> Any:
        with torch.no_grad():
            found.extend([policy(observations), policy(observations)])
        raise KeyboardInterrupt

    args = replace(
        QUICK, env_id="Pendulum-v1", total_steps=32, normalise_observations=True, checkpoint=path
    )
    result = train(args)
    monkeypatch.setattr(runs, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train(replace(args, evaluate_every=32))
    seen = torch.load(path, weights_only=True)["states"]["seen"]
    assert seen["count"] == 32
    deviation = (seen["squares"] / 32).sqrt()
    rows = ((observations - seen["mean"]) / deviation).clip(-10, 10).float()
    with torch.no_grad():
        means = result.network.get_submodule("actor.network")(rows).numpy()
    assert found[0] == pytest.approx(2 * means.clip(-1, 1), abs=1e-5)
    assert np.array_equal(found[0], found[1])


def test_redo_recycles_and_gathers_256_transitions_for_its_scores():
    result = train(replace(QUICK, redo=True, redo_every=8, redo_tau=0.5))
    assert result.readings["redo/recycled"][1].sum() > 0
    made = make_instruments(replace(QUICK, batch_size=60, probe=True, redo=True))
    assert [one.updates for one in made] == [5, 5]  # type: ignore[attr-defined]


def test_normalised_rewards_are_clipped_at_ten(rollouts: list[Rollout]):
    args = replace(QUICK, env_id="Lever-v0", rollout=400, batch_size=400, normalise_rewards=True)
    # The 390th reward is 20 deviations of what came before it, and of itself.
    train(replace(args, total_steps=400, num_envs=1))
    assert rollouts[0].rewards.max() == 10


def test_images_are_kept_as_bits(rollouts: list[Rollout]):
    train(replace(QUICK, env_id="Lights-v0", hidden=(8,), total_steps=32))
    assert rollouts[0].observations.dtype == torch.bool
    assert rollouts[0].observations.any()


def test_an_epoch_goes_through_the_whole_rollout_in_an_order_of_its_own():
    rollout = Rollout(5, Environments("Walk-v0", 2, ["discrete"]))
    numbers = torch.arange(10.0).view(5, 2)
    rollout.values.copy_(numbers)
    generator = torch.Generator().manual_seed(0)
    orders = []
    for _ in range(2):
        batches = list(rollout.batches(4, numbers + 100, generator, "cpu"))
        assert [len(batch[0]) for batch in batches] == [4, 4, 2]
        values, gained = (torch.cat([batch[k] for batch in batches]) for k in (3, 4))
        assert torch.equal(gained, values + 100)
        assert sorted(values.tolist()) == list(range(10))
        orders.append(values.tolist())
    assert orders[0] != orders[1] and sorted(orders[0]) != orders[0]
