"""Tiny environments that a test can foresee, and what the agents' tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.dqn import Args

TERMINATES_AFTER, TRUNCATED_AFTER = 3, 5


class Corridor(gym.Env):
    """Shows (its seed, episode, time). Even episodes terminate after 3 steps, odd ones never do."""

    observation_space = gym.spaces.Box(-1.0, 1e6, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)
    number, episode, time = 0, -1, 0

    def observe(self) -> np.ndarray:
        return np.array([self.number, self.episode, self.time], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.number = self.number if seed is None else seed
        self.episode, self.time = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        terminated = self.episode % 2 == 0 and self.time == TERMINATES_AFTER
        return self.observe(), float(self.time), terminated, False, {}


class Lights(gym.Env):
    """A boolean image, channels last."""

    observation_space = gym.spaces.Box(0, 1, (10, 10, 4), cast(Any, np.bool_))
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.random((10, 10, 4)) < 0.1, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        image = self.np_random.random((10, 10, 4)) < 0.1
        return image, 1.0, bool(self.np_random.random() < 0.1), False, {}


@pytest.fixture(autouse=True, scope="session")
def environments() -> Iterator[None]:
    gym.register("Corridor-v0", lambda **_: Corridor(), max_episode_steps=TRUNCATED_AFTER)
    gym.register("Lights-v0", lambda **_: Lights(), max_episode_steps=50)
    yield
    del gym.registry["Corridor-v0"], gym.registry["Lights-v0"]


@pytest.fixture(scope="session")
def quick() -> Callable[..., Args]:
    """Settings of a short run on CartPole without a log."""
    return lambda **changes: replace(
        Args(log_dir=None, learning_starts=100, epsilon_steps=200), **changes
    )


def _equal(left: Any, right: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return left == right


@pytest.fixture(scope="session")
def equal() -> Callable[[Any, Any], bool]:
    """Whether two nested states are equal bit for bit."""
    return _equal
