"""Updates per second of `agents.sac` against Stable-Baselines3's SAC at equal settings.

    python -m benchmarks.agents.sac_speed

Both train on Pendulum with one thread: the same networks (256 256), learning rates, batch (256),
replay, target rate and tuned temperature, one update for each step. A round's figure is the number
of updates over the processor time from the first update to the last, acting and environment
included, the steps before learning left out.

Found on a shared machine of two cores (7 rounds of 200 updates): 1.37 without the probe, 1.38 with.
"""

from __future__ import annotations

import time

from stable_baselines3 import SAC

from agents.sac import Args, train
from benchmarks.agents.rivals import Arm, FirstUpdate, measure, options, show

LEARNING_STARTS, CAPACITY, RATE = 200, 50_000, 3e-4


def stable_baselines3(env_id: str, updates: int, seed: int) -> float:
    """Return updates per second of processor time."""
    model = SAC(
        "MlpPolicy",
        env_id,
        learning_rate=RATE,
        buffer_size=CAPACITY,
        learning_starts=LEARNING_STARTS,
        batch_size=256,
        tau=0.005,
        gamma=0.99,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": [256, 256]},
        seed=seed,
        device="cpu",
    )
    clock = FirstUpdate(LEARNING_STARTS)
    model.learn(LEARNING_STARTS + updates, callback=clock)
    assert model._n_updates == updates
    return updates / (time.process_time() - (clock.started or 0.0))


def dynamo(env_id: str, updates: int, seed: int, probe: bool) -> float:
    """Return updates per second of processor time."""
    args = Args(
        env_id=env_id,
        total_steps=LEARNING_STARTS + updates,
        seed=seed,
        learning_rate=RATE,
        actor_learning_rate=RATE,
        replay_capacity=CAPACITY,
        learning_starts=LEARNING_STARTS,
        probe=probe,
        log_dir=None,
        progress=False,
    )
    result = train(args)
    assert result.updates == updates
    return updates / result.update_seconds


def main() -> None:
    """Print a table."""
    chosen = options(__doc__, rounds=9, length=300)
    env_id = chosen.env or "Pendulum-v1"
    arms: dict[str, Arm] = {
        "Stable-Baselines3": lambda updates, seed: stable_baselines3(env_id, updates, seed),
        "agents.sac": lambda updates, seed: dynamo(env_id, updates, seed, probe=False),
        "agents.sac --probe": lambda updates, seed: dynamo(env_id, updates, seed, probe=True),
    }
    show(measure(arms, chosen.rounds, chosen.length))


if __name__ == "__main__":
    main()
