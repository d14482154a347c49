"""The exact state of environments that have one to give: classic control, MinAtar, MuJoCo."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

State = dict[str, Any]

# But for the time limit's count, which is saved.
_STATELESS = (TimeLimit, OrderEnforcing, PassiveEnvChecker)


def save_environments(vector: VectorEnv) -> list[State] | None:
    """Return the state of each environment, tensors and plain values; None where one gives none."""
    if not isinstance(vector, SyncVectorEnv):
        return None
    states = []
    for environment in vector.envs:
        how = _how(environment)
        if how is None:
            return None
        states.append(how[0](environment) | {"elapsed": _elapsed(environment)})
    return states


def restore_environments(vector: VectorEnv, states: list[State]) -> None:
    """Put environments that have been reset back to what `save_environments` gave."""
    assert isinstance(vector, SyncVectorEnv)
    for environment, saved in zip(vector.envs, states, strict=True):
        how = _how(environment)
        assert how is not None
        how[1](environment, saved)
        if saved["elapsed"] is not None:
            environment.set_wrapper_attr("_elapsed_steps", saved["elapsed"])


def _how(environment: gym.Env) -> tuple[Callable[..., State], Callable[..., None]] | None:
    """Return what saves and what restores this kind of environment."""
    layer = environment
    while isinstance(layer, gym.Wrapper):
        if type(layer) not in _STATELESS:  # it may keep frames, means, ...
            return None
        layer = layer.env
    kind = type(layer)
    if kind.__module__.startswith("gymnasium.envs.classic_control."):
        return _save_classic, _restore_classic
    if kind.__module__ == "minatar.gym":
        return _save_minatar, _restore_minatar
    if kind.__module__.startswith("gymnasium.envs.mujoco."):
        return _save_mujoco, _restore_mujoco
    return None


def _elapsed(environment: gym.Env) -> int | None:
    has = environment.has_wrapper_attr("_elapsed_steps")
    return environment.get_wrapper_attr("_elapsed_steps") if has else None


def _save_classic(environment: gym.Env) -> State:
    inner: Any = environment.unwrapped
    return {
        "state": torch.from_numpy(np.array(inner.state)),
        "random": inner.np_random.bit_generator.state,
        "beyond": getattr(inner, "steps_beyond_terminated", None),
    }


def _restore_classic(environment: gym.Env, saved: State) -> None:
    inner: Any = environment.unwrapped
    inner.state = saved["state"].numpy().copy()
    inner.np_random.bit_generator.state = saved["random"]
    if hasattr(inner, "steps_beyond_terminated"):
        inner.steps_beyond_terminated = saved["beyond"]


def _save_minatar(environment: gym.Env) -> State:
    game: Any = environment.unwrapped.game  # type: ignore[attr-defined]
    kind, keys, position, has_gauss, gauss = game.random.get_state()
    plain = {name: _packed(x) for name, x in vars(game.env).items() if name != "random"}
    return {
        "game": plain,
        "last_action": int(game.last_action),
        "random": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
    }


def _restore_minatar(environment: gym.Env, saved: State) -> None:
    game: Any = environment.unwrapped.game  # type: ignore[attr-defined]
    for name, value in saved["game"].items():
        setattr(game.env, name, _unpacked(value))
    game.last_action = saved["last_action"]
    kind, keys, position, has_gauss, gauss = saved["random"]
    game.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))


# After a step these are still of before the last integration, and the next reward is the
# difference to them: they cannot be computed anew.
_LAGGING = ("xpos", "xipos")


def _save_mujoco(environment: gym.Env) -> State:
    mujoco: Any = importlib.import_module("mujoco")
    inner: Any = environment.unwrapped
    what = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(inner.model, what))
    mujoco.mj_getState(inner.model, inner.data, state, what)
    return {
        "state": torch.from_numpy(state),
        "random": inner.np_random.bit_generator.state,
        "lagging": {name: _packed(getattr(inner.data, name)) for name in _LAGGING},
    }


def _restore_mujoco(environment: gym.Env, saved: State) -> None:
    mujoco: Any = importlib.import_module("mujoco")
    inner: Any = environment.unwrapped
    what = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(inner.model, inner.data, saved["state"].numpy(), what)
    mujoco.mj_forward(inner.model, inner.data)
    for name in _LAGGING:
        getattr(inner.data, name)[:] = saved["lagging"][name].numpy()
    inner.np_random.bit_generator.state = saved["random"]


def _packed(value: Any) -> Any:
    """Return plain values as they are, copied, and arrays as tensors."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_packed(item) for item in value]
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    return value


def _unpacked(value: Any) -> Any:
    """Take back what `_packed` gave."""
    if isinstance(value, torch.Tensor):
        return value.numpy().copy()
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if isinstance(value, dict):
        return {key: _unpacked(item) for key, item in value.items()}
    return value
