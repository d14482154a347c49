"""What comparisons with Stable-Baselines3 share: turns, processor time, a table of ratios."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from stable_baselines3.common.callbacks import BaseCallback

Arm = Callable[[int, int], float]
"""Takes a length and a seed; returns updates per second of processor time."""


class FirstUpdate(BaseCallback):
    """Notes the processor time at which the steps before learning are over."""

    started: float | None = None

    def __init__(self, learning_starts: int) -> None:
        """Set how many steps those are."""
        super().__init__()
        self._starts = learning_starts

    def _on_rollout_end(self) -> None:
        # Called between a step and its update.
        if self.started is None and self.num_timesteps > self._starts:
            self.started = time.process_time()

    def _on_step(self) -> bool:
        return True


def measure(arms: Mapping[str, Arm], rounds: int, length: int) -> dict[str, list[float]]:
    """Run all arms in turn, `rounds` times; return each arm's updates per second, by round.

    Denormal floats count as zero for every arm, which SB3 alone does not ask for, so that it does
    not lose by it.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for arm in arms.values():
        arm(max(length // 5, 1), 0)
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(1, rounds + 1):
        # The order turns around, so that nobody always runs first.
        for name in list(arms)[:: 1 if seed % 2 else -1]:
            speeds[name].append(arms[name](length, seed))
    return speeds


def show(speeds: Mapping[str, list[float]]) -> None:
    """Print a table; ratios are to the first arm."""
    base = next(iter(speeds.values()))
    print(f"{'':24}{'updates/s':>10}{'ratio':>8}   ratio by round")
    for name, arm in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(arm, base, strict=True)]
        by_round = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"{name:24}{statistics.median(arm):10.0f}{statistics.median(ratios):8.2f}   {by_round}"
        )


def options(description: str | None, rounds: int, length: int) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--env", default=None, help="another environment")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds, each with every arm")
    parser.add_argument("--length", type=int, default=length, help="length of an arm in a round")
    return parser.parse_args()
