"""The views of a run: which figures of its log are shown, and how they are read."""

from __future__ import annotations

from collections.abc import Callable

from dynamo_probe.logs.connections_view import connections
from dynamo_probe.logs.heads_view import heads
from dynamo_probe.logs.overview import overview
from dynamo_probe.logs.panels import View
from dynamo_probe.logs.runlog import RunLog
from dynamo_probe.logs.units_view import raster as raster
from dynamo_probe.logs.units_view import units

_MAKERS: dict[str, Callable[[RunLog, float | None], View]] = {
    "overview": overview,
    "units": units,
    "connections": lambda log, tau: connections(log),
    "heads": lambda log, tau: heads(log),
}
VIEWS = tuple(_MAKERS)
"""The names of the views, in the order in which they are shown."""


def view(log: RunLog, name: str, tau: float | None = None) -> View:
    """Return a view of a run.

    Args:
        log: the run.
        name: one of `VIEWS`.
        tau: threshold of dormancy, one of `log.taus`; None takes 0.1, or the nearest to it.

    Raises:
        ValueError: when there is no such view, or no such threshold; lists those there are.
    """
    if name not in _MAKERS:
        raise ValueError(f"there is no view {name!r}; there are {', '.join(VIEWS)}")
    return _MAKERS[name](log, tau)
