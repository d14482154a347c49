"""Panels: what a view shows, as plain figures. The tab and the report draw the same ones.

A panel knows nothing of colours or pixels. Its texts come from the library; names of layers, tags
and runs are data and may hold anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Axis = dict[str, np.ndarray]
"""Where the points of a line or the columns of a map lie, `[points]` for each kind of time:
`updates` (int64) and `wall` (float64, seconds since 1970) are always there, and one more for each
clock of the run, such as `environment steps`; NaN where a clock did not say."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened.

    Attributes:
        label: in a few words.
        at: when, on each axis.
    """

    label: str
    at: dict[str, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve.

    Attributes:
        name: what it is called in the legend.
        axis: where its points lie.
        values: float64 `[points]`; NaN is a gap.
        style: `solid`, or `dashed` for targets and controls.
    """

    name: str
    axis: Axis
    values: np.ndarray
    style: Literal["solid", "dashed"] = "solid"


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over time.

    Attributes:
        key: names the panel within its view, for links and files; letters and dashes.
        title: above it.
        y: what is on the vertical axis, with its unit.
        lines: the curves.
        help: how to read it, in a sentence or two.
        marks: what happened meanwhile.
        logarithmic: whether the vertical axis is.
    """

    key: str
    title: str
    y: str
    lines: tuple[Line, ...]
    help: str = ""
    marks: tuple[Mark, ...] = ()
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Map:
    """A heatmap: rows over time.

    Attributes:
        key, title, help, marks: as those of `Lines`.
        rows: what each row is, from top to bottom.
        row: what rows are: `layer`, `unit`, ...
        axis: where the columns lie.
        values: float32 `[rows, columns]`; NaN where nothing was read.
        z: what the values are, with their unit.
        range: the values of the ends of the colour scale.
        opens: the view that a click on a row opens; None for none.
    """

    key: str
    title: str
    rows: tuple[str, ...]
    row: str
    axis: Axis
    values: np.ndarray
    z: str
    range: tuple[float, float]
    help: str = ""
    marks: tuple[Mark, ...] = ()
    opens: Literal["raster"] | None = None


@dataclass(frozen=True, slots=True)
class Raster:
    """Single units over time.

    Attributes:
        key, title, help: as those of `Lines`.
        units: the index of each row's unit, int64 `[rows]`.
        of: how many units the layer has; more than there are rows where only some are kept.
        axis: where the columns lie.
        codes: uint8 `[rows, columns]`: the first of `taus` that the unit's score does not exceed,
            `len(taus)` where it exceeds all of them, 254 where it is pruned, 255 where it was not
            read. At the threshold `taus[i]` a unit is dormant where its code is at most i.
        taus: the thresholds, ascending.
        recycled: int64 `[recyclings, 2]`: row, update.
    """

    key: str
    title: str
    units: np.ndarray
    of: int
    axis: Axis
    codes: np.ndarray
    taus: tuple[float, ...]
    recycled: np.ndarray
    help: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A picture of layers and heads that changes over time.

    Attributes:
        key, title, z, range, help, marks: as those of `Map`.
        rows: the layers.
        columns: the heads.
        axis: when each frame was read.
        frames: float32 `[frames, rows, columns]`; NaN where a layer has no such head.
    """

    key: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    axis: Axis
    frames: np.ndarray
    z: str
    range: tuple[float, float]
    help: str = ""
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Bars:
    """Shares of a whole, such as a histogram.

    Attributes:
        key, title, y, help: as those of `Lines`.
        categories: what each bar is.
        x: what the categories are.
        values: float64 `[bars]`.
    """

    key: str
    title: str
    y: str
    x: str
    categories: tuple[str, ...]
    values: np.ndarray
    help: str = ""


Panel = Lines | Map | Raster | Grid | Bars


@dataclass(frozen=True, slots=True)
class View:
    """What a tab of the page shows of one run.

    Attributes:
        name: `overview`, `units`, `connections`, `heads`.
        panels: from top to bottom.
        sentences: the state in plain words.
        alerts: what was noticed, the newest first: `{"update", "kind", "subject", "text"}`.
        empty: why there is nothing to show, and what would change that; "" where there is.
        taus: thresholds that can be chosen, ascending; empty where there is no choice.
        tau: the one that the view was made for.
    """

    name: str
    panels: tuple[Panel, ...] = ()
    sentences: tuple[str, ...] = ()
    alerts: tuple[dict[str, Any], ...] = ()
    empty: str = ""
    taus: tuple[float, ...] = ()
    tau: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
