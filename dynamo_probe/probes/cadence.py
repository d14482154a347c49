"""A schedule that a probe makes denser for a while, when something happens."""

from __future__ import annotations

from typing import Any

from dynamo_probe.schedule import Every, Schedule


class Cadence:
    """The updates of a schedule, and between them every so many updates until some update.

    Args:
        base: the schedule.
        dense: the period in updates while it is denser; None for never.
    """

    def __init__(self, base: Schedule, dense: int | None) -> None:
        """Begin with the schedule alone."""
        self.base = base
        self.dense = dense
        self.until = 0

    def __str__(self) -> str:
        """Say it in words."""
        more = "" if self.dense is None else f", every {self.dense} while scores move"
        return f"{self.base}{more}"

    def after(self, update: int) -> int | None:
        """Return the first update greater than `update`."""
        following = self.base.after(update)
        if self.dense is None or following is None:
            return following
        denser = (update // self.dense + 1) * self.dense
        return min(following, denser) if denser <= self.until else following

    def stay_dense(self, step: int) -> None:
        """Be denser for as long as two periods of the schedule from here."""
        first = self.base.after(step)
        second = None if first is None else self.base.after(first)
        self.until = max(self.until, first or 0, second or 0)

    def state_dict(self) -> dict[str, Any]:
        """Return until when it is denser."""
        return {"until": self.until}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.until = int(state["until"])


def usual_dense(base: Schedule) -> int | None:
    """Return an eighth of a period, where the schedule has one that long."""
    return base.n // 8 if isinstance(base, Every) and base.n >= 8 else None
