"""When induction heads form: noticed in the series of a score and of the gain from copying."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynamo_probe.functional.change_point import change_point

MOST = 4_096
"""The most readings of a series that are kept; beyond, every second one goes."""


class Formation:
    """Watches two series until both have risen, and says at which update each did.

    The update is that of the best split of the series into two constants, not that of the reading
    at which a threshold was passed.

    Attributes:
        at: {series: update of its rise}, once formed; None before.
    """

    def __init__(self) -> None:
        """Begin with empty series."""
        self.at: dict[str, int] | None = None
        self._steps: list[int] = []
        self._series: dict[str, list[float]] = {}

    def add(self, step: int, figures: dict[str, float], high: bool) -> bool:
        """Take a reading; return whether heads have formed with it.

        Args:
            step: its update.
            figures: {series: value}; the same series at each reading.
            high: whether the score is above what counts as an induction head.
        """
        if self.at is not None:
            return False
        self._steps.append(step)
        for name, value in figures.items():
            self._series.setdefault(name, []).append(value)
        if len(self._steps) > MOST:
            self._steps = self._steps[::2]
            self._series = {name: values[::2] for name, values in self._series.items()}
        if not high or len(self._steps) < 3:
            return False
        found = {name: change_point(np.array(values)) for name, values in self._series.items()}
        if not all(one.significant and one.after > one.before for one in found.values()):
            return False
        self.at = {name: self._steps[one.index] for name, one in found.items()}
        self._steps, self._series = [], {}
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the series, or what came of them."""
        return {"at": self.at, "steps": list(self._steps), "series": dict(self._series)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.at = state["at"]
        self._steps = list(state["steps"])
        self._series = {name: list(values) for name, values in state["series"].items()}
