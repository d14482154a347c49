"""Markdown tables of results: mean and standard error over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def mean_and_error(values: Sequence[float], digits: int = 1) -> str:
    """Return `mean ± standard error of the mean`; no error from a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def _percent(figure: Callable[[Row], float]) -> Callable[[Row], float]:
    return lambda row: 100 * figure(row)


def _dormant(tau: str, index: int) -> Callable[[Row], float]:
    return _percent(lambda row: row["dormant"][tau][index])


def _online(first: int, last: int) -> Callable[[Row], float]:
    return _percent(lambda row: statistics.fmean(row["online_accuracy"][first:last]))


CONTINUAL: dict[str, Callable[[Row], float]] = {
    "online accuracy, first quarter": lambda row: _online(0, _tasks(row) // 4)(row),
    "... second half": lambda row: _online(_tasks(row) // 2, _tasks(row))(row),
    "accuracy at the end of the last task": _percent(lambda row: row["accuracy"][-1]),
    "dormant, tau 0.025: start": _dormant("0.025", 0),
    "0.025: middle": lambda row: _dormant("0.025", _tasks(row) // 2)(row),
    "0.025: end": _dormant("0.025", -1),
    "0.1: start": _dormant("0.1", 0),
    "0.1: end": _dormant("0.1", -1),
    "recycled": lambda row: row["recycled"],
    "CPU s": lambda row: row["seconds"],
}
CARTPOLE: dict[str, Callable[[Row], float]] = {
    "dormant, tau 0.025: start": _dormant("0.025", 0),
    "0.025: end": _dormant("0.025", -1),
    "0.1: start": _dormant("0.1", 0),
    "0.1: end": _dormant("0.1", -1),
    "dead at the end": _dormant("0.0", -1),
    "recycled": lambda row: row["recycled"],
    "return of the last 20 episodes": lambda row: row["last_return"],
    "CPU s": lambda row: row["seconds"],
}


def _tasks(row: Row) -> int:
    return len(row["online_accuracy"])


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table with a line for each arm; fractions are in per cent."""
    columns = CONTINUAL if "online_accuracy" in rows[0] else CARTPOLE
    lines = [
        "| " + " | ".join(["arm", "seeds", *columns]) + " |",
        "|---|" + "---:|" * (1 + len(columns)),
    ]
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        figures = [mean_and_error([figure(row) for row in mine]) for figure in columns.values()]
        lines.append("| " + " | ".join([arm, str(len(mine)), *figures]) + " |")
    return "\n".join(lines)
