"""The view of attention heads, and of the data that repeats."""

from __future__ import annotations

import re

import numpy as np

from dynamo_probe.logs.choosing import axis_of, line, lines_of, marks_of, matching
from dynamo_probe.logs.panels import Bars, Grid, Lines, Panel, View
from dynamo_probe.logs.runlog import RunLog

_NOTHING = (
    "No attention heads were recorded: add dp.Induction(every=100, vocab_size=...) or "
    "dp.Repetition() to the instruments of dp.watch."
)
_HELP = {
    "prefix_matching": (
        "Prefix matching",
        "Attention mass on all tokens that followed earlier copies of the current token, averaged "
        "over the queries that have one. Near 1: an induction head.",
    ),
    "previous_token": (
        "Previous token",
        "Attention mass on the token before. Induction heads stand on such a head in an earlier "
        "layer.",
    ),
    "duplicate_token": ("Duplicate token", "Attention mass on earlier copies of the same token."),
    "sink": ("Sink", "Attention mass on the first token of the sequence."),
}


def heads(log: RunLog) -> View:
    """Return the view of heads."""
    panels = [*_grids(log), *_curves(log), *_repetition(log)]
    return View("heads", tuple(panels), empty="" if panels else _NOTHING)


def _grids(log: RunLog) -> list[Panel]:
    panels: list[Panel] = []
    marks = marks_of(log, ["formed", "alert"])
    for probe in sorted({tag.split("/")[0] for tag in log.arrays if tag.endswith("_by_head")}):
        layers = log.series.get(f"{probe}/layers")
        for score, (title, help) in _HELP.items():
            one = log.arrays.get(f"{probe}/{score}_by_head")
            if one is None or layers is None or not len(one.values):
                continue
            rows = int(layers.values[-1])
            if rows < 1 or one.values.shape[1] % rows:
                continue
            frames = one.values.reshape(len(one.values), rows, -1)
            panels.append(
                Grid(
                    key=f"{probe}-{score}".replace("_", "-"),
                    title=title if probe == "induction" else f"{title} ({probe})",
                    rows=tuple(f"layer {row}" for row in range(rows)),
                    columns=tuple(f"head {column}" for column in range(frames.shape[2])),
                    axis=axis_of(log, one.steps, one.walls),
                    frames=frames,
                    z="attention mass",
                    range=(0.0, 1.0),
                    help=help,
                    marks=marks,
                )
            )
    return panels


def _curves(log: RunLog) -> list[Panel]:
    panels: list[Panel] = []
    marks = marks_of(log, ["formed", "alert"])
    scores = [
        ("induction/top", "prefix matching"),
        ("induction/previous_token", "previous token"),
        ("induction/duplicate_token", "duplicate token"),
        ("induction/sink", "sink"),
    ]
    lines = list(lines_of(log, scores))
    if "induction/chance" in log.series:
        lines.append(line(log, "chance", log.series["induction/chance"], "dashed"))
    if lines:
        title = "The strongest head of each kind"
        panels.append(Lines("strongest", title, "attention mass", tuple(lines), marks=marks))
    damage = [
        (tag, match[1].replace("_", " "))
        for tag, match in matching(log, r"induction/(damage|damage_vs_reference)")
    ]
    if lines := lines_of(log, damage):
        help = "What is lost of the sum of prefix matching, against the best so far."
        panels.append(Lines("damage", "Damage", "fraction lost", lines, help, marks=marks))
    copying = [
        ("induction/copy_loss", "loss on copied tokens"),
        ("induction/copy_gap", "gain over fresh tokens"),
    ]
    if lines := lines_of(log, copying):
        panels.append(Lines("copying", "Copying", "nats a token", lines, marks=marks))
    return panels


def _repetition(log: RunLog) -> list[Panel]:
    panels: list[Panel] = []
    shares = [("repetition/fraction", "repeated"), ("repetition/false", "false alarms, expected")]
    if lines := lines_of(log, shares):
        marks = marks_of(log, ["alert"])
        title = "Repeated tokens in the training's batches"
        panels.append(Lines("repeated", title, "fraction of tokens", lines, marks=marks))
    newest = [
        (match[1], float(log.series[tag].values[-1]))
        for tag, match in matching(log, r"repetition/(fresh|repeats=.+)")
    ]
    if newest:
        newest.sort(key=lambda one: _first_number(one[0]))
        panels.append(
            Bars(
                key="repeats",
                title=f"How often the text of a token has been seen, update {log.step:,}",
                y="fraction of tokens",
                x="times seen",
                categories=tuple(name.removeprefix("repeats=") for name, _ in newest),
                values=np.array([value for _, value in newest]),
                help="Of the newest reading. A long tail to the right is data seen over and over.",
            )
        )
    losses = [
        (tag, match[1].removeprefix("repeats="))
        for tag, match in matching(log, r"repetition/loss/(.+)")
    ]
    if lines := lines_of(log, losses):
        help = "Repeated text that is far below fresh text is being memorised."
        title = "Loss by how often a token's text was seen"
        panels.append(Lines("loss-by-repeats", title, "nats a token", lines, help))
    return panels


def _first_number(name: str) -> tuple[int, int]:
    found = re.search(r"\d+", name)
    return (0, 0) if name == "fresh" else (2, 0) if found is None else (1, int(found[0]))
