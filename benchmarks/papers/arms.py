"""The arms of a comparison: nothing, ReDo, what else there is, and controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dynamo_probe as dp
from dynamo_probe.instrument import Instrument

MOMENTS = ("zero", "live-mean", "zero+step", "keep")
REDO_ARMS = tuple(f"redo {moments}" for moments in MOMENTS)
DEFAULT_REDO = f"redo {dp.ReDo().moments}"
TREATED_ARMS = ("base", *REDO_ARMS, "step reset")

# Each treatment with a few settings; `every` of an arm is once a task.
OTHERS: Mapping[str, Callable[[int], Instrument]] = {
    **{
        f"redo {moments} {tau:g}": lambda every, tau=tau, moments=moments: dp.ReDo(
            tau, every, updates=8, moments=moments
        )
        for moments in ("live-mean", "zero")
        for tau in (0.0, 0.1)
    },
    **{
        f"continual backprop {rate:g}": lambda every, rate=rate: dp.ContinualBackprop(rate)
        for rate in (1e-4, 1e-3, 1e-2)
    },
    **{
        f"continual backprop zero {rate:g}": lambda every, rate=rate: dp.ContinualBackprop(
            rate, moments="zero"
        )
        for rate in (1e-3, 1e-2)
    },
    **{
        f"regrama {tau:g}": lambda every, tau=tau: dp.ReGraMa(tau, every, updates=8)
        for tau in (0.01, 0.025, 0.1)
    },
    **{
        f"regrama zero {tau:g}": lambda every, tau=tau: dp.ReGraMa(
            tau, every, updates=8, moments="zero"
        )
        for tau in (0.01, 0.1)
    },
    **{
        f"shrink and perturb {shrink:g}": lambda every, shrink=shrink: dp.ShrinkAndPerturb(
            shrink, every=every
        )
        for shrink in (0.2, 0.5, 0.8, 0.95)
    },
    **{
        f"layer reset {layers}": lambda every, layers=layers: dp.LayerReset(layers, every)
        for layers in (1, 2, 4)
    },
    **{
        f"l2 init {strength:g}": lambda every, strength=strength: dp.L2Init(strength)
        for strength in (1e-4, 1e-3, 1e-2)
    },
    "layer norm, project": lambda every: dp.NormalizeAndProject(),
    # In the middle of the run.
    "injection": lambda every: dp.PlasticityInjection(10 * every),
    "injection, early": lambda every: dp.PlasticityInjection(every),
}
OTHER_ARMS = tuple(OTHERS)


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
        arm: one of `TREATED_ARMS` or `OTHER_ARMS`, or `redo random` and `redo inverted`, which
            recycle as many units by another score; any other name is an arm without a treatment.
        tau: ReDo recycles units with a score of at most this.
        every: updates between two recyclings, or between two resets.
        updates: how many updates' batches ReDo scores the units on.
        redo: more arguments of `dp.ReDo`.
    """
    if arm == "step reset":
        return [StepReset(every)]
    if arm in OTHERS:
        return [OTHERS[arm](every)]
    if arm in ("redo random", "redo inverted"):
        score: Any = arm.removeprefix("redo ")
        return [dp.ReDo(tau, every, score=score, updates=updates, **redo)]
    if arm == "redo live-mean xavier":
        return [dp.ReDo(tau, every, updates=updates, moments="live-mean", init="xavier", **redo)]
    if arm in REDO_ARMS:
        moments: Any = arm.removeprefix("redo ")
        return [dp.ReDo(tau, every, updates=updates, moments=moments, **redo)]
    return []
