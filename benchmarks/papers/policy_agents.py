"""PPO on CartPole: do units go dormant on-policy, and what does the learning rate do?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dynamo_probe as dp
from agents import ppo
from benchmarks.papers.tables import Row, mean_and_error

TAUS = (0.0, 0.025, 0.1)
ARMS = ("lr 3e-4", "lr 1e-3", "lr 3e-3", "lr 1e-2", "lr 3e-3, redo", "lr 3e-3, tanh")


@dataclass(frozen=True, slots=True)
class Setting:
    """What shapes the training; everything else is as in `ppo.Args`.

    Attributes:
        steps: of the environments.
        read_every: updates between two readings.
        redo_every: updates between two recyclings, at tau 0.025.
    """

    steps: int = 50_000
    read_every: int = 400
    redo_every: int = 800


SETTING = Setting()


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        arm: which learning rate, and what else.
        seed: of networks, environments, actions and batches.
        dormant: {tau: dormant fraction of actor and critic at each reading, from update 1 on}.
        overlap: of successive sets of dormant units (tau 0.1), mean over the second half.
        returns: mean return of all episodes in each fifth of the steps.
        seconds: processor time.
    """

    arm: str
    seed: int
    dormant: dict[float, tuple[float, ...]]
    overlap: float
    returns: tuple[float, ...]
    seconds: float


def run(arm: str, seed: int, *, setting: Setting = SETTING) -> Run:
    """Train one arm."""
    if arm not in ARMS:
        raise ValueError(f"the arm is {arm!r}; give one of {', '.join(ARMS)}")
    started = time.process_time()
    rate, _, more = arm.removeprefix("lr ").partition(", ")
    instruments: list[dp.Instrument] = [dp.Dormancy(TAUS, setting.read_every, updates=16)]
    if more == "redo":
        instruments.append(dp.ReDo(0.025, setting.redo_every, updates=4))
    args = ppo.Args(
        total_steps=setting.steps,
        learning_rate=float(rate),
        activation="tanh" if more == "tanh" else "relu",
        seed=seed,
        log_dir=None,
        progress=False,
    )
    result = ppo.train(args, lambda _: instruments)
    edges = [setting.steps * fifth // 5 for fifth in range(6)]
    parts = [
        result.episode_returns[(result.episode_steps > low) & (result.episode_steps <= high)]
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    overlaps = result.readings["dormancy/overlap"][1]
    return Run(
        arm=arm,
        seed=seed,
        dormant={t: tuple(map(float, result.readings[f"dormancy/tau={t}"][1])) for t in TAUS},
        overlap=float(overlaps[len(overlaps) // 2 :].mean()),
        returns=tuple(float(part.mean()) if len(part) else float("nan") for part in parts),
        seconds=time.process_time() - started,
    )


COLUMNS: dict[str, Callable[[Row], float]] = {
    "dormant, tau 0.025: update 1": lambda row: 100 * row["dormant"]["0.025"][0],
    "middle": lambda row: 100 * row["dormant"]["0.025"][len(row["dormant"]["0.025"]) // 2],
    "end": lambda row: 100 * row["dormant"]["0.025"][-1],
    "0.1: end": lambda row: 100 * row["dormant"]["0.1"][-1],
    "0: end": lambda row: 100 * row["dormant"]["0.0"][-1],
    "overlap": lambda row: 100 * row["overlap"],
    "return, second fifth": lambda row: row["returns"][1],
    "last fifth": lambda row: row["returns"][-1],
    "CPU s": lambda row: row["seconds"],
}


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table with a line for each arm; fractions are in per cent."""
    lines = ["| " + " | ".join(["arm", "seeds", *COLUMNS]) + " |"]
    lines.append("|---|" + "---:|" * (1 + len(COLUMNS)))
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        figures = []
        for figure in COLUMNS.values():
            values = [x for x in map(figure, mine) if x == x]
            figures.append(mean_and_error(values) if values else "-")
        lines.append("| " + " | ".join([arm, str(len(mine)), *figures]) + " |")
    return "\n".join(lines)
