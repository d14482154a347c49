"""At which updates masks change: a period, the end of each schedule, and what was put off."""

from __future__ import annotations

from collections.abc import Iterable

from dynamo_probe.schedule import Schedule


class MaskUpdates:
    """A schedule with its last update in it, which takes up again what was put off.

    Args:
        inner: the schedule that was asked for.
        also: updates that belong to it in any case, such as that at which a density is reached.

    Attributes:
        put_off: the last firing could not take place; the next update is due.
    """

    def __init__(self, inner: Schedule, also: Iterable[int]) -> None:
        """Set the times."""
        self.inner = inner
        self.also = sorted({update for update in also if update > 0})
        self.put_off = False

    def after(self, update: int) -> int | None:
        """Return the next update at which masks change."""
        if self.put_off:
            return update + 1
        following = self.inner.after(update)
        extra = next((one for one in self.also if one > update), None)
        times = [time for time in (following, extra) if time is not None]
        return min(times, default=None)

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.inner}"
