"""Updates per second of `agents.dqn` against Stable-Baselines3's DQN at equal settings.

    python -m benchmarks.agents.dqn_speed
    python -m benchmarks.agents.dqn_speed --env MinAtar/Breakout-v1 --length 500

Both train with one thread: the same network, learning rate, batch, replay, exploration, target
interval and clipping, one update for each step. The arms take turns within one process. A
round's figure is the number of updates over the processor time from the first update to the last,
acting and environment included, the steps before learning left out. Denormal floats count as zero
for every arm, which SB3 alone does not ask for, so that it does not lose by it.
"""

from __future__ import annotations

import time

import gymnasium as gym
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.dqn import Args, train
from agents.environments import register
from agents.networks import Observations
from benchmarks.agents.rivals import Arm, FirstUpdate, measure, options, show

LEARNING_STARTS, EPSILON_STEPS, TARGET_INTERVAL, CAPACITY = 500, 1_000, 500, 50_000


class Convolution(BaseFeaturesExtractor):
    """The convolution of `agents.networks` for MinAtar."""

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__(space, 16 * 8 * 8)
        self.observations = Observations(space)
        self.conv = nn.Conv2d(min(space.shape), 16, 3)

    def forward(self, observations: Tensor) -> Tensor:
        return self.conv(self.observations(observations)).relu().flatten(1)


def stable_baselines3(env_id: str, updates: int, seed: int) -> float:
    """Return updates per second of processor time."""
    steps = LEARNING_STARTS + updates
    register(env_id)
    policy: dict = {"net_arch": [128, 128]}
    if env_id.startswith("MinAtar/"):
        policy = {"net_arch": [128], "features_extractor_class": Convolution}
    model = DQN(
        "MlpPolicy",
        env_id,
        learning_rate=1e-3,
        buffer_size=CAPACITY,
        learning_starts=LEARNING_STARTS,
        batch_size=32,
        gamma=0.99,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=TARGET_INTERVAL,
        exploration_fraction=EPSILON_STEPS / steps,
        exploration_final_eps=0.05,
        max_grad_norm=10.0,
        policy_kwargs=policy,
        seed=seed,
        device="cpu",
    )
    clock = FirstUpdate(LEARNING_STARTS)
    model.learn(steps, callback=clock)
    seconds = time.process_time() - (clock.started or 0.0)
    assert model._n_updates == updates
    return updates / seconds


def dynamo(env_id: str, updates: int, seed: int, probe: bool) -> float:
    """Return updates per second of processor time."""
    result = train(
        Args(
            env_id=env_id,
            total_steps=LEARNING_STARTS + updates,
            seed=seed,
            learning_rate=1e-3,
            gamma=0.99,
            batch_size=32,
            replay_ratio=1.0,
            replay_capacity=CAPACITY,
            learning_starts=LEARNING_STARTS,
            target_interval=TARGET_INTERVAL,
            max_grad_norm=10.0,
            epsilon_end=0.05,
            epsilon_steps=EPSILON_STEPS,
            probe=probe,
            probe_every=100,
            log_dir=None,
            progress=False,
        )
    )
    assert result.updates == updates
    return updates / result.update_seconds


def main() -> None:
    """Print a table."""
    chosen = options(__doc__, rounds=15, length=1_000)
    env_id = chosen.env or "CartPole-v1"
    arms: dict[str, Arm] = {
        "Stable-Baselines3": lambda updates, seed: stable_baselines3(env_id, updates, seed),
        "agents.dqn": lambda updates, seed: dynamo(env_id, updates, seed, probe=False),
        "agents.dqn --probe": lambda updates, seed: dynamo(env_id, updates, seed, probe=True),
    }
    show(measure(arms, chosen.rounds, chosen.length))


if __name__ == "__main__":
    main()
