"""Where the time of an agent goes: environment, acting, replay, learning, optimizer, probe.

    python -m benchmarks.agents.breakdown            # every agent that is known here
    python -m benchmarks.agents.breakdown dqn c51

A timer of the operating system interrupts the training after every 2 ms of processor time, and the
line of Python that is then being executed says what the time goes to. That needs no change of the
agents and costs next to nothing, but a share is good to sqrt(p (1 - p) / samples) only; the number
of samples is printed. The probe is `dp.Dormancy` at the agent's default interval.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERVAL = 0.002
PARTS = (
    "environment",
    "acting",
    "replay",
    "forward and loss",
    "backward",
    "optimizer",
    "probe",
    "other",
)
# The first that is met, from the innermost call outwards, decides.
ACTING = {"greedy", "act", "policy"}
AGENTS: dict[str, dict[str, Any]] = {
    "dqn": {"env_id": "CartPole-v1", "total_steps": 8_000},
    "dqn MinAtar": {"env_id": "MinAtar/Breakout-v1", "total_steps": 3_500},
    "c51": {"env_id": "CartPole-v1", "total_steps": 6_000},
    "ppo": {"env_id": "CartPole-v1", "total_steps": 12_288},
    "sac": {"env_id": "Pendulum-v1", "total_steps": 1_800},
}


def part_of(frame: FrameType | None) -> str:
    """Return what the time of a stack of calls goes to."""
    learning = "other"
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if "/dynamo_probe/" in file:
            return "probe"
        if file.endswith("agents/environments.py") or "/gymnasium/" in file:
            return "environment"
        if file.endswith(("agents/replay.py", "agents/rollout.py")):
            return "replay"
        if "/torch/optim/" in file:
            return "optimizer"
        if "/torch/autograd/" in file or (file.endswith("torch/_tensor.py")):
            learning = "backward"
        elif "/agents/" in file and "/benchmarks/" not in file:
            if function in ACTING:
                return "acting"
            if function != "train":
                learning = "forward and loss" if learning == "other" else learning
            elif learning == "other" and "/torch/" in file:
                learning = "forward and loss"
        elif "/torch/nn/" in file and learning == "other":
            learning = "forward and loss"
        frame = frame.f_back
    return learning


@contextmanager
def sampled(counts: Counter[str]) -> Iterator[None]:
    """Count what is being executed, every 2 ms of processor time."""

    def look(number: int, frame: FrameType | None) -> None:
        counts[part_of(frame)] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def measure(agent: str) -> Counter[str]:
    """Train an agent with its probe and count samples by part."""
    module = importlib.import_module(f"agents.{agent.split()[0]}")
    train: Callable[..., Any] = module.train
    shared = {"log_dir": None, "progress": False, "probe": True}
    args = module.Args(**AGENTS[agent], **shared)
    counts: Counter[str] = Counter()
    with sampled(counts):
        train(args)
    return counts


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("agents", nargs="*", help=f"any of {', '.join(AGENTS)}")
    names = parser.parse_args().agents or list(AGENTS)
    warnings.simplefilter("ignore")
    print("| agent | " + " | ".join(PARTS) + " | samples |")
    print("|---|" + "---:|" * (len(PARTS) + 1))
    for name in names:
        counts = measure(name)
        total = counts.total()
        shares = " | ".join(f"{counts[part] / total:.1%}" for part in PARTS)
        print(f"| {name} | {shares} | {total} |")


if __name__ == "__main__":
    main()
