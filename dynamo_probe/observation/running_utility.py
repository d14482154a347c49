"""The running average of contribution utilities, corrected for its beginning at 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RunningUtility:
    """u <- decay u + (1 - decay) now, for each unit of some layers (Dohare et al. 2024, eq. 1).

    Between observations that lie n updates apart it decays by decay^n. A unit that is not finite is
    passed over: its average would never recover.
    """

    def __init__(self, decay: float) -> None:
        """Begin with nothing observed.

        Args:
            decay: by update, from 0 to below 1.
        """
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._forgotten: dict[str, Tensor] = {}
        self._last: dict[str, int] = {}

    def observe(self, name: str, now: Tensor, step: int, *, corrected: bool = True) -> Tensor:
        """Add an observation of a layer at an update.

        Args:
            name: the layer.
            now: its contributions, float64 [units].
            step: the update.
            corrected: divide by 1 - decay^age, age being that of the average.

        Returns:
            The average, float64 [units]; corrected, it is NaN where nothing was observed yet.
        """
        kept = self.decay ** (step - self._last.get(name, 0))
        average = self._average.setdefault(name, torch.zeros_like(now))
        forgotten = self._forgotten.setdefault(name, torch.ones_like(now))
        usable = now.isfinite()
        self._average[name] = torch.where(usable, kept * average + (1 - kept) * now, average)
        self._forgotten[name] = torch.where(usable, kept * forgotten, forgotten)
        self._last[name] = step
        if corrected:
            return self._average[name] / (1 - self._forgotten[name])
        return self._average[name].masked_fill(self._forgotten[name] == 1, float("nan"))

    def restart(self, name: str, units: Tensor) -> None:
        """Begin anew with some units of a layer: bool [units]."""
        self._average[name] = self._average[name].masked_fill(units, 0.0)
        self._forgotten[name] = self._forgotten[name].masked_fill(units, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages."""
        return {
            "average": dict(self._average),
            "forgotten": dict(self._forgotten),
            "last": dict(self._last),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._average = {name: values.clone() for name, values in state["average"].items()}
        self._forgotten = {name: values.clone() for name, values in state["forgotten"].items()}
        self._last = dict(state["last"])
