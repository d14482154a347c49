"""What figures have in common: size, title, legend, numbers on axes, marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis as NumberLine
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from dynamo_probe.logs.panels import Mark
from dynamo_probe.report.clock import Clock
from dynamo_probe.report.colours import MARK, drawable
from dynamo_probe.report.texts import number

WIDTH = 7.6
"""Inches."""
_LABELLED = 8
"""Marks that have a label each; more are told apart by their dashes."""
_TOLD = 6
"""Marks that the legend of a grid tells."""
_HALO = (withStroke(linewidth=2.2, foreground="white", alpha=0.7),)
"""Keeps a mark apart from what is dark behind it."""
_KINDS: tuple[Any, ...] = ((0, (4, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)), "-")


def sheet(height: float) -> Figure:
    """Return an empty white figure of some height in inches."""
    return Figure(figsize=(WIDTH, height), dpi=110, facecolor="white", layout="constrained")


def title(axes: Axes, text: str) -> None:
    """Write a title above axes, on the left, where people begin to read."""
    axes.set_title(drawable(text, 84), loc="left", fontsize=11, fontweight="bold")


def plain_numbers(axis: NumberLine) -> None:
    """Write the numbers of an axis as the texts of a report do, without a factor beside them."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(float(f"{value:.6g}"))))


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Put a legend below what is drawn; nothing where there is nothing to name."""
    if not handles:
        return
    texts = [drawable(name, 44) for name in names]
    columns = _columns([len(text) for text in texts])
    # A name that begins with "_" would be left out, so the names come afterwards.
    made = figure.legend(
        list(handles),
        [str(place) for place in range(len(texts))],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
    )
    for label, text in zip(made.get_texts(), texts, strict=True):
        label.set_text(text)


def _columns(lengths: Sequence[int]) -> int:
    """Return how many columns of a legend fit beside one another; a column is filled first."""
    for columns in range(min(5, len(lengths)), 1, -1):
        parts = np.array_split(np.asarray(lengths), columns)
        if sum(int(part.max()) + 8 for part in parts) <= 114:
            return columns
    return 1


def happened(events: Sequence[Mark], time: Clock) -> tuple[list[Any], list[str]]:
    """Return marks for the legend of a figure whose frames are moments: handles and names."""
    said = [f"{one.label}, {time.said(time.mark(one.at))}" for one in events[:_TOLD]]
    if len(events) > _TOLD:
        said.append(f"and {len(events) - _TOLD:,} more")
    return [Line2D([], [], linestyle="none", marker="|", color=MARK) for _ in said], said


def marks(axes: Axes, events: Sequence[Mark], time: Clock) -> tuple[list[Any], list[str]]:
    """Draw what happened as vertical lines, each with its label while there are few.

    Returns:
        What belongs into the legend: handles and names.
    """
    known = [(time.mark(one.at), one.label) for one in events]
    known = sorted(one for one in known if np.isfinite(one[0]))
    left, right = sorted(axes.get_xlim()) if axes.images else (-np.inf, np.inf)
    inside = [one for one in known if left <= one[0] <= right]
    if len(inside) < len(known):  # a heatmap ends where its columns do
        handles, names = _drawn(axes, inside)
        outside = f"{len(known) - len(inside):,} before or after"
        return [*handles, Line2D([], [], linestyle="none")], [*names, f"marks: {outside}"]
    return _drawn(axes, inside)


def _drawn(axes: Axes, known: Sequence[tuple[float, str]]) -> tuple[list[Any], list[str]]:
    if len(known) > _LABELLED:
        return _kinds(axes, known)
    for at, _ in known:
        axes.axvline(at, color=MARK, linewidth=0.9, linestyle=_KINDS[0], path_effects=_HALO)
    left, right = axes.get_xlim()
    groups: list[list[tuple[float, str]]] = []
    for one in known:
        near = groups and one[0] - groups[-1][0][0] < 0.03 * abs(right - left)
        if near:
            groups[-1].append(one)
        else:
            groups.append([one])
    for group in groups:
        rest = f" (+{len(group) - 1})" if len(group) > 1 else ""
        axes.annotate(
            drawable(group[0][1], 30) + rest,
            (group[0][0], 0.98),
            (2, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            ha="left",
            va="top",
            fontsize=7.5,
            color=MARK,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6},
        )
    return [], []


def _kinds(axes: Axes, known: Sequence[tuple[float, str]]) -> tuple[list[Any], list[str]]:
    """Draw many marks: what they are is what their labels have before a colon."""
    groups: dict[str, list[float]] = {}
    for at, label in known:
        kind = label.partition(":")[0]
        full = kind not in groups and len(groups) >= len(_KINDS) - 1
        groups.setdefault("other marks" if full else kind, []).append(at)
    handles: list[Any] = []
    for dashes, places in zip(_KINDS, groups.values(), strict=False):
        style: dict[str, Any] = {"color": MARK, "linewidth": 0.7, "linestyle": dashes}
        for at in places:
            axes.axvline(at, path_effects=_HALO, **style)
        handles.append(Line2D([], [], **style))
    return handles, [f"{kind} ({len(places):,})" for kind, places in groups.items()]
