"""A run's readings and events as they come in, thinned so that they stay small however long it is.

Everything is kept over the whole run: when a series is full every second point goes (`Thinning`).
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.logs.runlog import MOST_EVENTS, RunLog, Series, UnitLog
from dynamo_probe.thinning import Thinning

TAUS = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Thresholds at which dormancy is exact in a log; those of the run's probes come to them."""

PRUNED = 254
"""The code of a unit that no connection enters."""
NOT_READ = 255
"""The code of a unit whose score is not finite."""

_POOLED, _LAYERED, _ARRAYS, _COUNTS = 512, 128, 128, 512
"""The most points of a figure with at most one slash in its tag, of others, of arrays, counts."""
_SHOWN, _SHOWN_IN_ALL, _CELLS = 512, 51_200, 4_000_000
"""The most units that are kept one by one of a layer, of all layers, and their codes."""
_DETAIL = 2_000
_RECYCLED = 20_000

_TAU = re.compile(r"dormancy[^/]*/tau=([^/]+)")
_SCORES = re.compile(r"(dormancy[^/]*)/scores/(.+)", re.DOTALL)
_FAN_IN = re.compile(r"[^/]+/fan_in/(.+)", re.DOTALL)
_ARRAY = re.compile(r".*(_by_head|curve)", re.DOTALL)


class _Growing:
    """A series that grows: updates, times and values, thinned together."""

    __slots__ = ("steps", "thinning", "values", "walls")

    def __init__(self, capacity: int) -> None:
        self.steps: list[int] = []
        self.walls: list[float] = []
        self.values: list[Any] = []
        self.thinning = Thinning(capacity)

    def add(self, step: int, wall: float, value: Any) -> None:
        if self.steps and self.steps[-1] >= step:
            self.cut(step - 1)
        self.thinning.append((self.steps, self.walls, self.values), (step, wall, value))

    def cut(self, step: int) -> None:
        """Forget what came after an update."""
        length = sum(one <= step for one in self.steps)
        self.thinning.cut((self.steps, self.walls, self.values), length)

    def series(self, dtype: Any = np.float64) -> Series:
        return Series(
            np.array(self.steps, dtype=np.int64),
            np.array(self.walls, dtype=np.float64),
            np.array(self.values, dtype=dtype),
        )

    def take(self, one: Series) -> None:
        """Go on from what was read back."""
        for step, wall, value in zip(
            one.steps.tolist(), one.walls.tolist(), one.values, strict=True
        ):
            self.add(step, wall, value if one.values.ndim > 1 else float(value))


class _Layer:
    """The units of one layer."""

    def __init__(self, of: int, shown: np.ndarray, columns: int) -> None:
        self.of = of
        self.shown = shown
        self.counts = _Growing(_COUNTS)
        self.codes = _Growing(columns)


