"""Environments: steps, states, frames, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.dqn import Args, train
from agents.environments import Actions, EnvironmentFailed, Environments, coloured

Quick = Callable[..., Args]


def actions_of(environments: Environments, random: np.random.Generator) -> np.ndarray:
    space, number = environments.action_space, environments.num_envs
    if isinstance(space, gym.spaces.Discrete):
        return random.integers(space.n, size=number)
    assert isinstance(space, gym.spaces.Box)
    return random.uniform(space.low, space.high, (number, *space.shape)).astype(np.float32)


EXACT: list[tuple[str, Actions, str | None]] = [
    ("CartPole-v1", "discrete", None),
    ("Acrobot-v1", "discrete", None),
    ("Pendulum-v1", "continuous", None),
    ("MountainCarContinuous-v0", "continuous", None),
    *(
        (f"MinAtar/{game}-v1", "discrete", "minatar")
        for game in ("Asterix", "Breakout", "Seaquest")
    ),
    ("MinAtar/Freeway-v1", "discrete", "minatar"),
    ("MinAtar/SpaceInvaders-v1", "discrete", "minatar"),
    ("Hopper-v5", "continuous", "mujoco"),
    ("Ant-v5", "continuous", "mujoco"),
    ("Humanoid-v5", "continuous", "mujoco"),
]


@pytest.mark.filterwarnings("ignore:.*settotalmass")
@pytest.mark.parametrize(("env_id", "kind", "package"), EXACT)
def test_saved_environments_go_on_bit_for_bit(env_id: str, kind: Actions, package: str | None):
    if package is not None:
        pytest.importorskip(package, exc_type=ImportError)
    first, second = (Environments(env_id, 2, [kind]) for _ in range(2))
    first.reset(seed=3)
    random = np.random.default_rng(0)
    for _ in range(60):
        first.step(actions_of(first, random))
    state = torch.load(_saved(first.state_dict()), weights_only=True)
    assert second.load_state_dict(state, seed=99)
    assert np.array_equal(first.observations, second.observations)
    if env_id.startswith("MinAtar/"):  # the action that is repeated by chance
        games = [[one.unwrapped.game for one in e.vector.envs] for e in (first, second)]
        assert [g.last_action for g in games[0]] == [g.last_action for g in games[1]]
    for _ in range(90):
        actions = actions_of(first, random)
        one, other = first.step(actions), second.step(actions)
        assert np.array_equal(one.last, other.last)
        assert np.array_equal(one.rewards, other.rewards)
        assert one.returns == other.returns
    assert first.episodes == second.episodes
    assert first.steps == second.steps == 300


def _saved(state: dict[str, Any]) -> Any:
    import io

    memory = io.BytesIO()
    torch.save(state, memory)
    memory.seek(0)
    return memory


@pytest.mark.parametrize(
    ("env_id", "package"), [("ALE/Breakout-v5", "ale_py"), ("LunarLander-v3", "Box2D")]
)
def test_environments_without_a_state_begin_new_episodes_and_say_so(env_id: str, package: str):
    pytest.importorskip(package)
    first = Environments(env_id, 1, ["discrete"])
    first.reset(seed=1)
    first.step(np.zeros(1, dtype=np.int64))
    assert first.state_dict()["states"] is None
    assert not Environments(env_id, 1, ["discrete"]).load_state_dict(first.state_dict(), seed=1)


def test_a_wrapper_with_a_memory_keeps_the_state_from_being_called_exact():
    def stacked(**_: Any) -> gym.Env:
        return gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 3)

    gym.register("Stacked-v0", stacked)
    try:
        environments = Environments("Stacked-v0", 1, ["discrete"])
        environments.reset(seed=1)
        assert environments.state_dict()["states"] is None
    finally:
        del gym.registry["Stacked-v0"]


def test_atari_gives_four_grey_frames_as_bytes_and_true_last_frames():
    pytest.importorskip("ale_py")
    environments = Environments("ALE/Breakout-v5", 2, ["discrete"], clip_rewards=True)
    environments.reset(seed=1)
    assert environments.observations.dtype == np.uint8
    assert environments.observations.shape == (2, 4, 84, 84)
    random = np.random.default_rng(0)
    ended = None
    for _ in range(600):
        step = environments.step(actions_of(environments, random))
        assert abs(step.rewards).max() <= 1
        if step.done.any():
            ended = step
            break
    assert ended is not None and ended.returns
    index = int(np.flatnonzero(ended.done)[0])
    # The first frames of a new episode are all alike; those before its end move.
    assert not np.array_equal(ended.last[index], environments.observations[index])


class Odd(gym.Env):
    """Fails in a way that the test asks for at its third step."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    how = "raise"
    after = 3

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        Odd.after -= 1
        here, reward = np.zeros(2, dtype=np.float32), 1.0
        if Odd.after <= 0:
            if Odd.how == "raise":
                raise ZeroDivisionError("the pole is gone")
            reward = float("nan") if Odd.how == "reward" else reward
            here[1] = np.inf if Odd.how == "observation" else 0.0
        return here, reward, Odd.after % 10 == 0, False, {}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "Odd-v0 raised after 152 steps: ZeroDivisionError: the pole is gone"),
        ("reward", "environment 0 of Odd-v0 gave the reward nan at step 153"),
        ("observation", "environment 0 of Odd-v0 gave the observation inf at step 153"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
def test_a_failing_environment_stops_clearly_and_leaves_log_and_checkpoint_whole(
    tmp_path: Any, how: str, message: str, quick: Quick, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "checkpoint.pt"
    args = quick(env_id="Odd-v0", log_dir=tmp_path / "log", checkpoint=path, checkpoint_every=50)
    gym.register("Odd-v0", lambda **_: Odd(), disable_env_checker=True)
    Odd.how, Odd.after = how, 153
    try:
        with pytest.raises(EnvironmentFailed, match=message):
            train(args)
    finally:
        del gym.registry["Odd-v0"]
    assert f"{path} is whole, of step 150" in caplog.text
    assert torch.load(path, weights_only=True)["clock"]["environments"]["steps"] == 150
    log = EventAccumulator(str(tmp_path / "log"))
    log.Reload()
    assert [event.value for event in log.Scalars("charts/episodic_return")][-1] == 10.0


class Spaces(gym.Env):
    """An environment with the spaces that a test asks for."""

    def __init__(self, observations: gym.Space, actions: gym.Space) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}


BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("observations", "actions", "wanted", "message"),
    [
        (gym.spaces.Dict({"a": BOX}), gym.spaces.Discrete(2), "discrete", "FlattenObservation"),
        (BOX, gym.spaces.MultiDiscrete([2, 2]), "discrete", "this agent takes a Discrete"),
        (BOX, gym.spaces.Discrete(2, start=1), "discrete", "wrap it to Discrete from 0"),
        (BOX, gym.spaces.Discrete(2), "continuous", "a bounded Box; use dqn, c51 or ppo"),
        (BOX, BOX, "discrete", "use sac or ppo"),
        (BOX, gym.spaces.Box(-np.inf, 1, (2,)), "continuous", "finite bounds"),
        (BOX, gym.spaces.Box(-1, 1, (2, 2)), "continuous", "one row"),
    ],
)
def test_spaces_that_an_agent_cannot_use_are_refused_with_the_fix(
    observations: gym.Space, actions: gym.Space, wanted: Actions, message: str
):
    gym.register("Spaces-v0", lambda **_: Spaces(observations, actions))
    try:
        with pytest.raises(ValueError, match=message):
            Environments("Spaces-v0", 1, [wanted])
    finally:
        del gym.registry["Spaces-v0"]


