"""Replay: what is stored, across resets and around the end, and what is drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.dqn import Args, train
from agents.replay import Replay

Quick = Callable[..., Args]
Equal = Callable[[Any, Any], bool]


def corridor_transitions(number: int, steps: int) -> list[tuple]:
    """What a corridor gives (see conftest), written down without an environment."""
    transitions, episode, time = [], 0, 0
    for _ in range(steps):
        terminated = episode % 2 == 0 and time + 1 == 3
        ended = terminated or time + 1 == 5
        here, there = [number, episode, time], [number, episode, time + 1]
        transitions.append((here, time + 1.0, there, 0.0 if terminated else 1.0))
        episode, time = (episode + 1, 0) if ended else (episode, time + 1)
    return transitions


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("capacity", [20, 1000])
def test_replay_holds_the_true_last_transitions_and_none_across_an_episode_boundary(
    tmp_path: Path, num_envs: int, capacity: int, quick: Quick
):
    path, steps = tmp_path / "checkpoint.pt", 40
    train(
        quick(
            env_id="Corridor-v0",
            num_envs=num_envs,
            total_steps=steps * num_envs,
            replay_capacity=capacity,
            checkpoint=path,
            seed=7,
        )
    )
    replay = torch.load(path, weights_only=True)["states"]["replay"]
    filled = replay["filled"]
    per_env = [corridor_transitions(7 + index, steps) for index in range(num_envs)]
    in_order = [transitions[time] for time in range(steps) for transitions in per_env]
    rows = capacity // num_envs * num_envs
    expected = in_order[-rows:]
    # Once full, the oldest row is where the next one goes.
    shift = -replay["position"] if len(in_order) > rows else 0
    stored = {name: torch.roll(x, shift, dims=0).tolist() for name, x in filled.items()}
    assert stored["observations"] == [row[0] for row in expected]
    assert stored["rewards"] == [row[1] for row in expected]
    assert stored["next_observations"] == [row[2] for row in expected]
    assert stored["continues"] == [row[3] for row in expected]


def test_returns_count_every_reward_of_an_episode_once(quick: Quick):
    result = train(quick(env_id="Corridor-v0", num_envs=2, total_steps=32, learning_starts=1000))
    # 1 + 2 + 3 when terminated, 1 + ... + 5 when truncated; both environments end together.
    assert result.episode_returns.tolist() == [6.0, 6.0, 15.0, 15.0] * 2
    assert result.episode_steps.tolist() == [6, 6, 16, 16, 22, 22, 32, 32]


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 30),
    num_envs=st.integers(1, 5),
    steps=st.integers(1, 40),
    kind=st.sampled_from([np.uint8, np.bool_, np.float32]),
)
def test_replay_equals_a_queue_of_bounded_length(
    capacity: int, num_envs: int, steps: int, kind: Any
):
    if capacity < num_envs:
        capacity = num_envs
    replay = Replay(capacity, num_envs, gym.spaces.Box(0, 1, (2,), kind), seed=0)
    queue: deque[tuple] = deque(maxlen=capacity // num_envs * num_envs)
    rng = np.random.default_rng(steps)
    for _ in range(steps):
        here = rng.integers(0, 2, (num_envs, 2)).astype(kind)
        there = rng.integers(0, 2, (num_envs, 2)).astype(kind)
        actions, rewards = rng.integers(0, 9, num_envs), rng.normal(size=num_envs)
        continues = rng.random(num_envs) < 0.5
        replay.add(here, actions, rewards, there, continues)
        for index in range(num_envs):
            queue.append(
                (
                    tuple(here[index]),
                    actions[index],
                    np.float32(rewards[index]),
                    tuple(there[index]),
                    continues[index],
                )
            )
    rows = zip(*(x[: replay.filled].tolist() for x in replay.stored), strict=True)
    stored = {(tuple(a), b, np.float32(c), tuple(d), e) for a, b, c, d, e in rows}
    assert stored == set(queue)
    assert replay.filled == len(queue)
    sample = replay.sample(16, "cpu")
    assert str(sample.observations.dtype).removeprefix("torch.") == np.dtype(kind).name
    drawn = zip(*(x.tolist() for x in sample), strict=True)
    assert {(tuple(a), b, np.float32(c), tuple(d), e) for a, b, c, d, e in drawn} <= stored


def test_replay_draws_every_stored_row_equally_often():
    replay = Replay(50, 1, gym.spaces.Box(0, 1, (1,)), seed=3)
    for row in range(20):
        one = np.array([[row]], dtype=np.float32)
        replay.add(one, np.array([row]), one[0], one, np.array([True]))
    counts = torch.bincount(replay.sample(20_000, "cpu").actions, minlength=20)
    # Binomial(20000, 1/20): mean 1000, standard deviation 31.
    assert len(counts) == 20
    assert (counts - 1000).abs().max() < 5 * 31


def test_boolean_images_stay_boolean_in_the_replay(tmp_path: Path, quick: Quick):
    path = tmp_path / "checkpoint.pt"
    result = train(quick(env_id="Lights-v0", num_envs=2, total_steps=140, checkpoint=path))
    assert result.updates == 40
    filled = torch.load(path, weights_only=True)["states"]["replay"]["filled"]
    assert filled["observations"].dtype == torch.bool
    assert filled["observations"].shape == (140, 10, 10, 4)
