"""The arms of a comparison: nothing, ReDo with each treatment of Adam's moments, a control."""

from __future__ import annotations

from typing import Any

import dynamo_probe as dp
from dynamo_probe.instrument import Instrument

MOMENTS = ("zero", "live-mean", "zero+step", "keep")
REDO_ARMS = tuple(f"redo {moments}" for moments in MOMENTS)
DEFAULT_REDO = f"redo {dp.ReDo().moments}"
TREATED_ARMS = ("base", *REDO_ARMS, "step reset")


class StepReset(dp.Treatment):
    """Set the step counters of Adam to 0 and recycle nothing.

    `moments="zero+step"` does this beside recycling, and it restarts Adam's bias correction for
    live units, too. This arm shows what that does by itself.
    """

    name = "step_reset"

    def fire(self, site: dp.Site) -> None:
        for optimizer in site.optimizers:
            for state in optimizer.state.values():
                state["step"].zero_()


def treatments(arm: str, *, tau: float, every: int, updates: int, **redo: Any) -> list[Instrument]:
    """Return the treatments of an arm.

    Args:
        arm: one of `TREATED_ARMS`; any other name is an arm without a treatment.
        tau: ReDo recycles units with a score of at most this.
        every: updates between two recyclings, or between two resets.
        updates: how many updates' batches ReDo scores the units on.
        redo: more arguments of `dp.ReDo`.
    """
    if arm == "step reset":
        return [StepReset(every)]
    if arm in REDO_ARMS:
        moments: Any = arm.removeprefix("redo ")
        return [dp.ReDo(tau, every, updates=updates, moments=moments, **redo)]
    return []
