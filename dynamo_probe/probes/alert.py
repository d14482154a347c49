"""Tell when a reading has been out of bounds for long enough."""

from __future__ import annotations

import copy
import logging
import math
import re
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dynamo_probe.instrument import Event, Probe, Reading
from dynamo_probe.schedule import AfterReadings
from dynamo_probe.site import Site
from dynamo_probe.warning import warn

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Latch:
    """Where an alert stands with one tag.

    Attributes:
        since: the update of the first of the newest unbroken row of readings out of bounds.
        raised: whether the alert was raised and the figure has not come back since.
        figure: the newest figure that was judged.
        first: the first reading, where figures are relative to it.
    """

    since: int | None = None
    raised: bool = False
    figure: float = math.nan
    first: float | None = None


class Alert(Probe):
    """Raise an alert when a reading has been out of bounds for long enough.

    It looks at what the other instruments have emitted, reduced over ranks, at the update at which
    they emit it: after the probes have read and before treatments act. Updates at which nothing is
    read cost nothing. When a reading has been out of bounds without a break for `for_updates`
    updates, the alert is raised, once: as an event `alert` (which TensorBoard shows as a text), as
    a `DynamoProbeWarning`, and by calling `then`. It is raised again only after the figure has come
    back to `clear`, which is an event `note`.

    Example:
        >>> import dynamo_probe as dp
        >>> alert = dp.Alert("dormancy/tau=0.1", above=0.3, clear=0.2, for_updates=1000)
    """

    name = "alert"

    def __init__(
        self,
        tag: str,
        *,
        above: float | None = None,
        below: float | None = None,
        clear: float | None = None,
        for_updates: int = 0,
        then: Callable[[Event], object] | None = None,
        relative_to: Literal["first", "median"] | None = None,
        window: int = 32,
        missing: float | None = None,
        figure: Callable[[Reading], float] | None = None,
        name: str | None = None,
    ) -> None:
        """Set the rule.

        Args:
            tag: what to look at; `*` stands for any text, and then each tag is judged by itself.
            above: out of bounds is a figure greater than this; give this or `below`.
            below: out of bounds is a figure less than this.
            clear: the figure at which a raised alert ends, at most `above` or at least `below`;
                None is that bound itself. A distance keeps a figure that wavers about its bound
                from raising the alert again and again.
            for_updates: how many updates lie between the first and the last of the readings that
                raise the alert; 0 raises it at the first reading out of bounds.
            then: called with the event when the alert is raised, on every rank. An exception in it
                is told once and goes no further; SystemExit and KeyboardInterrupt do end training.
            relative_to: `first` judges the ratio to the tag's first reading, `median` the ratio to
                the median of the `window` readings before; None judges the reading itself.
            window: how many readings the median is taken over; nothing is judged before that many.
            missing: the figure that stands for a tag that was never read, judged from update 0 on;
                None judges nothing then. Not with `*` in the tag.
            figure: what is judged of a reading; NaN is not judged. None takes the value of one
                number, and does not judge readings with one figure per unit.
            name: names the rule in events and checkpoints; by default `alert/` and the tag.

        Raises:
            ValueError: when not exactly one of `above` and `below` is given, `clear` lies on the
                wrong side, a number is out of range, or `missing` meets a tag with `*`.
        """
        if (above is None) == (below is None):
            raise ValueError("give either above= or below=; for a band make two alerts")
        bound = above if above is not None else below
        assert bound is not None
        sign = 1.0 if above is not None else -1.0
        end = bound if clear is None else clear
        if math.isnan(bound):
            raise ValueError("the bound is NaN; give a number")
        if not sign * end <= sign * bound:
            side, most = ("above", "at most") if above is not None else ("below", "at least")
            raise ValueError(
                f"clear is {end} and {side} is {bound}; give a clear of {most} {bound}"
            )
        if for_updates < 0:
            raise ValueError(f"for_updates is {for_updates}; give 0 or more")
        if window < 2:
            raise ValueError(f"window is {window}; give 2 readings or more")
        if relative_to not in (None, "first", "median"):
            raise ValueError(f"relative_to is {relative_to!r}; give 'first', 'median' or None")
        if missing is not None and "*" in tag:
            raise ValueError(f"missing needs one tag, not {tag!r}; make an alert for each tag")
        # Where silence counts, something has to look when nobody reads.
        super().__init__(AfterReadings(None if missing is None else max(1, for_updates)))
        self.name = name or f"alert/{tag}"
        self.tag = tag
        self.above, self.below, self.clear = above, below, end
        self.for_updates = for_updates
        self.then = then
        self.relative_to = relative_to
        self.window = window
        self.missing = missing
        self.figure = figure or _value
        self._bound, self._sign = bound, sign
        self._matches = re.compile(re.escape(tag).replace(r"\*", ".*"), re.DOTALL).fullmatch
        self._latches: dict[str, _Latch] = {}
        self._recent: dict[str, deque[float]] = {}
        self._raised_total = 0
        self._callback_failed = False
        self._read = False

    def fire(self, site: Site) -> None:
        """Judge the readings that are new."""
        if self.missing is not None and not self._latches:
            self._latches[self.tag] = _Latch()
            self._judge(site, self._latches[self.tag], self.tag, 0, self.missing)
        for reading in site.fresh:
            if self._matches(reading.tag):
                self._read = True
                latch = self._latches.setdefault(reading.tag, _Latch())
                figure = self._relative(latch, reading.tag, float(self.figure(reading)))
                self._judge(site, latch, reading.tag, reading.step, figure)
        if self.missing is not None and not self._read:
            self._judge(site, self._latches[self.tag], self.tag, site.step, self.missing)

    def _relative(self, latch: _Latch, tag: str, figure: float) -> float:
        """Return the ratio to what came before; NaN where there is nothing to compare with."""
        if self.relative_to == "first":
            if latch.first is None and math.isfinite(figure):
                latch.first = figure
            return figure / latch.first if latch.first else math.nan
        if self.relative_to == "median":
            recent = self._recent.setdefault(tag, deque(maxlen=self.window))
            median = statistics.median(recent) if len(recent) == self.window else 0.0
            if math.isfinite(figure):
                recent.append(figure)
            return figure / median if median else math.nan
        return figure

    def _judge(self, site: Site, latch: _Latch, tag: str, step: int, figure: float) -> None:
        """Take one figure of one tag through the latch."""
        if math.isnan(figure):
            return
        latch.figure = figure
        out = self._sign * figure > self._sign * self._bound
        if not out:
            latch.since = None
        elif latch.since is None:
            latch.since = step
        if latch.raised:
            if self._sign * figure <= self._sign * self.clear:
                latch.raised = False
                site.note("note", tag, rule=self.name, ended_at=figure)
        elif latch.since is not None and step - latch.since >= self.for_updates:
            latch.raised = True
            self._raise(site, tag, figure, latch.since)

    def _raise(self, site: Site, tag: str, figure: float, since: int) -> None:
        side = "above" if self.above is not None else "below"
        detail = {"rule": self.name, self._what(): figure, side: self._bound, "since": since}
        site.note("alert", tag, **detail)
        event = site.events[-1]
        self._raised_total += 1
        warn(str(event))
        if self.then is None:
            return
        try:
            self.then(event)
        except Exception as error:
            logger.debug("the callback of %s failed", self.name, exc_info=True)
            if not self._callback_failed:
                self._callback_failed = True
                trouble = f"{type(error).__name__}: {error}"
                site.note("note", self.name, reason=f"its callback failed: {trouble}")
                warn(f"the callback of {self.name} failed ({trouble}); training goes on")

    def _what(self) -> str:
        if self.relative_to is None:
            return "value"
        return "ratio to the first" if self.relative_to == "first" else "ratio to the median"

    def state_dict(self) -> dict[str, Any]:
        """Return the latches, and what figures are relative to."""
        return {
            "latches": {tag: asdict(latch) for tag, latch in self._latches.items()},
            "recent": {tag: list(recent) for tag, recent in self._recent.items()},
            "raised_total": self._raised_total,
            "callback_failed": self._callback_failed,
            "read": self._read,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._latches = {tag: _Latch(**latch) for tag, latch in state["latches"].items()}
        self._recent = {tag: deque(row, self.window) for tag, row in state["recent"].items()}
        self._raised_total = int(state["raised_total"])
        self._callback_failed = bool(state["callback_failed"])
        self._read = bool(state["read"])

    def report(self) -> list[str]:
        """Say what is judged, and how often it was out of bounds."""
        if not self._latches:
            return [f"nothing was read under {self.tag!r} yet: nothing was judged"]
        if all(math.isnan(latch.figure) for latch in self._latches.values()):
            return [f"of {len(self._latches)} tags nothing could be judged yet"]
        lines = [f"judges {len(self._latches)} tags; raised {self._raised_total} times"]
        raised = [tag for tag, latch in self._latches.items() if latch.raised]
        return lines + [f"raised now: {tag} ({self._latches[tag].figure:g})" for tag in raised]

    def __deepcopy__(self, memo: dict[int, Any]) -> Alert:
        """Copy the rule but not what the callback belongs to: it is the user's own."""
        copied = copy.copy(self)
        memo[id(self)] = copied
        memo[id(self.then)], memo[id(self.figure)] = self.then, self.figure
        for key, value in vars(self).items():
            setattr(copied, key, copy.deepcopy(value, memo))
        return copied


def _value(reading: Reading) -> float:
    return math.nan if not reading.scalar else float(reading.value)
