"""Readings to an experiment tracker: through the function with which it logs."""

from __future__ import annotations

import contextvars
import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynamo_probe.instrument import Event, Reading

# Letters, digits, "_", "/", ".", "-" and " " are allowed everywhere; ":" not on Windows.
_NOT_IN_MLFLOW = re.compile(r"[^\w/.\- ]")


class LogFunction:
    """Writes through a function `log({tag: value, ...}, step=update)`.

    Such functions are `wandb.log`, `mlflow.log_metrics` and `trackio.log`; hand them over after the
    tracker's run has begun. The function is called from a thread of its own, in the context in
    which the sink was made: MLflow's active run and trackio's run are those of that moment.

    Figures with a value for each unit and events are left out: trackers have no shared form for
    them. MLflow refuses `=` in names: it is given `dormancy/tau_0.1` for `dormancy/tau=0.1`.

    Args:
        log: the function.

    Raises:
        TypeError: when it cannot be called.
        ValueError: when it is MLflow's and no run is active.
    """

    def __init__(self, log: Callable[..., Any]) -> None:
        """Bind the function to the run that is active now."""
        if not callable(log):
            raise TypeError(f"{log!r} cannot be called; give a function such as wandb.log")
        self._given = log
        self._clean = _is_mlflow(log)
        self._log = _bound_to_run(log) if self._clean else log
        self._context = contextvars.copy_context()

    def write(self, step: int, readings: Sequence[Reading], events: Sequence[Event]) -> None:
        """Log the scalars of one update in one call; do not call where there are none."""
        metrics = {self._name(one.tag): float(one.value) for one in readings if one.scalar}
        if metrics:
            self._context.run(self._log, metrics, step=step)

    def close(self) -> None:
        """Do nothing: the run is its owner's to finish."""

    def __repr__(self) -> str:
        """Name the function."""
        return f"LogFunction({getattr(self._given, '__qualname__', self._given)})"

    def _name(self, tag: str) -> str:
        return _NOT_IN_MLFLOW.sub("_", tag) if self._clean else tag


def _is_mlflow(log: Callable[..., Any]) -> bool:
    function = log.func if isinstance(log, functools.partial) else log
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    return package == "mlflow" and getattr(function, "__name__", "") == "log_metrics"


def _bound_to_run(log: Callable[..., Any]) -> Callable[..., Any]:
    """Name the active run: in another thread MLflow would begin a run of its own."""
    given: Mapping[str, Any] = log.keywords if isinstance(log, functools.partial) else {}
    if "run_id" in given:
        return log
    active = importlib.import_module("mlflow").active_run()
    if active is None:
        raise ValueError(
            "MLflow has no active run; call mlflow.start_run() before dp.watch, or give "
            "functools.partial(mlflow.log_metrics, run_id=...)"
        )
    return functools.partial(log, run_id=active.info.run_id)
