"""The kind of time that a figure is drawn over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dynamo_probe.logs.panels import Axis, Bars, Lines, Panel
from dynamo_probe.report.texts import clean, number

_WALL = (("seconds", 1.0, 180.0), ("minutes", 60.0, 10800.0), ("hours", 3600.0, 259200.0))


@dataclass(frozen=True, slots=True)
class Clock:
    """Where things lie on the horizontal axis of a figure.

    Attributes:
        name: of the axis: `updates`, `wall`, or a clock of the run.
        label: for the axis, with the unit.
        unit: what a number on the axis counts.
        start: what is subtracted.
        scale: what is divided by.
    """

    name: str
    label: str
    unit: str
    start: float = 0.0
    scale: float = 1.0

    def at(self, axis: Axis) -> np.ndarray:
        """Return where the points of an axis lie, float64 `[points]`; NaN where nobody knows."""
        values = axis.get(self.name)
        if values is None:
            return np.full(len(axis["updates"]), np.nan)
        return (np.asarray(values, np.float64) - self.start) / self.scale

    def mark(self, at: Mapping[str, float]) -> float:
        """Return where something that happened lies; NaN where nobody knows."""
        return (float(at.get(self.name, np.nan)) - self.start) / self.scale

    def said(self, value: float) -> str:
        """Return a time in words."""
        if np.isnan(value):
            return "an unknown time"
        said = number(value)
        return f"update {said}" if self.name == "updates" else f"{said} {self.unit}"


def clock(axes: Iterable[Axis], axis: str = "updates", origin: float | None = None) -> Clock:
    """Return the clock of a figure: the one that was asked for, updates where it is not known.

    Args:
        axes: those of the things in the figure.
        axis: what was asked for.
        origin: when wall time begins, seconds since 1970; None for the first point.
    """
    filled = [one for one in axes if len(one["updates"])]
    known = filled and all(axis in one and np.isfinite(one[axis]).any() for one in filled)
    if axis == "updates" or not known:
        missing = f"; {clean(axis)[:40]}: not known here" if filled and not known else ""
        return Clock("updates", f"time (updates{missing})", "updates")
    if axis != "wall":
        name = clean(axis)[:40]
        return Clock(axis, f"time ({name})", name)
    walls = [one["wall"][np.isfinite(one["wall"])] for one in filled]
    start = min(float(wall.min()) for wall in walls) if origin is None else origin
    span = max(float(wall.max()) for wall in walls) - start
    unit, scale = next(((u, s) for u, s, most in _WALL if span < most), ("days", 86400.0))
    return Clock("wall", f"wall time since the first reading ({unit})", unit, start, scale)


def axes_of(panel: Panel) -> tuple[Axis, ...]:
    """Return the axes of the things in a panel; of bars, none."""
    if isinstance(panel, Bars):
        return ()
    return tuple(line.axis for line in panel.lines) if isinstance(panel, Lines) else (panel.axis,)


def first_wall(panels: Iterable[Any]) -> float | None:
    """Return when the first point of some panels was read, seconds since 1970."""
    walls = [one["wall"] for panel in panels for one in axes_of(panel)]
    finite = [wall[np.isfinite(wall)] for wall in walls]
    return min((float(wall.min()) for wall in finite if len(wall)), default=None)


def chosen_tau(taus: tuple[float, ...], tau: float | None) -> int:
    """Return the place of the threshold that is nearest to `tau`; of the last for None.

    Example:
        >>> chosen_tau((0.0, 0.025, 0.1), 0.1)
        2
    """
    if tau is None or not taus:
        return len(taus) - 1
    return int(np.argmin(np.abs(np.asarray(taus) - tau)))


def frames(axis: Axis, most: int = 6) -> list[int]:
    """Return which frames are shown: the first, the last, and evenly on a log axis between.

    Example:
        >>> import numpy as np
        >>> frames({"updates": np.arange(0, 1001)}, 4)
        [0, 9, 99, 1000]
    """
    steps = np.asarray(axis["updates"], np.float64)
    if len(steps) <= most:
        return list(range(len(steps)))
    when = np.log(np.maximum(steps - steps[0] + 1, 1.0))
    nearest = {int(np.argmin(np.abs(when - one))) for one in np.linspace(0, when[-1], most)}
    found = sorted(nearest | {0, len(steps) - 1})
    while len(found) < most:  # two were nearest to the same: halve the widest gap
        gaps = [
            (when[after] - when[before], before, after)
            for before, after in pairwise(found)
            if after - before > 1
        ]
        _, before, after = max(gaps)
        half = (when[before] + when[after]) / 2
        found.append(before + 1 + int(np.argmin(np.abs(when[before + 1 : after] - half))))
        found.sort()
    return found
