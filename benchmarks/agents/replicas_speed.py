"""Updates per second and replica of `agents.replicas`, against one run after the other.

    python -m benchmarks.agents.replicas_speed

CartPole, 4-128-128-2, batches of 32, one thread, one update a step, the dormancy probe at its
default interval in every arm. A figure is replicas times updates over the processor time from the
first update on, acting, environments and replay included. The arms take turns within one process.

Found on a shared machine of two cores (3 rounds of 200 updates, ratios to one run): 0.87 with one
replica, 2.06 with 3, 3.22 with 6, 4.57 with 12, 5.53 with 24.
"""

from __future__ import annotations

from dataclasses import replace

from agents import dqn, replicas
from benchmarks.agents.rivals import Arm, measure, options, show

SINGLE = dqn.Args(learning_starts=300, probe=True, log_dir=None, progress=False)
STACKED = replicas.Args(learning_starts=300, probe=True, log_dir=None, progress=False)


def single(updates: int, seed: int) -> float:
    """Return updates per second of one run."""
    result = dqn.train(replace(SINGLE, total_steps=300 + updates, seed=seed))
    assert result.updates == updates
    return updates / result.update_seconds


def stacked(count: int) -> Arm:
    """Return an arm with so many replicas."""

    def run(updates: int, seed: int) -> float:
        args = replace(STACKED, total_steps=300 + updates, seed=seed, replicas=count)
        result = replicas.train(args)
        assert result.updates == updates
        return count * updates / result.update_seconds

    return run


def main() -> None:
    """Print a table."""
    chosen = options(__doc__, rounds=7, length=400)
    arms: dict[str, Arm] = {"agents.dqn": single}
    arms |= {f"{count} replicas": stacked(count) for count in (1, 3, 6, 12, 24)}
    show(measure(arms, chosen.rounds, chosen.length))


if __name__ == "__main__":
    main()
