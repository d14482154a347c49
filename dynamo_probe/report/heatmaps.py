"""Heatmaps, rasters and grids: pictures whose cells have colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import PcolorImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynamo_probe.logs.panels import Axis, Grid, Map, Raster
from dynamo_probe.report.clock import Clock, chosen_tau, frames
from dynamo_probe.report.colours import STATES, UNREAD, drawable, scale
from dynamo_probe.report.furniture import happened, legend, marks, plain_numbers, sheet, title
from dynamo_probe.report.states import states
from dynamo_probe.report.texts import number

_TICKS = 40
"""Rows that can be named beside a heatmap."""
_WRITTEN = 32
"""Cells of a grid whose values are written into them."""


def draw_map(panel: Map, time: Clock) -> Figure:
    """Draw rows over time."""
    figure = sheet(min(9.0, 2.2 + 0.2 * max(len(panel.rows), 3)))
    axes = figure.add_subplot()
    title(axes, panel.title)
    image = _cells(axes, panel.axis, np.asarray(panel.values, np.float64), time)
    image.set(cmap=scale(), norm=_norm(panel.range, panel.values))
    _rows(axes, panel.rows)
    axes.set_ylabel(drawable(panel.row, 40))
    axes.set_xlabel(drawable(time.label, 90))
    _bar(figure, image, [axes], panel.z, panel.values)
    handles, names = marks(axes, panel.marks, time)
    if not np.isfinite(panel.values).all() or not panel.values.size:
        handles, names = [Patch(**UNREAD), *handles], ["grey: not read", *names]
    legend(figure, handles, names)
    return figure


def draw_raster(panel: Raster, time: Clock, tau: float | None) -> Figure:
    """Draw single units over time at the threshold nearest to `tau`."""
    figure = sheet(min(8.5, 2.4 + 0.035 * max(len(panel.units), 30)))
    axes = figure.add_subplot()
    title(axes, panel.title)
    place = chosen_tau(panel.taus, tau)
    found = states(panel.codes, place, len(panel.taus))
    image = _cells(axes, panel.axis, np.where(found == 3, np.nan, found), time)
    colours = ListedColormap(list(STATES.values())).with_extremes(bad=(0.0, 0.0, 0.0, 0.0))
    image.set(cmap=colours, norm=Normalize(-0.5, 2.5))
    _rows(axes, [str(unit) for unit in panel.units], 20)
    some = len(panel.units) < panel.of
    kept = f", {len(panel.units):,} of {panel.of:,} kept" if some else ""
    axes.set_ylabel(f"unit (index{kept})")
    axes.set_xlabel(drawable(time.label, 90))
    at_tau = f" (tau = {number(panel.taus[place])})" if panel.taus else ""
    there = {name: colour for name, colour in STATES.items() if name != "pruned" or 2 in found}
    names = [f"dormant{at_tau}" if name == "dormant" else name for name in there]
    handles = [Patch(facecolor=colour, edgecolor="#666666") for colour in there.values()]
    if 3 in found or not found.size:
        handles, names = [*handles, Patch(**UNREAD)], [*names, "grey: not read"]
    if len(panel.recycled):
        dots = _recycled(axes, panel, time)
        handles, names = [*handles, dots], [*names, f"recycled ({len(panel.recycled):,})"]
    legend(figure, handles, names)
    return figure


def _recycled(axes: Axes, panel: Raster, time: Clock) -> Line2D:
    rows, updates = panel.recycled[:, 0], panel.recycled[:, 1].astype(np.float64)
    x = updates
    if time.name != "updates":
        steps, there = np.asarray(panel.axis["updates"], np.float64), time.at(panel.axis)
        known = np.isfinite(there)
        x = np.interp(updates, steps[known], there[known])
    (dots,) = axes.plot(
        x,
        rows,
        linestyle="none",
        marker="o",
        markersize=float(np.clip(240 / max(len(panel.units), 1), 2.5, 6.0)),
        markerfacecolor="white",
        markeredgecolor="black",
        markeredgewidth=0.9,
    )
    return dots


def draw_grid(panel: Grid, time: Clock) -> Figure:
    """Draw a few frames side by side: the first, the last, and some between."""
    shown = frames(panel.axis)
    across = min(3, max(len(shown), 1))
    down = max(1, math.ceil(len(shown) / across))
    high = float(np.clip(0.3 * len(panel.rows), 1.0, 4.0))
    figure = sheet(1.4 + down * (high + 0.5))
    figure.suptitle(drawable(panel.title, 84), x=0.01, ha="left", fontsize=11, fontweight="bold")
    plots = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
    times = time.at(panel.axis)
    norm = _norm(panel.range, panel.frames)
    image = None
    for axes, place in zip(plots, shown, strict=False):
        frame = np.ma.masked_invalid(np.asarray(panel.frames[place], np.float64))
        x, y = np.arange(frame.shape[1] + 1) - 0.5, np.arange(frame.shape[0] + 1) - 0.5
        image = _image(axes, x, y, frame)
        image.set(cmap=scale(), norm=norm)
        _written(axes, frame, norm)
        axes.set_title(drawable(time.said(float(times[place])), 40), fontsize=9)
    for place, axes in enumerate(plots):
        if place >= len(shown) > 0:
            axes.set_axis_off()
            continue
        _rows(axes, _bare(panel.rows, "layer "), max(4, int(high * 6)))
        _ticks(axes, _bare(panel.columns, "head "))
        if place % across == 0:
            axes.set_ylabel("layer")
        if place + across >= len(shown):
            axes.set_xlabel("head")
            axes.tick_params(labelbottom=True)
    if image is not None:
        _bar(figure, image, list(plots), panel.z, panel.frames[shown])
    handles, names = happened(panel.marks, time)
    if not np.isfinite(panel.frames[shown]).all() or not panel.frames.size:
        handles, names = [Patch(**UNREAD), *handles], ["grey: no such head, or not read", *names]
    legend(figure, handles, names)
    return figure


def _written(axes: Axes, frame: np.ma.MaskedArray, norm: Normalize) -> None:
    """Write the values into the cells of a small grid: heads differ by less than colours show."""
    if frame.size > _WRITTEN:
        return
    for (row, column), value in np.ndenumerate(frame.filled(np.nan)):
        if np.isfinite(value):
            dark = norm(value) < 0.55
            colour = "white" if dark else "black"
            text = f"{value:.2g}"
            axes.text(column, row, text, color=colour, fontsize=7, ha="center", va="center")


def _cells(axes: Axes, axis: Axis, values: np.ndarray, time: Clock) -> PcolorImage:
    """Draw `[rows, columns]` where they lie; columns whose time nobody knows are left out."""
    x = time.at(axis)
    order = np.argsort(x, kind="stable")
    order = order[np.isfinite(x[order])]
    edges = _edges(x[order])
    rows = np.arange(len(values) + 1) - 0.5
    cells = np.ma.masked_invalid(values[:, order])
    if not cells.size:
        cells = np.ma.masked_all((1, 1))
        edges, rows = np.array([0.0, 1.0]), np.array([-0.5, 0.5])
    image = _image(axes, edges, rows, cells)
    plain_numbers(axes.xaxis)
    return image


def _image(axes: Axes, x: np.ndarray, y: np.ndarray, cells: np.ndarray) -> PcolorImage:
    """Draw cells between edges, the first row at the top, over what an unread place looks like."""
    ends = (float(x[0]), float(x[-1]), float(y[0]), float(y[-1]))
    image = PcolorImage(axes, x, y, cells, extent=ends)
    axes.add_image(image)
    axes.set_xlim(ends[0], ends[1])
    axes.set_ylim(ends[3], ends[2])
    axes.patch.set(**UNREAD)
    return image


def _edges(x: np.ndarray) -> np.ndarray:
    """Return where columns begin and end, `[columns + 1]`: half way between their times."""
    if not len(x):
        return np.array([0.0])
    between = (x[1:] + x[:-1]) / 2
    first = x[0] - (between[0] - x[0]) if len(x) > 1 else x[0] - 0.5
    last = x[-1] + (x[-1] - between[-1]) if len(x) > 1 else x[-1] + 0.5
    if first == last:
        first, last = first - 0.5, last + 0.5
    return np.concatenate([[first], between, [last]])


def _norm(ends: tuple[float, float], values: np.ndarray) -> Normalize:
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high)):
        there = values[np.isfinite(values)]
        low, high = (float(there.min()), float(there.max())) if len(there) else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1.0)


def _bar(
    figure: Figure, image: PcolorImage, axes: Sequence[Axes], z: str, values: np.ndarray
) -> None:
    (low, high), there = image.get_clim(), values[np.isfinite(values)]
    assert low is not None and high is not None
    # The ends of a scale are rounded figures; single precision alone puts nothing beyond them.
    slack = 1e-6 * (high - low)
    below, above = bool((there < low - slack).any()), bool((there > high + slack).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    bar = figure.colorbar(
        image, ax=axes, extend=extend.get((below, above), "both"), pad=0.02, fraction=0.05
    )
    bar.set_label(drawable(z, 60))
    plain_numbers(bar.ax.yaxis)


def _rows(axes: Axes, names: Sequence[str], most: int = _TICKS) -> None:
    every = max(1, -(-len(names) // most))
    shown = list(range(0, len(names), every))
    axes.set_yticks(shown, [drawable(names[place], 28) for place in shown], fontsize=8)


def _bare(names: Sequence[str], word: str) -> list[str]:
    """Return names without a word that the axis says once for all of them."""
    every = all(name.startswith(word) for name in names)
    return [name.removeprefix(word) if every else name for name in names]


def _ticks(axes: Axes, names: Sequence[str]) -> None:
    every = max(1, -(-len(names) // 8))
    shown = list(range(0, len(names), every))
    axes.set_xticks(shown, [drawable(names[place], 8) for place in shown], fontsize=8)
