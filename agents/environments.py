"""Vector environments for the agents: made, stepped, checked, and counted in episodes."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from agents.environment_states import restore_environments, save_environments

Actions = Literal["discrete", "continuous"]

# Gymnasium does not find these by itself: module, what of it registers them, extra.
_NAMESPACES = {
    "MinAtar/": ("minatar.gym", "register_envs", "minatar"),
    "ALE/": ("ale_py", None, "atari"),
}

# Black, and Okabe and Ito's colours.
_COLOURS = np.array(
    [
        (0, 0, 0),
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ],
    dtype=np.uint8,
)


class EnvironmentFailed(RuntimeError):
    """An environment raised, or gave something that is no number."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of all environments; arrays are `[environments]`.

    Attributes:
        rewards: as they are learned from, float64; clipped where that was asked for.
        last: what each environment showed at the end of its step, before any reset,
            `[environments, *observation]`.
        terminated: whether the step ended the episode for good. A truncated one goes on, unseen.
        done: whether the episode ended, terminated or truncated.
        returns: the undiscounted return of each episode that ended, in the order of environments.
    """

    rewards: np.ndarray
    last: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    returns: tuple[float, ...]


class Environments:
    """Environments that are stepped together and reset within the step that ends an episode.

    In Gymnasium's SAME_STEP mode every step is a transition. What a step shows after the end of an
    episode belongs to the next one: `Step.last` is the true end.

    Attributes:
        env_id: Gymnasium's name.
        observation_space: of one environment; float64 observations become float32.
        action_space: of one environment.
        observations: what each environment shows now, `[environments, *observation]`.
        steps: environment steps so far, of all environments together.
        episodes: (the step at which it ended, its undiscounted return) of each episode.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        actions: Sequence[Actions],
        *,
        clip_rewards: bool = False,
        render: bool = False,
    ) -> None:
        """Make them.

        Args:
            env_id: Gymnasium's name, such as CartPole-v1, MinAtar/Breakout-v1 or ALE/Breakout-v5.
            num_envs: how many.
            actions: which kinds of actions the agent can take.
            clip_rewards: clip rewards to -1..1 in `Step.rewards` (Mnih et al. 2015); returns stay.
            render: make ready for `frame`.

        Raises:
            ModuleNotFoundError: when the environment is not installed; names the extra.
            ValueError: when there is none of that name, or the agent has no use for its spaces.
        """
        self.env_id = env_id
        self.clip_rewards = clip_rewards
        self.vector = _made(env_id, num_envs, render)
        self.action_space = self.vector.single_action_space
        try:
            self.observation_space = _checked_observations(env_id, self.vector)
            _check_actions(env_id, self.action_space, actions)
        except ValueError:
            self.vector.close()
            raise
        self.observations = np.zeros(())
        self.steps = 0
        self.episodes: list[tuple[int, float]] = []
        self._returns = np.zeros(num_envs)

    @property
    def num_envs(self) -> int:
        """How many there are."""
        return self.vector.num_envs

    def reset(self, seed: int) -> None:
        """Begin an episode in each; the environments get consecutive seeds."""
        observations, _ = self.vector.reset(seed=seed)
        self._show(observations)
        self._returns[:] = 0.0

    def step(self, actions: np.ndarray) -> Step:
        """Act in each environment.

        Args:
            actions: int64 `[environments]`, or float `[environments, *action]`.

        Raises:
            EnvironmentFailed: when one raises, or gives a reward or an observation that is not
                finite.
        """
        try:
            shown, rewards, terminated, truncated, infos = self.vector.step(actions)
        except Exception as error:
            raise EnvironmentFailed(
                f"{self.env_id} raised after {self.steps} steps: {type(error).__name__}: {error}"
            ) from error
        self.steps += self.num_envs
        if not math.isfinite(rewards.sum()):
            self._refuse("reward", rewards)
        done = np.logical_or(terminated, truncated)
        self._show(shown)
        last = self.observations
        self._returns += rewards
        returns: tuple[float, ...] = ()
        if done.any():
            last = last.copy()
            ended = np.flatnonzero(done)
            for index in ended:
                last[index] = infos["final_obs"][index]
            returns = tuple(self._returns[ended].tolist())
            self.episodes += [(self.steps, figure) for figure in returns]
            self._returns[ended] = 0.0
        if last.dtype.kind == "f" and not math.isfinite(last.sum(dtype=np.float64)):
            self._refuse("observation", last)
        if self.clip_rewards:
            rewards = np.clip(rewards, -1.0, 1.0)
        return Step(rewards, last, terminated, done, returns)

    def state_dict(self) -> dict[str, Any]:
        """Return where the environments are; their own states are None where they give none."""
        return {
            "steps": self.steps,
            "episodes": list(self.episodes),
            "returns": self._returns.tolist(),
            "observations": torch.from_numpy(self.observations),
            "states": save_environments(self.vector),
        }

    def load_state_dict(self, state: dict[str, Any], seed: int) -> bool:
        """Go on from a state.

        Args:
            state: what `state_dict` gave.
            seed: of the new episodes, where the environments gave no state.

        Returns:
            Whether the episodes go on where they were; otherwise new ones have begun.
        """
        self.steps = state["steps"]
        self.episodes = [tuple(episode) for episode in state["episodes"]]
        self.reset(seed + self.steps)
        if state["states"] is None:
            return False
        restore_environments(self.vector, state["states"])
        self._show(state["observations"].numpy())
        self._returns[:] = state["returns"]
        return True

    def frame(self) -> np.ndarray | None:
        """Return a picture of the first environment, uint8 `[height, width, 3]`, or None."""
        space = self.observation_space
        if space.dtype == np.bool_ and len(space.shape) == 3:
            return coloured(self.observations[0])
        if space.dtype == np.uint8 and self.env_id.startswith("ALE/"):
            return np.repeat(self.observations[0][-1][:, :, None], 3, axis=2)
        assert isinstance(self.vector, SyncVectorEnv)
        drawn = self.vector.envs[0].render()
        return drawn if isinstance(drawn, np.ndarray) and drawn.ndim == 3 else None

    def close(self) -> None:
        """Let go of them."""
        self.vector.close()

    def _show(self, observations: np.ndarray) -> None:
        wanted = self.observation_space.dtype
        # Always a copy: a vector environment may write the next observations over these.
        self.observations = np.array(observations, dtype=wanted)

    def _refuse(self, what: str, values: np.ndarray) -> None:
        rows = values.reshape(len(values), -1)
        index = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        value = rows[index][~np.isfinite(rows[index])][0]
        raise EnvironmentFailed(
            f"environment {index} of {self.env_id} gave the {what} {value} at step {self.steps}; "
            "training on it would spoil the network"
        )


