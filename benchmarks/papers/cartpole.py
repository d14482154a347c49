"""DQN on CartPole: dormancy grows with the replay ratio, and ReDo lowers it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import dynamo_probe as dp
from agents import dqn
from agents.networks import make_network
from benchmarks.papers.arms import TREATED_ARMS, treatments
from dynamo_probe.functional import dormancy_scores, dormant_fraction

ARMS = TREATED_ARMS
TAUS = (0.0, 0.025, 0.1)
EPISODES = 20


@dataclass(frozen=True, slots=True)
class Setting:
    """What shapes the training; everything else is as in `dqn.Args`.

    Attributes:
        steps: of the environment; the first 1,000 go without updates.
        learning_rate: of Adam.
        replay_ratio: updates for each step.
        redo_every: updates between two recyclings.
        redo_updates: ReDo scores the units on the batches, of 32, of so many updates.
        redo_tau: it recycles units with a score of at most this.
        read_every: updates between two readings.
        read_updates: a reading takes the batches of so many updates.
    """

    steps: int = 8_000
    learning_rate: float = 3e-3
    replay_ratio: float = 1.0
    redo_every: int = 1_000
    redo_updates: int = 8
    redo_tau: float = 0.1
    read_every: int = 250
    read_updates: int = 16


GROWTH = tuple(Setting(replay_ratio=ratio) for ratio in (0.25, 1.0, 4.0))
MILD = Setting(replay_ratio=2.0)
FAST = Setting(learning_rate=1e-2)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        arm: which arm.
        seed: of network, environment, exploration and replay.
        updates: made.
        dormant: {tau: dormant fraction before training, on observations of random actions, and at
            each reading, which precedes a recycling at the same update}.
        recycled: units recycled in all.
        last_return: mean return of the last 20 episodes.
        mean_return: mean return of all episodes after the first 1,000 steps.
        seconds: processor time.
    """

    arm: str
    seed: int
    updates: int
    dormant: dict[float, tuple[float, ...]]
    recycled: int
    last_return: float
    mean_return: float
    seconds: float


def run(arm: str, seed: int, *, setting: Setting = FAST) -> Run:
    """Train one arm."""
    if arm not in ARMS:
        raise ValueError(f"the arm is {arm!r}; give one of {', '.join(ARMS)}")
    started = time.process_time()

    def instruments(args: dqn.Args, target: torch.nn.Module) -> list[Any]:
        dormancy = dp.Dormancy(TAUS, setting.read_every, updates=setting.read_updates)
        return [
            dormancy,
            *treatments(
                arm,
                tau=setting.redo_tau,
                every=setting.redo_every,
                updates=setting.redo_updates,
                mirror=[target],
            ),
        ]

    args = dqn.Args(
        total_steps=setting.steps,
        learning_rate=setting.learning_rate,
        replay_ratio=setting.replay_ratio,
        seed=seed,
        log_dir=None,
        progress=False,
    )
    # The agent offers ReDo as one would use it; here every form of it is compared.
    result = dqn.train(args, instruments)
    learning = result.episode_returns[result.episode_steps > args.learning_starts]
    total = result.readings.get("redo/recycled_total")
    initial = dormancy_at_the_start(args)
    return Run(
        arm=arm,
        seed=seed,
        updates=result.updates,
        dormant={
            tau: (initial[tau], *map(float, result.readings[f"dormancy/tau={tau}"][1][1:]))
            for tau in TAUS
        },
        recycled=0 if total is None else int(total[1][-1]),
        last_return=float(result.episode_returns[-EPISODES:].mean()),
        mean_return=float(learning.mean()),
        seconds=time.process_time() - started,
    )


def dormancy_at_the_start(args: dqn.Args, observations: int = 512) -> dict[float, float]:
    """Return {tau: dormant fraction} of the untrained network on what random actions show."""
    environment = gym.make(args.env_id)
    environment.action_space.seed(args.seed)
    seen = [environment.reset(seed=args.seed)[0]]
    while len(seen) < observations:
        following, _, terminated, truncated, _ = environment.step(environment.action_space.sample())
        seen.append(environment.reset()[0] if terminated or truncated else following)
    space: Any = environment.action_space
    network = make_network(environment.observation_space, int(space.n), args.hidden, args.seed)
    scores = dormancy_scores(network, torch.from_numpy(np.stack(seen)))
    return {tau: dormant_fraction(scores, tau) for tau in TAUS}
