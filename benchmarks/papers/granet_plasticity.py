"""Pruning plasticity over training: what a network regains after pruning, learning rate frozen.

A dense network trains; at some times `pruning_plasticity` prunes copies of it and trains them on
(Liu et al. 2021, section 3). Early in training what is regained has ordinary progress in it;
`versus_control` compares with the same network trained on for as long without pruning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from agents.runs import processor_settings
from benchmarks.papers.granet import Setting as Training
from benchmarks.papers.granet import begin
from benchmarks.papers.tables import Row, mean_and_error
from dynamo_probe.functional.plasticity import pruning_plasticity
from dynamo_probe.functional.plasticity_report import PlasticityReport, Recovery

REGENERATIONS: dict[str, dict[str, Any]] = {
    "none": {"regenerate": None},
    "restore": {"regenerate": "restore"},
    "zero-cost gradient": {"regenerate": "zero-cost", "growth": "gradient"},
    "zero-cost random": {"regenerate": "zero-cost", "growth": "random"},
}
ARMS = tuple(REGENERATIONS)


@dataclass(frozen=True, slots=True)
class Setting:
    """What shapes the training and the measurements.

    Attributes:
        training: of the dense network.
        at: shares of training after which it is measured.
        rates: shares of all weights that are pruned, the smallest anywhere.
        updates: that a pruned network is trained on.
        turnover: share of a layer's connections that `zero-cost` exchanges.
    """

    training: Training = Training("mnist1d", (40, 128, 128, 10), updates=800)
    at: tuple[float, ...] = (0.02, 0.05, 0.1, 0.25, 0.45, 0.55, 0.6, 0.7, 0.85, 1.0)
    rates: tuple[float, ...] = (0.5, 0.9, 0.95)
    updates: int = 150
    turnover: float = 0.3


SETTING = Setting()


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave; accuracies are on the test set, and a tuple has an entry for each time.

    Attributes:
        arm: what comes back right after pruning. `none`; `restore` lets as many come as were
            pruned, which from a dense network is all of them, at 0; `zero-cost` drops more and lets
            as many come, so that the sparsity stays.
        seed: of weights and batches.
        at: shares of training after which it was measured.
        learning_rates: at which it was trained on.
        before: accuracies just before.
        control: accuracies of the unpruned network, trained on as long.
        immediate: {rate: accuracies just after pruning less those before}.
        plasticity: {rate: accuracies after training on less those before}.
        versus_control: {rate: the same less the control's}.
        seconds: processor time.
    """

    arm: str
    seed: int
    at: tuple[float, ...]
    learning_rates: tuple[float, ...]
    before: tuple[float, ...]
    control: tuple[float, ...]
    immediate: dict[float, tuple[float, ...]]
    plasticity: dict[float, tuple[float, ...]]
    versus_control: dict[float, tuple[float, ...]]
    seconds: float


def run(arm: str, seed: int, *, setting: Setting = SETTING) -> Run:
    """Train a dense network and measure its pruning plasticity on the way."""
    if arm not in ARMS:
        raise ValueError(f"the arm is {arm!r}; give one of {', '.join(ARMS)}")
    started = time.process_time()
    reports: list[PlasticityReport] = []
    due = [round(share * setting.training.updates) for share in setting.at]
    with processor_settings(threads=1):
        training = begin(setting.training, seed)
        # Every pruned network sees the same batches, and not those of the training.
        generator = torch.Generator().manual_seed(1_000_000 + seed)

        def train_step() -> None:
            rows = torch.randperm(len(training.data.inputs), generator=generator)
            training.update_on(rows[: setting.training.batch_size])

        for update in range(1, setting.training.updates + 1):
            training.update()
            if update in due:
                reports.append(
                    pruning_plasticity(
                        training.network,
                        training.optimizer,
                        train_step,
                        training.accuracy,
                        rates=setting.rates,
                        updates=setting.updates,
                        turnover=setting.turnover,
                        curve_every=setting.updates,
                        also=[generator],
                        **REGENERATIONS[arm],
                    )
                )
            training.schedule.step()

    def by_rate(figure: Callable[[Recovery], float]) -> dict[float, tuple[float, ...]]:
        return {
            rate: tuple(figure(report.records[i]) for report in reports)
            for i, rate in enumerate(setting.rates)
        }

    return Run(
        arm=arm,
        seed=seed,
        at=setting.at,
        learning_rates=tuple(report.learning_rates[0] for report in reports),
        before=tuple(report.before for report in reports),
        control=tuple(report.control.scores[-1] for report in reports),
        immediate=by_rate(lambda record: record.immediate),
        plasticity=by_rate(lambda record: record.plasticity),
        versus_control=by_rate(lambda record: record.plasticity_vs_control),
        seconds=time.process_time() - started,
    )


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table of points of accuracy, a line for each rate and arm, a column for a time.

    The difference from the unpruned control is shown for pruning without regeneration only.
    """
    at = rows[0]["at"]
    rates = sorted(rows[0]["plasticity"], key=float)
    lines = [
        "| "
        + " | ".join(["pruned", "regeneration", "figure", *(f"t/T {share:g}" for share in at)])
        + " |",
        "|---|---|---|" + "---:|" * len(at),
        _line(["", "", "accuracy before"], rows, lambda row: row["before"]),
        _line(["", "", "unpruned control, gain"], rows, _gain),
    ]
    for figure, shown in (("plasticity", arms), ("versus_control", ("none",))):
        for rate in rates:
            for arm in (arm for arm in shown if arm in arms):
                mine = [row for row in rows if row["arm"] == arm]
                head = [f"{100 * float(rate):g} %", arm, figure.replace("_", " ")]
                lines.append(_line(head, mine, lambda row, f=figure, r=rate: row[f][r]))
    return "\n".join(lines)


def _gain(row: Row) -> list[float]:
    return [after - before for after, before in zip(row["control"], row["before"], strict=True)]


def _line(
    head: Sequence[str], rows: Sequence[Row], figure: Callable[[Row], Sequence[float]]
) -> str:
    columns = zip(*(figure(row) for row in rows), strict=True)
    cells = [mean_and_error([100 * value for value in column]) for column in columns]
    return "| " + " | ".join([*head, *cells]) + " |"
