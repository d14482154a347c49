"""The view of units: which share of each layer is dormant, and the lives of single units."""

from __future__ import annotations

import numpy as np

from dynamo_probe.logs.choosing import axis_of, lines_of, marks_of, matching, nearest_tau, table_of
from dynamo_probe.logs.panels import Lines, Map, Panel, Raster, View
from dynamo_probe.logs.runlog import RunLog, Series, UnitLog

_NOTHING = (
    "No unit scores were recorded: add dp.Dormancy(every=100) to the instruments of dp.watch."
)


def units(log: RunLog, tau: float | None = None) -> View:
    """Return the view of units at a threshold."""
    if not log.units:
        return View("units", empty=_NOTHING)
    chosen = nearest_tau(log.taus, tau)
    assert chosen is not None
    panels: list[Panel] = [_map(log, chosen)]
    panels += _pooled(log)
    return View("units", tuple(panels), taus=log.taus, tau=chosen)


def fractions(log: RunLog, layer: UnitLog, tau: float) -> np.ndarray:
    """Return the dormant share of a layer's scored units at each of its readings, `[points]`.

    NaN where no unit had a finite score.
    """
    counts = layer.counts.values.astype(np.float64)
    dormant = counts[:, : log.taus.index(tau) + 1].sum(1)
    scored = counts.sum(1)
    return np.divide(dormant, scored, out=np.full(len(scored), np.nan), where=scored > 0)


def dormant_share(log: RunLog, tau: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the dormant share of all units: updates, times, shares.

    At the updates at which every layer that is ever scored was.
    """
    layers = list(log.units.values())
    steps = layers[0].counts.steps
    for layer in layers[1:]:
        steps = np.intersect1d(steps, layer.counts.steps)
    index = log.taus.index(tau) + 1
    dormant = scored = np.zeros(len(steps))
    for layer in layers:
        counts = layer.counts.values[np.isin(layer.counts.steps, steps)]
        dormant, scored = dormant + counts[:, :index].sum(1), scored + counts.sum(1)
    walls = layers[0].counts.walls[np.isin(layers[0].counts.steps, steps)]
    share = np.divide(dormant, scored, out=np.full(len(steps), np.nan), where=scored > 0)
    return steps, walls, share


def _map(log: RunLog, tau: float) -> Map:
    axis, values = table_of(
        log,
        [
            Series(one.counts.steps, one.counts.walls, fractions(log, one, tau))
            for one in log.units.values()
        ],
    )
    return Map(
        key="dormant",
        title=f"Dormant units by layer, tau = {tau:g}",
        rows=tuple(log.units),
        row="layer",
        axis=axis,
        values=values,
        z="dormant fraction",
        range=(0.0, 1.0),
        help=(
            "A unit is dormant when its mean absolute activation is at most tau times its layer's "
            "mean (Sokar et al. 2023, eq. 1). Layers run from the input at the top to the output."
        ),
        marks=marks_of(log, ["recycled", "alert"]),
        opens="raster",
    )


def _pooled(log: RunLog) -> list[Panel]:
    panels: list[Panel] = []
    same = [("dormancy/overlap", "overlap coefficient")]
    if overlap := lines_of(log, same):
        panels.append(
            Lines(
                key="overlap",
                title="The same units as at the reading before",
                y="overlap coefficient",
                lines=overlap,
                help="1: whoever was dormant still is, so that dormancy is a trap. "
                "|now and before| / the smaller of both.",
            )
        )
    lasts = "Near 1, recycling does not last: what makes units dormant is still there."
    for figure, key, title, y, help in (
        ("recycled_total", "recycled", "Units recycled so far", "units", ""),
        ("dormant_again", "again", "Of those recycled last time, dormant again", "fraction", lasts),
    ):
        found = [(tag, match[1]) for tag, match in matching(log, f"([^/]+)/{figure}")]
        if lines := lines_of(log, found):
            panels.append(Lines(key, title, y, lines, help))
    return panels


def raster(log: RunLog, layer: str) -> Raster:
    """Return the single units of a layer over time.

    Raises:
        ValueError: when the log has no such layer.
    """
    if layer not in log.units:
        raise ValueError(f"the log has no layer {layer[:200]!r}")
    one = log.units[layer]
    row_of = {int(unit): row for row, unit in enumerate(one.shown)}
    pairs = [
        (row_of[int(unit)], int(step))
        for step, unit in log.recycled.get(layer, np.empty((0, 2))).tolist()
        if int(unit) in row_of
    ]
    some = "" if len(one.shown) == one.of else f", {len(one.shown):,} of {one.of:,} units"
    return Raster(
        key="raster",
        title=f"Units of {layer}{some}",
        units=one.shown,
        of=one.of,
        axis=axis_of(log, one.codes.steps, one.codes.walls),
        codes=np.ascontiguousarray(one.codes.values.T),
        taus=log.taus,
        recycled=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        help="A row is a unit. Long dark rows are units that stay dormant.",
    )
