"""What the views have in common: time axes, thresholds, marks, curves by tag."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from dynamo_probe.logs.panels import Axis, Line, Mark
from dynamo_probe.logs.runlog import RunLog, Series

PREFIX = "clock/"
"""What the tags of a run's clocks begin with."""

_MOST_MARKS = 60


def nearest_tau(taus: Sequence[float], tau: float | None) -> float | None:
    """Return the threshold that is meant: None is 0.1, or the nearest that there is to it.

    Raises:
        ValueError: when a threshold is given that the log does not have.
    """
    if tau is not None and tau not in taus:
        raise ValueError(
            f"tau={tau:g} was not recorded; give one of {', '.join(f'{one:g}' for one in taus)}"
        )
    if tau is None and taus:
        return min(taus, key=lambda one: abs(one - 0.1))
    return tau


def axis_of(log: RunLog, steps: np.ndarray, walls: np.ndarray) -> Axis:
    """Return where readings lie on each axis of time.

    A clock is known at the updates that were kept of it; between them it goes in a straight line,
    and beyond them it is not known.
    """
    axis: Axis = {"updates": steps, "wall": walls}
    for tag, one in log.series.items():
        if tag.startswith(PREFIX) and len(one.steps):
            name = tag.removeprefix(PREFIX)
            known = np.interp(steps, one.steps, one.values, left=np.nan, right=np.nan)
            axis.setdefault(name, known)
    return axis


def line(
    log: RunLog,
    name: str,
    series: Series,
    style: Literal["solid", "dashed"] = "solid",
) -> Line:
    """Return a figure over time as a curve."""
    axis = axis_of(log, series.steps, series.walls)
    return Line(name, axis, np.asarray(series.values, dtype=np.float64), style)


def lines_of(log: RunLog, tags: Iterable[tuple[str, str]]) -> tuple[Line, ...]:
    """Return curves of the tags that were read, each given with its name."""
    return tuple(line(log, name, log.series[tag]) for tag, name in tags if tag in log.series)


def table_of(log: RunLog, rows: Sequence[Series]) -> tuple[Axis, np.ndarray]:
    """Put figures that were read at different updates into one table.

    Returns:
        The axis of all updates, and the values, float32 `[rows, columns]`; NaN where a row was not
        read.
    """
    walls: dict[int, float] = {}
    for row in rows:
        walls.update(zip(row.steps.tolist(), row.walls.tolist(), strict=True))
    steps = np.array(sorted(walls), dtype=np.int64)
    values = np.full((len(rows), len(steps)), np.nan, dtype=np.float32)
    for index, row in enumerate(rows):
        values[index, np.searchsorted(steps, row.steps)] = row.values
    times = np.array([walls[step] for step in steps.tolist()])
    return axis_of(log, steps, times), values


def matching(log: RunLog, pattern: str) -> list[tuple[str, re.Match[str]]]:
    """Return the tags of figures that a regular expression describes wholly, sorted."""
    expression = re.compile(pattern, re.DOTALL)
    found = [(tag, expression.fullmatch(tag)) for tag in sorted(log.series)]
    return [(tag, match) for tag, match in found if match is not None]


def marks_of(log: RunLog, kinds: Iterable[str]) -> tuple[Mark, ...]:
    """Return what happened, by kind of event; those of one update and kind are one mark."""
    wanted, found = set(kinds), dict[tuple[int, str], list[dict[str, Any]]]()
    for event in log.events:
        if event["kind"] in wanted:
            found.setdefault((event["step"], event["kind"]), []).append(event)
    keys = sorted(found)
    if len(keys) > _MOST_MARKS:  # evenly over the run, the first and the last among them
        keep = np.linspace(0, len(keys) - 1, _MOST_MARKS).round().astype(int)
        keys = [keys[index] for index in keep]
    clock, wall = _clocks(log)
    marks = []
    for step, kind in keys:
        events = found[step, kind]
        subject = events[0]["subject"] if len(events) == 1 else f"{len(events)} of them"
        at = axis_of(log, np.array([step]), np.interp([step], clock, wall))
        marks.append(Mark(f"{kind}: {subject}", {name: float(x[0]) for name, x in at.items()}))
    return tuple(marks)


def _clocks(log: RunLog) -> tuple[np.ndarray, np.ndarray]:
    """Return updates and their times, as far as they are known."""
    nothing = Series(np.empty(0), np.empty(0), np.empty(0))
    longest = max(log.series.values(), key=lambda one: len(one.steps), default=nothing)
    steps = np.array([0, *longest.steps, log.step])
    walls = np.array([log.started, *longest.walls, log.wall])
    order = np.argsort(steps, kind="stable")
    return steps[order], walls[order]