class Recording:
    """Takes what a sink takes, and gives a `RunLog` of all of it at any time."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.writer = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.earlier: tuple[str, ...] = ()
        self.taus = TAUS
        self._series: dict[str, _Growing] = {}
        self._arrays: dict[str, _Growing] = {}
        self._layers: dict[str, _Layer] = {}
        self._pruned: dict[str, np.ndarray] = {}
        self._recycled: dict[str, list[tuple[int, int]]] = {}
        self._events: list[dict[str, Any]] = []
        self._most_shown: int | None = None
        self._columns = _LAYERED
        self._started = self._wall = 0.0
        self._step = 0

    def __len__(self) -> int:
        """Return how many things were recorded: figures, layers, events."""
        return len(self._series) + len(self._arrays) + len(self._layers) + len(self._events)

    def add(
        self, step: int, readings: Sequence[Reading], events: Sequence[Event], wall: float
    ) -> None:
        """Record one update; wall is the time, in seconds since 1970."""
        self._started = self._started or wall
        self._step, self._wall = step, wall
        self._note_taus(readings)
        scores: dict[str, np.ndarray] = {}
        for reading in readings:
            if reading.scalar:
                growing = self._series.get(reading.tag) or self._begin(reading.tag)
                growing.add(step, wall, float(reading.value))
            elif found := _SCORES.fullmatch(reading.tag):
                probe, layer = found.groups()
                name = layer if probe == "dormancy" else f"{layer} ({probe})"
                scores[name] = np.asarray(reading.value, dtype=np.float64).ravel()
            elif found := _FAN_IN.fullmatch(reading.tag):
                self._pruned[found[1]] = np.asarray(reading.value).ravel() == 0
            elif _ARRAY.fullmatch(reading.tag):
                value = np.asarray(reading.value, dtype=np.float32).ravel()
                growing = self._arrays.get(reading.tag)
                if growing is None or len(growing.values[-1]) != len(value):
                    growing = self._arrays[reading.tag] = _Growing(_ARRAYS)
                growing.add(step, wall, value)
        self._add_units(step, wall, scores)
        for event in events:
            self._note(event)

    def _begin(self, tag: str) -> _Growing:
        """Make room for a figure."""
        limit = _POOLED if tag.count("/") <= 1 else _LAYERED
        self._series[tag] = growing = _Growing(limit)
        return growing

    def _share_out(self, widths: Sequence[int]) -> None:
        """Settle how many units are kept one by one, and how often, from the layers' widths."""
        self._most_shown = max(32, min(_SHOWN, _SHOWN_IN_ALL // len(widths)))
        shown = sum(min(width, self._most_shown) for width in widths)
        self._columns = max(64, min(_COUNTS, _CELLS // max(shown, 1)))

    def _note_taus(self, readings: Sequence[Reading]) -> None:
        """Add the thresholds of the run's probes, until units have been recorded."""
        for reading in readings if not self._layers else ():
            found = _TAU.fullmatch(reading.tag)
            try:
                tau = float(found[1]) if found else None
            except ValueError:
                continue
            if tau is not None and np.isfinite(tau):
                self.taus = tuple(sorted({*self.taus, tau}))

    def _add_units(self, step: int, wall: float, scores: dict[str, np.ndarray]) -> None:
        if scores and self._most_shown is None:
            self._share_out([len(one) for one in scores.values()])
        for name, layer in scores.items():
            known = self._layers.get(name)
            if known is None or known.of != len(layer):
                most = min(len(layer), self._most_shown or _SHOWN)
                shown = np.linspace(0, len(layer) - 1, most).round().astype(np.int64)
                known = self._layers[name] = _Layer(len(layer), shown, self._columns)
            codes = codes_of(layer, self.taus)
            counts = np.bincount(codes, minlength=NOT_READ + 1)[: len(self.taus) + 1]
            known.counts.add(step, wall, counts.astype(np.int32))
            pruned = self._pruned.get(name)
            if pruned is not None and len(pruned) == len(codes):
                codes[pruned] = PRUNED
            known.codes.add(step, wall, codes[known.shown])

    def _note(self, event: Event) -> None:
        detail = {str(key): value for key, value in event.detail.items()}
        units = detail.get("units")
        if event.kind == "recycled" and isinstance(units, (list, tuple)):
            pairs = self._recycled.setdefault(event.subject, [])
            pairs += [(event.step, int(unit)) for unit in units]
            del pairs[:-_RECYCLED]
            detail = {**detail, "units": len(units)}
            detail.pop("ages", None)
        plain = {key: _short(value) for key, value in detail.items()}
        kept = {"step": event.step, "kind": event.kind, "subject": event.subject[:_DETAIL]}
        self._events.append({**kept, "detail": plain})
        if len(self._events) > MOST_EVENTS:  # the newest, and the first, which set the run up
            del self._events[50 : len(self._events) - MOST_EVENTS + 50]

    def forget_after(self, step: int) -> None:
        """Forget what came after an update: the run goes on from there."""
        layers = [part for one in self._layers.values() for part in (one.counts, one.codes)]
        for growing in (*self._series.values(), *self._arrays.values(), *layers):
            growing.cut(step)
        self._series = {tag: one for tag, one in self._series.items() if one.steps}
        self._arrays = {tag: one for tag, one in self._arrays.items() if one.steps}
        self._layers = {name: one for name, one in self._layers.items() if one.counts.steps}
        self._events = [event for event in self._events if event["step"] <= step]
        for name, pairs in self._recycled.items():
            self._recycled[name] = [pair for pair in pairs if pair[0] <= step]
        self._step = min(self._step, step)

    def go_on_from(self, log: RunLog) -> None:
        """Take what an earlier process recorded; nothing may have been recorded yet."""
        self.earlier = (*log.earlier, log.writer)[-100:]
        self.taus = log.taus
        self._started, self._step, self._wall = log.started, log.step, log.wall
        for tag, one in log.series.items():
            self._begin(tag).take(one)
        for tag, one in log.arrays.items():
            self._arrays[tag] = _Growing(_ARRAYS)
            self._arrays[tag].take(one)
        if log.units:
            self._share_out([one.of for one in log.units.values()])
        for name, one in log.units.items():
            layer = self._layers[name] = _Layer(one.of, one.shown, self._columns)
            layer.counts.take(one.counts)
            layer.codes.take(one.codes)
        self._recycled = {
            name: [(int(s), int(u)) for s, u in pairs] for name, pairs in log.recycled.items()
        }
        self._events = list(log.events)

    def log(self) -> RunLog:
        """Return all that was recorded."""
        return RunLog(
            step=self._step,
            wall=self._wall,
            started=self._started,
            taus=self.taus,
            series={tag: one.series() for tag, one in self._series.items()},
            arrays={tag: one.series(np.float32) for tag, one in self._arrays.items()},
            units={
                name: UnitLog(
                    one.of, one.counts.series(np.int32), one.shown, one.codes.series(np.uint8)
                )
                for name, one in self._layers.items()
            },
            recycled={
                name: np.array(pairs, dtype=np.int64).reshape(-1, 2)
                for name, pairs in self._recycled.items()
            },
            events=list(self._events),
            writer=self.writer,
            earlier=self.earlier,
        )


def codes_of(scores: np.ndarray, taus: Sequence[float]) -> np.ndarray:
    """Return for each score the first threshold that it does not exceed.

    Args:
        scores: float64 `[units]`.
        taus: ascending.

    Returns:
        uint8 `[units]`; `len(taus)` above all of them, `NOT_READ` where the score is not finite.
    """
    codes = np.zeros(len(scores), dtype=np.uint8)
    for tau in taus:  # a third of the time of a binary search for each score
        codes += scores > tau
    codes[~np.isfinite(scores)] = NOT_READ
    return codes


def _short(value: Any) -> Any:
    if isinstance(value, (bool, int, type(None))):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _DETAIL else text[:_DETAIL] + "..."
