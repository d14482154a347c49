"""Vector environments for the agents, and the exact state of those that have one to save."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv


def make_environments(env_id: str, num_envs: int) -> SyncVectorEnv:
    """Return `num_envs` environments that reset within the step that ends an episode.

    In Gymnasium's SAME_STEP mode every step is a transition. The observation that a step returns
    after the end of an episode belongs to the next one; `last_observations` gives the true one.

    Raises:
        ValueError: when the actions are not Discrete or the observations are not a Box.
    """
    if env_id.startswith("MinAtar/"):
        # Gymnasium does not find MinAtar's environments by itself.
        importlib.import_module("minatar.gym").register_envs()
    environments = gym.make_vec(
        env_id, num_envs, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    assert isinstance(environments, SyncVectorEnv)
    actions, observations = environments.single_action_space, environments.single_observation_space
    if not isinstance(actions, gym.spaces.Discrete) or actions.start != 0:
        raise ValueError(f"{env_id} has actions {actions}; choose or wrap it to Discrete from 0")
    if not isinstance(observations, gym.spaces.Box):
        raise ValueError(f"{env_id} has observations {observations}; choose or wrap it to a Box")
    return environments


def last_observations(
    observations: np.ndarray, done: np.ndarray, infos: dict[str, Any]
) -> np.ndarray:
    """Return what each environment showed at the end of its step, before any reset.

    Args:
        observations: what the step returned, `[environments, *observation]`.
        done: which episodes ended, bool `[environments]`.
        infos: what the step returned.
    """
    if not done.any():
        return observations
    last = observations.copy()
    for index in np.flatnonzero(done):
        last[index] = infos["final_obs"][index]
    return last


def save_environments(environments: SyncVectorEnv) -> list[dict[str, Any]] | None:
    """Return the states of Gymnasium's classic-control environments; None for any other."""
    states = []
    for environment in environments.envs:
        inner: Any = environment.unwrapped
        if not type(inner).__module__.startswith("gymnasium.envs.classic_control."):
            return None
        states.append(
            {
                "state": torch.from_numpy(np.array(inner.state)),
                "random": inner.np_random.bit_generator.state,
                "elapsed": environment.get_wrapper_attr("_elapsed_steps"),
            }
        )
    return states


def restore_environments(environments: SyncVectorEnv, states: list[dict[str, Any]]) -> None:
    """Put environments that have been reset back to what `save_environments` gave."""
    for environment, saved in zip(environments.envs, states, strict=True):
        inner: Any = environment.unwrapped
        inner.state = saved["state"].numpy().copy()
        inner.np_random.bit_generator.state = saved["random"]
        environment.set_wrapper_attr("_elapsed_steps", saved["elapsed"])
