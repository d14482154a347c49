"""What is shown of a history and of a watch: little, however much there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dynamo_probe.doctor import InstrumentReport, LayerReport
from dynamo_probe.instrument import Event

if TYPE_CHECKING:
    from dynamo_probe.sinks.memory import History
    from dynamo_probe.watch import Watch

MOST_TAGS = 60
MOST_INSTRUMENTS = 30
MOST_LAYERS = 20
MOST_EVENTS = 8
MOST_WARNINGS = 10


@dataclass(frozen=True, slots=True)
class Figure:
    """A tag with one figure.

    Attributes:
        tag: what it is.
        steps: the updates of the points held, int64 `[points]`.
        values: float64 `[points]`; the last is the newest.
        low, high: the smallest and the largest finite one; NaN where none is finite.
    """

    tag: str
    steps: np.ndarray
    values: np.ndarray
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PerUnit:
    """A tag with one figure per unit, summarised.

    Attributes:
        tag: what it is.
        step: the update of the newest reading.
        units: how many there are.
        low, median, high: of the finite ones; NaN where none is finite.
        odd: how many are not finite.
    """

    tag: str
    step: int
    units: int
    low: float
    median: float
    high: float
    odd: int


@dataclass(frozen=True, slots=True)
class HistoryContents:
    """What is shown of a history.

    Attributes:
        title: the history in one line.
        figures, per_unit: the tags that are shown, pooled figures before those of layers.
        more: how many tags are not.
    """

    title: str
    figures: tuple[Figure, ...]
    per_unit: tuple[PerUnit, ...]
    more: int


@dataclass(frozen=True, slots=True)
class WatchContents:
    """What is shown of a watch.

    Attributes:
        title: the watch in one line.
        update: updates seen.
        model: the model's class.
        closed: whether the watch has let go.
        instruments: in the order in which they fire, and how many more there are.
        tapped: layers whose units are read, and how many more there are.
        skipped: layers that are not, with the reason, and how many more there are.
        events: the last ones, and how many came before.
        warnings: what would silently not work, and how many more there are.
        history: the newest figures.
    """

    title: str
    update: int
    model: str
    closed: bool
    instruments: tuple[tuple[InstrumentReport, ...], int]
    tapped: tuple[tuple[LayerReport, ...], int]
    skipped: tuple[tuple[LayerReport, ...], int]
    events: tuple[tuple[Event, ...], int]
    warnings: tuple[tuple[str, ...], int]
    history: HistoryContents


def of_history(history: History, most: int = MOST_TAGS) -> HistoryContents:
    """Choose what is shown of a history: of many tags those with the fewest slashes."""
    tags = sorted(history.tags(), key=lambda tag: (tag.count("/"), tag))
    figures: list[Figure] = []
    per_unit: list[PerUnit] = []
    for tag in tags[:most]:
        steps, values = history.series(tag)
        finite = np.sort(values[np.isfinite(values)])
        low, high = (float(finite[0]), float(finite[-1])) if finite.size else (np.nan, np.nan)
        if values.ndim > 1:
            odd = values.size - finite.size
            middle = _median(finite)
            per_unit.append(PerUnit(tag, int(steps[-1]), values.size, low, middle, high, odd))
        else:
            figures.append(Figure(tag, steps, values, low, high))
    title = repr(history)
    return HistoryContents(title, tuple(figures), tuple(per_unit), max(0, len(tags) - most))


def of_watch(watch: Watch) -> WatchContents:
    """Choose what is shown of a watch; the facts are those of `Watch.doctor()`."""
    report = watch.doctor()
    tapped = [layer for layer in report.layers if layer.units]
    skipped = [layer for layer in report.layers if not layer.units]
    return WatchContents(
        title=repr(watch),
        update=report.step,
        model=report.model,
        closed=watch.closed,
        instruments=_first(report.instruments, MOST_INSTRUMENTS),
        tapped=_first(tapped, MOST_LAYERS),
        skipped=_first(skipped, MOST_LAYERS),
        events=(tuple(watch.events[-MOST_EVENTS:]), max(0, len(watch.events) - MOST_EVENTS)),
        warnings=_first(report.warnings, MOST_WARNINGS),
        history=of_history(watch.history),
    )


def _median(ascending: np.ndarray) -> float:
    """Return the middle, and never an overflow of the sum of two; NaN of nothing."""
    if not ascending.size:
        return np.nan
    half = ascending.size // 2
    left, right = float(ascending[half - 1]), float(ascending[half])
    if ascending.size % 2:
        return right
    return (left + right) / 2 if np.isfinite(left + right) else left / 2 + right / 2


_Item = TypeVar("_Item")


def _first(items: Sequence[_Item], most: int) -> tuple[tuple[_Item, ...], int]:
    return tuple(items[:most]), max(0, len(items) - most)