def coloured(image: np.ndarray, scale: int = 16) -> np.ndarray:
    """Colour the channels of a boolean image; where several are on, the last one shows.

    Args:
        image: bool `[height, width, channels]`.
        scale: side of a pixel.

    Returns:
        uint8 `[height * scale, width * scale, 3]`, black where no channel is on.
    """
    index = (image * np.arange(1, image.shape[2] + 1)).max(2)
    colours = _COLOURS[np.where(index > 0, (index - 1) % (len(_COLOURS) - 1) + 1, 0)]
    return colours.repeat(scale, 0).repeat(scale, 1)


def register(env_id: str) -> None:
    """Let Gymnasium know of environments that it does not find by itself.

    Raises:
        ModuleNotFoundError: when they are not installed; names the extra.
    """
    for namespace, (module, function, extra) in _NAMESPACES.items():
        if env_id.startswith(namespace):
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise _not_installed(env_id, extra) from error
            if function is not None and env_id not in gym.registry:
                getattr(found, function)()


def _made(env_id: str, num_envs: int, render: bool) -> VectorEnv:
    register(env_id)
    with _explained(env_id):
        if env_id.startswith("ALE/"):
            # ale-py's own vector environment: grey 84x84 frames, four at a time, no OpenCV needed.
            return gym.make_vec(
                env_id,
                num_envs,
                vectorization_mode="vector_entry_point",
                autoreset_mode=AutoresetMode.SAME_STEP,
                reward_clipping=False,
                num_threads=1,
            )
        kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
        # MinAtar draws with seaborn; `frame` colours its observations instead.
        drawn: dict[str, Any] = (
            {"render_mode": "rgb_array"} if render and not env_id.startswith("MinAtar/") else {}
        )
        made = gym.make_vec(
            env_id, num_envs, vectorization_mode="sync", vector_kwargs=kwargs, **drawn
        )
        assert isinstance(made, SyncVectorEnv)
        return made


class _explained:
    """Say which extra is missing, or that there is no such environment."""

    def __init__(self, env_id: str) -> None:
        self.env_id = env_id

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (gym.error.DependencyNotInstalled, ModuleNotFoundError)):
            point = str(getattr(gym.registry.get(self.env_id), "entry_point", ""))
            extra = next((x for x in ("box2d", "mujoco") if x in point), None)
            raise _not_installed(self.env_id, extra) from error
        if isinstance(error, (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv)):
            raise ValueError(f"there is no environment {self.env_id!r}: {error}") from error


def _not_installed(env_id: str, extra: str | None) -> ModuleNotFoundError:
    if extra is None:
        return ModuleNotFoundError(f"{env_id} needs a package that is not installed")
    return ModuleNotFoundError(
        f"{env_id} is not installed; pip install 'dynamo-probe[{extra}]', in a checkout "
        f"pip install '.[{extra}]'"
    )


def _checked_observations(env_id: str, vector: VectorEnv) -> gym.spaces.Box:
    space = vector.single_observation_space
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(
            f"{env_id} has observations {space}; the agents take a Box: wrap it, for instance in "
            "gymnasium.wrappers.FlattenObservation, and register the wrapped environment"
        )
    if space.dtype == np.float64:
        return gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return space


def _check_actions(env_id: str, space: gym.Space, wanted: Sequence[Actions]) -> None:
    if isinstance(space, gym.spaces.Discrete) and "discrete" in wanted:
        if space.start == 0:
            return
        raise ValueError(f"{env_id} has actions from {space.start}; wrap it to Discrete from 0")
    if isinstance(space, gym.spaces.Box) and "continuous" in wanted:
        if len(space.shape) == 1 and np.isfinite([space.low, space.high]).all():
            return
        raise ValueError(f"{env_id} has actions {space}; wrap it to one row with finite bounds")
    kinds = {"discrete": "a Discrete", "continuous": "a bounded Box"}
    use = {"discrete": "sac or ppo", "continuous": "dqn, c51 or ppo"}
    other = use["discrete"] if isinstance(space, gym.spaces.Box) else use["continuous"]
    raise ValueError(
        f"{env_id} has actions {space}; this agent takes {' or '.join(kinds[k] for k in wanted)}"
        + (f"; use {other}" if isinstance(space, (gym.spaces.Box, gym.spaces.Discrete)) else "")
    )
