"""Does it help to steer regrowth to dormant units, against plain growing by gradient?

RigL on MNIST-1D, as in `granet`, with the scores of `dynamo_probe.treatments.sparse.dormant` (the
idea of NeurRev, Li et al. 2024, on this engine): `keeps silent` drops negative connections into
dormant units first, `towards dormant` steers new ones there, `both` does both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import dynamo_probe as dp
from agents.runs import processor_settings
from benchmarks.papers.granet import MNIST1D, Setting, begin, watched
from benchmarks.papers.tables import Row, mean_and_error
from dynamo_probe.functional import dormancy_scores, dormant_fraction
from dynamo_probe.treatments.sparse import KeepsSilent, TowardsDormant

TAU = 0.1
STEERED = ("gradient", "keeps silent", "towards dormant", "both")
ARMS = tuple(f"{how} {sparsity}" for sparsity in (90, 95, 98) for how in STEERED)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        arm: how the exchange is steered and, after a space, the sparsity in per cent.
        seed: of weights, batches and masks.
        accuracy: on the test set after the last update.
        dormant: share of hidden units with a score of at most 0.1 on the training set, at the end.
        seconds: processor time.
    """

    arm: str
    seed: int
    accuracy: float
    dormant: float
    seconds: float


def run(arm: str, seed: int, *, setting: Setting = MNIST1D) -> Run:
    """Train one arm."""
    if arm not in ARMS:
        raise ValueError(f"the arm is {arm!r}; give one of {', '.join(ARMS)}")
    started = time.process_time()
    how, _, sparsity = arm.rpartition(" ")
    sparse = dp.RigL(
        round(1 - int(sparsity) / 100, 2),
        stop=round(setting.updates * setting.turnover_until),
        every=setting.mask_every,
        turnover=setting.turnover,
        include=["*"],
        prune=KeepsSilent(TAU) if how in ("keeps silent", "both") else "magnitude",
        grow=TowardsDormant(TAU) if how in ("towards dormant", "both") else "gradient",
    )
    with processor_settings(threads=1):
        training = begin(setting, seed)
        with watched(training, sparse, seed):
            for _ in range(setting.updates):
                training.update()
                training.schedule.step()
        scores = dormancy_scores(training.network, training.data.inputs)
        return Run(
            arm=arm,
            seed=seed,
            accuracy=training.accuracy(),
            dormant=dormant_fraction(torch.cat(list(scores.values())), TAU),
            seconds=time.process_time() - started,
        )


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table of accuracy, of its difference to plain RigL, and of dormant units."""
    lines = ["| arm | seeds | accuracy | - gradient | dormant |", "|---|" + "---:|" * 4]
    found = {(row["arm"], row["seed"]): row for row in rows}
    for arm in arms:
        mine = [row for (name, _), row in sorted(found.items()) if name == arm]
        plain = [found[f"gradient {arm.rpartition(' ')[2]}", row["seed"]] for row in mine]
        differences = [
            100 * (row["accuracy"] - other["accuracy"])
            for row, other in zip(mine, plain, strict=True)
        ]
        cells = [
            str(len(mine)),
            mean_and_error([100 * row["accuracy"] for row in mine]),
            mean_and_error(differences),
            mean_and_error([100 * row["dormant"] for row in mine]),
        ]
        lines.append("| " + " | ".join([arm, *cells]) + " |")
    return "\n".join(lines)
