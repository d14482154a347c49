"""When an instrument fires: schedules over optimizer updates, which are counted from 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """The updates at which something happens. All ranks derive it from the update counter."""

    def after(self, update: int) -> int | None:
        """Return the first scheduled update greater than `update`; None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """Updates `n, 2n, 3n, ...` from `start` to `end`, and update 1 when `first` is set.

    Args:
        n: the period in updates, at least 1.
        start: nothing fires before this update.
        end: nothing fires after this update; None for no end.
        first: also fire at update 1 (or at `start`), which shows the network as initialised: the
            activations of update 1 were computed with the initial weights.

    Raises:
        ValueError: when `n < 1`, `start < 0` or `end < start`.
    """

    n: int
    start: int = 0
    end: int | None = None
    first: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.n < 1:
            raise ValueError(f"the period is {self.n} updates; give 1 or more")
        if self.start < 0:
            raise ValueError(f"start is update {self.start}; give 0 or more")
        if self.end is not None and self.end < self.start:
            raise ValueError(f"end ({self.end}) lies before start ({self.start}); exchange them")

    def __str__(self) -> str:
        """Say it in words."""
        words = ["every update" if self.n == 1 else f"every {self.n} updates"]
        words += [f"from {self.start}"] if self.start else []
        words += [f"to {self.end}"] if self.end is not None else []
        words += [f"and at {max(self.start, 1)}"] if self.first and self.n > 1 else []
        return " ".join(words)

    def after(self, update: int) -> int | None:
        """Return the first scheduled update greater than `update`; None when there is none."""
        opening = max(self.start, 1)
        if self.first and update < opening:
            following = opening
        else:
            following = max(update // self.n + 1, -(-opening // self.n)) * self.n
        return following if self.end is None or following <= self.end else None


@dataclass(frozen=True, slots=True)
class LogSpaced:
    """About `per_decade` updates in each decade, evenly spaced on a logarithmic axis, from 1 on.

    Raises:
        ValueError: when `per_decade < 1`.
    """

    per_decade: int = 8

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.per_decade < 1:
            raise ValueError(f"per_decade is {self.per_decade}; give 1 or more")

    def __str__(self) -> str:
        """Say it in words."""
        return f"about {self.per_decade} times in each decade of updates"

    def after(self, update: int) -> int | None:
        """Return the first scheduled update greater than `update`."""
        exponent = 0
        # The exponents start near the wanted one: a linear search from 0 would grow with training.
        if update > 0:
            exponent = max(0, (len(str(update)) - 1) * self.per_decade)
        while (following := round(10 ** (exponent / self.per_decade))) <= update:
            exponent += 1
        return following


@dataclass(frozen=True, slots=True)
class AfterReadings:
    """After the readings of the other instruments, at every update at which one of them is due.

    The probes have read then and the treatments have not yet acted; what treatments emit follows
    after them. It adds no updates of its own, unless a period is given: then also every so many
    updates, so that silence is noticed.

    Raises:
        ValueError: when `every < 1`.
    """

    every: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.every is not None and self.every < 1:
            raise ValueError(f"the period is {self.every} updates; give 1 or more")

    def __str__(self) -> str:
        """Say it in words."""
        return "after the readings" + (f", and every {self.every} updates" if self.every else "")

    def after(self, update: int) -> int | None:
        """Return the next update of the period; None where there is none."""
        return None if self.every is None else (update // self.every + 1) * self.every


def as_schedule(every: int | Schedule, *, first: bool = False) -> Schedule:
    """Return `every` itself when it is a schedule, otherwise `Every(every)`.

    Raises:
        TypeError: when it is neither a whole number nor a schedule.
        ValueError: when the number is below 1.
    """
    if isinstance(every, bool) or not isinstance(every, (int, Schedule)):
        raise TypeError(
            f"every is {every!r}; give a whole number of updates or a schedule such as Every(100)"
        )
    return Every(every, first=first) if isinstance(every, int) else every
