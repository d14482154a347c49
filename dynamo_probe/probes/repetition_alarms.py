"""When repeated data should worry somebody; each alarm is raised once until its cause has gone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynamo_probe.functional.repetition import (
    UNKNOWN,
    damage_region,
    inside_region,
)
from dynamo_probe.observation.order import Order
from dynamo_probe.observation.tally import Tally
from dynamo_probe.site import Site
from dynamo_probe.warning import warn

SHARE, SHARE_CLEAR = 0.03, 0.02
"""Share of tokens inside the damage region: 3 % is the least that Hernandez et al. scanned."""
NEAR_ZERO, NEAR_ZERO_CLEAR = 0.1, 0.2
"""Loss on repeated tokens: relative to fresh ones, or in nats where there is none."""
RISEN, RISEN_CLEAR = 1.01, 1.005
"""Held-out loss relative to its lowest."""


@dataclass(slots=True)
class Alarms:
    """Which alarms are raised.

    Attributes:
        damaged: repeat counts lie in the damage region.
        memorising: the loss on repeated tokens is near 0 while the held-out loss rises.
        lowest: the lowest held-out loss; None before the first.
    """

    damaged: bool = False
    memorising: bool = False
    lowest: float | None = None

    def damage(self, site: Site, name: str, tokens: np.ndarray, parameters: float) -> None:
        """Judge the repeat counts.

        Args:
            site: the run.
            name: the instrument's name.
            tokens: tokens by class.
            parameters: N.
        """
        share = inside_region(tokens, parameters)
        if math.isnan(share):
            return
        site.emit(f"{name}/in_damage_region", share, int(tokens.sum()))
        if self.damaged:
            self.damaged = share >= SHARE_CLEAR
        elif share >= SHARE:
            self.damaged = True
            left, right = damage_region(parameters)
            reason = (
                f"{share:.1%} of the tokens have been seen {left:.0f} to {right:.0f} times: that "
                f"cost models of N = {parameters:.3g} parameters half the worst damage or more "
                "(Hernandez et al. 2022); deduplicate, or repeat less"
            )
            fraction = float(tokens[1:].sum() / tokens.sum())
            _raise(site, f"{name}: damage region", reason, fraction=fraction, share=share)

    def memorised(self, site: Site, name: str, tally: Tally, held_out: float | None) -> None:
        """Judge the loss on repeated tokens beside the held-out loss."""
        if held_out is None or math.isnan(float(held_out)):
            return
        held_out = float(held_out)
        site.emit(f"{name}/loss/held_out", held_out)
        self.lowest = held_out if self.lowest is None else min(self.lowest, held_out)
        repeated, seen = tally.mean_loss(slice(UNKNOWN, None))
        fresh, unseen = tally.mean_loss(slice(0, UNKNOWN))
        if not seen:
            return
        scale = fresh if unseen else 1.0
        if self.memorising:
            still = repeated <= NEAR_ZERO_CLEAR * scale and held_out > RISEN_CLEAR * self.lowest
            self.memorising = still
        elif repeated <= NEAR_ZERO * scale and held_out > RISEN * self.lowest:
            self.memorising = True
            reason = (
                f"the loss on repeated tokens is {repeated:.3g} while the held-out loss has risen "
                f"from {self.lowest:.4g} to {held_out:.4g}: repeated data is learnt by heart"
            )
            _raise(site, f"{name}: memorisation", reason, repeated=repeated, held_out=held_out)

    def state_dict(self) -> dict[str, Any]:
        """Return which are raised."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        for name, value in state.items():
            setattr(self, name, value)


def order_alarm(site: Site, name: str, order: Order, resumed: int | None) -> None:
    """Tell that updates repeat earlier ones row by row."""
    rows = (
        f"the rows of updates {order.begin} to {order.end} are those of updates "
        f"{order.first_begin} to {order.first_end}, in the same order"
    )
    if order.is_replay(resumed):
        what = "replay"
        reason = (
            f"{rows}, right after the resume at update {resumed}: the data loader has begun again "
            "at an earlier place; restore its position from the checkpoint, or skip what was seen"
        )
    else:
        what = "same order"
        reason = (
            f"{rows}: call sampler.set_epoch(epoch) before each epoch, shuffle, or seed the "
            "shuffling differently each time"
        )
    _raise(
        site,
        f"{name}: {what}",
        reason,
        updates=[order.begin, order.end],
        first_updates=[order.first_begin, order.first_end],
    )


def _raise(site: Site, subject: str, reason: str, **detail: Any) -> None:
    site.note("alert", subject, reason=reason, **detail)
    warn(str(site.events[-1]))
