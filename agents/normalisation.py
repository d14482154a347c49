"""Running mean and deviation of what comes in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class RunningMoments:
    """Mean and variance of all rows so far (Chan et al. 1979), float64."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Begin with nothing seen.

        Args:
            shape: of a row.
        """
        self.count = 0
        self.mean = np.zeros(shape)
        self._squares = np.zeros(shape)

    def update(self, rows: np.ndarray) -> None:
        """See more rows, `[rows, *shape]`."""
        new, mean = len(rows), rows.mean(0, dtype=np.float64)
        total, shift = self.count + new, mean - self.mean
        self._squares = (
            self._squares
            + np.square(rows - mean).sum(0)
            + np.square(shift) * (self.count * new / total)
        )
        self.mean = self.mean + shift * (new / total)
        self.count = total

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation, and 1 where it is 0 or nothing was seen."""
        deviation = np.sqrt(self._squares / max(self.count, 1))
        return np.where(deviation > 0, deviation, 1.0)

    def normalised(self, rows: np.ndarray, limit: float = 10.0) -> np.ndarray:
        """Return rows with mean 0 and deviation 1, clipped, float32."""
        scaled = (rows - self.mean) / self.deviation
        return np.clip(scaled, -limit, limit).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen."""
        return {
            "count": self.count,
            "mean": torch.from_numpy(np.array(self.mean)),
            "squares": torch.from_numpy(np.array(self._squares)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.count = state["count"]
        self.mean = state["mean"].numpy().copy()
        self._squares = state["squares"].numpy().copy()
