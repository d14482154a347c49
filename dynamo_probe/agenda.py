"""What is due when: the firings of instruments, and the gates that open before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dynamo_probe.instrument import Instrument, Probe
from dynamo_probe.observation.recorder import Recorder, collect
from dynamo_probe.schedule import AfterReadings
from dynamo_probe.site import BeforeStep
from dynamo_probe.source import Source


class Timer:
    """When one instrument fires next, and what has become of it.

    Attributes:
        instrument: the instrument.
        sources: its sources that ride on the training; their gates open before it fires.
        before: what it wants done before an optimizer steps in an update at which it fires, and
            whether before constraints.
        due: the update of the next firing; None when there is none.
        fired: how often it has fired.
        last: the update of the last firing.
        passed: the last update at which it was due, whether or not it fired.
        off: why it is disabled; None while it works.
        told: reasons for not measuring that were already reported.
        stretch: every how many-th scheduled firing takes place; a budget sets it.
    """

    __slots__ = (
        "before",
        "due",
        "fired",
        "instrument",
        "last",
        "off",
        "passed",
        "sources",
        "stretch",
        "told",
    )

    def __init__(
        self,
        instrument: Instrument,
        sources: Sequence[Source],
        before: Sequence[tuple[BeforeStep, bool]] = (),
    ) -> None:
        """Set the first firing."""
        self.instrument = instrument
        self.sources = [source for source in sources if source.where == "training"]
        self.before = tuple(before)
        self.due = instrument.schedule.after(0)
        self.fired = 0
        self.last: int | None = None
        self.passed: int | None = None
        self.off: str | None = None
        self.told: set[str] = set()
        self.stretch = 1

    @property
    def stretchable(self) -> bool:
        """Whether it may fire less often than asked for: probes that ride, never treatments."""
        return bool(self.sources) and isinstance(self.instrument, Probe)

    def following(self, step: int) -> int | None:
        """Return the next firing: the schedule's, or with a stretch of k every k-th of them."""
        due: int | None = step
        for _ in range(self.stretch):
            due = None if due is None else self.instrument.schedule.after(due)
        return due

    @property
    def follows(self) -> bool:
        """Whether it fires after the readings of others, at each update that has any."""
        return isinstance(self.instrument.schedule, AfterReadings)

    @property
    def opens(self) -> int | None:
        """The update at whose end the gates have to open for the next firing."""
        if self.due is None:
            return None
        return self.due - max(1, int(getattr(self.instrument, "updates", 1)))

    def switch_off(self, reason: str) -> None:
        """Disable the instrument for good and take its hooks off."""
        self.off = self.off or reason
        for source in self.sources:
            source.recorder.close()

    def state_dict(self) -> dict[str, Any]:
        """Return where the instrument stands."""
        return {
            "due": self.due,
            "fired": self.fired,
            "last": self.last,
            "off": self.off,
            "stretch": self.stretch,
            "told": sorted(self.told),
            "state": self.instrument.state_dict(),
            "recorders": [source.recorder.state_dict() for source in self.sources],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.due, self.fired, self.last = state["due"], state["fired"], state["last"]
        self.off, self.stretch = state["off"], state["stretch"]
        self.told = set(state.get("told", ()))
        self.instrument.load_state_dict(state["state"])
        for source, recorded in zip(self.sources, state["recorders"], strict=False):
            source.recorder.load_state_dict(recorded)


class Agenda:
    """The timers of a watch, in the order in which they fire.

    Attributes:
        wake: the next update at whose end anything has to be done.
        before: the next update in which anything has to be done before an optimizer steps.
        gathering: the recorders that gather in the current update.
    """

    def __init__(self, timers: Iterable[Timer]) -> None:
        """Open the gates of what is due at the first update."""
        self.timers = list(timers)
        self.wake: float = 1
        self.before: float = 1
        self.gathering: list[Recorder] = []
        self.arm(0)

    def due_before(self, step: int) -> Iterator[Timer]:
        """Yield the timers that want something done before an optimizer steps in an update."""
        for timer in self.timers:
            if timer.before and timer.off is None and timer.due is not None and step >= timer.due:
                yield timer

    def due(self, step: int) -> list[Timer]:
        """Return the timers that are due, disabled ones included."""
        return [timer for timer in self.timers if timer.due is not None and step >= timer.due]

    def gather(self, step: int, group: Any) -> None:
        """Read the sources of all that is due at once: one SUM and one MAX reduction over ranks.

        Those of disabled instruments take part, because on other ranks they may still work.
        """
        sources = [source for timer in self.due(step) for source in timer.sources]
        found = collect([source.recorder for source in sources], group)
        for source, sums in zip(sources, found, strict=True):
            source.collected = sums

    def take_due(self, step: int) -> Iterator[Timer]:
        """Yield the timers that are due and work, and set their next firing after each."""
        for timer in self.due(step):
            if timer.off is None:
                yield timer
            timer.due = timer.following(step)
            timer.passed = step

    def arm(self, step: int) -> None:
        """Open or shut each gate for the update that comes next.

        All micro-batches of an update see the same gate, because it is only moved between updates.
        """
        for timer in self.timers:
            opens = timer.opens
            on = opens is not None and step >= opens and timer.off is None
            for source in timer.sources:
                gate = source.recorder.gate
                if on and (not gate.on or timer.passed == step):
                    source.recorder.clear()
                gate.on = on
        self.plan(step)

    def stretch(self, step: int, factor: int) -> dict[str, int]:
        """Make the riding probes fire so many times less often from now on.

        Returns:
            Each one's stretch.
        """
        chosen: dict[str, int] = {}
        for timer in self.timers:
            if timer.stretchable:
                timer.stretch *= factor
                timer.due = timer.following(step if timer.passed is None else timer.passed)
                chosen[timer.instrument.name] = timer.stretch
        return chosen

    def pin(self, stretches: Mapping[str, int]) -> None:
        """Set the stretch of instruments by name.

        Raises:
            ValueError: when there is no such riding probe, or a stretch is below 1.
        """
        timers = {t.instrument.name: t for t in self.timers if t.stretchable}
        for name, stretch in stretches.items():
            if name not in timers or stretch < 1:
                raise ValueError(
                    f"the budget pins {name!r} to {stretch}; give a whole number of 1 or more for "
                    f"one of {sorted(timers)}"
                )
            timers[name].stretch = int(stretch)

    def disable(self, instrument: Instrument, reason: str) -> None:
        """Disable one instrument."""
        for timer in self.timers:
            if timer.instrument is instrument:
                timer.switch_off(reason)

    def halt(self, reason: str) -> None:
        """Disable everything: nothing is due any more."""
        for timer in self.timers:
            timer.switch_off(reason)
            timer.due = None
        self.wake = self.before = float("inf")

    def plan(self, step: int) -> None:
        """Set the next updates at which anything has to be done, and who gathers until then."""
        recorders = [s.recorder for timer in self.timers for s in timer.sources]
        self.gathering = [recorder for recorder in recorders if recorder.gate.on]
        times: list[float] = [1] if step == 0 else []
        for timer in self.timers:
            if timer.due is None or timer.opens is None:
                continue
            waiting = timer.sources and timer.opens > step
            times.append(timer.opens if waiting else timer.due)
        self.wake = min(times, default=float("inf"))
        beforehand = [
            t.due for t in self.timers if t.before and t.off is None and t.due is not None
        ]
        self.before = min(beforehand, default=float("inf"))
