"""ReGraMa: recycle units that get no gradient (Liu et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from dynamo_probe.functional.moments import Moments
from dynamo_probe.schedule import Schedule
from dynamo_probe.site import Site
from dynamo_probe.treatments.redo import ReDo


class ReGraMa(ReDo):
    """Recycle the units whose gradient is small beside their layer's.

    Liu et al. 2025, *Measure gradients, not activations! Enhancing neuronal activity in deep
    reinforcement learning*: the score of a unit is E|dL/dz| over the mean of its layer, z being its
    value before the activation function (`functional.grama_activation_scores`). It sees units that
    have stopped to learn although they are active, and it has a meaning for any activation
    function. Everything else is as in `ReDo`: what is drawn, what is zeroed, what the optimizer
    forgets, the readings (`regrama/recycled`, ...) and the events.
    """

    name = "regrama"

    def __init__(
        self,
        tau: float = 0.01,
        every: int | Schedule = 1000,
        start: int = 0,
        end: int | None = None,
        score: Literal["dormancy", "random", "inverted"] = "dormancy",
        *,
        updates: int = 1,
        init: Literal["own", "xavier"] = "own",
        moments: Moments = "live-mean",
        mirror: nn.Module | Sequence[nn.Module] = (),
        layers: Sequence[str] | None = None,
    ) -> None:
        """Set what is recycled, when and how; see `ReDo`.

        Args:
            tau: threshold of the score, at least 0.
            every: period in updates, or a schedule (then without `start` and `end`).
            start: nothing is recycled before this update.
            end: nothing is recycled after this update.
            score: `random` and `inverted` are controls that take as many units of each layer.
            updates: how many updates before a firing are gathered for the scores.
            init: distribution of the fresh weights.
            moments: what becomes of the optimizer's state at the touched weights.
            mirror: networks of the same shape, such as target networks, that get the same weights.
            layers: names of the layers to treat; None takes all that can be recycled.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(
            tau,
            every,
            start,
            end,
            score,
            updates=updates,
            init=init,
            moments=moments,
            mirror=mirror,
            layers=layers,
        )

    def attach(self, site: Site) -> None:
        """Ask for gradients where `ReDo` asks for activations.

        Raises:
            ValueError: as `ReDo`, and when hooks cannot ride on the training's passes.
        """
        if site.no_riding is not None:
            raise ValueError(f"gradients cannot be seen here: {site.no_riding}")
        self.prepare(site)
        self.source, _ = site.observe_gradients(self)
