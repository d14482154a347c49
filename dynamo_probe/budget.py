"""Keep what a watch costs under a share of the training's time, by measuring less often."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

clock: Callable[[], float] = time.perf_counter
"""Seconds; what the budget is kept in."""

FIRINGS = 4
"""A decision is made after so many updates with work, and at most one in so many."""


class Budget:
    """What the watch's own work takes of the time of training.

    Three times are told apart: updates that run as they are, updates in which riding hooks gather
    (what they take longer is the watch's cost), and the work between updates. Medians keep a
    hiccup of the machine from counting.

    Attributes:
        share: the bound: the watch's cost over the time of the updates themselves.
    """

    def __init__(self, share: float) -> None:
        """Set the bound.

        Raises:
            ValueError: when it is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"the budget is {share}; give a share of the time, such as 0.01")
        self.share = share
        self._mark: float | None = None
        self._plain: deque[float] = deque(maxlen=101)
        self._gathered: deque[float] = deque(maxlen=101)
        self.restart()

    def restart(self) -> None:
        """Begin a new span of measurement."""
        self._updates = self._gathering = self._firings = 0
        self._work = 0.0

    def update_ends(self, gathering: bool) -> None:
        """Take the time of the update that just ended."""
        now = clock()
        if self._mark is not None:
            (self._gathered if gathering else self._plain).append(now - self._mark)
            self._updates += 1
            self._gathering += gathering
        self._mark = now

    def work_ends(self, fired: bool) -> None:
        """Take the time of the watch's work since the update ended.

        Args:
            fired: whether anything fired; opening a gate is work, too.
        """
        now = clock()
        if self._mark is not None:
            self._work += now - self._mark
        self._firings += fired
        self._mark = now

    def spent(self) -> float | None:
        """Return the share spent in this span, once there is enough to tell; None before."""
        if self._firings < FIRINGS or not self._updates:
            return None
        bare = statistics.median(self._plain or self._gathered)
        extra = 0.0
        if self._plain and self._gathered:
            extra = max(0.0, statistics.median(self._gathered) - bare) * self._gathering
        return (self._work + extra) / (bare * self._updates) if bare > 0 else None

    def stretch(self, spent: float) -> int:
        """Return how many times longer the intervals have to be for a share that was spent."""
        return max(1, math.ceil(spent / self.share))
