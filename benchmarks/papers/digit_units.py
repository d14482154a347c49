"""Digits whose classes trade places: do dormant units stay so, are they missed, does width help?

The training is that of `digits`; an arm is one of its arms, a setting one of its widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.papers import digits
from benchmarks.papers.continual import Setting
from benchmarks.papers.lives import Lives, of_score, persistence
from benchmarks.papers.tables import CONTINUAL, Row, mean_and_error
from benchmarks.papers.value_agents import without
from dynamo_probe.anatomy.wiring import wire
from dynamo_probe.functional import dormancy_scores

TAUS = (0.0, 0.025, 0.1)
ARMS = ("base", "stationary", "redo live-mean", "redo random", "redo inverted")
WIDTHS = (0.5, 2.0, 4.0)


def wide(factor: float) -> Setting:
    """Return the digits' setting with hidden layers of other widths."""
    inputs, *hidden, classes = digits.SETTING.widths
    scaled = (max(round(units * factor), 1) for units in hidden)
    return replace(digits.SETTING, widths=(inputs, *scaled, classes))


EXPERIMENTS: tuple[tuple[str, Setting, tuple[str, ...]], ...] = (
    ("as usual", digits.SETTING, ARMS),
    *((f"width {factor:g}", wide(factor), ("base",)) for factor in WIDTHS),
)


@dataclass(frozen=True, slots=True)
class Run(digits.Run):
    """What a run gave, beyond `digits.Run`.

    Attributes:
        overlap: {tau: (overlap of the dormant units at the end of each task but the last with those
            at the end of the last one, by chance)}.
        following: the same with those at the end of the next task.
        pruned: {what was pruned at the end: (share of units, accuracy on all samples)}; empty for
            an arm that recycles, which has just cut the dormant units off itself.
    """

    overlap: dict[float, tuple[tuple[float, float], ...]]
    following: dict[float, tuple[tuple[float, float], ...]]
    pruned: dict[str, tuple[float, float]]


def run(arm: str, seed: int, *, setting: Setting = digits.SETTING) -> Run:
    """Train one arm; see `digits.run`."""
    inputs, labels = digits.tasks(seed, setting.tasks)
    lives = Lives(setting.updates, updates=1, on=inputs)
    found = digits.run(arm, seed, setting=setting, watchers=[lives])
    # `stationary` keeps the first task's labels.
    classes = labels[0] if arm == "stationary" else labels[-1]
    return Run(
        **{field.name: getattr(found, field.name) for field in fields(found)},
        overlap={tau: persistence(lives.dormant(tau)) for tau in TAUS},
        following={tau: following(lives.dormant(tau)) for tau in TAUS},
        pruned={} if found.recycled else pruned(lives.network, inputs, classes, seed),
    )


def following(readings: Sequence[Mapping[str, Tensor]]) -> tuple[tuple[float, float], ...]:
    """Return (overlap of each reading's dormant units with those of the next one, by chance)."""
    return tuple(persistence(pair)[0] for pair in pairwise(readings))


@torch.no_grad()
def pruned(
    network: nn.Module, inputs: Tensor, classes: Tensor, seed: int
) -> dict[str, tuple[float, float]]:
    """Return {what was pruned: (share of units, accuracy)}; see `returns_when_pruned`.

    Args:
        network: as trained.
        inputs: what it is scored and tested on, `[samples, features]`.
        classes: the right ones, `[samples]`.
        seed: of the random units.
    """
    scores = dormancy_scores(network, inputs)
    wirings = wire(network, (inputs,), {}, list(scores))
    masks: dict[str, Mapping[str, Tensor]] = {"nothing": {}}
    for tau in TAUS:
        dormant = {name: layer <= tau for name, layer in scores.items()}
        masks[f"dormant, tau {tau:g}"] = dormant
        masks[f"as many random, tau {tau:g}"] = of_score(scores, dormant, seed)
        masks[f"as many most active, tau {tau:g}"] = of_score(scores, dormant, None)
    units = sum(len(layer) for layer in scores.values())
    found = {}
    for what, chosen in masks.items():
        guesses = without(network, wirings, chosen)(inputs).argmax(1)
        share = sum(int(mask.sum()) for mask in chosen.values()) / units
        found[what] = (share, (guesses == classes).float().mean().item())
    return found


COLUMNS = (
    "online accuracy, first quarter",
    "... second half",
    "dormant, tau 0.025: start",
    "0.025: end",
    "0.1: end",
    "recycled",
    "CPU s",
)


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table with a line for each arm, and one of what pruning does; all in per cent."""
    overlaps = [
        f"{which}{more}"
        for which in ("tau 0.025: dormant after task 1 and task 2", "middle and end")
        for more in ("", ", by chance")
    ]
    lines = ["| " + " | ".join(["arm", "seeds", *COLUMNS[:-1], *overlaps, COLUMNS[-1]]) + " |"]
    lines.append("|---|" + "---:|" * (1 + len(COLUMNS) + len(overlaps)))
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        cells = [mean_and_error([CONTINUAL[name](row) for row in mine]) for name in COLUMNS]
        for pair in (first_overlap, middle_overlap):
            for which in (0, 1):
                shares = [pair(row)[which] for row in mine]
                known = [100 * share for share in shares if not math.isnan(share)]
                cells.insert(-1, mean_and_error(known) if known else "-")
        lines.append("| " + " | ".join([arm, str(len(mine)), *cells]) + " |")
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm and row["pruned"]]
        if mine:
            lines += ["", f"| pruned from {arm} | seeds | share of units | accuracy |"]
            lines += ["|---|---:|---:|---:|"]
        for what in mine[0]["pruned"] if mine else ():
            share = mean_and_error([100 * row["pruned"][what][0] for row in mine])
            figure = mean_and_error([100 * row["pruned"][what][1] for row in mine])
            lines.append(f"| {what} | {len(mine)} | {share} | {figure} |")
    return "\n".join(lines)


def first_overlap(row: Row) -> tuple[float, float]:
    """Return (overlap of the dormant units after tasks 1 and 2, tau 0.025, by chance)."""
    return row["following"]["0.025"][0]


def middle_overlap(row: Row) -> tuple[float, float]:
    """Return (overlap of the dormant units of the middle task and the last, tau 0.025, chance)."""
    series = row["overlap"]["0.025"]
    return series[len(series) // 2]
