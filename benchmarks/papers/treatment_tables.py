"""Tables of the comparison of treatments, and which setting of each is the best."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.papers.arms import OTHER_ARMS
from benchmarks.papers.continual import CONTROLS
from benchmarks.papers.tables import CONTINUAL, Row, mean_and_error

ALONE = ("base", "stationary", "step reset", *CONTROLS, "layer norm")
ARMS = (*ALONE[:-1], "redo live-mean", "redo zero", *OTHER_ARMS, "layer norm")
LATE = "... second half"

# Accuracy at the end of a task is left out: it is taken after the treatment has acted, which for a
# layer that was just reset means nothing.
COLUMNS = (
    "online accuracy, first quarter",
    LATE,
    "dormant, tau 0.025: start",
    "0.025: middle",
    "0.025: end",
    "0.1: end",
    "recycled",
    "CPU s",
)


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table with a line for each arm that was run; fractions are in per cent."""
    lines = [
        "| " + " | ".join(["arm", "seeds", *COLUMNS]) + " |",
        "|---|" + "---:|" * (1 + len(COLUMNS)),
    ]
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        if mine:
            cells = [mean_and_error([CONTINUAL[name](row) for row in mine]) for name in COLUMNS]
            lines.append("| " + " | ".join([arm, str(len(mine)), *cells]) + " |")
    return "\n".join(lines)


def family(arm: str) -> str:
    """Return an arm's name without its number: the treatment, and with which moments.

    Example:
        >>> family("regrama zero 0.01"), family("injection, early")
        ('regrama zero', 'injection')
    """
    words = arm.partition(",")[0].split() if arm.startswith("injection") else arm.split()
    return " ".join(word for word in words if not word[0].isdigit())


def best(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return {treatment: its arm with the highest accuracy while learning in the second half}."""
    means: dict[str, float] = {}
    for arm in ARMS:
        figures = [CONTINUAL[LATE](row) for row in rows if row["arm"] == arm]
        if figures and arm not in ALONE:
            means[arm] = statistics.fmean(figures)
    families: dict[str, list[str]] = {}
    for arm in means:
        families.setdefault(family(arm), []).append(arm)
    return {name: max(arms, key=means.__getitem__) for name, arms in families.items()}
