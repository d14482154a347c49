"""Figures in words: alternative texts, with their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynamo_probe.logs.panels import Bars, Grid, Line, Lines, Map, Mark, Panel, Raster
from dynamo_probe.report.clock import Clock, axes_of, chosen_tau, clock, frames
from dynamo_probe.report.states import states
from dynamo_probe.report.texts import counted, cut, number

_NAMED = 8
"""Lines, bars or marks that a text names."""


def alternative(
    panel: Panel,
    axis: str = "updates",
    *,
    tau: float | None = None,
    origin: float | None = None,
) -> str:
    """Say in words what the figure of a panel shows; the arguments are those of `draw`."""
    time = clock(axes_of(panel), axis, origin)
    if isinstance(panel, Lines):
        sentences = _lines(panel, time)
    elif isinstance(panel, Bars):
        sentences = _bars(panel)
    elif isinstance(panel, Map):
        sentences = _map(panel, time)
    elif isinstance(panel, Raster):
        sentences = _raster(panel, time, tau)
    else:
        sentences = _grid(panel, time)
    return " ".join(sentence for sentence in sentences if sentence)


def _said(name: str) -> str:
    return cut(name, 60)


def _lines(panel: Lines, time: Clock) -> list[str]:
    scale = ", logarithmic" if panel.logarithmic else ""
    ends = [line.values[np.isfinite(line.values)] for line in panel.lines[_NAMED:]]
    last = [float(values[-1]) for values in ends if len(values)]
    between = f", ending between {number(min(last))} and {number(max(last))}" if last else ""
    rest = len(panel.lines) - _NAMED
    return [
        f'Line chart "{_said(panel.title)}": {_said(panel.y)}{scale}, over {time.label}.',
        f"{counted(len(panel.lines), 'line')}." if panel.lines else "Nothing was read.",
        *(_line(line, time) for line in panel.lines[:_NAMED]),
        f"And {counted(rest, 'more line')}{between}." if rest > 0 else "",
        _marks(panel.marks, time),
    ]


def _line(line: Line, time: Clock) -> str:
    x, y = time.at(line.axis), np.asarray(line.values, np.float64)
    there = np.flatnonzero(np.isfinite(y) & np.isfinite(x))
    dashed = " (dashed)" if line.style == "dashed" else ""
    if not len(there):
        return f"{_said(line.name)}{dashed}: nothing was read."
    low, high = there[np.argmin(y[there])], there[np.argmax(y[there])]
    gaps = len(y) - len(there)

    def told(place: int) -> str:
        return f"{number(float(y[place]))} at {time.said(float(x[place]))}"

    return (
        f"{_said(line.name)}{dashed}: first {told(there[0])}, last {told(there[-1])}, "
        f"smallest {told(low)}, largest {told(high)}"
        + (f"; {counted(gaps, 'reading')} missing." if gaps else ".")
    )


def _marks(marks: Sequence[Mark], time: Clock) -> str:
    if not marks:
        return ""
    told = [f"{_said(one.label)} at {time.said(time.mark(one.at))}" for one in marks[:_NAMED]]
    rest = f", and {len(marks) - _NAMED:,} more" if len(marks) > _NAMED else ""
    return f"Marked: {', '.join(told)}{rest}."


def _bars(panel: Bars) -> list[str]:
    values = np.asarray(panel.values, np.float64)
    head = f'Bar chart "{_said(panel.title)}": {_said(panel.y)} by {_said(panel.x)}.'
    if not np.isfinite(values).any():
        return [head, "Nothing was read."]
    pairs = list(zip(panel.categories, values, strict=False))

    def told(place: int) -> str:
        return f"{_said(panel.categories[place])}: {number(float(values[place]))}"

    if len(pairs) <= _NAMED:
        text = "; ".join(told(place) for place in range(len(pairs)))
    else:
        low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
        text = f"First {told(0)}; last {told(len(pairs) - 1)}; smallest {told(low)}; "
        text += f"largest {told(high)}"
    return [head, f"{counted(len(pairs), 'bar')}.", f"{text}."]


def _map(panel: Map, time: Clock) -> list[str]:
    values = np.asarray(panel.values, np.float64)
    x = time.at(panel.axis)
    low, high = map(number, panel.range)
    head = (
        f'Heatmap "{_said(panel.title)}": {_said(panel.z)} of {counted(len(panel.rows), panel.row)}'
        f", over {time.label}, coloured from {low} to {high}."
    )
    there = np.isfinite(values)
    if not there.any():
        return [head, "Nothing was read."]
    columns = np.flatnonzero(there.any(0))
    first, last = int(columns[0]), int(columns[-1])

    def column(place: int, word: str) -> str:
        own = values[:, place]
        most, least = int(np.nanargmax(own)), int(np.nanargmin(own))
        return (
            f"{word}, at {time.said(float(x[place]))}: largest {number(float(own[most]))} "
            f"({_said(panel.rows[most])}), smallest {number(float(own[least]))} "
            f"({_said(panel.rows[least])}), mean {number(float(np.nanmean(own)))}."
        )

    row, at = np.unravel_index(int(np.nanargmax(values)), values.shape)
    peak = number(float(values[row, at]))
    share = float(1 - there.mean())
    return [
        head,
        column(first, "First"),
        column(last, "Last"),
        f"Largest of all: {peak} ({_said(panel.rows[int(row)])}) at {time.said(float(x[at]))}.",
        f"{_percent(share)} of it was not read (grey)." if share else "",
        _marks(panel.marks, time),
    ]


def _percent(share: float) -> str:
    return "under 0.1 %" if 0 < share < 0.001 else f"{number(round(100 * share, 1))} %"


def _raster(panel: Raster, time: Clock, tau: float | None) -> list[str]:
    place = chosen_tau(panel.taus, tau)
    found = states(panel.codes, place, len(panel.taus))
    threshold = f" at tau {number(panel.taus[place])}" if panel.taus else ""
    kept = f"{len(panel.units):,} of {counted(panel.of, 'unit')}"
    head = f'Raster "{_said(panel.title)}": {kept}, over {time.label}{threshold}.'
    alive = found <= 1
    there = np.flatnonzero(alive.any(0)) if found.size else np.array([], int)
    if not len(there):
        return [head, "Nothing was read."]
    x = time.at(panel.axis)
    shares = (found == 0).sum(0)[there] / alive.sum(0)[there]
    low, high = int(np.argmin(shares)), int(np.argmax(shares))

    def told(place: int) -> str:
        return f"{_percent(float(shares[place]))} at {time.said(float(x[there[place]]))}"

    pruned = int((found[:, -1] == 2).sum())
    return [
        head,
        f"Dormant of those read: first {told(0)}, last {told(-1)}, "
        f"smallest {told(low)}, largest {told(high)}.",
        f"{counted(pruned, 'unit')} pruned at the end." if pruned else "",
        f"{_percent(float((found == 3).mean()))} was not read (grey)." if 3 in found else "",
        _recycled(panel),
    ]


def _recycled(panel: Raster) -> str:
    if not len(panel.recycled):
        return "None was recycled."
    steps = panel.recycled[:, 1]
    return (
        f"{counted(len(steps), 'recycling')}, "
        f"from update {int(steps.min()):,} to update {int(steps.max()):,}."
    )


def _grid(panel: Grid, time: Clock) -> list[str]:
    values = np.asarray(panel.frames, np.float64)
    x = time.at(panel.axis)
    shown = frames(panel.axis)
    head = (
        f'Grid "{_said(panel.title)}": {_said(panel.z)} of {counted(len(panel.rows), "layer")} '
        f"with up to {counted(len(panel.columns), 'head')}, {counted(len(shown), 'frame')}."
    )

    def frame(place: int) -> str:
        own, when = values[place], time.said(float(x[place]))
        if not np.isfinite(own).any():
            return f"At {when}: nothing was read."
        row, column = np.unravel_index(int(np.nanargmax(own)), own.shape)
        return (
            f"At {when}: largest {number(float(own[row, column]))} "
            f"({_said(panel.rows[int(row)])}, {_said(panel.columns[int(column)])}), "
            f"smallest {number(float(np.nanmin(own)))}, mean {number(float(np.nanmean(own)))}."
        )

    said = [frame(place) for place in shown] if values.size else ["Nothing was read."]
    return [head, *said, _marks(panel.marks, time)]
