"""Who fires, in which order, and what becomes of one that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dynamo_probe.agenda import Agenda, Timer
from dynamo_probe.budget import Budget
from dynamo_probe.instrument import Treatment
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable

logger = logging.getLogger("dynamo_probe")


class Conductor:
    """Lets instruments have their turn: probes, what looks at readings, then treatments.

    Attributes:
        site: the run.
        agenda: what is due when.
        strict: an instrument's failure is raised and not only told: for tests, and while the watch
            is being attached.
    """

    def __init__(self, site: Site, agenda: Agenda, warn: Callable[[str], None]) -> None:
        """Begin strict: a mistake that shows while attaching is the user's to see."""
        self.site = site
        self.agenda = agenda
        self.strict = True
        self._warn = warn

    def fire_due(self, step: int) -> bool:
        """Fire what is due; what follows the readings looks at them before anything acts.

        Returns:
            Whether a treatment was among them.
        """
        followed, heard = False, 0
        for timer in self.agenda.take_due(step):
            if timer.follows:
                continue
            if isinstance(timer.instrument, Treatment) and not followed:
                followed, heard = True, self._follow(0)
            self._fire(timer)
        if not followed or len(self.site.readings) > heard:
            self._follow(heard)
        return followed

    def _follow(self, heard: int) -> int:
        """Fire what follows the readings, and return how many it has seen then."""
        site = self.site
        site.fresh = site.readings[heard:]
        for timer in self.agenda.timers:
            wanted = bool(site.fresh) or timer.passed == site.step
            if timer.follows and wanted and timer.off is None:
                self._fire(timer)
        return len(site.readings)

    def keep_budget(self, budget: Budget, fired: bool) -> None:
        """Fire the riding probes less often where they cost too much, on all ranks alike."""
        budget.work_ends(fired)
        spent = budget.spent() if fired else None
        if spent is None:
            return
        budget.restart()
        # No rank decides by its own clock: that would put the ranks out of step.
        spent = self.site.largest_over_ranks(spent)
        factor = budget.stretch(spent)
        if factor > 1:
            chosen = self.agenda.stretch(self.site.step, factor)
            self.agenda.arm(self.site.step)
            self.site.note(
                "note", "budget", spent=round(spent, 4), allowed=budget.share, stretch=chosen
            )

    def _fire(self, timer: Timer) -> None:
        instrument = timer.instrument
        if isinstance(instrument, Treatment) and not instrument.enabled:
            return
        done = self.run(timer, instrument.fire)
        if done:
            timer.fired += 1
            timer.last = self.site.step

    def run(self, timer: Timer, action: Callable[[Site], None]) -> bool:
        """Run a part of an instrument; a failure disables it and goes no further."""
        name = timer.instrument.name
        try:
            action(self.site)
        except NotMeasurable as reason:
            if str(reason) not in timer.told:
                timer.told.add(str(reason))
                self.site.note("skipped", name, reason=str(reason))
            return False
        except Exception as error:
            if self.strict:
                raise
            timer.switch_off(f"{type(error).__name__}: {error}")
            logger.debug("%s failed", name, exc_info=True)
            self.site.note("disabled", name, reason=timer.off)
            self._warn(
                f"{name} failed at update {self.site.step} and is disabled, training goes on. "
                f"{timer.off}"
            )
            return False
        return True