@pytest.mark.parametrize(
    ("env_id", "hidden", "extra"),
    [
        ("MinAtar/Asterix-v1", "minatar.gym", "minatar"),
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("LunarLander-v3", "Box2D", "box2d"),
        ("Hopper-v5", "mujoco", "mujoco"),
    ],
)
def test_an_environment_that_is_not_installed_names_its_extra(
    env_id: str, hidden: str, extra: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, hidden, None)
    for name in [n for n in sys.modules if n.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install '\.\[{extra}\]'"):
        Environments(env_id, 1, ["discrete", "continuous"])


def test_an_unknown_environment_is_named():
    with pytest.raises(ValueError, match="there is no environment 'CartPool-v1'"):
        Environments("CartPool-v1", 1, ["discrete"])


def test_channels_are_coloured_and_the_last_one_that_is_on_shows():
    image = np.zeros((2, 2, 3), dtype=bool)
    image[0, 0, 0] = image[0, 0, 2] = image[1, 1, 1] = True
    picture = coloured(image, scale=2)
    assert picture.shape == (4, 4, 3) and picture.dtype == np.uint8
    assert (picture[:2, 2:] == 0).all() and (picture[2:, :2] == 0).all()
    assert len({tuple(pixel) for pixel in picture.reshape(-1, 3)}) == 3
    alone = np.zeros((1, 1, 3), dtype=bool)
    alone[0, 0, 2] = True
    assert (coloured(alone, 1)[0, 0] == picture[0, 0]).all()
