"""Updates per second of `agents.ppo` against Stable-Baselines3's PPO at equal settings.

    python -m benchmarks.agents.ppo_speed

Both train on CartPole with one thread: separate ReLU networks (64 64) for actor and critic, four
environments, rollouts of 128 steps, 10 epochs of batches of 64, the same clipping and learning
rate. A round's figure is the number of updates over the processor time of the whole training,
acting and environments included.

Found on a shared machine of two cores (7 rounds of 6 rollouts): 1.96 without the probe, 1.87 with.
"""

from __future__ import annotations

import time

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from agents.ppo import Args, train
from benchmarks.agents.rivals import Arm, measure, options, show

ENVS, ROLLOUT, EPOCHS, BATCH = 4, 128, 10, 64
UPDATES = EPOCHS * ENVS * ROLLOUT // BATCH


def stable_baselines3(env_id: str, rollouts: int, seed: int) -> float:
    """Return updates per second of processor time."""
    model = PPO(
        "MlpPolicy",
        make_vec_env(env_id, ENVS, seed=seed),
        learning_rate=1e-3,
        n_steps=ROLLOUT,
        batch_size=BATCH,
        n_epochs=EPOCHS,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=0.5,
        policy_kwargs={
            "net_arch": {"pi": [64, 64], "vf": [64, 64]},
            "activation_fn": torch.nn.ReLU,
        },
        seed=seed,
        device="cpu",
    )
    started = time.process_time()
    model.learn(rollouts * ENVS * ROLLOUT)
    assert model._n_updates == rollouts * EPOCHS
    return rollouts * UPDATES / (time.process_time() - started)


def dynamo(env_id: str, rollouts: int, seed: int, probe: bool) -> float:
    """Return updates per second of processor time."""
    args = Args(
        env_id=env_id,
        num_envs=ENVS,
        total_steps=rollouts * ENVS * ROLLOUT,
        seed=seed,
        rollout=ROLLOUT,
        epochs=EPOCHS,
        batch_size=BATCH,
        hidden=(64, 64),
        probe=probe,
        log_dir=None,
        progress=False,
    )
    started = time.process_time()
    result = train(args)
    assert result.updates == rollouts * UPDATES
    return result.updates / (time.process_time() - started)


def main() -> None:
    """Print a table."""
    chosen = options(__doc__, rounds=9, length=10)
    env_id = chosen.env or "CartPole-v1"
    arms: dict[str, Arm] = {
        "Stable-Baselines3": lambda rollouts, seed: stable_baselines3(env_id, rollouts, seed),
        "agents.ppo": lambda rollouts, seed: dynamo(env_id, rollouts, seed, probe=False),
        "agents.ppo --probe": lambda rollouts, seed: dynamo(env_id, rollouts, seed, probe=True),
    }
    show(measure(arms, chosen.rounds, chosen.length))


if __name__ == "__main__":
    main()
