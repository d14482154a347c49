"""The final numbers of a panel, as a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynamo_probe.logs.panels import Bars, Grid, Line, Lines, Map, Panel, Raster
from dynamo_probe.report.clock import Clock, axes_of, chosen_tau, clock
from dynamo_probe.report.states import states
from dynamo_probe.report.texts import number

MOST = 50
"""Rows that a table has; a text says how many more there are."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: texts only.

    Attributes:
        head: the columns.
        rows: the first column names a row.
        more: rows that were left out.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: int = 0


def final(
    panel: Panel,
    axis: str = "updates",
    *,
    tau: float | None = None,
    origin: float | None = None,
) -> Table:
    """Return the newest numbers of a panel; the arguments are those of `draw`."""
    time = clock(axes_of(panel), axis, origin)
    if isinstance(panel, Lines):
        head = ("line", "last", f"at ({time.unit})", "first", "smallest", "largest")
        return _table(head, [_line(line, time) for line in panel.lines])
    if isinstance(panel, Bars):
        pairs = zip(panel.categories, panel.values, strict=False)
        return _table((panel.x, panel.y), [(name, number(float(one))) for name, one in pairs])
    if isinstance(panel, Map):
        return _map(panel, time)
    if isinstance(panel, Raster):
        return _raster(panel, tau)
    return _grid(panel)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    return Table(head, tuple(rows[:MOST]), max(0, len(rows) - MOST))


def _line(line: Line, time: Clock) -> tuple[str, ...]:
    x, y = time.at(line.axis), np.asarray(line.values, np.float64)
    there = np.flatnonzero(np.isfinite(y))
    if not len(there):
        return (line.name, *["not read"] * 5)
    own = y[there]
    figures = (own[-1], x[there[-1]], own[0], own.min(), own.max())
    return (line.name, *(number(float(one)) for one in figures))


def _map(panel: Map, time: Clock) -> Table:
    x, rows = time.at(panel.axis), list[tuple[str, ...]]()
    for name, own in zip(panel.rows, np.asarray(panel.values, np.float64), strict=False):
        there = np.flatnonzero(np.isfinite(own))
        if len(there):
            last = there[-1]
            figures = (own[last], x[last], own[there].max())
            rows.append((name, *(number(float(one)) for one in figures)))
        else:
            rows.append((name, *["not read"] * 3))
    return _table((panel.row, "last", f"at ({time.unit})", "largest"), rows)


def _raster(panel: Raster, tau: float | None) -> Table:
    place = chosen_tau(panel.taus, tau)
    found = states(panel.codes, place, len(panel.taus))
    columns = (0, -1) if found.size else ()
    rows: list[tuple[str, ...]] = [
        (name, *(f"{int((found[:, at] == code).sum()):,}" for at in columns))
        for code, name in enumerate(("dormant", "live", "pruned", "not read"))
    ]
    head = ("units", "first", "last") if columns else ("units",)
    rows.append(("recycled until then", "", f"{len(panel.recycled):,}")[: len(head)])
    return _table(head, rows)


def _grid(panel: Grid) -> Table:
    head = ("layer", "head", panel.z)
    if not panel.frames.size:
        return _table(head, [])
    last = np.asarray(panel.frames[-1], np.float64)
    order = np.argsort(-np.where(np.isfinite(last), last, -np.inf), axis=None, kind="stable")
    order = order[: int(np.isfinite(last).sum())]
    rows: list[tuple[str, ...]] = []
    for place in order:
        row, column = np.unravel_index(int(place), last.shape)
        value = number(float(last[row, column]))
        rows.append((panel.rows[int(row)], panel.columns[int(column)], value))
    return _table(head, rows)
