"""What an on-policy agent saw between two rounds of updates, and what it was worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.environments import Environments


class Rollout:
    """What one rollout saw, `[steps, environments, ...]`; bytes stay bytes."""

    def __init__(self, steps: int, environments: Environments) -> None:
        """Make room for so many steps of each environment."""
        shape, space = (steps, environments.num_envs), environments.observation_space
        kind = {"uint8": torch.uint8, "bool": torch.bool}.get(str(space.dtype), torch.float32)
        self.observations = torch.zeros((*shape, *space.shape), dtype=kind)
        actions = environments.action_space
        discrete = isinstance(actions, gym.spaces.Discrete)
        self.actions = torch.zeros(
            shape if discrete else (*shape, *cast(Any, actions).shape),
            dtype=torch.int64 if discrete else torch.float32,
        )
        self.log_probabilities, self.rewards = torch.zeros(shape), torch.zeros(shape)
        self.values, self.next_values = torch.zeros(shape), torch.zeros(shape)
        self.done = torch.zeros(shape)

    def batches(
        self, size: int, advantage: Tensor, random: torch.Generator, device: str
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches of one epoch: observations, actions, log-probabilities, values, advantages.

        Args:
            size: transitions in a batch.
            advantage: `[steps, environments]`.
            random: puts the transitions in order.
            device: where the batches go.
        """
        columns = (
            self.observations,
            self.actions,
            self.log_probabilities,
            self.values,
            advantage,
        )
        flat = [column.flatten(0, 1) for column in columns]
        for rows in torch.randperm(len(flat[0]), generator=random).split(size):
            yield tuple(column.index_select(0, rows).to(device) for column in flat)


def values_after(
    rollout: Rollout,
    lasts: list[tuple[int, np.ndarray, np.ndarray]],
    value: Callable[[np.ndarray], Tensor],
) -> Tensor:
    """Return the value of what each step showed at its end, `[steps, environments]`.

    That is the next step's value, but where an episode ended, and at the end of the rollout.

    Args:
        rollout: with its `values`.
        lasts: step, bool `[environments]` where an episode ended, what was shown at the end.
        value: of observations.
    """
    found = torch.empty_like(rollout.values)
    found[:-1] = rollout.values[1:]
    final = len(found) - 1
    wanted = [
        (time, index, last[index])
        for time, done, last in lasts
        for index in (range(len(done)) if time == final else np.flatnonzero(done))
    ]
    values = value(np.stack([last for _, _, last in wanted])).squeeze(1).cpu()
    rows = torch.tensor([time * found.shape[1] + int(index) for time, index, _ in wanted])
    found.view(-1)[rows] = values
    return found


def advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Return generalised advantage estimates (Schulman et al. 2016, eq. 16), `[steps, envs]`.

    Args:
        rewards: `[steps, envs]`.
        values: of what was seen before each step.
        next_values: of what was seen after it, before any reset; 0 where the episode terminated.
        done: 1 where the episode ended, terminated or truncated, else 0.
        gamma: discount.
        lam: lambda.
    """
    deltas = rewards + gamma * next_values - values
    carried = gamma * lam * (1 - done)
    found, running = torch.empty_like(deltas), torch.zeros_like(deltas[0])
    for step in range(len(deltas) - 1, -1, -1):
        running = torch.addcmul(deltas[step], carried[step], running)
        found[step] = running
    return found
