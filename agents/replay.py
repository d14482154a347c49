"""Uniform replay: transitions in preallocated host memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Transitions; all `[batch]`, observations `[batch, *observation]`."""

    observations: Tensor
    actions: Tensor
    """int64 `[batch]`, or float32 `[batch, *action]` where actions are continuous."""
    rewards: Tensor
    next_observations: Tensor
    continues: Tensor
    """0 where the step terminated the episode, else 1."""


class Replay:
    """Uniform replay in preallocated host memory; uint8 and bool observations keep their type."""

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        space: gym.Space,
        seed: int,
        actions: gym.Space | None = None,
    ) -> None:
        """Make room for `capacity` transitions, rounded down to whole steps of the environments.

        Args:
            capacity: transitions.
            num_envs: how many come in a step.
            space: of the observations.
            seed: of the generator that draws.
            actions: their space; None for whole numbers.
        """
        self.capacity, self.position, self.filled = capacity // num_envs * num_envs, 0, 0
        shape = (self.capacity, *(space.shape or ()))
        kind = {"uint8": torch.uint8, "bool": torch.bool}.get(str(space.dtype), torch.float32)
        taken = torch.zeros(self.capacity, dtype=torch.int64)
        if isinstance(actions, gym.spaces.Box):
            taken = torch.zeros((self.capacity, *actions.shape))
        self.stored = Batch(
            observations=torch.zeros(shape, dtype=kind),
            actions=taken,
            rewards=torch.zeros(self.capacity),
            next_observations=torch.zeros(shape, dtype=kind),
            continues=torch.zeros(self.capacity),
        )
        # The same memory: NumPy writes a few numbers ten times as fast as torch.
        self.arrays = [tensor.numpy() for tensor in self.stored]
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, *transitions: np.ndarray) -> None:
        """Store one step of all environments; the arrays come in the order of `Batch`."""
        end = self.position + len(transitions[0])
        for array, new in zip(self.arrays, transitions, strict=True):
            array[self.position : end] = new
        self.position, self.filled = end % self.capacity, max(self.filled, end)

    def sample(self, batch_size: int, device: str) -> Batch:
        """Draw transitions uniformly, with replacement."""
        rows = torch.randint(self.filled, (batch_size,), generator=self.generator)
        return Batch(*(tensor.index_select(0, rows).to(device) for tensor in self.stored))

    def state_dict(self) -> dict[str, Any]:
        """Return the filled rows and the state of the generator."""
        # Without the clone, the whole preallocated tensor would be saved.
        filled = {name: x[: self.filled].clone() for name, x in self.stored._asdict().items()}
        return {"filled": filled, "position": self.position, "random": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name, stored in self.stored._asdict().items():
            self.filled = len(state["filled"][name])
            stored[: self.filled] = state["filled"][name]
        self.position = state["position"]
        self.generator.set_state(state["random"])


def updates_due(steps: int, replay_ratio: float) -> int:
    """Return the number of updates that belong to the environment steps since learning began."""
    # The small term keeps 100 steps at a ratio of 0.29 from giving 28 updates.
    return int(max(steps, 0) * replay_ratio + 1e-6)
