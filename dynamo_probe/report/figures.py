"""Draw panels as figures. Everything is drawn on a figure of its own; nothing is global.

Example:
    >>> import numpy as np
    >>> from dynamo_probe.logs.panels import Bars
    >>> bars = Bars("copies", "Copies", "share", "times", ("1", "2"), np.array([0.75, 0.25]))
    >>> draw(bars).axes[0].get_title(loc="left")
    'Copies'
    >>> alternative(bars)
    'Bar chart "Copies": share by times. 2 bars. 1: 0.75; 2: 0.25.'
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "matplotlib is not installed, and figures need it: pip install 'dynamo-probe[report]'"
    ) from error
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dynamo_probe.logs.panels import Bars, Grid, Line, Lines, Map, Panel, Raster
from dynamo_probe.report.clock import Clock, axes_of, clock
from dynamo_probe.report.colours import DASHES, LINES, MARKERS, UNREAD, drawable
from dynamo_probe.report.furniture import legend, marks, plain_numbers, sheet, title
from dynamo_probe.report.heatmaps import draw_grid, draw_map, draw_raster
from dynamo_probe.report.wording import alternative

__all__ = ["alternative", "draw", "png"]

_NAMED = 16
"""Lines that the legend names."""


def draw(
    panel: Panel,
    axis: str = "updates",
    *,
    tau: float | None = None,
    origin: float | None = None,
) -> Figure:
    """Draw a panel.

    Args:
        panel: what to draw.
        axis: what lies on the horizontal axis: `updates`, `wall`, or a clock of the run; updates
            where the panel does not know it, which the axis says.
        tau: the threshold of dormancy for a raster: the nearest that it has, the largest for None.
        origin: when wall time begins, seconds since 1970; None for the panel's first point.

    Returns:
        The figure, on white; `savefig` writes it, a notebook shows it.
    """
    time = clock(axes_of(panel), axis, origin)
    if isinstance(panel, Lines):
        return _lines(panel, time)
    if isinstance(panel, Bars):
        return _bars(panel)
    if isinstance(panel, Map):
        return draw_map(panel, time)
    if isinstance(panel, Raster):
        return draw_raster(panel, time, tau)
    if isinstance(panel, Grid):
        return draw_grid(panel, time)
    raise TypeError(f"{type(panel).__name__} is not a panel; views have {Panel}")


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def _lines(panel: Lines, time: Clock) -> Figure:
    figure = sheet(3.2 + 0.1 * min(len(panel.lines), _NAMED))
    axes = figure.add_subplot()
    title(axes, panel.title)
    drawn = [_line(axes, line, place, time) for place, line in enumerate(panel.lines)]
    axes.set_xlabel(drawable(time.label, 90))
    label = drawable(panel.y, 60)
    ends = [np.abs(values) for values in map(_finite, panel.lines) if (values > 0).any()]
    # Where the margins of a log scale would leave what a float holds, it is not one.
    if panel.logarithmic and ends and max(float(values.max()) for values in ends) < 1e250:
        axes.set_yscale("log", nonpositive="mask")
        label += " (log scale)"
    else:
        plain_numbers(axes.yaxis)
    axes.set_ylabel(label)
    plain_numbers(axes.xaxis)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if not any(len(_finite(line)) for line in panel.lines):
        _nothing(axes)
    more = marks(axes, panel.marks, time)
    names = [line.name for line in panel.lines]
    if len(names) > _NAMED:
        rest = len(names) - _NAMED
        gap = Line2D([], [], linestyle="none")
        drawn, names = [*drawn[:_NAMED], gap], [*names[:_NAMED], f"and {rest:,} more"]
    legend(figure, [*drawn, *more[0]], [*names, *more[1]])
    return figure


def _finite(line: Line) -> np.ndarray:
    return line.values[np.isfinite(line.values)]


def _line(axes: Axes, line: Line, place: int, time: Clock) -> Line2D:
    x, y = time.at(line.axis), np.asarray(line.values, np.float64)
    known = np.isfinite(x)
    x, y = x[known], np.where(np.isfinite(y[known]), y[known], np.nan)
    (drawn,) = axes.plot(
        x,
        y,
        color=LINES[place % len(LINES)],
        linestyle=DASHES[place % len(DASHES)] if line.style == "dashed" else "-",
        linewidth=1.6 if line.style == "solid" else 1.3,
        marker=MARKERS[(place + place // len(LINES)) % len(MARKERS)],
        markersize=4.0,
        markevery=_marked(x, y, place),
    )
    return drawn


def _marked(x: np.ndarray, y: np.ndarray, place: int) -> list[int]:
    """Return the points with a marker: a few, so that it tells lines apart, and lonely ones."""
    there = np.isfinite(y)
    if not there.any():
        return []
    before, after = np.roll(there, 1), np.roll(there, -1)
    before[0] = after[-1] = False
    lonely = np.flatnonzero(there & ~before & ~after)
    # Each line has its markers somewhere else, so that they do not hide one another.
    wanted = np.linspace(x[there].min(), x[there].max(), 7) + (x.max() - x.min()) * place / 70
    nearest = {int(np.nanargmin(np.where(there, np.abs(x - one), np.nan))) for one in wanted}
    return sorted(nearest | set(lonely.tolist()))


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing was read", ha="center", va="center", transform=axes.transAxes)


def _bars(panel: Bars) -> Figure:
    figure = sheet(3.6 if any(len(name) > 8 for name in panel.categories) else 3.2)
    axes = figure.add_subplot()
    title(axes, panel.title)
    places = np.arange(len(panel.categories))
    values = np.asarray(panel.values, np.float64)
    there = np.isfinite(values)
    axes.bar(places, np.where(there, values, 0.0), color=LINES[0], width=0.8)
    axes.set_xlabel(drawable(panel.x, 60))
    axes.set_ylabel(drawable(panel.y, 60))
    plain_numbers(axes.yaxis)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _categories(axes, panel.categories)
    if not there.any():
        _nothing(axes)
    elif not there.all():
        high = float(np.max(values[there])) or 1.0
        unread = axes.bar(places[~there], high, width=0.8, **UNREAD)
        legend(figure, [unread[0]], ["grey: not read"])
    elif len(values) <= 12:
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.2g}",
                (place, value),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
            )
    return figure


def _categories(axes: Axes, categories: Sequence[str]) -> None:
    every = max(1, -(-len(categories) // 32))
    shown = range(0, len(categories), every)
    names = [drawable(categories[place], 20) for place in shown]
    long = max((len(name) for name in names), default=0) * len(names) > 90
    axes.set_xticks(list(shown), names)
    if long:
        axes.tick_params(axis="x", labelrotation=60, labelsize=8)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    if len(categories):
        axes.set_xlim(-0.6, len(categories) - 0.4)
