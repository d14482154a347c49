"""When, and how much: schedules and values over optimizer updates, which are counted from 1."""

from __future__ import annotations

import math
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


# --- how much: values over updates ---------------------------------------------------------------


@runtime_checkable
class Value(Protocol):
    """A number that depends on the update."""

    def at(self, update: int) -> float:
        """Return the value at an update."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value at every update."""

    value: float

    def at(self, update: int) -> float:
        """Return the value."""
        return self.value

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.value:g}"


@dataclass(frozen=True, slots=True)
class Cubic:
    """From `initial` to `final` along a cubic: fast at first, then ever slower.

    `final + (initial - final) (1 - (t - start) / (end - start))^3` (Zhu & Gupta 2017, *To prune,
    or not to prune*, eq. 1, which gives it for the sparsity). It is `final` at `end` and after.

    Raises:
        ValueError: when `end <= start` or `start < 0`.

    Example:
        >>> density = Cubic(1.0, 0.1, start=0, end=10)
        >>> [round(density.at(update), 4) for update in (0, 5, 10, 11)]
        [1.0, 0.2125, 0.1, 0.1]
    """

    initial: float
    final: float
    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _check_span(self.start, self.end)

    def at(self, update: int) -> float:
        """Return the value at an update."""
        if update >= self.end:
            return self.final
        left = 1 - max(0, update - self.start) / (self.end - self.start)
        return self.final + (self.initial - self.final) * left**3

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.initial:g} to {self.final:g}, cubic from update {self.start} to {self.end}"


@dataclass(frozen=True, slots=True)
class Cosine:
    """From `initial` to `final` along half a cosine; `final` exactly at `end` and after.

    `final + (initial - final) (1 + cos(pi (t - start) / (end - start))) / 2` (Dettmers &
    Zettlemoyer 2019; Evci et al. 2020, section 3, with `final` 0).

    Raises:
        ValueError: when `end <= start` or `start < 0`.

    Example:
        >>> [round(Cosine(0.5, 0.0, start=0, end=100).at(update), 3) for update in (0, 50, 100)]
        [0.5, 0.25, 0.0]
    """

    initial: float
    final: float
    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _check_span(self.start, self.end)

    def at(self, update: int) -> float:
        """Return the value at an update."""
        if update >= self.end:
            return self.final
        passed = max(0, update - self.start) / (self.end - self.start)
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * passed)) / 2

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.initial:g} to {self.final:g}, cosine from update {self.start} to {self.end}"


@dataclass(frozen=True, slots=True)
class Alternating:
    """`high` and `low` in turn: dense and sparse phases (Peste et al. 2021, *AC/DC*).

    `high` before `start`; then phases of `low` and `high`, each `low_for` and `high_for` updates
    long, `low` first; `low` from `end` on.

    Raises:
        ValueError: when `end <= start`, `start < 0` or a phase is shorter than 1.

    Example:
        >>> phases = Alternating(1.0, 0.1, start=10, end=40, low_for=10, high_for=10)
        >>> [phases.at(update) for update in (0, 10, 20, 30, 40, 99)]
        [1.0, 0.1, 1.0, 0.1, 0.1, 0.1]
    """

    high: float
    low: float
    start: int
    end: int
    low_for: int
    high_for: int

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _check_span(self.start, self.end)
        if self.low_for < 1 or self.high_for < 1:
            raise ValueError(
                f"the phases last {self.low_for} and {self.high_for} updates; give 1 or more"
            )

    def at(self, update: int) -> float:
        """Return the value at an update."""
        if update < self.start:
            return self.high
        within = (update - self.start) % (self.low_for + self.high_for)
        return self.low if update >= self.end or within < self.low_for else self.high

    def changes(self) -> list[int]:
        """Return the updates at which the value changes."""
        found, update, low = [self.start], self.start, True
        while (update := update + (self.low_for if low else self.high_for)) < self.end:
            found.append(update)
            low = not low
        return found if low else [*found, self.end]

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"{self.high:g}, from update {self.start} alternating {self.low:g} for {self.low_for} "
            f"updates and {self.high:g} for {self.high_for}, {self.low:g} from {self.end} on"
        )


def _check_span(start: int, end: int) -> None:
    if start < 0:
        raise ValueError(f"start is update {start}; give 0 or more")
    if end <= start:
        raise ValueError(f"end ({end}) has to lie after start ({start})")
